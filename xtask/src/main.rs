//! Generators and checks of the repository: `cargo xtask gen`, `cargo xtask check`, `cargo xtask bless`.

mod bounds;
mod generate;
mod policies;
mod purity;
mod reference;
mod sizes;

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Generators and checks of the repository")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write everything that is generated: CRD YAML, the chart's copy of it, admission policies, references.
    Gen,
    /// Fail if anything generated differs from what is committed, or a rule of the code base is broken.
    Check,
    /// Rewrite golden files from what the code does now; review the diff before committing it.
    Bless,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    match Args::parse().task {
        Task::Gen => {
            let written = generate::write(root)?;
            println!("{written} generated files are up to date");
        }
        Task::Check => check(root)?,
        Task::Bless => bless(root)?,
    }
    Ok(())
}

/// What a check finds wrong, a line each.
type Check = fn(&Path) -> Result<Vec<String>>;

fn check(root: &Path) -> Result<()> {
    let checks: [(&str, Check); 4] = [
        ("generated files", generate::check),
        ("schema bounds", bounds::check),
        ("purity of the plan crates", purity::check),
        ("file sizes", sizes::check),
    ];
    let mut failed = 0;
    for (name, run) in checks {
        let faults = run(root).with_context(|| format!("check of {name}"))?;
        println!("{}: {name}", if faults.is_empty() { "ok" } else { "FAILED" });
        for fault in &faults {
            println!("  {fault}");
        }
        failed += faults.len();
    }
    if failed > 0 {
        bail!("{failed} faults");
    }
    Ok(())
}

fn bless(root: &Path) -> Result<()> {
    generate::write(root)?;
    let status = Command::new("cargo")
        .args(["test", "--quiet", "-p", "controller-plan", "-p", "node-plan"])
        .env("VIREO_BLESS", "1")
        .current_dir(root)
        .status()
        .context("cannot run cargo test")?;
    if !status.success() {
        bail!("tests failed while writing goldens");
    }
    Ok(())
}
