//! What this host must have for one VM, fully resolved: checked spec, absolute paths, addresses, what is missing.
//!
//! The executor makes an [`Intent`] from API objects; nothing after it reads a raw spec. What a restart needs when
//! the API server is away is [`Wanted`], which the ledger keeps.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vireo_crds::{
    units::Mac,
    v1alpha1::{
        Accelerator, Act, Architecture, CloudInit, CpuModel, DiskBus, DiskCache, DiskFormat, Grant, Hardware,
        Link, NicModel, RunStrategy, Runtime, VirtualMachineSpec, VmDisk, WatchdogAction,
    },
};

/// What is known of a VM's object when its plan is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Observation {
    /// The watch shows it, and `placement.host` names this host.
    Granted(Box<Intent>),
    /// The API server has not answered since this daemon started: the ledger speaks for the object.
    Unseen,
    /// It left the watch and has not been read by name yet. Wakes a GET; stops nothing.
    Disappeared,
    /// A GET (resourceVersion unset) found no object of this uid.
    Gone,
    /// A GET (resourceVersion unset, uid checked) found it placed elsewhere.
    Elsewhere {
        /// Who holds it now.
        holder: Grant,
        /// Grant id in the annotation that orders the end of a superseded copy, if there is one.
        destroy_order: Option<String>,
    },
}

/// Everything this host must have for one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Which VM.
    pub vm: VmRef,
    /// The holder's grant, as placement has it.
    pub grant: Grant,
    /// The grant was found in a list, or by a read, and did not arrive as a change on an unbroken watch: it may be of a
    /// timeline that a restore of the store has ended, so it is not accepted for the first time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listed: bool,
    /// `metadata.generation`.
    pub generation: i64,
    /// `placement.generation`: newest generation the controller has accepted. The spec is acted on only if both agree.
    pub accepted_generation: i64,
    /// A deletion timestamp is set.
    #[serde(default)]
    pub deleting: bool,
    /// When the VM is meant to run, and how patiently it is stopped: obeyed even if the rest cannot be resolved.
    pub policy: Policy,
    /// The spec, resolved. None: it cannot be resolved, and `waits` or `faults` say why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    /// What a start still waits for: networks, disks, domains, Secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Wait>,
    /// What is wrong with the spec, so that waiting does not help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    /// Acts whose `status.host` is this host and that are not final; complete, or the Intent must not be made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acts: Vec<PendingAct>,
    /// `status.hardware`, or what lies beside the volumes if that is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// `status.runtime` as last written, so that `since` moves only when something changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Runtime>,
    /// Every storage domain the VM's disks lie on works on this host right now.
    #[serde(default = "yes")]
    pub storage_ready: bool,
}

fn yes() -> bool {
    true
}

impl Intent {
    /// Whether the controller has accepted the very spec this Intent was made from.
    pub fn is_accepted(&self) -> bool {
        self.generation == self.accepted_generation
    }
}

/// When a VM is meant to run, and how patiently it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `spec.runStrategy`.
    pub run_strategy: RunStrategy,
    /// `spec.gracePeriodSeconds`.
    pub grace_period_seconds: i64,
}

impl Policy {
    /// The policy a spec declares.
    pub fn of(spec: &VirtualMachineSpec) -> Self {
        Self { run_strategy: spec.run_strategy, grace_period_seconds: spec.grace_period_seconds }
    }
}

/// Identity of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmRef {
    /// uid of the object.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl VmRef {
    /// Name of the libvirt domain.
    pub fn domain_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

/// An act for this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingAct {
    /// Name of the VirtualMachineAction.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What it asks for.
    pub act: Act,
    /// Grant under which it is to be carried out (`status.grantId`).
    pub grant_id: String,
}

/// Something a start waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// One of `vireo_crds::reasons`.
    pub reason: String,
    /// What is missing, which object, what to do.
    pub message: String,
}

