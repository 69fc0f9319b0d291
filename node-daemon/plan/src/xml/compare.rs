//! Decides in which owned fields a live domain differs from the wanted one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{cpu::CpuMode, domain::DomainConfig, os::machine_is};

/// One field in which two domains differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldDiff {
    /// Path in [`DomainConfig`], such as `memory` or `interfaces[eth0].link`. A device that only one side has is one
    /// difference of the device as a whole.
    pub path: String,
    /// What it should be; none: it should not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// What it is; none: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<String>,
}

/// Owned fields in which `live` differs from `wanted`, by path. Metadata is bookkeeping and not compared.
pub fn compare(wanted: &DomainConfig, live: &DomainConfig) -> Vec<FieldDiff> {
    let live = as_wanted(wanted, live.clone());
    let mut wanted = wanted.clone();
    wanted.metadata = None;
    let (wanted, live) = (fields(&wanted), fields(&live));
    let paths: BTreeSet<&String> = wanted.keys().chain(live.keys()).collect();
    let differences: Vec<FieldDiff> = paths
        .into_iter()
        .filter(|path| wanted.get(*path) != live.get(*path))
        .map(|path| FieldDiff {
            path: path.clone(),
            wanted: wanted.get(path).cloned(),
            live: live.get(path).cloned(),
        })
        .collect();
    whole_devices(differences, &wanted, &live)
}

/// `live` with every value that is merely libvirt's way to say what `wanted` says put as `wanted` puts it, and every
/// field that `wanted` leaves to libvirt left out.
fn as_wanted(wanted: &DomainConfig, mut live: DomainConfig) -> DomainConfig {
    live.metadata = None;
    if machine_is(&wanted.os.machine, &live.os.machine) {
        live.os.machine.clone_from(&wanted.os.machine);
    }
    // A running domain shows the model that host-model became.
    if wanted.cpu.mode == CpuMode::HostModel && matches!(live.cpu.mode, CpuMode::Named(_)) {
        live.cpu.mode = CpuMode::HostModel;
    }
    // libvirt adds ports below devices that somebody else attached.
    live.root_ports = live.root_ports.min(wanted.root_ports);
    for nic in &mut live.interfaces {
        let Some(like) = wanted.interfaces.iter().find(|other| other.name == nic.name) else { continue };
        if like.mtu.is_none() {
            nic.mtu = None;
        }
        if like.device.is_none() {
            nic.device = None;
        }
    }
    if let (Some(tpm), Some(None)) = (&mut live.tpm, wanted.tpm.as_ref().map(|tpm| &tpm.state_dir)) {
        tpm.state_dir = None;
    }
    live
}

/// Every leaf of a document by its path; members of lists by name, kind, their own text or place.
pub(crate) fn fields(domain: &DomainConfig) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    flatten(String::new(), &serde_json::to_value(domain).unwrap_or_default(), &mut leaves);
    leaves
}

fn flatten(path: String, value: &Value, leaves: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(path, member, leaves);
            }
        }
        Value::Array(members) => {
            for (place, member) in members.iter().enumerate() {
                let named = ["name", "kind"].iter().find_map(|key| member.get(key)?.as_str());
                let key = named.or(member.as_str()).map(str::to_owned);
                flatten(format!("{path}[{}]", key.unwrap_or_else(|| place.to_string())), member, leaves);
            }
        }
        Value::String(text) => drop(leaves.insert(path, text.clone())),
        Value::Null => {}
        other => drop(leaves.insert(path, other.to_string())),
    }
}

/// Puts the differences of a device that one side lacks together into one.
fn whole_devices(
    differences: Vec<FieldDiff>,
    wanted: &BTreeMap<String, String>,
    live: &BTreeMap<String, String>,
) -> Vec<FieldDiff> {
    let lacks = |side: &BTreeMap<String, String>, device: &str| {
        !side.keys().any(|path| device_of(path) == Some(device))
    };
    let mut merged: Vec<FieldDiff> = Vec::new();
    for difference in differences {
        let whole = device_of(&difference.path).filter(|device| lacks(wanted, device) || lacks(live, device));
        let Some(device) = whole else {
            merged.push(difference);
            continue;
        };
        if merged.last().is_some_and(|last| last.path == device) {
            continue;
        }
        let present = |side| if lacks(side, device) { None } else { Some("present".to_owned()) };
        merged.push(FieldDiff { path: device.to_owned(), wanted: present(wanted), live: present(live) });
    }
    merged
}

/// `disks[root]` of `disks[root].source.path`; also `tpm` of `tpm.model`.
fn device_of(path: &str) -> Option<&str> {
    const SINGLE: [&str; 7] = ["balloon", "rng", "serial", "sysinfo", "tpm", "video", "watchdog"];
    if let Some(end) = path.find(']') {
        return path.get(..=end);
    }
    let head = path.split('.').next()?;
    SINGLE.contains(&head).then_some(head)
}
