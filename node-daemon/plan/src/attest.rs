//! Answers a new session: which grants this host holds that the store does not list as it holds them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::{Attestation, Claim, GrantRef, Holding, Placement};

use crate::{
    facts::DomainMetadata,
    guard::{Guard, stands},
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
    /// A QEMU process carries its uuid, whether or not libvirt shows a domain: that too is a guest.
    #[serde(default)]
    pub process: bool,
}

impl Known {
    fn runs(&self) -> bool {
        self.running.is_some() || (self.process && stands(Guard::ProcessCounts))
    }
}

/// Id of a grant that nobody can name any more: the process of a guest is there, its domain and its ledger entry are
/// lost. It is never the stored one and never adopted, so that the VM waits for somebody to look.
pub const UNKNOWN_GRANT: &str = "unknown";

/// What the store says of one VM, read consistently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// `status.placement`; none: it has never been placed, as far as the store knows.
    pub placement: Option<Placement>,
    /// `status.runtime` says that the placement's grant is released.
    #[serde(default)]
    pub released: bool,
    /// The placement names this host and was found in a list: if its grant has not been accepted, it never will be.
    #[serde(default)]
    pub listed: bool,
}

/// The answer to `session`. `stored` is what a consistent list says, by VM uid; `strays` are the uuids of QEMU processes
/// that neither libvirt nor the ledger explains.
pub fn attest<'a>(
    session: &str,
    incarnation: &str,
    known: impl IntoIterator<Item = &'a Known>,
    strays: &[String],
    stored: &BTreeMap<String, Stored>,
) -> Attestation {
    let mut highest_epoch = 0;
    let mut claims = Vec::new();
    let mut held = BTreeSet::new();
    for known in known {
        held.extend(known.entry.as_ref().and_then(|entry| Some(entry.held.as_ref()?.grant.id.as_str())));
        held.extend(known.running.as_ref().map(|metadata| metadata.grant.id.as_str()));
        highest_epoch = highest_epoch.max(highest(known));
        claims.extend(claim(known).filter(|claim| !is_said(claim, incarnation, stored.get(&claim.vm_uid))));
    }
    claims.extend(stored.iter().filter_map(|(uid, stored)| never_accepted(uid, incarnation, &held, stored)));
    if stands(Guard::ProcessCounts) {
        claims.extend(strays.iter().map(|uuid| stray(uuid, incarnation)));
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
///
/// An open grant of an earlier incarnation is always told: of those, silence says that they are over. A guest keeps its
/// grant when the ledger is lost while it runs.
fn is_said(claim: &Claim, incarnation: &str, stored: Option<&Stored>) -> bool {
    let Some(Stored { placement, released, .. }) = stored else {
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
        // A guest that runs although its end was reported is told of.
        Holding::Open => same && claim.grant.incarnation == incarnation && !(claim.running && *released),
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

/// A grant for this host and incarnation that the store lists and the ledger has never held. Silence would say that it is
/// held as stored; it is not, and will not be.
fn never_accepted(uid: &str, incarnation: &str, held: &BTreeSet<&str>, stored: &Stored) -> Option<Claim> {
    let placement = stored.placement.as_ref().filter(|_| stored.listed && !stored.released)?;
    if placement.incarnation != incarnation || held.contains(placement.id.as_str()) {
        return None;
    }
    Some(Claim {
        vm_uid: uid.into(),
        namespace: String::new(),
        name: String::new(),
        grant: GrantRef::from(&placement.grant()),
        holding: Holding::Renounced,
        running: false,
        highest_epoch: 0,
    })
}

/// A process whose grant nobody knows. A domain's uuid is the uid of its VM, or named by its spec: the controller
/// looks for both.
fn stray(uuid: &str, incarnation: &str) -> Claim {
    Claim {
        vm_uid: uuid.into(),
        namespace: String::new(),
        name: String::new(),
        grant: GrantRef { incarnation: incarnation.into(), epoch: 0, id: UNKNOWN_GRANT.into() },
        holding: Holding::Open,
        running: true,
        highest_epoch: 0,
    }
}

/// What runs is claimed, as open, under the grant it runs under, whatever the ledger says; else what the ledger holds.
fn claim(known: &Known) -> Option<Claim> {
    let held = known
        .entry
        .as_ref()
        .and_then(|entry| entry.held.as_ref().map(|held| (&entry.vm, &held.grant, holding(held))));
    let (vm, grant, holding) = match &known.running {
        Some(metadata) => (&metadata.vm, &metadata.grant, Holding::Open),
        None if known.runs() => held.map(|(vm, grant, _)| (vm, grant, Holding::Open))?,
        None => held?,
    };
    Some(Claim {
        vm_uid: vm.uid.clone(),
        namespace: vm.namespace.clone(),
        name: vm.name.clone(),
        grant: GrantRef::from(grant),
        holding,
        running: known.runs(),
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
        Known { entry: Some(entry), running: None, process: false }
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
        (uid.into(), Stored { placement: Some(placement), released, listed: false })
    }

    fn claimed(
        known: &[Known],
        stored: impl IntoIterator<Item = (String, Stored)>,
    ) -> Vec<(String, String, Holding)> {
        let answer = attest("s1", "inc1", known, &[], &stored.into_iter().collect());
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
        let answer = attest("s1", "inc1", &all, &[], &BTreeMap::new());
        assert_eq!((answer.highest_epoch, answer.session.as_str()), (7, "s1"));
    }

    #[test]
    fn a_process_is_claimed_even_if_libvirt_has_lost_its_domain() {
        let lost = Known { process: true, ..released("a", 2, "g2") };
        let open = [("a".to_owned(), "g2".to_owned(), Holding::Open)];
        assert_eq!(claimed(&[lost], [stored("a", 2, "g2", 2, true)]), open, "whatever the ledger says");
        let answer = attest("s1", "inc1", &[], &["b".to_owned()], &BTreeMap::new());
        let claims: Vec<_> =
            answer.claims.iter().map(|c| (c.vm_uid.as_str(), c.running, c.holding)).collect();
        assert_eq!(claims, [("b", true, Holding::Open)]);
    }

    #[test]
    fn a_guest_that_outlived_its_ledger_is_told_of_although_the_store_says_the_same() {
        let (all, at) = ([known("a", 2, "g2")], stored("a", 2, "g2", 2, false));
        let answer = attest("s1", "inc2", &all, &[], &[at].into());
        let claims: Vec<_> = answer.claims.iter().map(|c| (c.grant.id.as_str(), c.holding)).collect();
        assert_eq!(claims, [("g2", Holding::Open)]);
    }

    #[test]
    fn a_listed_grant_that_was_never_accepted_is_renounced() {
        let (uid, at) = stored("a", 5, "g5", 5, false);
        let listed = || (uid.clone(), Stored { listed: true, ..at.clone() });
        let renounced = ("a".to_owned(), "g5".to_owned(), Holding::Renounced);
        assert_eq!(claimed(&[], [listed()]), std::slice::from_ref(&renounced));
        assert!(
            claimed(&[], [(uid.clone(), at.clone())]).is_empty(),
            "it arrived by watch: it is being accepted"
        );
        assert!(claimed(&[known("a", 5, "g5")], [listed()]).is_empty());
        let older = ("a".to_owned(), "g4".to_owned(), Holding::Open);
        assert_eq!(claimed(&[known("a", 4, "g4")], [listed()]), [older, renounced]);
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
        let unplaced = ("a".to_owned(), Stored { placement: None, released: false, listed: false });
        assert_eq!(claimed(&all, [unplaced]), told, "or the controller would give number 2 once more");
    }
}
