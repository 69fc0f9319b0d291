//! Every act on this host for one VM, and the plan that orders them. Each step may be repeated and carries all it
//! needs; its doc comment is its postcondition, and `effect` implements that sentence for tests.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_crds::{
    condition::ConditionValue,
    v1alpha1::{ActPhase, DiskFormat, Grant, Hardware, Link, Runtime, VmState, VmSummary},
};

use crate::{
    facts::{DiskToken, DomainMetadata, OnReboot, ShutdownVia},
    intent::{Fault, Machine, Seed, Wait},
    ledger::{Entry, Transition},
    xml::{DiskSource, InterfaceSource},
};

/// One act on this host for one VM. Steps run in order and the first failure ends the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum VmStep {
    /// The ledger file reads back as `entry` and is on stable storage. `events` are told once that is so.
    WriteLedger {
        /// What changes, by name.
        transitions: Vec<Transition>,
        /// The whole entry.
        entry: Box<Entry>,
        /// What people are told.
        events: Vec<EventNote>,
    },
    /// The permit of this domain is in the run directory and names the grant.
    WritePermit {
        /// UUID of the domain: the name of the file.
        uuid: String,
        /// The grant.
        grant: Grant,
    },
    /// There is no permit of this domain.
    RemovePermit {
        /// UUID of the domain.
        uuid: String,
    },
    /// The token file beside a volume reads back as `token` and is on stable storage.
    WriteDiskToken {
        /// Token file.
        path: String,
        /// Its content.
        token: DiskToken,
        /// What may stand there instead until then; anything else is left and the step fails.
        replaces: Option<DiskToken>,
    },
    /// The volume is let go: its token is gone or marked as released, unless it has become somebody else's meanwhile.
    RemoveDiskToken {
        /// Token file.
        path: String,
        /// Content it must still have.
        token: DiskToken,
    },
    /// The seed image is there and was made from inputs of exactly this digest.
    MakeSeed {
        /// File and digest.
        seed: Seed,
    },
    /// There is no seed image of this VM.
    RemoveSeed,
    /// A new, empty qcow2 layer lies at `path`; whatever lay there is gone.
    MakeOverlay {
        /// File of the layer.
        path: String,
        /// Volume below.
        base: String,
        /// Format of the volume below.
        base_format: DiskFormat,
    },
    /// There is no overlay at `path`.
    RemoveOverlay {
        /// File of the layer.
        path: String,
    },
    /// The VM's directory beside its volumes exists.
    EnsureStateDir {
        /// The directory.
        dir: String,
    },
    /// libvirt's own directory holds a copy of the TPM state kept at `from`, or is empty if none is kept.
    CopyTpmIn {
        /// Directory beside the volumes.
        from: String,
        /// libvirt's directory.
        to: String,
    },
    /// The TPM state beside the volumes equals libvirt's copy and is on stable storage; libvirt's copy is gone.
    CopyTpmOut {
        /// libvirt's directory.
        from: String,
        /// Directory beside the volumes.
        to: String,
    },
    /// `hardware` is kept beside the volumes.
    KeepHardware {
        /// The VM's directory beside its volumes.
        dir: String,
        /// Machine type and addresses.
        hardware: Hardware,
    },
    /// The VM's directory beside its volumes is gone with all that is in it.
    RemoveStateDir {
        /// The directory.
        dir: String,
    },
    /// A transient domain of this machine runs; it carries `metadata`, and `on_reboot` is restart.
    StartDomain {
        /// Its metadata.
        metadata: Box<DomainMetadata>,
        /// The machine.
        machine: Box<Machine>,
        /// Addresses chosen earlier, to be kept.
        hardware: Option<Hardware>,
        /// Seed image to attach.
        seed: Option<String>,
        /// TPM state directory, if the guest has a TPM.
        tpm_dir: Option<String>,
    },
    /// The guest has been asked to shut down.
    RequestShutdown {
        /// How.
        via: ShutdownVia,
    },
    /// The domain of this grant is gone. Refused by the executor if the domain's metadata names another grant.
    Destroy {
        /// The grant.
        grant: Grant,
    },
    /// The guest has been reset once.
    Reset,
    /// The guest has received one NMI.
    InjectNmi,
    /// The vCPUs stand still.
    Pause,
    /// The vCPUs run.
    Resume,
    /// The link of this interface is as given, on the live domain.
    SetLink {
        /// Name in the spec.
        nic: String,
        /// Address.
        mac: String,
        /// Link.
        link: Link,
    },
    /// The CD drive holds this, on the live domain.
    SetMedia {
        /// Name of the disk in the spec.
        disk: String,
        /// What it holds.
        source: DiskSource,
    },
    /// The interface is plugged into this, on the live domain.
    SetNetwork {
        /// Name in the spec.
        nic: String,
        /// Address.
        mac: String,
        /// What it is plugged into.
        source: InterfaceSource,
    },
    /// The live domain ends when the guest powers off or crashes.
    EndWithGuest,
    /// A reset from inside does this, on the live domain.
    SetOnReboot {
        /// What.
        action: OnReboot,
    },
    /// The live domain's metadata reads back as given.
    WriteMetadata {
        /// The metadata.
        metadata: Box<DomainMetadata>,
    },
    /// No definition of this domain is left; one that runs goes on as a transient domain.
    Undefine {
        /// Name of the domain.
        name: String,
    },
    /// What the guest wrote to these files is on stable storage.
    FlushDisks {
        /// Image files.
        paths: Vec<String>,
    },
}

/// Something to tell people, as an Event on the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventNote {
    /// One of `vireo_crds::reasons`.
    pub reason: String,
    /// Something is wrong.
    #[serde(default)]
    pub warning: bool,
    /// What happened.
    pub message: String,
}

/// What to do for one VM, why what is not done is not done, and what to report now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What to do, in order. Empty: everything that can be done is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<VmStep>,
    /// What is waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Wait>,
    /// What will not be done until somebody edits something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Fault>,
    /// When to plan again if nothing else wakes the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_wakeup: Option<Timestamp>,
    /// Read the object by name, resourceVersion unset, and plan again with what that says.
    #[serde(default)]
    pub needs_get: bool,
    /// What the VM's status should say of the facts this plan was made from. None: it is not ours to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<VmReport>,
    /// Outcomes of acts, to be written to their objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acts: Vec<ActReport>,
    /// Why a domain of this VM runs here that the API does not explain (`Host.status.domains`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<String>,
}

/// The daemon's part of a VM's status, without times that only move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmReport {
    /// `status.runtime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// `status.hardware`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// The daemon's conditions; those absent here are dropped from the object.
    pub conditions: Vec<ConditionValue>,
    /// `status.state`.
    pub state: VmState,
    /// `status.summary`.
    pub summary: VmSummary,
    /// `status.observedGeneration`.
    pub observed_generation: i64,
    /// The state will pass by itself within a second or two: the writer may wait that long for the next one.
    #[serde(default)]
    pub passing: bool,
}

/// Outcome of an act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActReport {
    /// Name of the VirtualMachineAction.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Where it stands.
    pub phase: ActPhase,
    /// Outcome in words.
    pub message: String,
    /// When it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
}
