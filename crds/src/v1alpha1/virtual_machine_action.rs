//! VirtualMachineAction: one act on one VM, with its outcome.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};

use super::virtual_machine::Empty;
use crate::condition::conditions_schema;

/// One act on one virtual machine: start, stop, restart, reset, pause, resume or nmi. It is carried out once.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "VirtualMachineAction",
    plural = "virtualmachineactions",
    shortname = "vact",
    category = "vireo",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "VirtualMachineActionStatus",
    doc = "One act on one virtual machine: start, stop, restart, reset, pause, resume or nmi. It is carried out once.",
    selectable = ".status.host",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Act", type_ = "string", json_path = ".status.act"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("an act cannot be edited; make a new one"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.start), has(self.stop), has(self.restart), has(self.reset), has(self.pause), has(self.resume), has(self.nmi)].filter(x, x).size() == 1").message("an act is exactly one of start, stop, restart, reset, pause, resume and nmi"))]
pub struct VirtualMachineActionSpec {
    /// Name of the VM, in the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub vm: String,
    /// uid of the VM: given, the act fails if another VM has the name by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub vm_uid: Option<String>,
    /// Start a VM that is down under `Manual` or `RerunOnFailure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Empty>,
    /// Ask the guest to shut down; cut its power after the grace period. The VM stays down under `Manual` and
    /// `RerunOnFailure`; under `Always` the act is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Empty>,
    /// Stop and start anew: edits that wait are applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Empty>,
    /// Press the reset button.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Empty>,
    /// Stop the virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Empty>,
    /// Let the virtual CPUs run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Empty>,
    /// Inject a non-maskable interrupt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nmi: Option<Empty>,
    /// Seconds after its end at which this object is deleted.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 0, max = 2_592_000))]
    pub ttl_seconds_after_finished: i64,
}

fn default_ttl() -> i64 {
    3600
}

/// An act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Act {
    /// Start a VM that is down.
    Start,
    /// Shut the guest down.
    Stop,
    /// Stop and start anew.
    Restart,
    /// Press reset.
    Reset,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs run.
    Resume,
    /// Inject an NMI.
    Nmi,
}

/// An act of a later release is none that this one can carry out, and no reason not to read the rest.
fn known_act<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Act>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Told {
        Known(Act),
        Later(IgnoredAny),
    }
    Ok(match Option::<Told>::deserialize(deserializer)? {
        Some(Told::Known(act)) => Some(act),
        Some(Told::Later(_)) | None => None,
    })
}

impl VirtualMachineActionSpec {
    /// The act asked for; none if the object slipped past admission with none or several.
    pub fn act(&self) -> Option<Act> {
        let Self {
            vm: _,
            vm_uid: _,
            start,
            stop,
            restart,
            reset,
            pause,
            resume,
            nmi,
            ttl_seconds_after_finished: _,
        } = self;
        let mut acts = [
            (start, Act::Start),
            (stop, Act::Stop),
            (restart, Act::Restart),
            (reset, Act::Reset),
            (pause, Act::Pause),
            (resume, Act::Resume),
            (nmi, Act::Nmi),
        ]
        .into_iter()
        .filter(|(given, _)| given.is_some())
        .map(|(_, act)| act);
        acts.next().filter(|_| acts.next().is_none())
    }
}

/// What became of an act.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineActionStatus {
    /// Generation acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; `Ready` is True once the act has succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The act, for the column. Written by the controller.
    #[serde(default, deserialize_with = "known_act", skip_serializing_if = "Option::is_none")]
    pub act: Option<Act>,
    /// Host that carries it out. Written by the controller, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub host: Option<String>,
    /// uid of the VM it is for. Written by the controller, with `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub vm_uid: Option<String>,
    /// Grant under which it is carried out. Written by the controller, with `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub grant_id: Option<String>,
    /// Where it stands. By the host once one is named, else by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ActPhase>,
    /// Outcome in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
}

/// Where an act stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ActPhase {
    /// Accepted.
    Pending,
    /// Being carried out.
    Running,
    /// Done.
    Succeeded,
    /// Not done; the message says why.
    Failed,
    /// A value this version does not know: taken as not ended.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl ActPhase {
    /// Whether the act has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}
