//! What system tests share: a real API server with the chart installed, waiting, and saying what was skipped.

pub mod apiserver;
pub mod client;
pub mod fake_host;
pub mod faulty_api;
pub mod fleet;
pub mod lab;
pub mod requests;
pub mod wait;

use std::{fs::OpenOptions, io::Write, path::PathBuf};

/// Root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Says by name that a test cannot run here; `make test` lists it as skipped.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    let Some(path) = std::env::var_os("VIREO_SKIP_LOG") else { return };
    if let Ok(mut log) = OpenOptions::new().append(true).create(true).open(path) {
        // A lost line only shortens the list of skips; the test itself still says so.
        let _ = writeln!(log, "{test}: {why}");
    }
}
