//! VirtualMachine: the machine wanted, and what became of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    disk::DiskSpec,
    placement::{GrantRef, Holding, Placement},
};
use crate::{condition::conditions_schema, units::Size};

/// A virtual machine. It is started, kept running, moved and stopped so that it always matches this declaration.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    shortname = "vvm",
    category = "vireo",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "VirtualMachineStatus",
    doc = "A virtual machine: started, kept running, moved and stopped so that it always matches this declaration.",
    selectable = ".status.placement.host",
    selectable = ".status.placement.target.host",
    printcolumn(name = "Want", type_ = "string", json_path = ".spec.runStrategy"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.placement.host"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.summary.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.summary.memory"),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.summary.ip"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Guest OS", type_ = "string", json_path = ".status.summary.guestOs", priority = 1),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.placement.target.host", priority = 1),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.placement.epoch", priority = 1),
    printcolumn(name = "Restart needed", type_ = "string", json_path = ".status.conditions[?(@.type==\"RestartRequired\")].status", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: a VM is named by at most 63 lower-case letters, digits and '-', because guests use it as host name"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.disks) || !has(self.cloudInit) || self.disks.all(d, d.name != 'cloud-init')").message("spec.disks: the name cloud-init is taken by the seed image; choose another"))]
#[x_kube(validation = Rule::new("!(has(oldSelf.tpm) || (has(oldSelf.firmware) && has(oldSelf.firmware.uefi))) || (has(self.state) ? [self.state] : []) == (has(oldSelf.state) ? [oldSelf.state] : [])").message("spec.state cannot change while firmware variables or TPM state lie there"))]
pub struct VirtualMachineSpec {
    /// When the VM runs. `Always`: up whenever it is not up. `RerunOnFailure`: restarted after a crash or the
    /// loss of its host, but a guest that shuts itself down stays down. `Manual`: power is left as it is found;
    /// VirtualMachineActions start and stop it. `Halted`: stopped, after `gracePeriodSeconds` by force.
    #[serde(default)]
    pub run_strategy: RunStrategy,
    /// HostCluster whose hosts may run this VM. You need the verb `use` on it.
    #[serde(default = "default_cluster")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// Virtual processors: sockets x cores x threads, at most 710, and the CPU model the guest sees.
    #[serde(default)]
    pub cpu: Cpu,
    /// Memory of the guest.
    pub memory: Memory,
    /// Processor architecture; only hosts of this architecture fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// Machine type of QEMU, such as `q35`. Chosen by architecture at the first start and then kept in
    /// `status.hardware.machineType`, so that an upgrade of the host never changes the guest's hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub machine: Option<String>,
    /// Firmware: `uefi: {secureBoot: true}` or `bios: {}`. Left out, it is chosen by architecture: BIOS on
    /// x86_64, UEFI on aarch64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Present: the guest has a TPM 2.0 whose state is kept with the VM's storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<Tpm>,
    /// Where firmware variables and TPM state live; left out, the domain of the first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateStorage>,
    /// Identity the guest sees, kept by restore and import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.identity cannot change: the guest's licences and leases depend on it"))]
    pub identity: Option<Identity>,
    /// Disks, by name; their order means nothing (see `bootOrder`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 24))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<VmDisk>,
    /// Network interfaces, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub interfaces: Vec<Interface>,
    /// Boots this kernel instead of a disk's boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_kernel_boot: Option<DirectKernelBoot>,
    /// First-boot configuration handed to the guest as a NoCloud seed image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Host name handed to the guest by cloud-init and DHCP; left out, the VM's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// Screen of the guest: `vnc: {}` (reached through `vireo-node vnc`, never on a network port) or `none: {}`.
    #[serde(default)]
    pub graphics: Graphics,
    /// A serial console, reached through `vireo-node console NAMESPACE/VM`.
    #[serde(default = "yes")]
    pub serial_console: bool,
    /// A channel for the QEMU guest agent: clean shutdown, addresses, guest facts.
    #[serde(default = "yes")]
    pub guest_agent: bool,
    /// Present: the guest gets entropy from its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng: Option<Rng>,
    /// Present: a watchdog device acts on a guest that stops feeding it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watchdog>,
    /// What the guest's hardware clock shows at start.
    #[serde(default)]
    pub clock: Clock,
    /// Seconds a guest gets to shut down when asked, before its power is cut.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 0, max = 86400))]
    pub grace_period_seconds: i64,
    /// Wishes about where it runs.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// While true, admission refuses to delete this VM.
    #[serde(default)]
    pub deletion_protection: bool,
}

fn default_cluster() -> String {
    "default".into()
}

fn yes() -> bool {
    true
}

fn default_grace() -> i64 {
    120
}

fn one() -> i32 {
    1
}

