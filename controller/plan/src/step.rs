//! Every write to the API that the controller can make, as data. A step carries all it needs, may be repeated,
//! and names what holds before and after it; whoever carries it out decides nothing.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use kube::Resource;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vireo_crds::{
    condition::{self, ConditionValue},
    meta,
    v1alpha1::{
        Act, ActPhase, AffinityGroupSummary, Attachment, Disk, DiskPlacement, DiskSummary,
        HostClusterSummary, HostReadiness, HostSummary, Marker, NetworkSummary, Placement, Resources,
        StorageDomainSummary, Violation, VmState, VmSummary,
    },
};

/// Kinds the controller writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// vireo.dev
    VirtualMachine,
    /// vireo.dev
    VirtualMachineAction,
    /// vireo.dev
    Disk,
    /// vireo.dev
    HostCluster,
    /// vireo.dev
    Host,
    /// vireo.dev
    Network,
    /// vireo.dev
    StorageDomain,
    /// vireo.dev
    AffinityGroup,
}

impl Kind {
    /// The kind as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VirtualMachine => "VirtualMachine",
            Self::VirtualMachineAction => "VirtualMachineAction",
            Self::Disk => "Disk",
            Self::HostCluster => "HostCluster",
            Self::Host => "Host",
            Self::Network => "Network",
            Self::StorageDomain => "StorageDomain",
            Self::AffinityGroup => "AffinityGroup",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One version of one object: what a decision was made from and what its writes are conditional on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Kind of the object.
    pub kind: Kind,
    /// Namespace; none for a cluster-scoped kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// uid: a write must never land on a successor of the same name.
    pub uid: String,
    /// Version decided from. If an earlier step of the same plan wrote this object, the version its answer
    /// named takes the place of this one: nobody else wrote in between, or that step would have failed.
    pub resource_version: String,
    /// Generation decided from; what conditions carry as `observedGeneration`.
    pub generation: i64,
}

impl ObjectRef {
    /// The reference to an object as read from the API; none if it lacks what the API server always sets.
    pub fn of<K: Resource>(kind: Kind, object: &K) -> Option<Self> {
        Self::from_meta(kind, object.meta())
    }

    /// The same from bare metadata.
    pub fn from_meta(kind: Kind, meta: &ObjectMeta) -> Option<Self> {
        Some(Self {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            resource_version: meta.resource_version.clone()?,
            generation: meta.generation.unwrap_or(0),
        })
    }
}

/// One write.
///
/// Every write is conditional on `uid` and `resourceVersion` of its [`ObjectRef`] unless it says otherwise;
/// a conflict (409) or a missing object (404) means: plan again, nothing else. Status is written by forced
/// server-side apply to `/status` under [`meta::CONTROLLER_MANAGER`] with exactly the fields of
/// [`Step::status_body`]: a field left out is given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Step {
    /// Before: the object exists, is not being deleted. After: it carries [`meta::FINALIZER`].
    /// Never creates: conditional on uid and version, or a deleted object would come back to life.
    EnsureFinalizer { object: ObjectRef },
    /// Before: nothing the object stands for is left outside the API; every object of `read_first`, read uncached,
    /// still says so. After: it lacks [`meta::FINALIZER`], or is gone.
    RemoveFinalizer {
        object: ObjectRef,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        read_first: Vec<FreshRead>,
    },
    /// Makes, or adopts, a grant. Before: this process is in `session` on an unbroken connection; every object
    /// of `read_first`, read uncached, still says so. After: `status.placement` is exactly this.
    /// Never retried on a new connection, never sent under another session.
    SetPlacement {
        vm: ObjectRef,
        session: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        read_first: Vec<FreshRead>,
        status: Box<VmStatusApply>,
    },
    /// Before: `status.placement` has the same grants as this one. After: the controller's fields of the status are these.
    SetVmStatus { vm: ObjectRef, status: Box<VmStatusApply> },
    /// Creates a Disk made from a VM's template. Before: no Disk of this name. After: one exists with this spec,
    /// owner and finalizer. "Already exists" means: plan again.
    CreateDisk { disk: Box<Disk> },
    /// Before: every object of `read_first`, read uncached, still says so: a claim ends, and a volume goes, only where
    /// nobody can have it open. After: working host, claims, removal order, conditions and `summary.usedBy` are these.
    SetDiskStatus {
        disk: ObjectRef,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        read_first: Vec<FreshRead>,
        status: Box<DiskStatusApply>,
    },
    /// After: the controller's fields of the act are these.
    SetActStatus { act: ObjectRef, status: Box<ActStatusApply> },
    /// After: the act is gone. Deleted with preconditions uid and version.
    DeleteAct { act: ObjectRef },
    /// After: the controller's fields of the Host are these.
    SetHostStatus { host: ObjectRef, status: Box<HostStatusApply> },
    /// After: the status of the cluster is this.
    SetClusterStatus { cluster: ObjectRef, status: Box<ClusterStatusApply> },
    /// After: the status of the network is this.
    SetNetworkStatus { network: ObjectRef, status: Box<NetworkStatusApply> },
    /// After: the status of the domain is this.
    SetDomainStatus { domain: ObjectRef, status: Box<DomainStatusApply> },
    /// After: the status of the group is this.
    SetGroupStatus { group: ObjectRef, status: Box<GroupStatusApply> },
    /// After: ServiceAccount, Role and RoleBinding of this host exist in [`meta::HOSTS_NAMESPACE`], owned by the
    /// Host: tokens for itself and its own Lease, nothing else. Not conditional on the Host's version.
    EnsureHostAccess { host: ObjectRef },
    /// After: Role and RoleBinding `vireo-vm-<vm uid>` in the VM's namespace, owned by the VM, let this host and
    /// no other read exactly these Secrets. Not conditional on the VM's version.
    EnsureSecretAccess { vm: ObjectRef, host: String, secrets: Vec<String> },
    /// After: Role and RoleBinding `vireo-vm-<vm uid>` are gone.
    RemoveSecretAccess { vm: ObjectRef },
}

