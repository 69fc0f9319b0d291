//! AffinityGroup: VMs that belong together or apart, and the hosts they belong on or off.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::conditions_schema;

/// VMs of a namespace that belong together or apart, or on or off certain hosts. Rules are heeded whenever a VM is
/// given a host; a VM that runs where a rule does not want it is named in the status and left running.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "AffinityGroup",
    plural = "affinitygroups",
    shortname = "vag",
    category = "vireo",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "AffinityGroupStatus",
    doc = "VMs of a namespace that belong together or apart, or on or off certain hosts.",
    printcolumn(name = "VMs", type_ = "string", json_path = ".status.summary.vms"),
    printcolumn(name = "VM rule", type_ = "string", json_path = ".status.summary.vmRule"),
    printcolumn(name = "Host rule", type_ = "string", json_path = ".status.summary.hostRule"),
    printcolumn(name = "Broken", type_ = "string", json_path = ".status.summary.broken"),
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
#[x_kube(validation = Rule::new("has(self.vmRule) || has(self.hostRule)").message("an affinity group has vmRule, hostRule or both"))]
pub struct AffinityGroupSpec {
    /// VMs of this namespace that are members: those named, and those with the labels.
    pub virtual_machines: Members,
    /// Whether the members belong on one host or on different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_rule: Option<VmRule>,
    /// On which hosts the members belong, or do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_rule: Option<HostRule>,
}

/// Objects chosen by name or by label: an object is chosen if it is named, or has all the labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.names) && self.names.size() > 0) || (has(self.matchLabels) && self.matchLabels.size() > 0)").message("give names, matchLabels or both"))]
pub struct Members {
    /// Names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Vec<String>,
    /// Labels an object must have, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl Members {
    /// Whether the object of this name and these labels is chosen. Nothing chooses nothing.
    pub fn contains(&self, name: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        let labelled = |labels: &BTreeMap<String, String>| {
            self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        self.names.iter().any(|named| named == name)
            || (!self.match_labels.is_empty() && labels.is_some_and(labelled))
    }
}

/// Whether the members belong on one host or on different ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmRule {
    /// `Positive`: on the same host. `Negative`: each on a host of its own.
    pub polarity: Polarity,
    /// How strictly.
    #[serde(default)]
    pub enforcement: Enforcement,
}

/// On which hosts the members belong, or do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostRule {
    /// `Positive`: only on these hosts. `Negative`: on none of them.
    pub polarity: Polarity,
    /// How strictly.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// The hosts, by name or label.
    pub hosts: Members,
}

/// Towards or away from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Polarity {
    /// Together; on these.
    Positive,
    /// Apart; not on these.
    Negative,
    /// A value this version does not know: the rule is not heeded, and the group says so.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// How strictly a rule is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Enforcement {
    /// A VM waits rather than break it.
    #[default]
    Hard,
    /// A wish: weighed against the load of the hosts.
    Soft,
    /// A value this version does not know: taken as `Hard`.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What became of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffinityGroupStatus {
    /// Generation acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// VMs that have a host where a rule does not want them, the first 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub violations: Vec<Violation>,
    /// Texts for columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub summary: Option<AffinityGroupSummary>,
}

/// A VM that has a host where a rule does not want it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// The VM.
    #[schemars(length(max = 63))]
    pub vm: String,
    /// Its host.
    #[schemars(length(max = 63))]
    pub host: String,
    /// How strictly the rule is meant.
    pub enforcement: Enforcement,
    /// What is wrong with that.
    #[schemars(length(max = 256))]
    pub message: String,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffinityGroupSummary {
    /// Number of members.
    #[schemars(length(max = 16))]
    pub vms: String,
    /// The VM rule, such as `Negative, Hard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub vm_rule: Option<String>,
    /// The host rule, such as `Positive, Soft`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub host_rule: Option<String>,
    /// Number of VMs that have a host where a rule does not want them.
    #[schemars(length(max = 16))]
    pub broken: String,
}
