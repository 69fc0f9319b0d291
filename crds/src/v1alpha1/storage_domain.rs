//! StorageDomain: where disks live.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{network::HostReadiness, virtual_machine::HostSelector};
use crate::{condition::conditions_schema, units::Size};

/// Where disks live.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "StorageDomain",
    plural = "storagedomains",
    shortname = "vsd",
    category = "vireo",
    cel,
    derive = "PartialEq",
    status = "StorageDomainStatus",
    doc = "Where disks live. To put a Disk on it takes the verb `use`.",
    printcolumn(name = "Type", type_ = "string", json_path = ".status.summary.type"),
    printcolumn(name = "Hosts", type_ = "string", json_path = ".status.summary.hosts"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".status.summary.capacity"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.summary.available"),
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
pub struct StorageDomainSpec {
    /// A directory: local to each host, or the same one on all of them.
    pub directory: DirectoryDomain,
    /// Hosts that should reach it; empty means all.
    #[serde(default)]
    pub host_selector: HostSelector,
    /// What may be fetched into it.
    #[serde(default)]
    pub imports: Imports,
    /// When free space is reported and when new volumes are refused.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// How long deleted volumes are kept.
    #[serde(default)]
    pub trash: Trash,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec.directory cannot change while disks lie in it; make a new StorageDomain"))]
pub struct DirectoryDomain {
    /// Absolute path on the hosts. It must exist: an unmounted file system looks like an empty directory.
    #[schemars(length(min = 2, max = 255), regex(pattern = r"^(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$"))]
    pub path: String,
    /// True: it is the same directory on every host (NFS or another shared file system mounted there). False: each
    /// host has its own, and a volume lies on one host.
    #[serde(default)]
    pub shared: bool,
}

/// What may be fetched into a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Imports {
    /// URL prefixes, each ending in `/`. Empty: https to public addresses. What is listed here may also be http or a
    /// private address. Redirects that leave the allowed set are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 9, max = 1024), regex(pattern = r"^https?://[^/?#]+/([^?#]*/)?$"))
    )]
    pub allowed_urls: Vec<String>,
}

/// Thresholds of free space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Thresholds {
    /// Below this much free, in percent, the domain says so.
    #[serde(default = "default_warn")]
    #[schemars(range(min = 0, max = 100))]
    pub warn_free_percent: i32,
    /// Below this much free, no new volume is made.
    #[serde(default = "default_block")]
    pub block_free_bytes: Size,
}

fn default_warn() -> i32 {
    10
}

fn default_block() -> Size {
    Size("5Gi".into())
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { warn_free_percent: default_warn(), block_free_bytes: default_block() }
    }
}

/// Deleted volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trash {
    /// How long a deleted volume can be brought back, such as `24h` or `30m`.
    #[serde(default = "default_retention")]
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]{1,5}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$"))]
    pub retention: String,
}

fn default_retention() -> String {
    "24h".into()
}

impl Default for Trash {
    fn default() -> Self {
        Self { retention: default_retention() }
    }
}

impl Trash {
    /// The retention time; none if it cannot be read, and then nothing is ever removed.
    pub fn retention(&self) -> Option<jiff::SignedDuration> {
        self.retention.parse().ok()
    }
}

/// What became of a domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageDomainStatus {
    /// Generation acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// What the marker file in the domain must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub marker: Option<Marker>,
    /// Hosts that may write the marker where there is none: one for a shared directory, each once for a local one.
    /// A host leaves the list when it has reported the marker, and never returns: a marker lost later is an unmounted
    /// file system, not a new domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub initialize: Vec<String>,
    /// Hosts on which the marker has been seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub initialized: Vec<String>,
    /// Size, in bytes; of a local domain, of all hosts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<i64>,
    /// Free space, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
    /// Readiness by host, put together from what the hosts report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub hosts: Vec<HostReadiness>,
    /// Texts for columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub summary: Option<StorageDomainSummary>,
}

/// Content of the marker file `.vireo-domain.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Marker {
    /// Installation the domain belongs to.
    #[schemars(length(max = 64))]
    pub installation_id: String,
    /// uid of the StorageDomain.
    #[schemars(length(max = 64))]
    pub domain_uid: String,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageDomainSummary {
    /// `shared directory` or `local directory`.
    #[serde(rename = "type")]
    #[schemars(length(max = 32))]
    pub type_: String,
    /// Ready hosts of those that should reach it.
    #[schemars(length(max = 32))]
    pub hosts: String,
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub capacity: Option<String>,
    /// Free space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub available: Option<String>,
}
