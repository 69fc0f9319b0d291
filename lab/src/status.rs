//! Shows what of a lab is there and runs, as people or programs read it.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::layout::Layout;
use crate::process::Identity;
use crate::service;
use crate::state::{Cut, State};
use crate::{api, fabric, host, relay};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub state_dir: PathBuf,
    pub running: bool,
    pub bare: bool,
    pub kvm: bool,
    pub fabric: Option<Fabric>,
    pub hosts: Vec<Host>,
    pub cuts: Vec<Cut>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fabric {
    /// The machine's PID of the fabric's first process.
    pub pid: i32,
    pub api: Process,
    pub controller: Process,
    pub relay: Process,
    pub api_url: String,
    pub relay_url: Option<String>,
    pub kubeconfig: PathBuf,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    pub name: String,
    pub power: &'static str,
    /// The machine's PID of the host's first process.
    pub pid: Option<i32>,
    pub address: String,
    pub uuid: String,
    pub machine_id: String,
    pub boot_id: Option<String>,
    pub libvirtd: Process,
    pub libvirt_uri: Option<String>,
    pub daemon: Process,
    pub directory: PathBuf,
    pub logs: PathBuf,
}

/// A long-running program; its PID is the machine's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    pub running: bool,
    pub pid: Option<i32>,
}

impl From<Option<Identity>> for Process {
    fn from(found: Option<Identity>) -> Self {
        Self { running: found.is_some(), pid: found.map(|found| found.pid) }
    }
}

pub fn collect(layout: &Layout, state: &State) -> Result<Status> {
    let fabric = state.fabric().map(|init| {
        let place = fabric::place(layout, init);
        Fabric {
            pid: init.pid,
            api: service::running(&place, api::API).into(),
            controller: service::running(&place, api::CONTROLLER).into(),
            relay: service::running(&relay::place(layout, init), relay::NAME).into(),
            api_url: layout.api_url(),
            relay_url: state.relay_port.map(|port| format!("https://127.0.0.1:{port}")),
            kubeconfig: layout.kubeconfig(),
        }
    });
    let hosts =
        state.hosts.keys().map(|name| host_status(layout, state, name)).collect::<Result<Vec<_>>>()?;
    Ok(Status {
        state_dir: layout.dir.clone(),
        running: fabric.is_some(),
        bare: state.bare,
        kvm: state.kvm,
        fabric,
        hosts,
        cuts: state.cuts.iter().cloned().collect(),
    })
}

fn host_status(layout: &Layout, state: &State, name: &str) -> Result<Host> {
    let host = layout.host(name)?;
    let init = state.host_init(name);
    let service = |service: &str| {
        Process::from(init.and_then(|init| service::running(&host::place(&host, init), service)))
    };
    Ok(Host {
        power: if init.is_some() { "on" } else { "off" },
        pid: init.map(|init| init.pid),
        address: host.address.to_string(),
        uuid: host.uuid.to_string(),
        machine_id: host.machine_id.clone(),
        boot_id: init.and_then(host::boot_id),
        libvirtd: service(host::LIBVIRTD),
        libvirt_uri: init
            .map(|init| format!("qemu+unix:///system?socket={}", host::libvirt_socket(init).display())),
        daemon: service(host::DAEMON),
        directory: host.dir.clone(),
        logs: host.logs.clone(),
        name: host.name,
    })
}

/// For people.
pub fn print(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let up = |process: &Process| if process.running { "running" } else { "down" };
    writeln!(out, "lab         {}", status.state_dir.display())?;
    match &status.fabric {
        None => writeln!(out, "fabric      down")?,
        Some(fabric) => {
            writeln!(out, "fabric      running")?;
            writeln!(out, "accelerator {}", if status.kvm { "kvm" } else { "tcg" })?;
            if !status.bare {
                writeln!(out, "api         {} at {}", up(&fabric.api), fabric.api_url)?;
                writeln!(out, "controller  {}", up(&fabric.controller))?;
                writeln!(out, "kubeconfig  {}", fabric.kubeconfig.display())?;
            }
        }
    }
    if !status.hosts.is_empty() {
        writeln!(
            out,
            "\n{:<8} {:<6} {:<9} {:<9} {:<15} BOOT ID",
            "HOST", "POWER", "LIBVIRTD", "DAEMON", "ADDRESS"
        )?;
    }
    for host in &status.hosts {
        let daemon = if status.bare { "-" } else { up(&host.daemon) };
        writeln!(
            out,
            "{:<8} {:<6} {:<9} {:<9} {:<15} {}",
            host.name,
            host.power,
            up(&host.libvirtd),
            daemon,
            host.address,
            host.boot_id.as_deref().unwrap_or("-")
        )?;
    }
    for cut in &status.cuts {
        writeln!(out, "network cut: {} from {}", cut.host, cut.from.as_deref().unwrap_or("everything"))?;
    }
    Ok(())
}
