//! Sorts every difference between the running guest and its spec: applied live, at the next boot, or refused.
//!
//! Both specs are taken apart field by field without `..`, so that a new field of the API does not compile until
//! somebody has said here what an edit of it does.

use vireo_crds::{
    units::human_bytes,
    v1alpha1::{Applies, Cpu, Interface, Link, Memory, PendingChange, VirtualMachineSpec, VmDisk},
};

use super::drift;
use crate::{
    facts::{Built, LiveDomain, LiveNic},
    intent::{CpuChoice, Wanted},
};

/// The name under which the seed image is attached.
pub const SEED_DISK: &str = "cloud-init";

/// libvirt rounds memory up to whole ones of these.
const MIB: u64 = 1 << 20;

/// Differences, sorted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sorted {
    /// Links to set on the live domain.
    pub links: Vec<LinkChange>,
    /// What waits or is refused.
    pub pending: Vec<PendingChange>,
}

/// A link to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// Name of the interface.
    pub nic: String,
    /// Its address.
    pub mac: String,
    /// Link wanted.
    pub link: Link,
}

impl Sorted {
    /// Whether something waits for the next boot.
    pub fn needs_boot(&self) -> bool {
        self.pending.iter().any(|change| change.applies == Applies::NextBoot)
    }
}

/// Sorts the differences between what runs and what is wanted. `built` is what the guest was started from; what
/// somebody changed by hand since is seen in `live`.
pub fn sort(built: &Built, wanted: &Wanted, live: &LiveDomain) -> Sorted {
    let mut changes = Changes(Vec::new());
    let VirtualMachineSpec {
        run_strategy: _,
        cluster: _,
        cpu,
        memory,
        architecture,
        machine,
        firmware,
        tpm,
        state,
        identity,
        disks,
        interfaces,
        direct_kernel_boot,
        cloud_init,
        hostname,
        graphics,
        serial_console,
        guest_agent,
        rng,
        watchdog,
        clock,
        grace_period_seconds: _,
        scheduling: _,
        deletion_protection: _,
    } = wanted.spec.get();
    let old = built.spec.get();
    changes.cpu(&old.cpu, cpu, built, wanted, live);
    changes.memory(&old.memory, memory, live);
    changes.refused("spec.architecture", &old.architecture, architecture);
    changes.machine(machine.as_deref(), live);
    changes.next_boot("spec.firmware", &old.firmware, firmware);
    changes.next_boot("spec.tpm", &old.tpm, tpm);
    changes.refused("spec.state", &old.state, state);
    changes.refused("spec.identity", &old.identity, identity);
    changes.disks(&old.disks, disks, live);
    changes.interfaces(&old.interfaces, interfaces, live);
    changes.next_boot("spec.directKernelBoot", &old.direct_kernel_boot, direct_kernel_boot);
    changes.next_boot("spec.cloudInit", &old.cloud_init, cloud_init);
    changes.next_boot("spec.hostname", &old.hostname, hostname);
    changes.next_boot("spec.graphics", &old.graphics, graphics);
    changes.next_boot("spec.serialConsole", &old.serial_console, serial_console);
    changes.next_boot("spec.guestAgent", &old.guest_agent, guest_agent);
    changes.next_boot("spec.rng", &old.rng, rng);
    changes.next_boot("spec.watchdog", &old.watchdog, watchdog);
    changes.next_boot("spec.clock", &old.clock, clock);
    let Changes(mut pending) = changes;
    for change in drift::explained(built, live) {
        // One entry per field: what the spec says of it since is told already.
        if !pending.iter().any(|known| known.path == change.path) {
            pending.push(change);
        }
    }
    pending.truncate(64);
    Sorted { links: links(wanted, live), pending }
}

