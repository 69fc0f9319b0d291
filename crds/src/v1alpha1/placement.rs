//! Grants, placement and the daemon's report: the parts of a VM's status that decide who may run it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Permission for one host, in one incarnation of its daemon's ledger, to run one VM. Only the controller
/// makes grants; `id` is the identity, `epoch` orders grants for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Name of the Host.
    #[schemars(length(max = 63))]
    pub host: String,
    /// Incarnation of that host this grant is for; a reboot is a new one.
    #[schemars(length(max = 64))]
    pub incarnation: String,
    /// Number of the grant; every grant of a VM takes a new one.
    pub epoch: i64,
    /// Random identity of the grant.
    #[schemars(length(max = 64))]
    pub id: String,
}

/// Where the VM may run. Written by the controller only, and never taken back without stored evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.lastEpoch >= oldSelf.lastEpoch").message("lastEpoch never falls"))]
#[x_kube(validation = Rule::new("self.epoch <= self.lastEpoch && (!has(self.target) || (self.target.epoch <= self.lastEpoch && self.target.id != self.id))").message("lastEpoch covers every grant, and a target is another grant"))]
#[x_kube(validation = Rule::new("self.id != oldSelf.id || (self.host == oldSelf.host && self.incarnation == oldSelf.incarnation && self.epoch == oldSelf.epoch)").message("a grant never changes in place"))]
#[x_kube(validation = Rule::new("self.id == oldSelf.id || self.epoch > oldSelf.lastEpoch || (has(oldSelf.target) && self.id == oldSelf.target.id && self.host == oldSelf.target.host && self.incarnation == oldSelf.target.incarnation && self.epoch == oldSelf.target.epoch)").message("a new grant takes a number above lastEpoch, or was the target"))]
#[x_kube(validation = Rule::new("!has(self.target) || (has(oldSelf.target) && self.target == oldSelf.target) || self.target.epoch > oldSelf.lastEpoch").message("a new target takes a number above lastEpoch and never changes in place"))]
pub struct Placement {
    /// Name of the Host that holds the grant.
    #[schemars(length(max = 63))]
    pub host: String,
    /// Incarnation of that host the grant is for.
    #[schemars(length(max = 64))]
    pub incarnation: String,
    /// Number of the grant.
    pub epoch: i64,
    /// Random identity of the grant.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Newest spec generation the controller has accepted; the daemon acts on none newer.
    pub generation: i64,
    /// Highest number ever given for this VM.
    pub last_epoch: i64,
    /// Why the grants this one replaced are known to be over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub evidence: Vec<Evidence>,
    /// A second, conditional grant: the host a migration goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Grant>,
}

impl Placement {
    /// The holder's grant.
    pub fn grant(&self) -> Grant {
        Grant {
            host: self.host.clone(),
            incarnation: self.incarnation.clone(),
            epoch: self.epoch,
            id: self.id.clone(),
        }
    }
}

/// Why one grant is known to be over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The grant that is over.
    #[schemars(length(max = 64))]
    pub grant_id: String,
    /// What shows it.
    pub kind: EvidenceKind,
    /// The session in which it was accepted.
    #[schemars(length(max = 64))]
    pub session: String,
    /// For people: the report, boot id or annotation it rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub detail: Option<String>,
}

/// Kinds of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EvidenceKind {
    /// The holder said that nothing runs and nothing will.
    Released,
    /// A target said that it never ran the VM.
    Renounced,
    /// The power of the host was seen off.
    PowerOff,
    /// The same machine came back in a new boot whose ledger names the old incarnation.
    Rebooted,
    /// The new host acquired the storage lease.
    Lease,
    /// Somebody with the verb `confirm` said so in writing.
    Confirmed,
    /// A kind this version does not know; never accepted as evidence.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Reference to a grant in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantRef {
    /// Incarnation that reports.
    #[schemars(length(max = 64))]
    pub incarnation: String,
    /// Number of the grant.
    pub epoch: i64,
    /// Identity of the grant.
    #[schemars(length(max = 64))]
    pub id: String,
}

impl GrantRef {
    /// Whether this names `grant`, by identity.
    pub fn names(&self, grant: &Grant) -> bool {
        self.id == grant.id && self.incarnation == grant.incarnation && self.epoch == grant.epoch
    }
}

impl From<&Grant> for GrantRef {
    fn from(grant: &Grant) -> Self {
        Self { incarnation: grant.incarnation.clone(), epoch: grant.epoch, id: grant.id.clone() }
    }
}

/// What the reporter does with a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Holding {
    /// Accepted; the VM runs or may be started.
    Open,
    /// Nothing runs under it and nothing will. Final.
    Released,
    /// A target that never ran the VM and never will. Final.
    Renounced,
    /// A value this version does not know: treated as open.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