/// What must be read from the API server itself, not from a cache, right before a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FreshRead {
    /// Object to GET. Its uid must be the same; its version may be newer.
    pub object: ObjectRef,
    /// Annotation [`meta::CONFIRM_ANNOTATION`] must still have this value.
    pub confirm_annotation: String,
}

/// The controller's part of a VM's status. Always complete: see [`Step`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmStatusApply {
    /// The placement; none only if there never was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// `Accepted` and `Placed`; with the pen also `Ready`, `Reconciling` and `Stalled`.
    pub conditions: Vec<ConditionValue>,
    /// State, while the pen is the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<VmState>,
    /// Columns, while the pen is the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<VmSummary>,
    /// Generation acted on, while the pen is the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The controller's part of a Disk's status. Always complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatusApply {
    /// Working host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<DiskPlacement>,
    /// Claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// Order to remove the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<bool>,
    /// `Accepted`; with the pen also `Ready`, `Reconciling` and `Stalled`.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on, while the pen is the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `usedBy` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<DiskSummary>,
}

/// The controller's part of an act's status. Always complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActStatusApply {
    /// The act, for the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Act>,
    /// Host that carries it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// uid of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_uid: Option<String>,
    /// Grant it is carried out under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<String>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ActPhase>,
    /// Outcome in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// `Ready`, and `Stalled` for an act that failed.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The controller's part of a Host's status. Always complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatusApply {
    /// `Ready`, `Reachable`, `Schedulable`.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on.
    pub observed_generation: i64,
    /// What placed VMs have been promised.
    pub allocated: Resources,
    /// Columns.
    pub summary: HostSummary,
}

/// A cluster's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatusApply {
    /// `Ready`.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on.
    pub observed_generation: i64,
    /// Identity of the installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    /// CPU model of VMs that follow the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// What its hosts have to give.
    pub capacity: Resources,
    /// Columns.
    pub summary: HostClusterSummary,
}

/// A network's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatusApply {
    /// `Ready`.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on.
    pub observed_generation: i64,
    /// Readiness by host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostReadiness>,
    /// Columns.
    pub summary: NetworkSummary,
}

/// A storage domain's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatusApply {
    /// `Ready`.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on.
    pub observed_generation: i64,
    /// What the marker must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker: Option<Marker>,
    /// Hosts that may write the marker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub initialize: Vec<String>,
    /// Hosts on which it has been seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub initialized: Vec<String>,
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<i64>,
    /// Free space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
    /// Readiness by host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostReadiness>,
    /// Columns.
    pub summary: StorageDomainSummary,
}

/// An affinity group's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatusApply {
    /// `Ready`, and `Stalled` while rules contradict each other.
    pub conditions: Vec<ConditionValue>,
    /// Generation acted on.
    pub observed_generation: i64,
    /// VMs that have a host where a rule does not want them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
    /// Columns.
    pub summary: AffinityGroupSummary,
}