fn links(wanted: &Wanted, live: &LiveDomain) -> Vec<LinkChange> {
    let differs = |live: &LiveNic, link: Link| match (link, live.link) {
        (Link::Up, Link::Up) | (Link::Down, Link::Down) | (Link::Unknown, _) => false,
        (Link::Up, Link::Down | Link::Unknown) | (Link::Down, Link::Up | Link::Unknown) => true,
    };
    let change = |nic: &crate::intent::MachineNic| {
        let live = live.nics.iter().find(|live| live.name == nic.name)?;
        // The address is the running one's: that is how libvirt finds the interface, whatever else waits.
        differs(live, nic.link).then(|| LinkChange {
            nic: nic.name.clone(),
            mac: live.mac.clone(),
            link: nic.link,
        })
    };
    wanted.machine.nics.iter().filter_map(change).collect()
}

struct Changes(Vec<PendingChange>);

impl Changes {
    fn push(&mut self, path: String, running: String, wanted: String, applies: Applies) {
        self.0.push(PendingChange {
            path: short(path),
            running: short(running),
            wanted: short(wanted),
            applies,
        });
    }

    fn next_boot<T: PartialEq + serde::Serialize>(&mut self, path: &str, running: &T, wanted: &T) {
        if running != wanted {
            self.push(path.into(), text(running), text(wanted), Applies::NextBoot);
        }
    }

    fn refused<T: PartialEq + serde::Serialize>(&mut self, path: &str, running: &T, wanted: &T) {
        if running != wanted {
            self.push(path.into(), text(running), text(wanted), Applies::Refused);
        }
    }

    fn cpu(&mut self, old: &Cpu, new: &Cpu, built: &Built, wanted: &Wanted, live: &LiveDomain) {
        let Cpu { sockets, cores, threads, model } = new;
        self.next_boot("spec.cpu.sockets", &old.sockets, sockets);
        self.next_boot("spec.cpu.cores", &old.cores, cores);
        self.next_boot("spec.cpu.threads", &old.threads, threads);
        self.next_boot("spec.cpu.model", &old.model, model);
        if old.vcpus() == new.vcpus() && live.vcpus != new.vcpus() {
            self.push(
                "spec.cpu".into(),
                format!("{} vCPUs, changed by hand", live.vcpus),
                format!("{} vCPUs", new.vcpus()),
                Applies::NextBoot,
            );
        }
        let resolved = named_model(&wanted.machine.cpu);
        if old.model == *model && built.cpu_model != resolved {
            self.push("spec.cpu.model".into(), text(&built.cpu_model), text(&resolved), Applies::NextBoot);
        }
    }

    /// The machine type was chosen at the first start and is kept; what the spec says since is refused as long as it differs.
    fn machine(&mut self, wanted: Option<&str>, live: &LiveDomain) {
        let (Some(wanted), Some(hardware)) = (wanted, &live.hardware) else { return };
        let running = hardware.machine_type.as_str();
        let family = if wanted == "pc" { "pc-i440fx" } else { wanted };
        let is_of = |family: &str| running.strip_prefix(family).is_some_and(|rest| rest.starts_with('-'));
        if running != wanted && !is_of(family) && !is_of(&format!("pc-{family}")) {
            self.push("spec.machine".into(), running.into(), wanted.into(), Applies::Refused);
        }
    }

    fn memory(&mut self, old: &Memory, new: &Memory, live: &LiveDomain) {
        let Memory { size } = new;
        let bytes = size.bytes().unwrap_or_default();
        if old.size.bytes() != size.bytes() {
            self.push("spec.memory.size".into(), old.size.to_string(), size.to_string(), Applies::NextBoot);
        } else if live.memory.div_ceil(MIB) != bytes.div_ceil(MIB) {
            self.push(
                "spec.memory.size".into(),
                format!("{}, changed by hand", human_bytes(live.memory)),
                size.to_string(),
                Applies::NextBoot,
            );
        }
    }

