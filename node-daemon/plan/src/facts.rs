//! What this host has for one VM. Absent, present and unknown are three different answers; nothing here is guessed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::{Grant, GuestFacts, Hardware, Link};

use crate::{
    guard::{Guard, stands},
    intent::{ValidatedSpec, VmRef},
    ledger::LedgerFact,
    xml::{DiskSource, FieldDiff, InterfaceSource},
};

/// Everything observed of one VM on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Name of this host.
    pub host: String,
    /// Present incarnation of this daemon's ledger.
    pub incarnation: String,
    /// The VM's ledger entry.
    #[serde(default)]
    pub ledger: LedgerFact,
    /// The libvirt domain of this VM.
    pub domain: DomainFact,
    /// QEMU processes that carry the VM's uuid, from the process table.
    pub process: ProcessFact,
    /// How the domain that is no longer there ended; from events, or the last line of QEMU's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// The last `StartDomain` (or a step before it) that failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_failure: Option<StartFailure>,
    /// The last `RequestShutdown` carried out by this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_asked: Option<ShutdownAsked>,
    /// Attempts to resume a guest paused by an I/O error, since it last ran for a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_attempts: Option<Attempts>,
    /// Files this host keeps for the VM.
    #[serde(default)]
    pub files: HostFiles,
    /// Disk tokens, by token file: of every volume the guest is to write to, and of all the ledger says it was given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, TokenFact>,
    /// Told by the guest agent; kept while the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFacts>,
    /// IP addresses by MAC, from the agent, else from the lease table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<String, Vec<String>>,
}

/// The libvirt domain of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum DomainFact {
    /// libvirt did not answer, or not completely.
    Unknown {
        /// What went wrong.
        why: String,
    },
    /// libvirt answered completely and runs no domain of this uuid or name.
    Absent {
        /// A definition of ours is left: somebody made the domain persistent.
        #[serde(default)]
        defined: bool,
    },
    /// It runs, in some state.
    Present(Box<LiveDomain>),
}

/// QEMU processes that carry a VM's uuid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ProcessFact {
    /// The process table could not be read.
    Unknown {
        /// What went wrong.
        why: String,
    },
    /// None.
    None,
    /// These.
    Present {
        /// Process ids.
        pids: Vec<u32>,
    },
}

/// Whether a guest of this VM is on this host at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Presence<'a> {
    /// libvirt answered completely and no QEMU process carries the uuid.
    Absent,
    /// libvirt shows the domain.
    Present(&'a LiveDomain),
    /// Anything else.
    Unknown(String),
}

impl Facts {
    /// The one place that says what absent means.
    pub fn presence(&self) -> Presence<'_> {
        match (&self.domain, &self.process) {
            (DomainFact::Present(live), _) => Presence::Present(live),
            (DomainFact::Unknown { why }, _) => Presence::Unknown(format!("libvirt does not answer: {why}")),
            (DomainFact::Absent { .. }, _) if !stands(Guard::ProcessCounts) => Presence::Absent,
            (DomainFact::Absent { .. }, ProcessFact::Unknown { why }) => {
                Presence::Unknown(format!("the process table cannot be read: {why}"))
            }
            (DomainFact::Absent { .. }, ProcessFact::Present { pids }) => {
                let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
                Presence::Unknown(format!(
                    "QEMU process {} carries this VM's uuid but libvirt knows no such domain; it is left alone until it ends",
                    pids.join(", ")
                ))
            }
            (DomainFact::Absent { .. }, ProcessFact::None) => Presence::Absent,
        }
    }

    /// The live domain, if libvirt shows one.
    pub fn live(&self) -> Option<&LiveDomain> {
        match &self.domain {
            DomainFact::Present(live) => Some(live),
            DomainFact::Unknown { .. } | DomainFact::Absent { .. } => None,
        }
    }
}

/// A domain as libvirt shows it, reduced to the fields Vireo owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveDomain {
    /// Name.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// State and, for a paused one, its reason.
    pub state: DomainState,
    /// Our element in the metadata; none if somebody removed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<DomainMetadata>,
    /// A definition exists as well: somebody made the domain persistent.
    #[serde(default)]
    pub persistent: bool,
    /// What a reset from inside does.
    pub on_reboot: OnReboot,
    /// vCPUs online.
    pub vcpus: i64,
    /// Bytes the guest has, balloon included.
    pub memory: u64,
    /// Disks, by the name in the spec (`cloud-init` for the seed).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<LiveDisk>,
    /// Interfaces, by the name in the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<LiveNic>,
    /// State of the agent's channel.
    #[serde(default)]
    pub agent: AgentState,
    /// Serial console present.
    #[serde(default)]
    pub serial: bool,
    /// VNC display present.
    #[serde(default)]
    pub vnc: bool,
    /// Machine type and device addresses libvirt settled on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Every field in which it differs from the domain that was started, as its metadata keeps that one. Empty also
    /// where there is no such record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<FieldDiff>,
}

