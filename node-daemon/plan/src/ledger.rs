//! The ledger of one VM: what this host has promised and done, as a value. Reading and fsync are the executor's.
//!
//! An entry is written before the act it permits (protocol: accepted before a domain is created, released before
//! it is reported). Every change is a [`Transition`], so that a log of them can be checked.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vireo_crds::v1alpha1::{ActPhase, Grant, StopCause};

use crate::{
    guard::{Guard, stands},
    intent::{VmRef, Wanted},
};

/// Version of the file format this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// A ledger file that cannot be used: nothing of this VM is started or touched until somebody looks.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// Written by a newer version.
    #[error(
        "ledger format {found} is newer than {FORMAT_VERSION}, the newest this version reads; upgrade vireo-node"
    )]
    Newer {
        /// Version in the file.
        found: u32,
    },
    /// Not what we write.
    #[error("the ledger file cannot be read: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Names another VM than its file name does.
    #[error("the ledger file names VM uid {found}, not {expected}")]
    OtherVm {
        /// uid in the file.
        found: String,
        /// uid in the file name.
        expected: String,
    },
}

/// The ledger entry of a VM as read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum LedgerFact {
    /// There is no file: nothing was ever accepted.
    #[default]
    None,
    /// There is a file and it cannot be used: start nothing, touch nothing, say so.
    Unreadable {
        /// Why.
        why: String,
    },
    /// The entry.
    Entry(Box<Entry>),
}

/// The ledger entry of one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The VM.
    pub vm: VmRef,
    /// Highest epoch ever seen for it; never falls within an incarnation.
    pub highest_epoch: i64,
    /// The grant last accepted, and where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// What it was last told to run, for restarts without the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    /// Volumes the guest has been given under the held grant: their tokens are taken back when it lets them go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<HeldVolume>,
    /// Directory in which firmware variables and TPM state were last used: a start elsewhere would be without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    /// The power of the guest.
    #[serde(default)]
    pub power: PowerRecord,
    /// Acts begun, by uid: each is carried out at most once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub acts: BTreeMap<String, ActRecord>,
}

/// An accepted grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The grant.
    pub grant: Grant,
    /// Where it stands.
    pub state: HeldState,
    /// Incarnation of this ledger in which it was accepted or adopted: in a later one nothing may be started under it.
    pub incarnation: String,
    /// The grant held before it was the one before it: no other host has run the VM in between.
    #[serde(default)]
    pub follows: bool,
    /// When it was accepted: what is older is about another grant.
    pub since: Timestamp,
}

/// A volume the guest writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldVolume {
    /// Image file.
    pub path: String,
    /// Token file.
    pub token: String,
    /// The host's page cache may hold what the guest wrote.
    #[serde(default)]
    pub cached: bool,
}

/// Where an accepted grant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HeldState {
    /// A domain may be created.
    Accepted,
    /// A guest has been seen under it.
    Activated,
    /// Nothing runs under it and nothing will. Final.
    Released,
}

/// What the ledger remembers of a guest's power.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerRecord {
    /// When the guest that runs, or ran last, was first seen; none: it never ran under this grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_since: Option<Timestamp>,
    /// The stop under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<Stopping>,
    /// The last stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_stop: Option<LastStop>,
    /// Crashes and failed starts in a row.
    #[serde(default)]
    pub crashes: u32,
    /// No start before this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// We paused the guest, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<PausedBy>,
    /// `on_reboot` was set to destroy because edits waited: an end without a cause of its own was a reboot.
    #[serde(default)]
    pub reboot_applies: bool,
}

/// Why we paused a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PausedBy {
    /// An act asked for it.
    Act,
    /// Another host holds a newer grant.
    Superseded,
}

/// A stop under way. It outlives the daemon, so that the grace period does not begin anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopping {
    /// When it was first asked for.
    pub since: Timestamp,
    /// Who asked.
    pub by: StopBy,
}

/// Who asked for a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum StopBy {
    /// `runStrategy: Halted`, or a deletion.
    Spec,
    /// The strategy changed back before the guest was down: no more asking, but its end is still our doing.
    Withdrawn,
    /// An act `stop`.
    Stop {
        /// uid of the act.
        act: String,
    },
    /// An act `restart`.
    Restart {
        /// uid of the act.
        act: String,
    },
}

