//! vireo-lab: a small datacentre on one Linux machine, for the quickstart,
//! the tests and the benchmarks.

mod api;
mod cli;
mod fabric;
mod host;
mod image;
mod init;
mod init_start;
mod kvm;
mod layout;
mod power;
mod process;
mod relay;
mod root;
mod service;
mod state;
mod status;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vireo-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Progress is for people, and must not mix with what a command prints.
fn progress(message: &str) {
    eprintln!("vireo-lab: {message}");
}