impl Wait {
    /// A wait.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// A field nobody can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{path}: {message}")]
pub struct Fault {
    /// Path in the spec.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl Fault {
    /// A fault of the field at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// A spec without values this version does not know and without what only the seed image needs: fit to be compared,
/// kept in the ledger and stamped into a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValidatedSpec(VirtualMachineSpec);

impl ValidatedSpec {
    /// Checks `spec`; every fault is named.
    pub fn new(spec: &VirtualMachineSpec) -> Result<Self, Vec<Fault>> {
        let faults = faults(spec);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut spec = spec.clone();
        if let Some(seed) = &mut spec.cloud_init {
            redact(seed);
        }
        Ok(Self(spec))
    }

    /// The spec.
    pub fn get(&self) -> &VirtualMachineSpec {
        &self.0
    }

    /// Names this spec among all that a guest can be built from.
    pub fn hash(&self) -> String {
        let text = serde_json::to_string(&self.0).unwrap_or_default();
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
    }
}

/// First-boot data may hold what its owner thought was private: a digest is enough to see that it changed.
fn redact(seed: &mut CloudInit) {
    for text in [&mut seed.user_data, &mut seed.network_data] {
        if let Some(data) = text.take() {
            *text = Some(digest(&data));
        }
    }
}

fn digest(data: &str) -> String {
    format!("digest:{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, data.as_bytes()).simple())
}

fn faults(spec: &VirtualMachineSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut unknown = |is: bool, path: String| {
        if is {
            faults.push(Fault::new(path, "is a value this version of the node daemon does not know; upgrade it or choose another value"));
        }
    };
    unknown(spec.run_strategy == RunStrategy::Unknown, "spec.runStrategy".into());
    unknown(spec.architecture == Some(Architecture::Unknown), "spec.architecture".into());
    unknown(
        spec.watchdog.as_ref().is_some_and(|w| w.action == WatchdogAction::Unknown),
        "spec.watchdog.action".into(),
    );
    for disk in &spec.disks {
        unknown(disk.bus == Some(DiskBus::Unknown), format!("spec.disks[{}].bus", disk.name));
        unknown(disk.cache == DiskCache::Unknown, format!("spec.disks[{}].cache", disk.name));
    }
    for nic in &spec.interfaces {
        unknown(nic.model == NicModel::Unknown, format!("spec.interfaces[{}].model", nic.name));
    }
    if !(1..=710).contains(&spec.cpu.vcpus()) {
        faults.push(Fault::new(
            "spec.cpu",
            format!("sockets x cores x threads is {}; it must be between 1 and 710", spec.cpu.vcpus()),
        ));
    }
    match spec.memory.size.bytes() {
        Err(error) => faults.push(Fault::new("spec.memory.size", error.to_string())),
        Ok(bytes) if !(16 << 20..=64 << 40).contains(&bytes) => {
            faults.push(Fault::new(
                "spec.memory.size",
                format!("{} is not between 16Mi and 64Ti", spec.memory.size),
            ));
        }
        Ok(_) => {}
    }
    faults.extend(duplicates("spec.disks", spec.disks.iter().map(|disk| disk.name.as_str())));
    faults.extend(duplicates("spec.interfaces", spec.interfaces.iter().map(|nic| nic.name.as_str())));
    faults.extend(spec.disks.iter().filter(|disk| kinds(disk) != 1).map(|disk| {
        Fault::new(
            format!("spec.disks[{}]", disk.name),
            "must have exactly one of disk, template, cdrom and ephemeral",
        )
    }));
    faults
}

fn kinds(disk: &VmDisk) -> usize {
    [disk.disk.is_some(), disk.template.is_some(), disk.cdrom.is_some(), disk.ephemeral.is_some()]
        .into_iter()
        .filter(|given| *given)
        .count()
}

fn duplicates<'a>(path: &str, names: impl Iterator<Item = &'a str>) -> Vec<Fault> {
    let mut seen = BTreeSet::new();
    names
        .filter(|name| !seen.insert(*name))
        .map(|name| Fault::new(format!("{path}[{name}]"), "the name is used twice; rename one of the two"))
        .collect()
}

/// What a guest is built from: everything a start needs, without the API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Generation of the spec.
    pub generation: i64,
    /// The spec, checked.
    pub spec: ValidatedSpec,
    /// The machine, resolved for this host.
    pub machine: Machine,
    /// The NoCloud seed image, if the VM has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// Where firmware variables, TPM state and the record of hardware addresses live: the domain `spec.state` names, else
    /// that of the first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateHome>,
    /// Identity of the installation, for the domain's metadata.
    pub installation_id: String,
}

/// A seed image to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// File on this host.
    pub path: String,
    /// Digest of everything that goes into it (Secrets included, so it says nothing about them).
    pub digest: String,
}