/// How a guest last went down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastStop {
    /// When it was found down.
    pub at: Timestamp,
    /// Why it went down. None: only to be started anew (restart act, reboot that applies edits).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<StopCause>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// An act begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActRecord {
    /// Where it stands.
    pub phase: ActPhase,
    /// Outcome in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when.
    pub at: Timestamp,
}

/// One change of an entry, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Transition {
    /// A number was seen.
    EpochSeen {
        /// The number.
        epoch: i64,
    },
    /// A grant was accepted: a domain may be created.
    Accepted {
        /// The grant.
        grant: Grant,
    },
    /// A running guest was found whose grant this ledger does not hold: it keeps the grant in its metadata.
    Adopted {
        /// The grant.
        grant: Grant,
    },
    /// A guest was seen up for the first time after a start.
    Activated,
    /// Nothing runs and nothing will.
    Released,
    /// What to run changed.
    WantedChanged {
        /// Generation of the spec.
        generation: i64,
    },
    /// The volumes given to the guest changed.
    VolumesHeld {
        /// How many there are now.
        count: usize,
    },
    /// Firmware variables and TPM state are used in this directory.
    StateUsed {
        /// The directory.
        dir: String,
    },
    /// A stop began.
    StopBegun {
        /// Who asked.
        by: StopBy,
    },
    /// The stop was called off before it was carried out.
    StopCalledOff,
    /// The guest is down.
    Stopped {
        /// Why; none: only to be started anew.
        cause: Option<StopCause>,
    },
    /// The cause of the last stop was rewritten.
    CauseRewritten {
        /// The new cause.
        cause: StopCause,
    },
    /// Crashes were forgotten after the guest ran long enough.
    CrashesForgotten,
    /// We are about to pause the guest.
    Pausing {
        /// Why.
        by: PausedBy,
    },
    /// A pause of ours is over.
    Unpaused,
    /// What a reset does was, or is about to be, changed.
    RebootApplies {
        /// A reset ends the domain.
        edits: bool,
    },
    /// An act began or ended.
    Act {
        /// uid of the act.
        uid: String,
        /// Where it stands.
        phase: ActPhase,
    },
    /// Records of acts long gone were dropped.
    ActsPruned,
}

impl Entry {
    /// The entry of a VM never seen before.
    pub fn new(vm: VmRef) -> Self {
        Self {
            vm,
            highest_epoch: 0,
            held: None,
            wanted: None,
            volumes: Vec::new(),
            state_dir: None,
            power: PowerRecord::default(),
            acts: BTreeMap::new(),
        }
    }

    /// The grant that is neither released nor given up, if there is one.
    pub fn open(&self) -> Option<&Grant> {
        self.held.as_ref().filter(|held| held.state != HeldState::Released).map(|held| &held.grant)
    }

    /// The open grant, if it was accepted or adopted in this incarnation.
    pub fn open_in(&self, incarnation: &str) -> Option<&Grant> {
        self.open().filter(|_| self.held.as_ref().is_some_and(|held| held.incarnation == incarnation))
    }

    /// Whether this very grant has been released here.
    pub fn is_released(&self, grant: &Grant) -> bool {
        self.held.as_ref().is_some_and(|held| held.state == HeldState::Released && held.grant.id == grant.id)
    }

    /// Notes a number; the highest never falls.
    pub fn see_epoch(&mut self, epoch: i64) -> Transition {
        self.highest_epoch = self.highest_epoch.max(epoch);
        Transition::EpochSeen { epoch }
    }

    /// Accepts a grant: nothing that happened under the one before counts any more.
    pub fn accept(&mut self, grant: &Grant, now: Timestamp) -> Transition {
        self.highest_epoch = self.highest_epoch.max(grant.epoch);
        let follows = self.held.as_ref().is_some_and(|held| held.grant.epoch + 1 == grant.epoch);
        self.held = Some(Held {
            grant: grant.clone(),
            state: HeldState::Accepted,
            incarnation: grant.incarnation.clone(),
            follows,
            since: now,
        });
        self.volumes.clear();
        self.power = PowerRecord::default();
        Transition::Accepted { grant: grant.clone() }
    }

