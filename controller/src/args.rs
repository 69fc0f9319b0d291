//! Flags and environment, read once.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::lease::Timing;

/// The controller of Vireo: decides for the fleet which host runs what.
#[derive(Debug, Parser)]
#[command(name = "vireo-controller", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log, as in `controller=debug,info,kube_client=off`; kube_client repeats what is logged anyway.
    #[arg(
        long,
        global = true,
        env = "VIREO_LOG",
        value_name = "FILTER",
        default_value = "info,kube_client=off"
    )]
    pub log: String,
    /// How to log.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the controller until it is told to stop.
    Run(RunArgs),
    /// Makes the HostCluster `default` unless there is one.
    Init(Connect),
    /// Prints why a VM is where it is, and what every other host lacks.
    Explain(ExplainArgs),
}

/// How to reach the API server.
#[derive(Debug, Clone, Args)]
pub struct Connect {
    /// Kubeconfig of the API server; left out, KUBECONFIG or the pod's own ServiceAccount.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// What to explain.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// How to reach the API server.
    #[command(flatten)]
    pub connect: Connect,
    /// The VM; its namespace is `default` if left out.
    #[arg(value_name = "[NAMESPACE/]VM")]
    pub vm: String,
}

/// Settings of a run.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// How to reach the API server.
    #[command(flatten)]
    pub connect: Connect,
    /// Address for metrics, health and readiness.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// How long others wait after a leader's last renewal.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub lease_duration: Duration,
    /// How long a leader leads after its last renewal.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub lease_renew_deadline: Duration,
    /// How often a leader renews, and others look.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub lease_retry_period: Duration,
    /// Objects looked at in parallel.
    #[arg(long, value_name = "NUMBER", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line each.
    Text,
    /// One JSON object each.
    Json,
}

impl RunArgs {
    /// Times of the election.
    pub fn timing(&self) -> Timing {
        Timing {
            duration: self.lease_duration,
            renew_deadline: self.lease_renew_deadline,
            retry_period: self.lease_retry_period,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.trim_end_matches('s').parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}
