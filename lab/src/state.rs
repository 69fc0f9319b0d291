//! Keeps what a lab consists of in `state.json`, and lets one command at a
//! time change it. What runs is asked from the kernel, never believed from
//! the file: a record counts only while its process lives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::process::Identity;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Boot id of the machine; PIDs of another boot mean nothing.
    pub machine_boot: String,
    /// Hosts with a libvirtd only: no API, no controller, no node daemons.
    pub bare: bool,
    /// Whether a probe guest booted with KVM, so that hosts are given it.
    pub kvm: bool,
    pub fabric: Option<Identity>,
    pub relay_port: Option<u16>,
    pub hosts: BTreeMap<String, HostState>,
    pub cuts: BTreeSet<Cut>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostState {
    /// The host's first process; none while its power is off.
    pub init: Option<Identity>,
}

/// A broken piece of network: a host cut from one other party, or from all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    pub host: String,
    /// Another host or `api`; none means everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl State {
    /// Reads the state; a lab that never was has the empty one.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("state.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let mut state: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let boot = machine_boot()?;
        if state.machine_boot != boot {
            state.fabric = None;
            state.hosts.values_mut().for_each(|host| host.init = None);
        }
        Ok(state)
    }

    pub fn save(&mut self, dir: &Path) -> Result<()> {
        self.machine_boot = machine_boot()?;
        let text = serde_json::to_string_pretty(self)?;
        write_atomically(&dir.join("state.json"), text.as_bytes())
    }

    pub fn fabric(&self) -> Option<Identity> {
        self.fabric.filter(|init| init.alive())
    }

    /// The host's first process, if its power is on.
    pub fn host_init(&self, name: &str) -> Option<Identity> {
        self.hosts.get(name)?.init.filter(|init| init.alive())
    }
}

/// Held by every command that changes a lab, or builds an image.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    pub fn take(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Self::file(&dir.join("lock"))
    }

    pub fn file(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            crate::progress(&format!("waiting for another vireo-lab that holds {}", path.display()));
            flock(&file, FlockOperation::LockExclusive).with_context(|| path.display().to_string())?;
        }
        Ok(Self { _file: file })
    }
}

pub fn machine_boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).context(path)?.trim().to_owned())
}

pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_that_never_was_is_empty_and_what_is_saved_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), State::default());
        let me = Identity::of(std::process::id() as i32);
        let mut state = State { fabric: me, relay_port: Some(1), ..State::default() };
        state.hosts.insert("host1".into(), HostState { init: me });
        state.cuts.insert(Cut { host: "host1".into(), from: Some("api".into()) });
        state.save(dir.path()).unwrap();
        let again = State::load(dir.path()).unwrap();
        assert_eq!(again, state);
        assert_eq!(again.host_init("host1"), me);
        assert_eq!(again.host_init("host2"), None);
    }

    #[test]
    fn processes_of_an_earlier_boot_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let me = Identity::of(std::process::id() as i32);
        let mut state = State { fabric: me, ..State::default() };
        state.hosts.insert("host1".into(), HostState { init: me });
        state.save(dir.path()).unwrap();
        let path = dir.path().join("state.json");
        let text = fs::read_to_string(&path).unwrap().replace(&state.machine_boot, "another");
        fs::write(&path, text).unwrap();
        let again = State::load(dir.path()).unwrap();
        assert_eq!((again.fabric, again.host_init("host1")), (None, None));
        assert!(again.hosts.contains_key("host1"));
    }
}