/// State of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DomainState {
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused(PausedReason),
    /// The guest has shut down; QEMU is about to end.
    ShuttingDown,
    /// The guest is in S3.
    Suspended,
    /// Any other state: being created, crashed and kept, unknown to this version.
    Other,
}

/// Why libvirt says a domain is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PausedReason {
    /// On request.
    User,
    /// A disk failed.
    IoError,
    /// The watchdog.
    Watchdog,
    /// Not yet started, or inside a migration, a snapshot, a dump: it will change by itself.
    Transient,
    /// Anything else.
    Other,
}

/// What a reset from inside does to the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnReboot {
    /// The guest boots again in the same process.
    Restart,
    /// The domain ends, so that it can be started anew with what waits.
    Destroy,
    /// Something Vireo never sets.
    Other,
}

/// State of the guest agent's channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentState {
    /// The domain has no such channel.
    #[default]
    None,
    /// Nobody has opened it in the guest.
    Disconnected,
    /// The agent is there.
    Connected,
}

/// A disk of a live domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveDisk {
    /// Name in the spec, from the user alias; the target if it is not ours.
    pub name: String,
    /// Image file; none: an empty drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What it held when the domain was started, if it holds something else now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_with: Option<DiskSource>,
}

/// An interface of a live domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveNic {
    /// Name in the spec, from the user alias; the address if it is not ours.
    pub name: String,
    /// Address.
    pub mac: String,
    /// Link.
    pub link: Link,
    /// What it was plugged into when the domain was started, if that is something else now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_in: Option<InterfaceSource>,
}

/// Our element in a domain's metadata: who it is, under which grant it runs, what it was built from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainMetadata {
    /// Installation it belongs to.
    pub installation_id: String,
    /// The VM.
    pub vm: VmRef,
    /// Grant it runs under.
    pub grant: Grant,
    /// What it was built from.
    pub built: Built,
}

/// What a running guest was built from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Built {
    /// Generation of the spec.
    pub generation: i64,
    /// [`ValidatedSpec::hash`].
    pub spec_hash: String,
    /// The spec.
    pub spec: ValidatedSpec,
    /// CPU model it resolved to, for the message when the cluster's baseline moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
}

/// How a domain ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// When.
    pub at: Timestamp,
    /// How.
    pub how: ExitKind,
    /// For people: QEMU's last words, if it has said any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How a domain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitKind {
    /// The guest shut down (libvirt: shutdown), and nothing tells a power-off from a reset under `on_reboot=destroy`.
    Shutdown,
    /// QEMU said `guest-shutdown`: the guest powered itself off.
    PoweredOff,
    /// QEMU said `guest-reset` or `host-qmp-system-reset`: a reset ended the domain because of `on_reboot=destroy`.
    Reset,
    /// Somebody destroyed it.
    Destroyed,
    /// QEMU died or the guest panicked.
    Crashed,
    /// libvirt could not start or keep it.
    Failed,
}

/// A start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartFailure {
    /// When.
    pub at: Timestamp,
    /// What libvirt or the step said.
    pub message: String,
}

/// A shutdown request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShutdownAsked {
    /// When it was last sent.
    pub at: Timestamp,
    /// How.
    pub via: ShutdownVia,
}

/// How a guest is asked to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ShutdownVia {
    /// Through the guest agent.
    Agent,
    /// By the ACPI power button.
    Acpi,
}

/// Repeated attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempts {
    /// How many.
    pub count: u32,
    /// The last one.
    pub last: Timestamp,
}

/// Files this host keeps for a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFiles {
    /// Grant id in the permit, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<String>,
    /// Digest of the seed image, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Overlays of ephemeral disks, by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<String>,
    /// TPM state in libvirt's own directory (see `StateHome::local_tpm`).
    #[serde(default)]
    pub local_tpm: bool,
    /// The VM's directory beside its volumes.
    #[serde(default)]
    pub state_dir: StateDirFact,
    /// The record of hardware addresses in that directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_hardware: Option<Hardware>,
}

/// The VM's directory beside its volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StateDirFact {
    /// The VM keeps no state there.
    #[default]
    Absent,
    /// It is there.
    Present,
    /// The storage cannot be read.
    Unknown,
}

/// A disk token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TokenFact {
    /// It cannot be read.
    Unknown {
        /// What went wrong.
        why: String,
    },
    /// No token: the volume has never been written by a guest, or its last writer let it go.
    None,
    /// This one.
    Present(DiskToken),
}

/// Content of a disk token: who may write to the volume. The second line of defence, and it survives a restored API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskToken {
    /// uid of the VM.
    pub vm_uid: String,
    /// Number of the grant.
    pub epoch: i64,
    /// Identity of the grant.
    pub id: String,
}
