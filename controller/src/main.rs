//! `vireo-controller`.

use clap::Parser;
use controller::{
    args::{Cli, Command},
    error::{Error, chain},
    explain, init, run, telemetry,
};

async fn obey(cli: Cli) -> Result<(), Error> {
    telemetry::start(&cli.log, cli.log_format)?;
    if fail_points::arm_from_environment().map_err(Error::Config)? {
        tracing::warn!("fail points are armed: this process may end on purpose");
    }
    match cli.command {
        Command::Run(args) => run::run(args).await,
        Command::Explain(args) => explain::run(run::configuration(&args.connect).await?, &args.vm).await,
        Command::Init(connect) => init::init(run::configuration(&connect).await?).await,
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match obey(Cli::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vireo-controller: {}", chain(&error));
            std::process::ExitCode::FAILURE
        }
    }
}