/// Where the state of a VM beside its disks lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateHome {
    /// `<domain>/vms/<vm uid>`.
    pub dir: String,
    /// Directory in which libvirt keeps the TPM's state, if this libvirt cannot be pointed to `dir`: then it is copied
    /// in before a start and out before release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_tpm: Option<String>,
}

/// The machine, resolved for this host. Paths are absolute, names are libvirt's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// SMBIOS UUID and UUID of the libvirt domain.
    pub uuid: String,
    /// SMBIOS serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Host name told to the guest.
    pub hostname: String,
    /// Architecture.
    pub architecture: Architecture,
    /// What accelerates it on this host.
    pub accelerator: Accelerator,
    /// Machine type: the one in `status.hardware` once there is one, else the spec's or the architecture's.
    pub machine_type: String,
    /// Topology.
    pub sockets: i32,
    /// Cores per socket.
    pub cores: i32,
    /// Threads per core.
    pub threads: i32,
    /// CPU model, resolved.
    pub cpu: CpuChoice,
    /// Bytes.
    pub memory: u64,
    /// Firmware.
    pub firmware: MachineFirmware,
    /// The guest has a TPM 2.0.
    #[serde(default)]
    pub tpm: bool,
    /// Disks, as the spec orders them, the seed not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<MachineDisk>,
    /// Interfaces, as the spec orders them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<MachineNic>,
    /// Kernel booted directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
    /// Unix socket of the VNC display; none: no display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc_socket: Option<String>,
    /// The guest has a serial console.
    pub serial_console: bool,
    /// The guest has an agent channel.
    pub guest_agent: bool,
    /// The guest has an entropy device.
    #[serde(default)]
    pub rng: bool,
    /// The guest has a watchdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogAction>,
    /// Time zone of the hardware clock; none: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// CPU model, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CpuChoice {
    /// libvirt's `host-model`.
    HostModel,
    /// libvirt's `host-passthrough`.
    HostPassthrough,
    /// A named model; the cluster's baseline is resolved to one.
    Named(String),
    /// All that the accelerator can do: what `host-passthrough` is where instructions are translated.
    Maximum,
}

impl CpuChoice {
    /// The model `wanted` on this host, given the cluster's baseline; none while the cluster has no baseline yet.
    pub fn resolve(wanted: &CpuModel, accelerator: Accelerator, baseline: Option<&str>) -> Option<Self> {
        let translated = accelerator != Accelerator::Kvm;
        match wanted {
            CpuModel::Cluster(_) => baseline.map(|model| Self::Named(model.into())),
            CpuModel::Named(named) => Some(Self::Named(named.name.clone())),
            CpuModel::HostModel(_) | CpuModel::HostPassthrough(_) if translated => Some(Self::Maximum),
            CpuModel::HostModel(_) => Some(Self::HostModel),
            CpuModel::HostPassthrough(_) => Some(Self::HostPassthrough),
        }
    }
}

