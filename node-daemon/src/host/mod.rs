//! The wall around the outside: what the daemon asks of a host. One implementation talks to libvirt, one lives in
//! memory. Nothing here decides; nothing outside this folder knows what a hypervisor is.

pub mod libvirt;
pub mod memory;
pub mod memory_storage;
pub mod probe;
pub mod process;

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use node_plan::{
    facts::{DomainFact, Exit, HostFiles, ProcessFact, TokenFact},
    intent::{VmRef, Wanted},
    orphan::Found,
    step::VmStep,
};
use tokio::sync::mpsc::UnboundedReceiver;
use vireo_crds::v1alpha1::{Accelerator, GuestFacts, HostCpu, HostVersions};

use crate::error::RetryClass;

/// A host, as the daemon sees it. All calls may take long; none blocks the caller's thread.
pub trait HostDriver: Send + Sync {
    /// What this host has for one VM. Never fails: what cannot be read is unknown.
    fn facts(&self, query: Query) -> BoxFuture<'_, HostSide>;

    /// Carries out one step for one VM. Success is what a re-read says; an error here only says when to try again.
    fn run<'a>(&'a self, vm: &'a Target, step: &'a VmStep) -> BoxFuture<'a, Result<(), StepError>>;

    /// Everything of ours that runs here, and what does not belong to us. Fails unless the answer is complete.
    fn census(&self) -> BoxFuture<'_, Result<Census, StepError>>;

    /// The machine.
    fn describe(&self) -> BoxFuture<'_, Result<HostFacts, StepError>>;

    /// Removes what only helped people look at a VM that is gone for good.
    fn forget<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, ()>;

    /// Whether the hypervisor answers right now.
    fn is_up(&self) -> bool;

    /// Hands over the stream of events, once.
    fn take_events(&self) -> Option<UnboundedReceiver<HostEvent>>;
}

/// Which VM facts are asked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// The VM.
    pub vm: VmRef,
    /// UUID of its domain.
    pub uuid: String,
    /// What it should be, if that is known: names the files to look at.
    pub wanted: Option<Wanted>,
    /// Disk tokens to look at.
    pub tokens: BTreeSet<String>,
}

/// What a driver knows of one VM.
#[derive(Debug, Clone, PartialEq)]
pub struct HostSide {
    /// The libvirt domain.
    pub domain: DomainFact,
    /// QEMU processes carrying the uuid.
    pub process: ProcessFact,
    /// How the domain that is no longer there ended.
    pub exit: Option<Exit>,
    /// Files this host keeps.
    pub files: HostFiles,
    /// Disk tokens by token file.
    pub tokens: BTreeMap<String, TokenFact>,
    /// Told by the guest's agent.
    pub guest: Option<GuestFacts>,
    /// IP addresses by MAC.
    pub addresses: BTreeMap<String, Vec<String>>,
}

/// Whom a step is for.
#[derive(Debug, Clone)]
pub struct Target {
    /// The VM.
    pub vm: VmRef,
    /// UUID of its domain.
    pub uuid: String,
    /// What goes into the seed image, if one may have to be made. Never logged.
    pub seed: Option<SeedContent>,
}

/// Content of a seed image.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedContent {
    /// Instance id.
    pub instance_id: String,
    /// Host name.
    pub hostname: String,
    /// User data.
    pub user_data: Option<String>,
    /// Network configuration.
    pub network_data: Option<String>,
}

impl std::fmt::Debug for SeedContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeedContent(..)")
    }
}

/// A step that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// When to try again.
    pub class: RetryClass,
    /// The host gave no answer: whether the step took effect is unknown.
    pub unanswered: bool,
    /// What failed, on which object.
    pub message: String,
}

impl StepError {
    /// A failure of this class.
    pub fn new(class: RetryClass, message: impl Into<String>) -> Self {
        Self { class, unanswered: false, message: message.into() }
    }
}

/// Everything that runs here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Census {
    /// libvirt's domains, whoever made them.
    pub found: Vec<Found>,
    /// QEMU processes that carry a UUID.
    pub processes: Vec<process::QemuProcess>,
}

/// The machine and its hypervisor.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// UUID of the machine.
    pub machine_uuid: String,
    /// Versions.
    pub versions: HostVersions,
    /// What really accelerates guests here.
    pub accelerator: Accelerator,
    /// Processors.
    pub cpu: HostCpu,
    /// Bytes of memory.
    pub memory: u64,
    /// This libvirt can keep a TPM's state in a directory of our choice.
    pub tpm_source: bool,
}

/// Something happened on the host. A hint to look, never the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// The hypervisor answers (again): everything has to be looked at.
    Connected,
    /// A connection ended.
    ConnectionClosed {
        /// Which opening of it.
        generation: u64,
        /// Why.
        reason: &'static str,
    },
    /// Something about one domain.
    Domain {
        /// UUID of the domain.
        uuid: String,
        /// What.
        event: DomainEvent,
    },
}

/// Something about one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainEvent {
    /// It was started, stopped, paused, resumed.
    Lifecycle(Lifecycle),
    /// QEMU said why it shut down, such as `guest-reset`.
    ShutdownReason {
        /// QEMU's word.
        reason: String,
    },
    /// The guest rebooted inside its process.
    Reboot,
    /// The guest set its clock.
    RtcChange {
        /// Seconds from UTC.
        offset_seconds: i64,
    },
    /// A disk failed.
    IoError {
        /// Image file.
        path: String,
        /// Alias of the device.
        device: String,
        /// libvirt's word, such as `enospc`.
        reason: String,
        /// The guest was paused for it.
        paused: bool,
    },
    /// A device has left the guest.
    DeviceRemoved {
        /// Its alias.
        device: String,
    },
    /// The guest's agent came or went.
    Agent {
        /// It is there.
        connected: bool,
    },
    /// The watchdog acted.
    Watchdog,
    /// An image grew past its threshold.
    BlockThreshold {
        /// Device.
        device: String,
        /// Threshold, in bytes.
        threshold: u64,
        /// Bytes above it.
        excess: u64,
    },
    /// Addresses or facts told by the guest changed.
    GuestChanged,
}

/// Change of a domain's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// Started.
    Started,
    /// Paused.
    Suspended,
    /// Resumed.
    Resumed,
    /// The guest has shut down; QEMU is about to end.
    ShuttingDown {
        /// From inside.
        by_guest: bool,
    },
    /// The guest panicked.
    Panicked,
    /// Gone.
    Stopped(StoppedHow),
    /// Somebody defined it, or removed its definition.
    Defined,
    /// Anything else.
    Other,
}

/// How a domain stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedHow {
    /// The guest shut down.
    Shutdown,
    /// Somebody destroyed it.
    Destroyed,
    /// It moved away.
    Migrated,
    /// libvirt could not keep it.
    Failed,
    /// QEMU died.
    Crashed,
}