/// When a VM runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunStrategy {
    /// Up whenever it is not up.
    #[default]
    Always,
    /// Restarted after a failure; a guest's own shutdown stays down.
    RerunOnFailure,
    /// Power is left as it is found.
    Manual,
    /// Stopped.
    Halted,
    /// A value this version does not know: power is left as it is found.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Processor architecture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(non_camel_case_types)]
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    x86_64,
    /// 64-bit Arm.
    aarch64,
    /// A value this version does not know: no host fits.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Virtual processors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.sockets * self.cores * self.threads <= 710").message("spec.cpu: sockets x cores x threads is more than 710 vCPUs; lower one of them"))]
pub struct Cpu {
    /// Sockets.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 710))]
    pub sockets: i32,
    /// Cores per socket.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 710))]
    pub cores: i32,
    /// Threads per core.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    pub threads: i32,
    /// CPU model the guest sees; `cluster: {}` is the cluster's baseline, which every host of it has.
    #[serde(default)]
    pub model: CpuModel,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { sockets: 1, cores: 1, threads: 1, model: CpuModel::default() }
    }
}

impl Cpu {
    /// Number of virtual processors.
    pub fn vcpus(&self) -> i64 {
        i64::from(self.sockets) * i64::from(self.cores) * i64::from(self.threads)
    }
}

/// CPU model the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CpuModel {
    /// The cluster's baseline: the VM can run on every host of the cluster.
    Cluster(Empty),
    /// The nearest named model of the host it starts on.
    HostModel(Empty),
    /// The host's own processor: fastest, and bound to hosts just like it.
    HostPassthrough(Empty),
    /// A named model of QEMU.
    Named(NamedCpuModel),
}

impl Default for CpuModel {
    fn default() -> Self {
        Self::Cluster(Empty {})
    }
}

/// A named CPU model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamedCpuModel {
    /// Name as `Host.status.cpu.usableModels` lists it, such as `EPYC-Rome`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub name: String,
}

/// A choice without settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!isQuantity(self.size) || (quantity(self.size).compareTo(quantity('64Ti')) <= 0 && quantity(self.size).compareTo(quantity('16Mi')) >= 0)").message("spec.memory.size: must be between 16Mi and 64Ti"))]
pub struct Memory {
    /// Size, such as `2Gi`; 16Mi to 64Ti.
    pub size: Size,
}

/// Firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Firmware {
    /// UEFI (OVMF).
    Uefi(Uefi),
    /// Legacy BIOS (SeaBIOS).
    Bios(Empty),
}

/// UEFI settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Uefi {
    /// Boot only what is signed by the keys in the firmware.
    #[serde(default)]
    pub secure_boot: bool,
}

/// TPM settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tpm {}

/// Where state beside the disks lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateStorage {
    /// StorageDomain that keeps it. You need the verb `use` on it.
    #[schemars(length(min = 1, max = 63))]
    pub storage_domain: String,
}

/// Identity the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// SMBIOS UUID; left out, the VM's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 36),
        regex(pattern = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
    )]
    pub uuid: Option<String>,
    /// SMBIOS serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[ -~]*$"))]
    pub serial: Option<String>,
}

/// One disk of a VM. Exactly one of `disk`, `template`, `cdrom` and `ephemeral` says what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.disk), has(self.template), has(self.cdrom), has(self.ephemeral)].filter(x, x).size() == 1").message("a disk has exactly one of disk, template, cdrom and ephemeral"))]
pub struct VmDisk {
    /// Name of the disk inside this VM.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// An existing Disk of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskRef>,
    /// Makes Disk `<vm>-<name>`, owned by this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<DiskSpec>,
    /// A Disk shown as a read-only CD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<CdromSource>,
    /// A throw-away layer over a Disk: what the guest writes is gone at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralSource>,
    /// Bus the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    /// Place in the boot order; the lowest boots first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub boot_order: Option<i32>,
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
    /// How the host's page cache is used.
    #[serde(default)]
    pub cache: DiskCache,
    /// Serial number the guest sees; left out, derived from the Disk's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[A-Za-z0-9_.+-]+$"))]
    pub serial: Option<String>,
}

/// Reference to a Disk of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskRef {
    /// Name of the Disk.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Content of a CD drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CdromSource {
    /// Name of the Disk in the drive; left out, the drive is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub disk: Option<String>,
}

/// What an ephemeral disk is a layer over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralSource {
    /// Name of the Disk below; several VMs may share it, none writes to it.
    #[schemars(length(min = 1, max = 253))]
    pub disk: String,
}