    /// Takes over a running guest under the grant in its metadata.
    pub fn adopt(&mut self, grant: &Grant, incarnation: &str, now: Timestamp) -> Transition {
        self.highest_epoch = self.highest_epoch.max(grant.epoch);
        self.held = Some(Held {
            grant: grant.clone(),
            state: HeldState::Activated,
            incarnation: incarnation.into(),
            follows: false,
            since: now,
        });
        self.power = PowerRecord { up_since: Some(now), ..PowerRecord::default() };
        Transition::Adopted { grant: grant.clone() }
    }

    /// Notes that the guest is up.
    pub fn activate(&mut self, now: Timestamp) -> Transition {
        if let Some(held) = &mut self.held {
            held.state = HeldState::Activated;
        }
        self.power.up_since = Some(now);
        self.power.retry_at = None;
        self.power.last_stop = None;
        Transition::Activated
    }

    /// Notes that the guest is down.
    pub fn stop(&mut self, stop: LastStop) -> Transition {
        let cause = stop.cause;
        self.power.up_since = None;
        self.power.stopping = None;
        self.power.paused_by = None;
        self.power.reboot_applies = false;
        self.power.last_stop = Some(stop);
        Transition::Stopped { cause }
    }

    /// Closes the grant for good.
    pub fn release(&mut self) -> Transition {
        if let Some(held) = &mut self.held {
            held.state = HeldState::Released;
        }
        self.power.stopping = None;
        self.power.retry_at = None;
        Transition::Released
    }

    /// Notes where an act stands.
    pub fn act(&mut self, uid: &str, phase: ActPhase, message: Option<String>, now: Timestamp) -> Transition {
        self.acts.insert(uid.into(), ActRecord { phase, message, at: now });
        Transition::Act { uid: uid.into(), phase }
    }
}

/// Why a grant does not permit a start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartRefusal {
    /// For another host.
    #[error("the grant is for host {host}")]
    OtherHost {
        /// Its host.
        host: String,
    },
    /// For an earlier life of this host.
    #[error(
        "the grant is for an earlier life of this host (incarnation {incarnation}); the controller makes a new one"
    )]
    OtherIncarnation {
        /// Its incarnation.
        incarnation: String,
    },
    /// Closed here.
    #[error("the grant has been released here, which is final")]
    Released,
    /// Not newer than what has been seen.
    #[error(
        "the grant has number {epoch}, but number {highest} has been seen here; the API may have been restored from a backup"
    )]
    Stale {
        /// Its number.
        epoch: i64,
        /// Highest seen.
        highest: i64,
    },
    /// Another grant is open here.
    #[error("grant {id} is still open here")]
    AnotherOpen {
        /// Identity of the open one.
        id: String,
    },
}

