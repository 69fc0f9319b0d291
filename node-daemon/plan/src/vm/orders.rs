//! Decides which orders count: the object's, if its spec has been accepted, else what the ledger remembers.

use crate::{
    intent::{Fault, Intent, Observation, PendingAct, Policy, Wait, Wanted},
    ledger::Entry,
};

/// The orders that count for one VM.
pub(super) struct Orders<'a> {
    /// When it runs. None: no accepted spec was ever seen here.
    pub policy: Option<Policy>,
    /// What it is built from.
    pub wanted: Option<&'a Wanted>,
    /// The newest accepted spec, if it is not what the ledger remembers.
    pub newer: Option<&'a Wanted>,
    /// It is to go for good.
    pub deleting: bool,
    /// Acts.
    pub acts: &'a [PendingAct],
    /// What a start waits for.
    pub waits: &'a [Wait],
    /// What is wrong with the spec.
    pub faults: &'a [Fault],
    /// Its storage works.
    pub storage_ready: bool,
    /// The policy is the object's own, as accepted, and not what is remembered of it.
    pub fresh: bool,
}

impl<'a> Orders<'a> {
    /// The orders for a VM whose object says `observation` and whose ledger entry is `entry`.
    pub fn new(observation: &'a Observation, entry: &'a Entry) -> Self {
        match observation {
            Observation::Granted(intent) => Self::granted(intent, entry),
            Observation::Unseen
            | Observation::Disappeared
            | Observation::Gone
            | Observation::Elsewhere { .. } => Self::remembered(entry),
        }
    }

    fn remembered(entry: &'a Entry) -> Self {
        let wanted = entry.wanted.as_ref();
        Self {
            policy: wanted.map(|wanted| Policy::of(wanted.spec.get())),
            wanted,
            newer: None,
            deleting: false,
            acts: &[],
            waits: &[],
            faults: &[],
            storage_ready: true,
            fresh: false,
        }
    }

    fn granted(intent: &'a Intent, entry: &'a Entry) -> Self {
        let live = Self {
            deleting: intent.deleting,
            acts: &intent.acts,
            storage_ready: intent.storage_ready,
            ..Self::remembered(entry)
        };
        if !intent.is_accepted() {
            return live;
        }
        Self {
            policy: Some(intent.policy),
            wanted: intent.wanted.as_ref(),
            newer: intent.wanted.as_ref().filter(|wanted| entry.wanted.as_ref() != Some(*wanted)),
            waits: &intent.waits,
            faults: &intent.faults,
            fresh: true,
            ..live
        }
    }
}