/// Bus of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskBus {
    /// virtio-blk.
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Use of the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskCache {
    /// O_DIRECT: no host page cache; the safe choice on shared storage.
    #[default]
    None,
    /// Reads are cached, writes go through.
    Writethrough,
    /// Reads and writes are cached; the guest's flushes are obeyed.
    Writeback,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// One network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the interface inside this VM.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Network it is plugged into. You need the verb `use` on it.
    #[schemars(length(min = 1, max = 63))]
    pub network: String,
    /// Device model the guest sees.
    #[serde(default)]
    pub model: NicModel,
    /// Its address; left out, derived from (VM uid, interface name) under the cluster's prefix, so that it is
    /// the same wherever the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17), regex(pattern = r"^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$"))]
    pub mac_address: Option<String>,
    /// State of the link; changes at once on a running guest.
    #[serde(default)]
    pub link: Link,
    /// Place in the boot order; the lowest boots first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub boot_order: Option<i32>,
}

/// Device model of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel 82574.
    E1000e,
    /// Realtek 8139.
    Rtl8139,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// State of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Link {
    /// Plugged.
    #[default]
    Up,
    /// Unplugged.
    Down,
    /// A value this version does not know: left as it is.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// A kernel booted directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectKernelBoot {
    /// StorageDomain the files lie in. You need the verb `use` on it.
    #[schemars(length(min = 1, max = 63))]
    pub storage_domain: String,
    /// Kernel image, relative to the domain's `files` directory.
    #[schemars(length(min = 1, max = 255))]
    pub kernel: String,
    /// Initial RAM disk, relative to the domain's `files` directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub cmdline: Option<String>,
}

/// First-boot configuration. What stands here in clear can be read by every host: put secrets in a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.userData) && has(self.userDataSecret)) && !(has(self.networkData) && has(self.networkDataSecret))").message("spec.cloudInit: give userData or userDataSecret, and networkData or networkDataSecret, not both"))]
pub struct CloudInit {
    /// User data, usually `#cloud-config`; at most 64 KiB, larger ones belong in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub user_data: Option<String>,
    /// Secret of this namespace whose key `userData` holds the user data; only the bound host can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_secret: Option<SecretRef>,
    /// Network configuration, version 1 or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub network_data: Option<String>,
    /// Secret of this namespace whose key `networkData` holds the network configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data_secret: Option<SecretRef>,
}

/// Reference to a Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Screen of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Graphics {
    /// A VNC display on a local socket of the host.
    Vnc(Empty),
    /// No display.
    None(Empty),
}

impl Default for Graphics {
    fn default() -> Self {
        Self::Vnc(Empty {})
    }
}

/// Entropy device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rng {}

/// Watchdog device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Watchdog {
    /// What happens to a guest that stops feeding it.
    #[serde(default)]
    pub action: WatchdogAction,
}

/// What a watchdog does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum WatchdogAction {
    /// Reset the guest.
    #[default]
    Reset,
    /// Cut its power; the run strategy decides what follows.
    Poweroff,
    /// Pause it.
    Pause,
    /// Only report it.
    None,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What the hardware clock shows at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Clock {
    /// Universal time.
    Utc(Empty),
    /// Local time of a zone, as Windows expects.
    Timezone(Timezone),
}

impl Default for Clock {
    fn default() -> Self {
        Self::Utc(Empty {})
    }
}

/// A time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timezone {
    /// Name of the zone, such as `Europe/Berlin`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_+/-]+$"))]
    pub name: String,
}

/// Wishes about where a VM runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Only hosts with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_selector: Option<HostSelector>,
    /// Only this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub host_name: Option<String>,
    /// When room is short, VMs with a higher number are placed first.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
}

/// Hosts chosen by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostSelector {
    /// Labels a host must have, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl HostSelector {
    /// Whether a host with these labels is chosen.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
    }
}

impl From<HostSelector> for LabelSelector {
    fn from(selector: HostSelector) -> Self {
        Self { match_labels: Some(selector.match_labels), match_expressions: None }
    }
}

/// What became of a VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.placement) || has(self.placement)").message("placement once set is never unset"))]
pub struct VirtualMachineStatus {
    /// Newest spec generation that has been acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// State, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<VmState>,
    /// Which host may run it. Written by the controller only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What the host that holds the grant reports. Written by that host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub runtime: Option<Runtime>,
    /// What a migration target reports. Written by that host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub incoming: Option<Incoming>,
    /// Hardware chosen at the first start and kept, so that the guest's device addresses and interface names
    /// never change because it started elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub hardware: Option<Hardware>,
    /// Texts for the columns of `kubectl get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub summary: Option<VmSummary>,
}

/// State of a VM, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum VmState {
    /// Waits for a host.
    Pending,
    /// Bound to a host, being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is paused; the Running condition says why.
    Paused,
    /// Asked to shut down.
    Stopping,
    /// Not running.
    Stopped,
    /// Crashes again and again; the next try is delayed.
    CrashLoop,
    /// On its way to another host.
    Migrating,
    /// Nobody can say: the host is silent.
    Unknown,
}

