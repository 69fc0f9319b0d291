//! What a lab says about things that cannot be done, on its objects and in its logs.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Lab, condition};

impl Lab {
    /// Waits until a condition of an object is not True and its message holds every one of these words; the object.
    pub fn until_said(&self, kind: &str, name: &str, type_: &str, words: &[&str]) -> Result<Value> {
        self.until(&format!("{kind} {name} says {words:?} in {type_}"), Duration::from_secs(60), || {
            let object = self.get(kind, name)?;
            let said =
                condition(&object, type_).with_context(|| format!("no {type_}: {}", object["status"]))?;
            let message = said["message"].as_str().unwrap_or_default();
            if said["status"] == "True" || !words.iter().all(|word| message.contains(word)) {
                bail!("{said}");
            }
            Ok(object)
        })
    }

    /// Waits until a condition of an object is True; the object.
    pub fn until_true(&self, kind: &str, name: &str, type_: &str) -> Result<Value> {
        self.until(&format!("{kind} {name} {type_}"), Duration::from_secs(120), || {
            let object = self.get(kind, name)?;
            let said = condition(&object, type_).cloned().unwrap_or(Value::Null);
            ensure!(said["status"] == "True", "{}", object["status"]);
            Ok(object)
        })
    }

    /// Logs of the controller and of the node daemons, and how long each is.
    pub fn logs(&self) -> Result<Vec<(PathBuf, u64)>> {
        let logs = self.state_dir().join("logs");
        let mut found = vec![logs.join("controller.log")];
        for entry in fs::read_dir(&logs)?.flatten() {
            found.push(entry.path().join("vireo-node.log"));
        }
        found.retain(|path| path.is_file());
        ensure!(found.len() > 1, "no logs in {}", logs.display());
        found
            .into_iter()
            .map(|path| fs::metadata(&path).map(|log| (path, log.len())).context("a log"))
            .collect()
    }

    /// Fails if a log tells of a panic.
    pub fn nothing_panicked(&self) -> Result<()> {
        for (path, _) in self.logs()? {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            if let Some(line) = text.lines().find(|line| line.contains("panicked")) {
                bail!("{}: {line}", path.display());
            }
        }
        Ok(())
    }
}