/// Firmware, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum MachineFirmware {
    /// SeaBIOS.
    Bios,
    /// OVMF or its like, chosen by libvirt's descriptors.
    Uefi {
        /// With enforced signatures.
        secure_boot: bool,
        /// File of the variables, inside the VM's [`StateHome`].
        nvram: String,
    },
}

/// One disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineDisk {
    /// Name in the spec.
    pub name: String,
    /// A CD drive.
    #[serde(default)]
    pub cdrom: bool,
    /// The volume; none: an empty CD drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Ephemeral: the throw-away qcow2 layer over `volume`, a file of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
    /// Bus, resolved.
    pub bus: DiskBus,
    /// Boot order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<i32>,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// Use of the host's page cache.
    pub cache: DiskCache,
    /// Serial number the guest sees.
    pub serial: String,
}

impl MachineDisk {
    /// The volume, if the guest writes to the volume itself.
    pub fn written_volume(&self) -> Option<&Volume> {
        self.volume.as_ref().filter(|_| !self.read_only && !self.cdrom && self.overlay.is_none())
    }

    /// Whether the host's page cache may hold what the guest wrote.
    pub fn is_cached(&self) -> bool {
        self.cache != DiskCache::None
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// uid of the Disk.
    pub disk_uid: String,
    /// Name of the Disk.
    pub disk: String,
    /// Image file.
    pub path: String,
    /// Its format, as the sidecar says; never probed.
    pub format: DiskFormat,
    /// File of the disk token, beside the volume.
    pub token: String,
}

/// One interface of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineNic {
    /// Name in the spec.
    pub name: String,
    /// Network it is plugged into.
    pub network: String,
    /// How this host carries that network.
    pub attach: NicAttach,
    /// Model.
    pub model: NicModel,
    /// Address, given or derived.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Link wanted.
    pub link: Link,
    /// Boot order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<i32>,
    /// MTU, if it is not 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
}

/// How an interface is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NicAttach {
    /// A port of this bridge.
    Bridge(String),
    /// A port of this libvirt network.
    LibvirtNetwork(String),
}

/// A kernel booted directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelBoot {
    /// Kernel image.
    pub kernel: String,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

mod mac_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use vireo_crds::units::Mac;

    pub fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> VirtualMachineSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_fault_is_named() {
        let spec = spec(json!({
            "memory": {"size": "12 bananas"},
            "cpu": {"sockets": 1000},
            "disks": [{"name": "a", "cdrom": {}, "bus": "nvme"}, {"name": "a", "cdrom": {}}, {"name": "b"}],
            "interfaces": [{"name": "x", "network": "n"}, {"name": "x", "network": "n"}],
        }));
        let paths: Vec<_> =
            ValidatedSpec::new(&spec).unwrap_err().into_iter().map(|fault| fault.path).collect();
        assert_eq!(
            paths,
            [
                "spec.disks[a].bus",
                "spec.cpu",
                "spec.memory.size",
                "spec.disks[a]",
                "spec.interfaces[x]",
                "spec.disks[b]"
            ]
        );
    }

    #[test]
    fn first_boot_data_is_kept_only_as_a_digest() {
        let with = |data: &str| {
            ValidatedSpec::new(&spec(json!({"memory": {"size": "1Gi"}, "cloudInit": {"userData": data}})))
                .unwrap()
        };
        let text = serde_json::to_string(&with("password: hunter2")).unwrap();
        assert!(!text.contains("hunter2"));
        assert_ne!(with("a").hash(), with("b").hash());
        assert_eq!(with("a").hash(), with("a").hash());
    }

    #[test]
    fn the_clusters_model_needs_a_baseline() {
        let cluster = CpuModel::default();
        assert_eq!(CpuChoice::resolve(&cluster, Accelerator::Kvm, None), None);
        assert_eq!(
            CpuChoice::resolve(&cluster, Accelerator::Tcg, Some("qemu64")),
            Some(CpuChoice::Named("qemu64".into()))
        );
    }
}
