//! VirtualMachine: the machine wanted.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults::{default_cluster, yes},
    virtual_machine_devices::{Interface, VmDisk},
    virtual_machine_status::VirtualMachineStatus,
};
use crate::units::Size;

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
