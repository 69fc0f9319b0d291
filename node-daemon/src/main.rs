//! `vireo-node`: reads its flags and does one thing.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use node_daemon::{
    args::{Arguments, Command},
    console, daemon, import, join, telemetry,
};

// Calls that block have threads of their own: what is left needs few.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::init(arguments.log_format);
    match fail_points::arm_from_environment() {
        Ok(false) => {}
        Ok(true) => tracing::warn!("fail points are armed: this process may end on purpose"),
        Err(error) => {
            eprintln!("vireo-node: {error}");
            return ExitCode::FAILURE;
        }
    }
    match run(arguments.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vireo-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => daemon::run(args).await?,
        Command::Join(args) => join::run(args).await?,
        Command::Check(args) => join::check::run(args).await?,
        Command::Import(args) => import::run(args).await?,
        Command::Console(args) => console::run_console(args).await?,
        Command::Vnc(args) => console::run_vnc(args).await?,
    }
    Ok(())
}
