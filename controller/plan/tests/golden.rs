//! Golden cases: `testdata/<kind>/<case>/{world,plan}.yaml`. A case is a folder; adding one needs no code. A VM's case
//! with a file `explain.txt` is explained too. `VIREO_BLESS=1` writes what is planned and explained now into the files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};

use controller_plan::{Key, Step, World, effect, explain, lint};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let folders = |at: &Path| {
        let mut found: Vec<_> =
            std::fs::read_dir(at).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
        found.sort();
        found
    };
    folders(&root).iter().flat_map(|kind| folders(kind)).collect()
}

fn check(case: &Path) -> Result<(), String> {
    let file = support::load(&case.join("world.yaml"));
    let mut world = file.build();
    let plan = support::plan(&world, &file.plan, file.now, "fresh-1");
    let found = lint::lint(&world, &plan);
    if !found.is_empty() {
        return Err(format!("the plan breaks rules: {found:?}"));
    }
    let golden = case.join("plan.yaml");
    let text = support::as_yaml(&plan);
    if std::env::var_os("VIREO_BLESS").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    if expected != text {
        return Err(format!("the plan differs from plan.yaml:\n{text}"));
    }
    explained(case, &world, &file)?;
    // After making a Disk, or adopting a grant, there is more to decide at once.
    let goes_on = |s: &Step| {
        matches!(s, Step::CreateDisk { .. })
            || matches!(s, Step::SetPlacement { status, .. } if status.state.is_none())
    };
    let rounds = if plan.steps.iter().any(goes_on) { 3 } else { 1 };
    let mut next = plan;
    for round in 1..=rounds {
        effect::apply_plan(&mut world, &next, file.now).map_err(|e| format!("round {round}: {e}"))?;
        next = support::plan(&world, &file.plan, file.now, &format!("fresh-{}", round + 1));
        let found = lint::lint(&world, &next);
        if !found.is_empty() {
            return Err(format!("round {round}: the next plan breaks rules: {found:?}"));
        }
    }
    if next.is_empty() {
        Ok(())
    } else {
        Err(format!("planning again does not come to rest:\n{}", support::as_yaml(&next)))
    }
}

/// What is said of the VM before anything is carried out.
fn explained(case: &Path, world: &World, file: &support::WorldFile) -> Result<(), String> {
    let golden = case.join("explain.txt");
    let vm = world.vm(&Key::new("default", &file.plan.name)).filter(|_| golden.exists());
    let Some(vm) = vm else { return Ok(()) };
    let text = explain(world, vm).to_string();
    if std::env::var_os("VIREO_BLESS").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    if std::fs::read_to_string(&golden).unwrap_or_default() != text {
        return Err(format!("the explanation differs from explain.txt:\n{text}"));
    }
    Ok(())
}

#[test]
fn every_case_plans_as_written_and_comes_to_rest() {
    let cases = cases();
    assert!(!cases.is_empty(), "no cases found");
    let mut bad = Vec::new();
    for case in &cases {
        let outcome = std::panic::catch_unwind(|| check(case)).unwrap_or_else(|_| Err("panicked".into()));
        if let Err(why) = outcome {
            bad.push(format!("{}: {why}", case.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display()));
        }
    }
    println!("{} cases", cases.len());
    assert!(bad.is_empty(), "{} of {} cases:\n{}", bad.len(), cases.len(), bad.join("\n\n"));
}