    fn disks(&mut self, old: &[VmDisk], new: &[VmDisk], live: &LiveDomain) {
        let path = |name: &str| format!("spec.disks[{name}]");
        for disk in new {
            let runs = live.disks.iter().any(|live| live.name == disk.name);
            match old.iter().find(|old| old.name == disk.name) {
                Some(_) if !runs => self.push(
                    path(&disk.name),
                    "detached by hand".into(),
                    "attached".into(),
                    Applies::NextBoot,
                ),
                Some(old) if same_disk(old, disk) => {}
                Some(old) => {
                    self.push(path(&disk.name), text(&brief(old)), text(&brief(disk)), Applies::NextBoot)
                }
                None => self.push(path(&disk.name), "none".into(), "attached".into(), Applies::NextBoot),
            }
        }
        for live in &live.disks {
            if live.name == SEED_DISK || new.iter().any(|disk| disk.name == live.name) {
                continue;
            }
            let ours = old.iter().any(|disk| disk.name == live.name);
            let running = if ours { "attached" } else { "attached by hand" };
            self.push(path(&live.name), running.into(), "none".into(), Applies::NextBoot);
        }
    }

    fn interfaces(&mut self, old: &[Interface], new: &[Interface], live: &LiveDomain) {
        let path = |name: &str| format!("spec.interfaces[{name}]");
        for nic in new {
            let runs = live.nics.iter().any(|live| live.name == nic.name);
            match old.iter().find(|old| old.name == nic.name) {
                Some(_) if !runs => self.push(
                    path(&nic.name),
                    "unplugged by hand".into(),
                    "plugged in".into(),
                    Applies::NextBoot,
                ),
                Some(old) => self.interface(old, nic),
                None => self.push(path(&nic.name), "none".into(), "plugged in".into(), Applies::NextBoot),
            }
        }
        for live in &live.nics {
            if new.iter().any(|nic| nic.name == live.name) {
                continue;
            }
            let ours = old.iter().any(|nic| nic.name == live.name);
            let running = if ours { "plugged in" } else { "plugged in by hand" };
            self.push(path(&live.name), running.into(), "none".into(), Applies::NextBoot);
        }
    }

    fn interface(&mut self, old: &Interface, new: &Interface) {
        let Interface { name, network, model, mac_address, link: _, boot_order } = new;
        let path = |field: &str| format!("spec.interfaces[{name}].{field}");
        self.next_boot(&path("network"), &old.network, network);
        self.next_boot(&path("model"), &old.model, model);
        self.next_boot(&path("macAddress"), &old.mac_address, mac_address);
        self.next_boot(&path("bootOrder"), &old.boot_order, boot_order);
    }
}

/// Whether a guest cannot tell the two apart. What a template says of its volume is the Disk's affair.
fn same_disk(old: &VmDisk, new: &VmDisk) -> bool {
    let VmDisk { name, disk, template, cdrom, ephemeral, bus, boot_order, read_only, cache, serial } = new;
    old.name == *name
        && old.disk == *disk
        && old.template.is_some() == template.is_some()
        && old.cdrom == *cdrom
        && old.ephemeral == *ephemeral
        && old.bus == *bus
        && old.boot_order == *boot_order
        && old.read_only == *read_only
        && old.cache == *cache
        && old.serial == *serial
}

fn brief(disk: &VmDisk) -> VmDisk {
    VmDisk { template: None, ..disk.clone() }
}

/// The model a choice names, if it names one.
pub fn named_model(choice: &CpuChoice) -> Option<String> {
    match choice {
        CpuChoice::Named(name) => Some(name.clone()),
        CpuChoice::HostModel | CpuChoice::HostPassthrough | CpuChoice::Maximum => None,
    }
}

