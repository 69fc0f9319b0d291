//! The command line of vireo-lab.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::layout::Layout;
use crate::state::{Cut, Lock, State};
use crate::up::{Program, Verb, Wanted};
use crate::{api, fabric, host, image, init, power, progress, relay, service, status, up};

/// A small datacentre on one Linux machine: hosts in namespaces, each with
/// its own libvirtd and node daemon, and a Kubernetes API for them.
///
/// Runs as root. The machine's own network, libvirt and files stay untouched.
#[derive(Debug, Parser)]
#[command(name = "vireo-lab", version)]
struct Cli {
    /// Directory of the lab's state; its name decides addresses and ports, so
    /// labs in different directories live side by side [default: target/lab]
    #[arg(long, global = true, value_name = "DIR", env = "VIREO_LAB_STATE")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Bring the lab up, or add what is missing of it
    Up {
        /// How many hosts, named host1, host2, ... [default: 3, or those there are]
        #[arg(long, value_name = "N")]
        hosts: Option<u8>,
        /// Hosts with a libvirtd only: no API, no controller, no node daemons
        #[arg(long)]
        bare: bool,
    },
    /// End everything of the lab and delete its data (logs are kept)
    Down {
        /// Keep disks and the API's data for the next `up`
        #[arg(long)]
        keep: bool,
    },
    /// Show what there is and what runs
    Status {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Run a command in a host
    Exec {
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Pull a host's plug, or switch it on
    Power { act: Power, host: String },
    /// Break a host's network, or mend it
    Network {
        act: Network,
        host: String,
        /// Only between the host and this one: another host, or `api`
        #[arg(long, value_name = "HOST|api")]
        from: Option<String>,
    },
    /// Print the logs of a host's node daemon and libvirtd
    Logs {
        host: String,
        /// Go on as they grow
        #[arg(short, long)]
        follow: bool,
    },
    /// Start, stop or kill a host's node daemon
    Daemon { act: Verb, host: String },
    /// Start, stop or kill a host's libvirtd
    Libvirtd { act: Verb, host: String },
    /// Start, stop or kill the API server
    Api { act: Verb },
    /// Start, stop or kill the controller
    Controller { act: Verb },
    /// Attach to a VM's serial console
    Console {
        #[arg(value_name = "NAMESPACE/VM")]
        vm: String,
        /// Print what the console has shown so far, and end
        #[arg(long)]
        log: bool,
    },
    /// Build a guest image from Debian packages
    Image {
        #[arg(value_enum)]
        which: image::Which,
        /// Where to put it [default: target/images]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    #[command(hide = true)]
    HostInit {
        #[arg(long)]
        lab: PathBuf,
        #[arg(long)]
        name: String,
        #[arg(long)]
        spec: PathBuf,
    },
    #[command(hide = true)]
    FabricInit {
        #[arg(long)]
        lab: PathBuf,
    },
    #[command(hide = true)]
    Spawn {
        #[arg(long)]
        pid_file: PathBuf,
        #[arg(long)]
        log: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        network: PathBuf,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        to: SocketAddr,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Power {
    /// Everything of the host ends at once, and its peers hear nothing
    Off,
    On,
    /// Off, then on
    Cycle,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    Cut,
    Heal,
}

pub fn run() -> Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Sub::HostInit { spec, .. } => return init::host(spec),
        Sub::FabricInit { .. } => return init::fabric(),
        Sub::Spawn { pid_file, log, command } => return service::spawn(pid_file, log, command),
        Sub::Relay { network, port, to } => return relay::run(network, *port, *to),
        _ => {}
    }
    let layout = Layout::new(cli.state.as_deref())?;
    match cli.command {
        Sub::Kubeconfig => {
            return said(writeln!(std::io::stdout(), "{}", layout.kubeconfig().display()));
        }
        Sub::Image { which, out } => {
            return image::build(which, &out.unwrap_or_else(|| layout.images.clone()));
        }
        _ => {}
    }
    if !rustix::process::geteuid().is_root() {
        bail!("a lab is made of namespaces and network interfaces: run it as root");
    }
    match cli.command {
        Sub::Up { hosts, bare } => up::up(&layout, &Wanted { hosts, bare }),
        Sub::Down { keep } => up::down(&layout, keep),
        Sub::Status { output } => show(&layout, output),
        Sub::Exec { host, command } => exec(&layout, &host, &command),
        Sub::Power { act, host } => power(&layout, act, &host),
        Sub::Network { act, host, from } => network(&layout, act, &host, from),
        Sub::Logs { host, follow } => logs(&layout, &host, follow),
        Sub::Daemon { act, host } => up::act(&layout, Program::Daemon(&host), act),
        Sub::Libvirtd { act, host } => up::act(&layout, Program::Libvirtd(&host), act),
        Sub::Api { act } => up::act(&layout, Program::Api, act),
        Sub::Controller { act } => up::act(&layout, Program::Controller, act),
        Sub::Console { vm, log } => console(&layout, &vm, log),
        Sub::HostInit { .. }
        | Sub::FabricInit { .. }
        | Sub::Spawn { .. }
        | Sub::Relay { .. }
        | Sub::Kubeconfig
        | Sub::Image { .. } => Ok(()),
    }
}

fn show(layout: &Layout, output: Output) -> Result<()> {
    let status = status::collect(layout, &State::load(&layout.dir)?)?;
    let mut out = std::io::stdout().lock();
    said(match output {
        Output::Table => status::print(&status, &mut out),
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?),
    })
}

/// A reader that has seen enough and closed the pipe is no failure.
fn said(outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to standard output"),
    }
}

fn exec(layout: &Layout, host: &str, command: &[OsString]) -> Result<()> {
    let (_, place) = host::running_place(layout, &State::load(&layout.dir)?, host)?;
    let [program, args @ ..] = command else { bail!("no command to run in {host}") };
    become_command(place.command(Path::new(program)).args(args).env("LIBVIRT_DEFAULT_URI", "qemu:///system"))
}

/// Replaces this process, so that signals and the exit status pass straight
/// through.
fn become_command(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    Err(command.exec()).with_context(|| format!("cannot run {}", program.display()))
}

fn power(layout: &Layout, act: Power, name: &str) -> Result<()> {
    let _lock = Lock::take(&layout.dir)?;
    let mut state = State::load(&layout.dir)?;
    if matches!(act, Power::Off | Power::Cycle) {
        let was_on = power::off(layout, &mut state, name)?;
        progress(&format!("{name} is {}", if was_on { "off" } else { "off already" }));
    }
    if matches!(act, Power::On | Power::Cycle) {
        let was_off = power::on(layout, &mut state, name)?;
        progress(&format!("{name} is {}", if was_off { "on" } else { "on already" }));
    }
    Ok(())
}

fn network(layout: &Layout, act: Network, name: &str, from: Option<String>) -> Result<()> {
    let _lock = Lock::take(&layout.dir)?;
    let mut state = State::load(&layout.dir)?;
    let known = |name: &str| state.hosts.contains_key(name);
    if !known(name) {
        bail!("this lab has no host {name:?}");
    }
    if let Some(other) = &from
        && (other == name || (other != "api" && !known(other)))
    {
        bail!("--from {other}: must be another host of this lab, or api");
    }
    let cut = Cut { host: name.to_owned(), from };
    match act {
        Network::Cut => {
            state.cuts.insert(cut);
        }
        // Whichever side a cut was made from; without --from all of them.
        Network::Heal => state.cuts.retain(|made| match &cut.from {
            None => made.host != name && made.from.as_deref() != Some(name),
            Some(other) => !(made == &cut || (&made.host == other && made.from.as_deref() == Some(name))),
        }),
    }
    state.save(&layout.dir)?;
    fabric::apply_cuts(layout, &state)
}

fn logs(layout: &Layout, name: &str, follow: bool) -> Result<()> {
    let host = layout.host(name)?;
    let files: Vec<PathBuf> = ["init.log", "libvirtd.log", "vireo-node.log"]
        .iter()
        .map(|name| host.logs.join(name))
        .filter(|path| path.exists())
        .collect();
    if files.is_empty() {
        bail!("{name} has no logs in {}", host.logs.display());
    }
    let mut tail = Command::new("tail");
    if follow {
        tail.arg("-F");
    }
    become_command(tail.args(["-n", "+1", "--"]).args(files))
}

fn console(layout: &Layout, vm: &str, log: bool) -> Result<()> {
    let Some((namespace, name)) = vm.split_once('/') else {
        bail!("{vm:?}: a VM is named NAMESPACE/VM, for example default/first");
    };
    let host = api::host_of_vm(layout, namespace, name)?;
    let (_, place) = host::running_place(layout, &State::load(&layout.dir)?, &host)?;
    let mut attach = place.command(&layout.program("vireo-node")?);
    attach.args(["console", vm]);
    if log {
        attach.arg("--log");
    }
    become_command(&mut attach)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_for_a_host_keeps_its_own_options() {
        let cli = Cli::try_parse_from(["vireo-lab", "exec", "host1", "--", "ls", "--state", "x"]).unwrap();
        let Sub::Exec { host, command } = cli.command else { panic!("not exec") };
        assert_eq!((host.as_str(), command.len(), cli.state), ("host1", 3, None));
    }
}