/// The part of the start rule that needs no look at the host: the grant names this host and its present incarnation,
/// is not closed, and is either the accepted one or newer than all seen. A domain, a QEMU process and the disk tokens
/// are the planner's to check.
pub fn permits_start(
    entry: Option<&Entry>,
    grant: &Grant,
    host: &str,
    incarnation: &str,
) -> Result<(), StartRefusal> {
    if grant.host != host {
        return Err(StartRefusal::OtherHost { host: grant.host.clone() });
    }
    if grant.incarnation != incarnation && stands(Guard::Incarnation) {
        return Err(StartRefusal::OtherIncarnation { incarnation: grant.incarnation.clone() });
    }
    let Some(entry) = entry else { return Ok(()) };
    if entry.is_released(grant) {
        if !stands(Guard::Released) {
            return Ok(());
        }
        return Err(StartRefusal::Released);
    }
    match entry.open() {
        Some(open) if open == grant => return Ok(()),
        // What was open in an earlier incarnation did not survive it, or runs and was adopted into this one.
        Some(open) if entry.open_in(incarnation).is_some() => {
            return Err(StartRefusal::AnotherOpen { id: open.id.clone() });
        }
        Some(_) | None => {}
    }
    if grant.epoch <= entry.highest_epoch && stands(Guard::HighestEpoch) {
        return Err(StartRefusal::Stale { epoch: grant.epoch, highest: entry.highest_epoch });
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    format_version: u32,
    entry: Entry,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    format_version: u32,
}

/// The text of a ledger file.
pub fn encode(entry: &Entry) -> Result<String, LedgerError> {
    Ok(serde_json::to_string(&File { format_version: FORMAT_VERSION, entry: entry.clone() })?)
}

/// The entry in a ledger file that is named after `vm_uid`. The version is read first, so that a newer file is refused
/// as newer and not as damaged.
pub fn decode(text: &str, vm_uid: &str) -> Result<Entry, LedgerError> {
    let Version { format_version } = serde_json::from_str(text)?;
    if format_version > FORMAT_VERSION {
        return Err(LedgerError::Newer { found: format_version });
    }
    let File { entry, .. } = serde_json::from_str(text)?;
    if entry.vm.uid != vm_uid {
        return Err(LedgerError::OtherVm { found: entry.vm.uid, expected: vm_uid.into() });
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(epoch: i64, id: &str) -> Grant {
        Grant { host: "host1".into(), incarnation: "inc1".into(), epoch, id: id.into() }
    }

    fn entry() -> Entry {
        Entry::new(VmRef { uid: "u1".into(), namespace: "default".into(), name: "web".into() })
    }

    fn permits(entry: &Entry, grant: &Grant) -> Result<(), StartRefusal> {
        permits_start(Some(entry), grant, "host1", "inc1")
    }

    #[test]
    fn only_the_accepted_grant_or_a_newer_one_permits_a_start() {
        let mut entry = entry();
        assert_eq!(permits(&entry, &grant(1, "a")), Ok(()));
        entry.accept(&grant(3, "c"), Timestamp::UNIX_EPOCH);
        assert_eq!(permits(&entry, &grant(3, "c")), Ok(()));
        assert_eq!(permits(&entry, &grant(4, "d")), Err(StartRefusal::AnotherOpen { id: "c".into() }));
        entry.release();
        assert_eq!(permits(&entry, &grant(3, "c")), Err(StartRefusal::Released));
        assert_eq!(permits(&entry, &grant(3, "x")), Err(StartRefusal::Stale { epoch: 3, highest: 3 }));
        assert_eq!(permits(&entry, &grant(2, "b")), Err(StartRefusal::Stale { epoch: 2, highest: 3 }));
        assert_eq!(permits(&entry, &grant(4, "d")), Ok(()));
    }

    #[test]
    fn a_grant_for_another_life_or_host_permits_nothing() {
        let other = Grant { incarnation: "inc0".into(), ..grant(9, "z") };
        assert!(matches!(
            permits_start(None, &other, "host1", "inc1"),
            Err(StartRefusal::OtherIncarnation { .. })
        ));
        let elsewhere = Grant { host: "host2".into(), ..grant(9, "z") };
        assert!(matches!(
            permits_start(None, &elsewhere, "host1", "inc1"),
            Err(StartRefusal::OtherHost { .. })
        ));
    }

    #[test]
    fn the_highest_epoch_never_falls() {
        let mut entry = entry();
        entry.accept(&grant(5, "e"), Timestamp::UNIX_EPOCH);
        entry.see_epoch(4);
        entry.release();
        assert_eq!(entry.highest_epoch, 5);
    }

    #[test]
    fn a_file_round_trips_and_a_newer_one_is_refused_as_newer() {
        let mut entry = entry();
        entry.accept(&grant(1, "a"), Timestamp::UNIX_EPOCH);
        let text = encode(&entry).unwrap();
        assert_eq!(decode(&text, "u1").unwrap(), entry);
        assert!(matches!(decode(&text, "u2"), Err(LedgerError::OtherVm { .. })));
        assert!(matches!(
            decode(r#"{"formatVersion": 2, "shape": "unknown"}"#, "u1"),
            Err(LedgerError::Newer { found: 2 })
        ));
        assert!(matches!(decode("{", "u1"), Err(LedgerError::Syntax(_))));
        assert!(matches!(decode("", "u1"), Err(LedgerError::Syntax(_))));
    }
}
