//! Many hosts in one process, taking orders from standard input: see `system_tests::fleet`.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;
use node_daemon::telemetry::{self, LogFormat};
use system_tests::{
    client::config,
    fleet::{
        hollow::{HollowConfig, HollowFleet},
        process::serve,
    },
};

#[derive(Parser)]
struct Arguments {
    /// Kubeconfig of the administrator; each daemon speaks as its own host.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Milliseconds from the start of a guest until its agent speaks.
    #[arg(long, default_value_t = 50)]
    boot_ms: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    telemetry::init(LogFormat::Text);
    let config = config(&arguments.kubeconfig).await?;
    serve(HollowFleet::new(HollowConfig::new(config, Duration::from_millis(arguments.boot_ms)))?).await
}