fn text<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::Null) => "none".into(),
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Cuts a text to what the API takes.
pub(super) fn short(text: String) -> String {
    if text.chars().count() <= 250 { text } else { text.chars().take(249).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        facts::{DomainFact, Facts},
        golden,
        intent::{Observation, ValidatedSpec},
    };

    fn sorted(patch: serde_json::Value) -> Vec<(String, Applies)> {
        let facts: Facts = golden::facts("running", json!({}));
        let DomainFact::Present(live) = facts.domain else { unreachable!() };
        let Observation::Granted(intent) = golden::observation(json!({})) else { unreachable!() };
        let mut wanted = intent.wanted.unwrap();
        let mut spec = serde_json::to_value(wanted.spec.get()).unwrap();
        for (key, value) in patch.as_object().unwrap() {
            spec[key] = value.clone();
        }
        wanted.spec = ValidatedSpec::new(&serde_json::from_value(spec).unwrap()).unwrap();
        let Sorted { links: _, pending } = sort(&live.metadata.clone().unwrap().built, &wanted, &live);
        pending.into_iter().map(|change| (change.path, change.applies)).collect()
    }

    #[test]
    fn what_never_reaches_the_domain_is_live() {
        for patch in [
            json!({"runStrategy": "Halted"}),
            json!({"gracePeriodSeconds": 1}),
            json!({"scheduling": {"priority": 3, "hostName": "host9"}}),
            json!({"deletionProtection": true}),
            json!({"cluster": "other"}),
            json!({"interfaces": [{"name": "eth0", "network": "lan", "link": "Down"}]}),
            json!({"disks": [{"name": "root", "template": {"storageDomain": "shared", "size": "40Gi"}}]}),
        ] {
            assert_eq!(sorted(patch.clone()), [], "{patch}");
        }
    }

    #[test]
    fn what_the_guest_sees_waits_for_its_next_boot() {
        for (patch, path) in [
            (json!({"memory": {"size": "3Gi"}}), "spec.memory.size"),
            (json!({"cpu": {"cores": 1, "sockets": 2}}), "spec.cpu.sockets"),
            (json!({"cpu": {"cores": 2, "model": {"named": {"name": "EPYC"}}}}), "spec.cpu.model"),
            (json!({"firmware": {"uefi": {}}}), "spec.firmware"),
            (json!({"tpm": {}}), "spec.tpm"),
            (json!({"directKernelBoot": {"storageDomain": "s", "kernel": "k"}}), "spec.directKernelBoot"),
            (json!({"cloudInit": {"userData": "x"}}), "spec.cloudInit"),
            (json!({"hostname": "db"}), "spec.hostname"),
            (json!({"graphics": {"none": {}}}), "spec.graphics"),
            (json!({"serialConsole": false}), "spec.serialConsole"),
            (json!({"guestAgent": false}), "spec.guestAgent"),
            (json!({"rng": {}}), "spec.rng"),
            (json!({"watchdog": {}}), "spec.watchdog"),
            (json!({"clock": {"timezone": {"name": "Europe/Berlin"}}}), "spec.clock"),
            (
                json!({"disks": [{"name": "root", "template": {"storageDomain": "shared", "size": "10Gi"}, "readOnly": true}]}),
                "spec.disks[root]",
            ),
            (json!({"interfaces": [{"name": "eth0", "network": "dmz"}]}), "spec.interfaces[eth0].network"),
            (
                json!({"interfaces": [{"name": "eth0", "network": "lan", "model": "e1000e"}]}),
                "spec.interfaces[eth0].model",
            ),
        ] {
            let found = sorted(patch.clone());
            assert!(found.contains(&(path.to_owned(), Applies::NextBoot)), "{patch}: {found:?}");
        }
    }

    #[test]
    fn what_would_be_another_machine_is_refused() {
        for (patch, path) in [
            (json!({"architecture": "aarch64"}), "spec.architecture"),
            (json!({"machine": "pc"}), "spec.machine"),
            (json!({"state": {"storageDomain": "other"}}), "spec.state"),
            (json!({"identity": {"serial": "x"}}), "spec.identity"),
        ] {
            assert_eq!(sorted(patch.clone()), [(path.to_owned(), Applies::Refused)], "{patch}");
        }
        assert_eq!(sorted(json!({"machine": "q35"})), []);
        assert_eq!(sorted(json!({"machine": "pc-q35-10.0"})), []);
    }
}
