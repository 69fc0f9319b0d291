//! HostCluster: hosts that share a CPU baseline and the policies of scheduling and overcommit.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    host::Resources,
    virtual_machine::{Empty, NamedCpuModel},
};
use crate::condition::conditions_schema;

/// Hosts between which VMs may run, with the policies they share.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "HostCluster",
    plural = "hostclusters",
    shortname = "vhc",
    category = "vireo",
    cel,
    derive = "PartialEq",
    status = "HostClusterStatus",
    doc = "Hosts between which VMs may run, with the policies they share. To run VMs on it takes the verb `use`.",
    printcolumn(name = "Hosts", type_ = "string", json_path = ".status.summary.hosts"),
    printcolumn(name = "VMs", type_ = "string", json_path = ".status.summary.vms"),
    printcolumn(name = "Baseline", type_ = "string", json_path = ".status.baseline"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HostClusterSpec {
    /// Processors.
    #[serde(default)]
    pub cpu: ClusterCpu,
    /// Memory.
    #[serde(default)]
    pub memory: ClusterMemory,
    /// First three bytes of derived MAC addresses.
    #[serde(default = "default_mac_prefix")]
    #[schemars(length(max = 8), regex(pattern = r"^[0-9a-f][02468ace]:[0-9a-f]{2}:[0-9a-f]{2}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.macPrefix cannot change: the addresses of existing VMs are derived from it"))]
    pub mac_prefix: String,
    /// Where VMs go.
    #[serde(default)]
    pub scheduling: ClusterScheduling,
}

fn default_mac_prefix() -> String {
    "02:76:00".into()
}

/// Processors of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCpu {
    /// CPU model that VMs with `cpu.model.cluster` get.
    #[serde(default)]
    pub baseline: CpuBaseline,
    /// vCPUs promised per thread of a host.
    #[serde(default = "default_cpu_overcommit")]
    #[schemars(range(min = 1, max = 64))]
    pub overcommit: i32,
}

fn default_cpu_overcommit() -> i32 {
    4
}

impl Default for ClusterCpu {
    fn default() -> Self {
        Self { baseline: CpuBaseline::default(), overcommit: default_cpu_overcommit() }
    }
}

/// CPU model of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CpuBaseline {
    /// The newest model that all hosts have, as `status.baseline` shows.
    Auto(Empty),
    /// This model; hosts that lack it are not schedulable.
    Named(NamedCpuModel),
}

impl Default for CpuBaseline {
    fn default() -> Self {
        Self::Auto(Empty {})
    }
}

/// Memory of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMemory {
    /// Memory promised to VMs, in percent of what hosts have to give. A VM is promised its memory and an overhead:
    /// 64Mi, 8Mi for each vCPU, and a 512th of its memory.
    #[serde(default = "default_memory_overcommit")]
    #[schemars(range(min = 10, max = 1000))]
    pub overcommit_percent: i32,
}

fn default_memory_overcommit() -> i32 {
    100
}

impl Default for ClusterMemory {
    fn default() -> Self {
        Self { overcommit_percent: default_memory_overcommit() }
    }
}

/// Where VMs go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterScheduling {
    /// The policy.
    #[serde(default)]
    pub policy: SchedulingPolicy,
    /// Factors that replace those of the policy, one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<SchedulingWeights>,
}

/// Policy by which a host is chosen among those that fit. Every policy also heeds soft affinity rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SchedulingPolicy {
    /// New VMs go where `evenlyDistributed` would put them; nothing is ever moved for the sake of balance.
    None(Empty),
    /// The host with the lowest share of its memory and vCPUs promised.
    EvenlyDistributed(Empty),
    /// The host with the fewest VMs.
    VmEvenlyDistributed(Empty),
    /// The fullest host that stays below `fillPercent`, so that other hosts stay empty.
    PowerSaving(PowerSaving),
    /// While the cluster is being worked on: only VMs that have had a host before are started again; others wait.
    Maintenance(Empty),
}

impl Default for SchedulingPolicy {
    fn default() -> Self {
        Self::EvenlyDistributed(Empty {})
    }
}

/// Settings of the policy `powerSaving`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PowerSaving {
    /// Share of a host, in percent of what it may promise, up to which it is filled before the next one is used.
    #[serde(default = "default_fill_percent")]
    #[schemars(range(min = 10, max = 100))]
    pub fill_percent: i32,
}

fn default_fill_percent() -> i32 {
    80
}

impl Default for PowerSaving {
    fn default() -> Self {
        Self { fill_percent: default_fill_percent() }
    }
}

/// Factors of the weights. Each weight gives a host 0 (best) to 1000; the lowest sum of weight times factor wins,
/// then the host with fewer VMs, then the first by name. A factor of 0 switches its weight off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SchedulingWeights {
    /// Share of the scarcer of memory and vCPUs promised, with the VM there, in 1/1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub load: Option<i32>,
    /// Share of memory promised, with the VM there, in 1/1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub memory: Option<i32>,
    /// Share of vCPUs promised, with the VM there, in 1/1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub cpu: Option<i32>,
    /// Share of the scarcer of memory and vCPUs still free below the policy's `fillPercent` (80 where the policy has
    /// none), in 1/1000; a host above it counts 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub packing: Option<i32>,
    /// Number of VMs on the host, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub vms: Option<i32>,
    /// Share of the VM's soft affinity rules that it would break there, in 1/1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub affinity: Option<i32>,
}

/// What became of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostClusterStatus {
    /// Generation acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Identity of this installation; also in the metadata of every libvirt domain and in every domain marker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub installation_id: Option<String>,
    /// CPU model that VMs with `cpu.model.cluster` get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub baseline: Option<String>,
    /// What its hosts have to give, together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub capacity: Option<Resources>,
    /// Texts for columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub summary: Option<HostClusterSummary>,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostClusterSummary {
    /// Ready hosts of all.
    #[schemars(length(max = 32))]
    pub hosts: String,
    /// VMs placed.
    #[schemars(length(max = 32))]
    pub vms: String,
}
