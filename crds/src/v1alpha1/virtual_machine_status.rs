//! What became of a VirtualMachine: who may run it, what its host reports, and the hardware it keeps.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::placement::{GrantRef, Holding, Placement};
use crate::condition::conditions_schema;

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
    #[serde(other)]
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