macro_rules! names {
    ($($step:ident),* $(,)?) => {
        impl Step {
            /// Names of all steps: one without a name does not compile.
            pub const NAMES: &[&str] = &[$(stringify!($step)),*];

            /// Name of the step, for logs, metrics and fail points.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$step { .. } => stringify!($step),)*
                }
            }
        }
    };
}

names! {
    EnsureFinalizer,
    RemoveFinalizer,
    SetPlacement,
    SetVmStatus,
    CreateDisk,
    SetDiskStatus,
    SetActStatus,
    DeleteAct,
    SetHostStatus,
    SetClusterStatus,
    SetNetworkStatus,
    SetDomainStatus,
    SetGroupStatus,
    EnsureHostAccess,
    EnsureSecretAccess,
    RemoveSecretAccess,
}

impl Step {
    /// The object written; none for [`Step::CreateDisk`], whose object does not exist yet.
    pub fn object(&self) -> Option<&ObjectRef> {
        match self {
            Self::EnsureFinalizer { object } | Self::RemoveFinalizer { object, .. } => Some(object),
            Self::SetPlacement { vm, .. }
            | Self::SetVmStatus { vm, .. }
            | Self::EnsureSecretAccess { vm, .. }
            | Self::RemoveSecretAccess { vm } => Some(vm),
            Self::SetDiskStatus { disk, .. } => Some(disk),
            Self::SetActStatus { act, .. } | Self::DeleteAct { act } => Some(act),
            Self::SetHostStatus { host, .. } | Self::EnsureHostAccess { host } => Some(host),
            Self::SetClusterStatus { cluster, .. } => Some(cluster),
            Self::SetNetworkStatus { network, .. } => Some(network),
            Self::SetDomainStatus { domain, .. } => Some(domain),
            Self::SetGroupStatus { group, .. } => Some(group),
            Self::CreateDisk { .. } => None,
        }
    }

    /// For a step that writes a status: the value of `status` to apply, with the times of `old` kept where a
    /// condition's status did not change. None for the other steps.
    pub fn status_body(
        &self,
        old: &[Condition],
        now: jiff::Timestamp,
    ) -> Option<Result<Value, serde_json::Error>> {
        let (values, generation, body) = match self {
            Self::SetPlacement { vm, status, .. } | Self::SetVmStatus { vm, status } => {
                (&status.conditions, vm.generation, serde_json::to_value(status))
            }
            Self::SetDiskStatus { disk, status, .. } => {
                (&status.conditions, disk.generation, serde_json::to_value(status))
            }
            Self::SetActStatus { act, status } => {
                (&status.conditions, act.generation, serde_json::to_value(status))
            }
            Self::SetHostStatus { host, status } => {
                (&status.conditions, host.generation, serde_json::to_value(status))
            }
            Self::SetClusterStatus { cluster, status } => {
                (&status.conditions, cluster.generation, serde_json::to_value(status))
            }
            Self::SetNetworkStatus { network, status } => {
                (&status.conditions, network.generation, serde_json::to_value(status))
            }
            Self::SetDomainStatus { domain, status } => {
                (&status.conditions, domain.generation, serde_json::to_value(status))
            }
            Self::SetGroupStatus { group, status } => {
                (&status.conditions, group.generation, serde_json::to_value(status))
            }
            Self::EnsureFinalizer { .. }
            | Self::RemoveFinalizer { .. }
            | Self::CreateDisk { .. }
            | Self::DeleteAct { .. }
            | Self::EnsureHostAccess { .. }
            | Self::EnsureSecretAccess { .. }
            | Self::RemoveSecretAccess { .. } => return None,
        };
        Some(body.and_then(|mut body| {
            let conditions = serde_json::to_value(condition::merge(old, values, generation, now))?;
            if let Some(map) = body.as_object_mut() {
                map.insert("conditions".into(), conditions);
            }
            Ok(body)
        }))
    }

    /// The whole document to apply to `/status` for a step that writes a status.
    pub fn status_document(
        &self,
        old: &[Condition],
        now: jiff::Timestamp,
    ) -> Option<Result<Value, serde_json::Error>> {
        let object = self.object()?;
        let body = self.status_body(old, now)?;
        Some(body.map(|status| {
            json!({
                "apiVersion": format!("{}/{}", meta::GROUP, meta::VERSION),
                "kind": object.kind.as_str(),
                "metadata": {
                    "name": object.name,
                    "namespace": object.namespace,
                    "uid": object.uid,
                    "resourceVersion": object.resource_version,
                },
                "status": status,
            })
        }))
    }
}
