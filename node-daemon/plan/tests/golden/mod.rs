//! Folders of goldens: one case is one folder, and adding one needs no code.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// The cases under `testdata/<kind>`, by name.
pub fn cases(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(kind);
    let mut cases: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no case under {}", root.display());
    cases
}

/// Name of a case.
pub fn name(case: &Path) -> String {
    case.file_name().unwrap().to_string_lossy().into_owned()
}

/// A file of a case as YAML.
pub fn yaml<T: serde::de::DeserializeOwned>(case: &Path, file: &str) -> T {
    let path = case.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares a result with the golden beside it, or with VIREO_BLESS=1 makes it the golden.
#[allow(dead_code, reason = "only one of the suites that share this file records results")]
pub fn check(case: &Path, file: &str, result: &str) {
    let path = case.join(file);
    if std::env::var_os("VIREO_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, result).unwrap();
        return;
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == result,
        "{} differs; if the change is meant, run with VIREO_BLESS=1 and look at the diff\n--- is now\n{result}",
        path.display()
    );
}

/// Says by name that a test cannot run here; `make test` lists it as skipped.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    let Some(path) = std::env::var_os("VIREO_SKIP_LOG") else { return };
    if let Ok(mut log) = fs::OpenOptions::new().append(true).create(true).open(path) {
        // A lost line only shortens the list of skips; the test itself still says so.
        let _ = writeln!(log, "{test}: {why}");
    }
}

/// Whether a program can be run at all.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}
