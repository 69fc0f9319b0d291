//! Decides what becomes of fields of a running domain that somebody changed by hand: put right on the live domain where
//! the guest can bear it, else explained field by field until the next boot makes them right.
//!
//! Links, memory, vCPUs and devices that come or go as a whole have facts of their own; `diff` looks at those.

use vireo_crds::v1alpha1::{Applies, PendingChange};

use super::diff::{SEED_DISK, short};
use crate::{
    facts::{Built, LiveDomain},
    step::VmStep,
    xml::FieldDiff,
};

/// Whether libvirt would do something else than end the domain when the guest powers off or crashes.
pub fn outlives_guest(live: &LiveDomain) -> bool {
    live.drift.iter().any(|found| found.path == "lifecycle.onPoweroff" || found.path == "lifecycle.onCrash")
}

/// What puts right at once what a running guest can bear: the medium of a CD drive, what an interface is plugged into.
pub fn repairs(live: &LiveDomain) -> Vec<VmStep> {
    let Some(metadata) = &live.metadata else { return Vec::new() };
    let media = live
        .disks
        .iter()
        .filter(|disk| is_cdrom(&metadata.built, &disk.name))
        .filter_map(|disk| Some((disk, disk.started_with.clone()?)))
        .map(|(disk, source)| VmStep::SetMedia { disk: disk.name.clone(), source });
    let networks = live.nics.iter().filter_map(|nic| {
        let source = nic.started_in.clone()?;
        Some(VmStep::SetNetwork { nic: nic.name.clone(), mac: nic.mac.clone(), source })
    });
    media.chain(networks).collect()
}

/// What only a boot puts right.
pub fn explained(built: &Built, live: &LiveDomain) -> Vec<PendingChange> {
    let mut changes: Vec<PendingChange> = Vec::new();
    for found in &live.drift {
        let Some(path) = field(built, &found.path) else { continue };
        // One entry per field of the spec, however many of the domain's it stands for.
        if changes.iter().all(|known| known.path != path) {
            changes.push(explanation(path, found));
        }
    }
    changes
}

fn explanation(path: String, found: &FieldDiff) -> PendingChange {
    let running = match (&found.wanted, &found.live) {
        (None, Some(live)) if live == "present" => "added by hand".to_owned(),
        (_, Some(live)) => format!("{live}, changed by hand"),
        (_, None) => "removed by hand".to_owned(),
    };
    let wanted = found.wanted.clone().unwrap_or_else(|| "none".into());
    PendingChange {
        path: short(path),
        running: short(running),
        wanted: short(wanted),
        applies: Applies::NextBoot,
    }
}

/// The field of the spec that a field of the domain comes from. None: it is put right at once, or looked at elsewhere.
fn field(built: &Built, path: &str) -> Option<String> {
    if let Some((name, rest)) = member(path, "disks") {
        return disk_field(built, name, rest);
    }
    if let Some((name, rest)) = member(path, "interfaces") {
        return nic_field(name, rest);
    }
    if let Some((family, _)) = member(path, "foreignDevices") {
        return Some(format!("devices[{family}]"));
    }
    let head = path.split(['.', '[']).next().unwrap_or(path);
    let field = match head {
        "lifecycle" | "memory" => return None,
        "cpu" => return (path.starts_with("cpu.mode")).then(|| "spec.cpu.model".to_owned()),
        "type" => "domain.type",
        "name" => "metadata.name",
        "uuid" | "sysinfo" => "spec.identity",
        "os" if path.starts_with("os.machine") => "spec.machine",
        "os" if path.starts_with("os.firmware") => "spec.firmware",
        "os" => "spec.directKernelBoot",
        "clock" => "spec.clock",
        "serial" => "spec.serialConsole",
        "channels" => "spec.guestAgent",
        "inputs" | "graphics" | "video" => "spec.graphics",
        "tpm" => "spec.tpm",
        "watchdog" => "spec.watchdog",
        "rng" => "spec.rng",
        other => return Some(format!("domain.{other}")),
    };
    Some(field.to_owned())
}

fn disk_field(built: &Built, name: &str, rest: &str) -> Option<String> {
    if name == SEED_DISK {
        return Some("spec.cloudInit".to_owned());
    }
    match rest {
        "" => None,
        "bus" | "bootOrder" | "readOnly" | "cache" | "serial" => Some(format!("spec.disks[{name}].{rest}")),
        rest if rest.starts_with("source") && is_cdrom(built, name) => None,
        _ => Some(format!("spec.disks[{name}]")),
    }
}

fn nic_field(name: &str, rest: &str) -> Option<String> {
    match rest {
        "" | "link" => None,
        rest if rest.starts_with("source") => None,
        "model" | "bootOrder" => Some(format!("spec.interfaces[{name}].{rest}")),
        "mac" => Some(format!("spec.interfaces[{name}].macAddress")),
        _ => Some(format!("spec.interfaces[{name}]")),
    }
}

/// Name and remaining path of `family[name].rest`.
fn member<'a>(path: &'a str, family: &str) -> Option<(&'a str, &'a str)> {
    let (name, rest) = path.strip_prefix(family)?.strip_prefix('[')?.split_once(']')?;
    Some((name, rest.strip_prefix('.').unwrap_or(rest)))
}

fn is_cdrom(built: &Built, name: &str) -> bool {
    built.spec.get().disks.iter().any(|disk| disk.name == name && disk.cdrom.is_some())
}
