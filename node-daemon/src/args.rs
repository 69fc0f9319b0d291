//! Flags and environment of `vireo-node`, read once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{console, http::Listen, import, join, telemetry::LogFormat};

/// Makes one KVM host true: virtual machines, disks, networks as the API declares them.
#[derive(Debug, Parser)]
#[command(name = "vireo-node", version)]
pub struct Arguments {
    /// How log lines look. What is logged is set by the variable VIREO_LOG.
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    Run(RunArgs),
    /// Make this machine a host: key, token, certificate, systemd unit.
    Join(join::JoinArgs),
    /// Tell what would hinder this machine from being a host.
    Check(join::check::CheckArgs),
    /// Put a local file into a storage domain.
    Import(import::ImportArgs),
    /// Attach to the serial console of a VM on this host.
    Console(console::ConsoleArgs),
    /// Open the screen of a VM on this host.
    Vnc(console::VncArgs),
}

/// Which host the daemon drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HostDriverKind {
    /// This machine, through libvirt.
    Libvirt,
    /// A host in memory, whose guests are kept in the run directory. For trying things out.
    Memory,
}

/// Flags of the daemon.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Directory with node.yaml, key, certificates and token.
    #[arg(long, default_value = "/etc/vireo", env = "VIREO_ETC_DIR")]
    pub etc_dir: PathBuf,
    /// Directory that survives a boot.
    #[arg(long, env = "VIREO_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory that a boot empties.
    #[arg(long, env = "VIREO_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// libvirt URI; left out, the monolithic or modular daemon of this machine.
    #[arg(long)]
    pub libvirt_uri: Option<String>,
    /// Which host to drive.
    #[arg(long, value_enum, default_value = "libvirt")]
    pub host_driver: HostDriverKind,
    /// Where to serve health and metrics: unix:/path or an address such as 127.0.0.1:9441. Default: metrics.sock in the run directory.
    #[arg(long)]
    pub http: Option<Listen>,
    /// kubeconfig to use instead of what `join` left in the etc directory; then --host is needed too.
    #[arg(long, requires = "host")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the Host; left out, the one in node.yaml.
    #[arg(long)]
    pub host: Option<String>,
}
