//! Host: one KVM host, what it can do and what it says of itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults::{default_cluster, yes},
    placement::{GrantRef, Holding},
    virtual_machine::Architecture,
};
use crate::condition::conditions_schema;

/// A KVM host.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "Host",
    plural = "hosts",
    shortname = "vhost",
    category = "vireo",
    cel,
    derive = "PartialEq",
    status = "HostStatus",
    doc = "A KVM host. Make the object, then run `vireo-node join` on the machine.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Schedulable", type_ = "string", json_path = ".status.conditions[?(@.type==\"Schedulable\")].status"),
    printcolumn(name = "VMs", type_ = "string", json_path = ".status.summary.vms"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.summary.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.summary.memory"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.daemonVersion"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Accelerator", type_ = "string", json_path = ".status.accelerator", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: a Host is named by at most 63 lower-case letters, digits and '-'"),
)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// HostCluster it belongs to.
    #[serde(default = "default_cluster")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// Address at which other hosts reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub address: Option<String>,
    /// False: no VM is placed here any more; those that run stay.
    #[serde(default = "yes")]
    pub schedulable: bool,
}

/// What a host says of itself, and what the controller says of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Newest spec generation the controller has acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. `HypervisorReady`, `StorageReady` and `NetworkReady` are the daemon's; `Ready`, `Reachable` and
    /// `Schedulable` the controller's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Version of the node daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub daemon_version: Option<String>,
    /// What the daemon can do; a VM is bound only where all it needs is listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub features: Vec<String>,
    /// Kernel's boot id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// Random id of this life of the daemon's ledger; a reboot, a lost ledger or a cloned disk is a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub incarnation: Option<String>,
    /// Incarnations of this same machine that its ledger knows to be over, each with the boot it ended with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub past_incarnations: Vec<PastIncarnation>,
    /// What the host says it runs, said once per session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub attestation: Option<Attestation>,
    /// Who the host is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub identity: Option<HostIdentity>,
    /// Versions of what it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub versions: Option<HostVersions>,
    /// What guests are accelerated with: decided by booting a probe guest, not by the presence of a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub cpu: Option<HostCpu>,
    /// Memory of the machine, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// What of it VMs may have: all, less what the host keeps for itself. By the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub allocatable: Option<Resources>,
    /// What placed VMs have been promised. By the controller, at most every ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub allocated: Option<Resources>,
    /// Networks it should carry, and whether it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub networks: Vec<HostNetwork>,
    /// Storage domains it should reach, and whether it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub storage_domains: Vec<HostStorageDomain>,
    /// Domains of ours that no VirtualMachine explains: kept running, never destroyed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub domains: Vec<OrphanDomain>,
    /// libvirt domains that are not ours: listed, never touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub foreign_domains: Vec<String>,
    /// Texts for columns. By the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub summary: Option<HostSummary>,
}

/// An incarnation that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastIncarnation {
    /// Its id.
    #[schemars(length(max = 64))]
    pub incarnation: String,
    /// Boot in which it lived.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// Machine UUID on which it lived.
    #[schemars(length(max = 64))]
    pub machine_uuid: String,
}

/// What a host says it runs, in answer to a new session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    /// Nonce of the session answered.
    #[schemars(length(max = 64))]
    pub session: String,
    /// Incarnation that answers.
    #[schemars(length(max = 64))]
    pub incarnation: String,
    /// Highest epoch this ledger has seen, of any VM.
    pub highest_epoch: i64,
    /// Grants held here that differ from what the store says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub claims: Vec<Claim>,
    /// Migrations away from here that are open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub offers: Vec<Handover>,
    /// Migrations away from here that are committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub commits: Vec<Handover>,
    /// Conditional grants held here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub conditional: Vec<Claim>,
}

/// A grant held by a host for a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// uid of the VM.
    #[schemars(length(max = 64))]
    pub vm_uid: String,
    /// Namespace of the VM.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the VM.
    #[schemars(length(max = 63))]
    pub name: String,
    /// The grant.
    pub grant: GrantRef,
    /// What the ledger says of that grant. A claim `Released` or `Renounced` tells of an end that the store did not
    /// know when it was read, and stays listed until the next session.
    #[serde(default = "open")]
    pub holding: Holding,
    /// Whether a guest runs under it right now.
    pub running: bool,
    /// Highest epoch seen for this VM.
    pub highest_epoch: i64,
}

fn open() -> Holding {
    Holding::Open
}

/// One migration, as its source recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// uid of the VM.
    #[schemars(length(max = 64))]
    pub vm_uid: String,
    /// Grant it leaves.
    pub from: GrantRef,
    /// Grant it goes to.
    pub to: GrantRef,
}

/// Who a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostIdentity {
    /// SHA-256 of the host's public key, pinned at the first join.
    #[schemars(length(max = 64))]
    pub public_key_sha256: String,
    /// UUID of the machine (SMBIOS), by which a reboot is told from a replacement.
    #[schemars(length(max = 64))]
    pub machine_uuid: String,
}

/// Versions of what a host runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostVersions {
    /// libvirt.
    #[schemars(length(max = 64))]
    pub libvirt: String,
    /// QEMU.
    #[schemars(length(max = 64))]
    pub qemu: String,
    /// Kernel.
    #[schemars(length(max = 128))]
    pub kernel: String,
}

/// What guests are accelerated with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// Nothing: QEMU translates every instruction.
    Tcg,
    /// A value this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Processors of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostCpu {
    /// Architecture.
    #[serde(default)]
    pub architecture: Architecture,
    /// Model, as libvirt names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub model: Option<String>,
    /// Named models guests can have here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub usable_models: Vec<String>,
    /// Sockets.
    #[serde(default)]
    pub sockets: i32,
    /// Cores per socket.
    #[serde(default)]
    pub cores: i32,
    /// Threads per core.
    #[serde(default)]
    pub threads: i32,
    /// NUMA cells.
    #[serde(default)]
    pub numa_cells: i32,
}

/// An amount of processors and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Threads of the host, or vCPUs promised.
    pub cpus: i64,
    /// Bytes.
    pub memory: i64,
}

/// A network on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostNetwork {
    /// Name of the Network.
    #[schemars(length(max = 63))]
    pub name: String,
    /// uid of the Network: a successor of the same name is another one.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Whether guests can be plugged into it here.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// A storage domain on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStorageDomain {
    /// Name of the StorageDomain.
    #[schemars(length(max = 63))]
    pub name: String,
    /// uid of the StorageDomain: a successor of the same name is another one.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Whether volumes on it can be used here.
    pub ready: bool,
    /// Whether its marker was found here.
    pub marked: bool,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// Size of the file system, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<i64>,
    /// Free space, in bytes; moves only by 5 % or across a threshold, at most every five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
}

/// A domain of ours that no object explains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrphanDomain {
    /// libvirt's name of it.
    #[schemars(length(max = 253))]
    pub name: String,
    /// uid of the VM in its metadata.
    #[schemars(length(max = 64))]
    pub vm_uid: String,
    /// Why it is here.
    #[schemars(length(max = 256))]
    pub reason: String,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostSummary {
    /// Number of VMs placed here.
    #[schemars(length(max = 16))]
    pub vms: String,
    /// vCPUs promised of those that may be.
    #[schemars(length(max = 32))]
    pub cpu: String,
    /// Memory promised of that which may be.
    #[schemars(length(max = 32))]
    pub memory: String,
}
