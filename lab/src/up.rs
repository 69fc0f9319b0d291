//! Brings a whole lab up and takes it down. Both may be repeated at any
//! point: `up` adds what is missing and restarts nothing that runs, `down`
//! ends whatever is there.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, MAX_HOSTS};
use crate::service;
use crate::state::{Lock, State};
use crate::{api, fabric, host, kvm, power, progress};

pub struct Wanted {
    pub hosts: Option<u8>,
    pub bare: bool,
}

pub fn up(layout: &Layout, wanted: &Wanted) -> Result<()> {
    let _lock = Lock::take(&layout.dir)?;
    let mut state = State::load(&layout.dir)?;
    power::end_strays(layout, &state)?;
    let is_new = state.hosts.is_empty();
    if !is_new && state.bare != wanted.bare {
        let (is, want) = if state.bare { ("bare", "full") } else { ("full", "bare") };
        bail!(
            "the lab in {} is a {is} one: `vireo-lab down` first to make a {want} one",
            layout.dir.display()
        );
    }
    let count = wanted.hosts.unwrap_or(if is_new { 3 } else { 0 });
    if count > MAX_HOSTS {
        bail!("--hosts {count}: a lab has at most {MAX_HOSTS} hosts");
    }
    if !wanted.bare {
        // Before anything is started: what would be missing at the end.
        api::check_programs(layout)?;
    }
    if is_new {
        // Those of an earlier lab in this directory would only mislead.
        remove_dir(&layout.logs())?;
        state.bare = wanted.bare;
        state.kvm = kvm::usable(layout)?;
    }
    for number in 1..=count {
        state.hosts.entry(format!("host{number}")).or_default();
    }
    progress(&format!(
        "guests run with {}",
        if state.kvm { "KVM" } else { "TCG (no probe guest booted with KVM)" }
    ));
    if fabric::ensure(layout, &mut state)? {
        progress("fabric is up");
    }
    let fabric_place = fabric::place(layout, api::running_fabric(&state)?);
    fabric::dhcp(layout).start(&fabric_place, &layout.exe)?;
    state.save(&layout.dir)?;

    let names: Vec<String> = state.hosts.keys().cloned().collect();
    for name in &names {
        let layout_host = layout.host(name)?;
        if host::ensure_on(layout, &mut state, &layout_host)? {
            progress(&format!("{name} is powered on"));
        }
    }
    for name in &names {
        let (layout_host, place) = host::running_place(layout, &state, name)?;
        if host::start_libvirtd(layout, &layout_host, &place)? {
            progress(&format!("libvirtd of {name} answers"));
        }
    }
    if !state.bare {
        control_plane(layout, &mut state, &names)?;
    }
    Ok(())
}

fn control_plane(layout: &Layout, state: &mut State, names: &[String]) -> Result<()> {
    progress("starting the API server");
    api::ensure_api(layout, state)?;
    progress("installing the chart");
    api::install_chart(layout)?;
    if api::ensure_controller(layout, state)? {
        progress("controller is started");
    }
    for name in names {
        api::ensure_host_object(layout, &layout.host(name)?)?;
    }
    for name in names {
        let (host, place) = host::running_place(layout, state, name)?;
        if api::start_daemon(layout, &host, &place)? {
            progress(&format!("node daemon of {name} is started"));
        }
    }
    api::wait_hosts_ready(layout, names)?;
    progress(&format!(
        "all {} hosts are Ready; export KUBECONFIG={}",
        names.len(),
        layout.kubeconfig().display()
    ));
    Ok(())
}

pub fn down(layout: &Layout, keep: bool) -> Result<()> {
    if !layout.dir.exists() {
        progress(&format!("there is no lab in {}", layout.dir.display()));
        return Ok(());
    }
    let _lock = Lock::take(&layout.dir)?;
    // A record that cannot be read must not keep the lab running.
    let mut state = State::load(&layout.dir).unwrap_or_else(|e| {
        progress(&format!("ignoring the lab's records: {e:#}"));
        State::default()
    });
    let had_fabric = state.fabric().is_some();
    power::end_all(layout, &mut state)?;
    if keep {
        state.save(&layout.dir)?;
    } else {
        // Logs stay, to find out afterwards what went wrong.
        for name in ["hosts", "shared", "api", "run"] {
            remove_dir(&layout.dir.join(name))?;
        }
        for name in ["state.json", "kubeconfig", "controller.kubeconfig"] {
            let path = layout.dir.join(name);
            if path.exists() {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
    }
    if had_fabric {
        progress(&format!("the lab in {} is down", layout.dir.display()));
    }
    Ok(())
}

fn remove_dir(path: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Starts, stops or kills one of the lab's long-running programs.
pub fn act(layout: &Layout, what: Program<'_>, verb: Verb) -> Result<()> {
    let _lock = Lock::take(&layout.dir)?;
    let mut state = State::load(&layout.dir)?;
    let (place, name) = match what {
        Program::Api => (fabric::place(layout, api::running_fabric(&state)?), api::API),
        Program::Controller => (fabric::place(layout, api::running_fabric(&state)?), api::CONTROLLER),
        Program::Libvirtd(host) => (host::running_place(layout, &state, host)?.1, host::LIBVIRTD),
        Program::Daemon(host) => (host::running_place(layout, &state, host)?.1, host::DAEMON),
    };
    let changed = match verb {
        Verb::Stop => service::stop(&place, name)?,
        Verb::Kill => service::kill(&place, name)?,
        Verb::Start => match what {
            Program::Api => {
                let was = service::running(&place, name).is_some();
                api::ensure_api(layout, &mut state)?;
                !was
            }
            Program::Controller => api::ensure_controller(layout, &state)?,
            Program::Libvirtd(host) => host::start_libvirtd(layout, &layout.host(host)?, &place)?,
            Program::Daemon(host) => api::start_daemon(layout, &layout.host(host)?, &place)?,
        },
    };
    let done = match verb {
        Verb::Start => "started",
        Verb::Stop => "stopped",
        Verb::Kill => "killed",
    };
    progress(&if changed {
        format!("{name} is {done}")
    } else {
        format!("{name} {} already", if matches!(verb, Verb::Start) { "runs" } else { "is down" })
    });
    Ok(())
}

#[derive(Debug, Clone, Copy)]
pub enum Program<'a> {
    Api,
    Controller,
    Libvirtd(&'a str),
    Daemon(&'a str),
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Verb {
    Start,
    /// Ask it to end (SIGTERM) and wait.
    Stop,
    /// SIGKILL.
    Kill,
}