/// What the daemon of the bound host reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// uid of the VM this report is about: a late report must not land on a successor of the same name.
    #[schemars(length(max = 64))]
    pub vm_uid: String,
    /// Grant this report is about.
    pub grant: GrantRef,
    /// What the host does with that grant.
    pub holding: Holding,
    /// Power of the guest.
    pub power: Power,
    /// Since when.
    pub since: Time,
    /// Why it is down, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_cause: Option<StopCause>,
    /// Why it is paused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_cause: Option<PauseCause>,
    /// Crashes in a row, forgotten after the guest has run for ten minutes.
    #[serde(default)]
    pub crashes: i32,
    /// Generation of the spec the running guest was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Facts told by the guest agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFacts>,
    /// Network interfaces and their addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub interfaces: Vec<InterfaceStatus>,
    /// Edits the running guest does not have yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub pending_changes: Vec<PendingChange>,
    /// Consoles and how to reach them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleStatus>,
}

/// What a migration target reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incoming {
    /// uid of the VM.
    #[schemars(length(max = 64))]
    pub vm_uid: String,
    /// Conditional grant this report is about.
    pub grant: GrantRef,
    /// What the host does with that grant.
    pub holding: Holding,
}

/// Power of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Power {
    /// Not running.
    Off,
    /// Being started.
    Starting,
    /// Running.
    On,
    /// Paused.
    Paused,
    /// Asked to shut down.
    Stopping,
    /// The host cannot tell: the hypervisor does not answer.
    #[serde(other)]
    Unknown,
}

/// Why a guest is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StopCause {
    /// The guest shut itself down.
    ByGuest,
    /// `runStrategy` asks for it, or the VM is being deleted.
    BySpec,
    /// A VirtualMachineAction asked for it.
    ByAction,
    /// QEMU died, the guest panicked, or somebody destroyed the domain by hand.
    Crashed,
    /// Its host went down.
    HostLost,
    /// It never got up; the Running condition says why.
    StartFailed,
    /// A value this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Why a guest is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PauseCause {
    /// A VirtualMachineAction asked for it.
    ByAction,
    /// A disk reported an error; the guest resumes when the disk works again.
    IoError,
    /// Another host holds a newer grant.
    Superseded,
    /// Somebody paused the domain by hand, or the watchdog did.
    Outside,
    /// A value this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Facts told by the guest agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestFacts {
    /// Host name inside the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub hostname: Option<String>,
    /// Operating system, such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub os: Option<String>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub kernel: Option<String>,
    /// Time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub timezone: Option<String>,
}

/// One interface as observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name in the spec.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Its address.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// IP addresses, from the guest agent or the DHCP lease table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
}

/// An edit the running guest does not have yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingChange {
    /// Path in the spec.
    #[schemars(length(max = 253))]
    pub path: String,
    /// What the running guest has.
    #[schemars(length(max = 253))]
    pub running: String,
    /// What the spec wants.
    #[schemars(length(max = 253))]
    pub wanted: String,
    /// When it will be applied.
    pub applies: Applies,
}

/// When a pending change is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Applies {
    /// At the next boot, from inside or outside the guest.
    NextBoot,
    /// Never: the change is refused; the message of RestartRequired says why.
    Refused,
    /// A value this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Consoles of a running guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleStatus {
    /// A serial console is attached.
    pub serial: bool,
    /// A VNC display is attached.
    pub vnc: bool,
}

/// Hardware chosen once and kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// Versioned machine type, such as `pc-q35-10.0`.
    #[schemars(length(max = 64))]
    pub machine_type: String,
    /// Firmware, `bios` or `uefi`.
    #[schemars(length(max = 16))]
    pub firmware: String,
    /// Address of each named device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub devices: Vec<HardwareDevice>,
}

/// A device and where the guest finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HardwareDevice {
    /// Name in the spec, or of a device we add (`rng`, `balloon`, ...).
    #[schemars(length(max = 64))]
    pub name: String,
    /// `disk`, `interface`, `controller` or another libvirt device family.
    #[schemars(length(max = 32))]
    pub kind: String,
    /// PCI address such as `0000:01:00.0`, or `target=sda` for a disk on a controller.
    #[schemars(length(max = 64))]
    pub address: String,
    /// MAC of an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    pub mac: Option<String>,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmSummary {
    /// Number of vCPUs.
    #[schemars(length(max = 16))]
    pub cpu: String,
    /// Memory.
    #[schemars(length(max = 32))]
    pub memory: String,
    /// First address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub ip: Option<String>,
    /// Operating system of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub guest_os: Option<String>,
}
