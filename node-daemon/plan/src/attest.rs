//! Answers a new session: which grants this host holds that the store does not list as it holds them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::{Attestation, Claim, GrantRef, Holding, Placement};

use crate::{
    facts::DomainMetadata,
    ledger::{Entry, Held, HeldState},
};

/// What this host knows of one VM when a session begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// The ledger entry, if there is a readable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    /// The metadata of its running domain, if one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<DomainMetadata>,
}

/// What the store says of one VM, read consistently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// `status.placement`; none: it has never been placed, as far as the store knows.
    pub placement: Option<Placement>,
    /// `status.runtime` says that the placement's grant is released.
    #[serde(default)]
    pub released: bool,
}

/// The answer to `session`. `stored` is what a consistent list says, by VM uid.
pub fn attest<'a>(
    session: &str,
    incarnation: &str,
    known: impl IntoIterator<Item = &'a Known>,
    stored: &BTreeMap<String, Stored>,
) -> Attestation {
    let mut highest_epoch = 0;
    let mut claims = Vec::new();
    for known in known {
        highest_epoch = highest_epoch.max(highest(known));
        claims.extend(claim(known).filter(|claim| !is_said(claim, stored.get(&claim.vm_uid))));
    }
    claims.sort_by(|a, b| a.vm_uid.cmp(&b.vm_uid));
    Attestation {
        session: session.into(),
        incarnation: incarnation.into(),
        highest_epoch,
        claims,
        ..Attestation::default()
    }
}

/// What the store says too needs no saying: exactly this grant, standing as it stands here, and a last number that
/// covers what was seen. Of a closed grant that the store has long replaced by a newer one, nothing needs saying either.
fn is_said(claim: &Claim, stored: Option<&Stored>) -> bool {
    let Some(Stored { placement, released }) = stored else {
        // An object that is gone may come back with an older backup; a closed grant of it does no harm.
        return claim.holding == Holding::Released && !claim.running;
    };
    // The store has forgotten every grant of an object it still has: the next number must be above ours.
    let Some(placement) = placement else { return false };
    if placement.last_epoch < claim.highest_epoch {
        return false;
    }
    let same = claim.grant.names(&placement.grant());
    match claim.holding {
        Holding::Open => same,
        Holding::Released | Holding::Renounced | Holding::Unknown => {
            if same {
                *released
            } else {
                placement.epoch > claim.grant.epoch
            }
        }
    }
}

fn highest(known: &Known) -> i64 {
    let seen = known.entry.as_ref().map_or(0, |entry| entry.highest_epoch);
    known.running.as_ref().map_or(seen, |metadata| seen.max(metadata.grant.epoch))
}

/// What runs is claimed, as open, under the grant it runs under, whatever the ledger says; else what the ledger holds.
fn claim(known: &Known) -> Option<Claim> {
    let held = known
        .entry
        .as_ref()
        .and_then(|entry| entry.held.as_ref().map(|held| (&entry.vm, &held.grant, holding(held))));
    let (vm, grant, holding) = match &known.running {
        Some(metadata) => (&metadata.vm, &metadata.grant, Holding::Open),
        None => held?,
    };
    Some(Claim {
        vm_uid: vm.uid.clone(),
        namespace: vm.namespace.clone(),
        name: vm.name.clone(),
        grant: GrantRef::from(grant),
        holding,
        running: known.running.is_some(),
        highest_epoch: highest(known),
    })
}

fn holding(held: &Held) -> Holding {
    match held.state {
        HeldState::Accepted | HeldState::Activated => Holding::Open,
        HeldState::Released => Holding::Released,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use vireo_crds::v1alpha1::Grant;

    use super::*;
    use crate::intent::VmRef;

    fn grant(epoch: i64, id: &str) -> Grant {
        Grant { host: "host1".into(), incarnation: "inc1".into(), epoch, id: id.into() }
    }

    fn known(uid: &str, epoch: i64, id: &str) -> Known {
        let mut entry = Entry::new(VmRef { uid: uid.into(), namespace: "default".into(), name: uid.into() });
        entry.accept(&grant(epoch, id), Timestamp::UNIX_EPOCH);
        Known { entry: Some(entry), running: None }
    }

    fn released(uid: &str, epoch: i64, id: &str) -> Known {
        let mut known = known(uid, epoch, id);
        if let Some(entry) = &mut known.entry {
            entry.release();
        }
        known
    }

    fn stored(uid: &str, epoch: i64, id: &str, last_epoch: i64, released: bool) -> (String, Stored) {
        let Grant { host, incarnation, epoch, id } = grant(epoch, id);
        let placement = Placement {
            host,
            incarnation,
            epoch,
            id,
            generation: 1,
            last_epoch,
            evidence: vec![],
            target: None,
        };
        (uid.into(), Stored { placement: Some(placement), released })
    }

    fn claimed(
        known: &[Known],
        stored: impl IntoIterator<Item = (String, Stored)>,
    ) -> Vec<(String, String, Holding)> {
        let answer = attest("s1", "inc1", known, &stored.into_iter().collect());
        answer.claims.into_iter().map(|claim| (claim.vm_uid, claim.grant.id, claim.holding)).collect()
    }

    #[test]
    fn only_what_the_store_does_not_say_is_claimed() {
        let all = [known("a", 2, "g2"), known("b", 7, "g7"), known("c", 1, "g1")];
        let claims = claimed(&all, [stored("a", 2, "g2", 2, false), stored("b", 3, "g3", 3, false)]);
        assert_eq!(
            claims,
            [("b".into(), "g7".into(), Holding::Open), ("c".into(), "g1".into(), Holding::Open)]
        );
        let answer = attest("s1", "inc1", &all, &BTreeMap::new());
        assert_eq!((answer.highest_epoch, answer.session.as_str()), (7, "s1"));
    }

    #[test]
    fn an_end_that_the_store_forgot_is_told() {
        let all = [released("a", 2, "g2")];
        let told = [("a".to_owned(), "g2".to_owned(), Holding::Released)];
        assert_eq!(claimed(&all, [stored("a", 2, "g2", 2, false)]), told);
        assert_eq!(claimed(&all, [stored("a", 1, "g1", 1, false)]), told);
        assert!(claimed(&all, [stored("a", 2, "g2", 2, true)]).is_empty());
        assert!(claimed(&all, [stored("a", 3, "g3", 3, false)]).is_empty());
        assert!(claimed(&all, []).is_empty());
        let unplaced = ("a".to_owned(), Stored { placement: None, released: false });
        assert_eq!(claimed(&all, [unplaced]), told, "or the controller would give number 2 once more");
    }
}
