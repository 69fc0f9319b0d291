//! Network: a logical network that VMs are plugged into.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::virtual_machine::{Empty, HostSelector};
use crate::condition::conditions_schema;

/// A logical network. Exactly one of `nat` and `bridge` says how hosts carry it.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "Network",
    plural = "networks",
    shortname = "vnet",
    category = "vireo",
    cel,
    derive = "PartialEq",
    status = "NetworkStatus",
    doc = "A logical network that VMs are plugged into. To plug a VM in takes the verb `use`.",
    printcolumn(name = "Type", type_ = "string", json_path = ".status.summary.type"),
    printcolumn(name = "Hosts", type_ = "string", json_path = ".status.summary.hosts"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.nat), has(self.bridge)].filter(x, x).size() == 1").message("a network has exactly one of nat and bridge"))]
pub struct NetworkSpec {
    /// A private network of each host, with addresses by DHCP and a way out through the host's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatNetwork>,
    /// A Linux bridge on each host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeNetwork>,
    /// Largest frame, in bytes without the Ethernet header.
    #[serde(default = "default_mtu")]
    #[schemars(range(min = 576, max = 9216))]
    pub mtu: i32,
    /// Hosts that should carry it; empty means all.
    #[serde(default)]
    pub host_selector: HostSelector,
    /// True: a host without it is not ready.
    #[serde(default)]
    pub required: bool,
}

fn default_mtu() -> i32 {
    1500
}

/// A private network of each host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("isCIDR(self.cidr) && cidr(self.cidr).ip().family() == 4 && cidr(self.cidr).prefixLength() >= 16 && cidr(self.cidr).prefixLength() <= 29 && cidr(self.cidr) == cidr(self.cidr).masked()").message("spec.nat.cidr: must be an IPv4 network of /16 to /29 such as 10.88.0.0/24"))]
pub struct NatNetwork {
    /// Its addresses, such as `10.88.0.0/24`; the first is the host's. Every host uses the same ones, each for itself.
    #[schemars(length(min = 9, max = 18))]
    pub cidr: String,
    /// Present: guests get addresses by DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<Empty>,
}

/// A Linux bridge on each host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BridgeNetwork {
    /// Name of the bridge on the host, at most 15 characters.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-zA-Z0-9_.-]+$"))]
    pub name: String,
    /// Present: the bridge is made by Vireo. Left out: it must exist, and is never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<BridgeCreate>,
}

/// A bridge made by Vireo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BridgeCreate {
    /// Interface of the host that becomes a port of the bridge; left out, the bridge joins guests of one host only.
    /// It must carry no address of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-zA-Z0-9_.-]+$"))]
    pub uplink: Option<String>,
}

/// What became of a network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Generation acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Readiness by host, put together from what the hosts report; hosts that are not ready come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub hosts: Vec<HostReadiness>,
    /// Texts for columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub summary: Option<NetworkSummary>,
}

/// Readiness of one thing on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostReadiness {
    /// Name of the Host.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Whether it is usable there.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSummary {
    /// `nat` or `bridge`.
    #[serde(rename = "type")]
    #[schemars(length(max = 16))]
    pub type_: String,
    /// Ready hosts of those that should carry it.
    #[schemars(length(max = 32))]
    pub hosts: String,
}
