//! Decides whether the store may be believed about one VM: it may have been restored from a backup and forgotten
//! grants, so nothing is placed before the hosts have said what they run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vireo_crds::{
    meta,
    v1alpha1::{Attestation, Claim, Grant, Holding, Host, Placement, VirtualMachine},
};

use crate::{
    evidence,
    guard::{Guard, stands},
    host::{self, liveness::Freshness},
    plan::{Plan, WaitFor},
    step::{FreshRead, Kind, ObjectRef},
    world::World,
};

/// A stretch of time in which this process saw everything on one unbroken connection, beginning with a
/// consistent list and the writing of a random nonce.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// The nonce.
    pub nonce: String,
    /// uids of the VMs and Disks that existed when it began.
    #[serde(default)]
    pub preexisting: BTreeSet<String>,
    /// Ids of the grants made in it.
    #[serde(default)]
    pub granted: BTreeSet<String>,
    /// Ids of the grants that their host attested in it as held, open, with no open offer.
    #[serde(default)]
    pub attested: BTreeSet<String>,
    /// Confirmations that stood on Hosts when it began: older records count for nothing here.
    #[serde(default)]
    pub old_confirmations: BTreeMap<String, String>,
}

impl Session {
    pub(crate) fn new(
        nonce: &str,
        uids: impl Iterator<Item = String>,
        confirmations: impl Iterator<Item = (String, String)>,
    ) -> Self {
        Self {
            nonce: nonce.into(),
            preexisting: uids.collect(),
            old_confirmations: confirmations.collect(),
            ..Self::default()
        }
    }

    /// Whether the object was made after the session began, so that no grant or claim of it can be forgotten.
    pub fn is_younger_than(&self, uid: &str) -> bool {
        !self.preexisting.contains(uid)
    }
}

/// Whether a host attests that it holds exactly the stored grant, open and with no open offer.
pub(crate) fn attests_exactly(attestation: &Attestation, vm: &VirtualMachine, placement: &Placement) -> bool {
    let Some(uid) = vm.metadata.uid.as_deref() else { return false };
    let grant = placement.grant();
    if attestation.offers.iter().any(|offer| offer.vm_uid == uid) || evidence::is_reported_closed(vm, &grant)
    {
        return false;
    }
    let mut claims = attestation
        .claims
        .iter()
        .chain(&attestation.conditional)
        .filter(|claim| claim.vm_uid == uid)
        .peekable();
    if claims.peek().is_none() {
        // Nothing differs from the store: its ledger says what the store says.
        return attestation.incarnation == grant.incarnation;
    }
    claims.all(|claim| {
        claim.grant.names(&grant) && is_open(claim) && claim.highest_epoch <= placement.last_epoch
    })
}

pub(crate) fn is_open(claim: &Claim) -> bool {
    match claim.holding {
        Holding::Open | Holding::Unknown => true,
        Holding::Released | Holding::Renounced => false,
    }
}

/// Why nothing may be placed for a VM yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// This process is in no session.
    NoSession,
    /// These hosts have not attested.
    Hosts(Vec<PendingHost>),
    /// Hosts hold grants of this VM that the store does not list.
    Claims(Vec<HeldClaim>),
}

/// A host whose word is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingHost {
    /// Its name.
    pub name: String,
    /// Why, if that is known.
    pub why: Option<&'static str>,
}

/// A claim and the host that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldClaim {
    /// The grant claimed.
    pub grant: Grant,
    /// Whether a guest runs under it.
    pub running: bool,
}

/// What the hosts attest about one VM in this session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attested {
    /// Open claims that the store does not list.
    pub unexplained: Vec<HeldClaim>,
    /// Highest epoch any ledger has seen for this VM.
    pub highest_epoch: i64,
    /// Grants under which a guest runs, as attested, listed by the store or not.
    pub running: Vec<HeldClaim>,
}

/// Gathers what the hosts attest about one VM.
pub fn attested(world: &World, vm: &VirtualMachine) -> Attested {
    let mut found = Attested::default();
    let (Some(uid), Some(session)) = (vm.metadata.uid.as_deref(), world.session()) else { return found };
    let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
    let is_listed =
        |id: &str| placement.is_some_and(|p| p.id == id || p.target.as_ref().is_some_and(|t| t.id == id));
    // A process that nothing explains is known by the uuid of its domain, which the spec may name.
    let uuid = vm.spec.identity.as_ref().and_then(|identity| identity.uuid.as_deref()).unwrap_or(uid);
    let is_of_vm = |claim: &Claim| claim.vm_uid == uid || claim.vm_uid == uuid;
    let by_uuid = world.hosts_claiming(uuid).filter(|_| uuid != uid);
    let claiming: BTreeSet<&String> = world.hosts_claiming(uid).chain(by_uuid).collect();
    for host in claiming {
        let Some(attestation) = world.attestation(host) else { continue };
        let committed = |claim: &Claim| is_committed(world, claim);
        let conditional =
            attestation.conditional.iter().filter(|claim| claim.vm_uid == uid && committed(claim));
        for claim in attestation.claims.iter().filter(|claim| is_of_vm(claim)).chain(conditional) {
            found.highest_epoch = found.highest_epoch.max(claim.highest_epoch).max(claim.grant.epoch);
            if !is_open(claim) {
                continue;
            }
            let grant = Grant {
                host: host.clone(),
                incarnation: claim.grant.incarnation.clone(),
                epoch: claim.grant.epoch,
                id: claim.grant.id.clone(),
            };
            let held = HeldClaim { grant, running: claim.running };
            if claim.running {
                found.running.push(held.clone());
            }
            if stands(Guard::UnexplainedClaims)
                && !is_listed(&claim.grant.id)
                && !session.granted.contains(&claim.grant.id)
            {
                found.unexplained.push(held);
            }
        }
    }
    found
        .unexplained
        .sort_by(|a, b| b.grant.epoch.cmp(&a.grant.epoch).then_with(|| a.grant.host.cmp(&b.grant.host)));
    found
}

/// Whether the source of a migration attests that it committed to this conditional grant.
fn is_committed(world: &World, claim: &Claim) -> bool {
    world
        .hosts()
        .filter_map(|(host, _)| world.attestation(host))
        .flat_map(|a| &a.commits)
        .any(|commit| commit.vm_uid == claim.vm_uid && commit.to.id == claim.grant.id)
}

/// Hosts that have neither attested nor been confirmed off in this session. What one of two machines of the same name
/// says tells nothing of what the other runs.
pub fn hosts_pending(world: &World) -> Vec<PendingHost> {
    let mut pending: Vec<_> = world
        .hosts()
        .filter(|(name, host)| match world.attestation(name) {
            Some(attestation) => is_one_of_two(world, name, attestation),
            None => !is_confirmed_off(world, name, host),
        })
        .map(|(name, host)| PendingHost { name: name.clone(), why: why_pending(world, name, host) })
        .collect();
    let undecodable = world.undecodable(Kind::Host);
    pending.extend(
        undecodable
            .map(|o| PendingHost { name: o.name.clone(), why: Some("its Host object cannot be decoded") }),
    );
    pending
}

/// Whether another incarnation than the one that attests may go by this name at the same time: a cloned machine, or the
/// one before a reboot that was heard a moment ago.
fn is_one_of_two(world: &World, name: &str, attestation: &Attestation) -> bool {
    stands(Guard::OneMachineByName)
        && world.liveness(name).is_some_and(|liveness| {
            liveness.duplicate || liveness.alive.iter().any(|alive| *alive != attestation.incarnation)
        })
}

fn why_pending(world: &World, name: &str, host: &Host) -> Option<&'static str> {
    if world.liveness(name).is_some_and(|liveness| liveness.duplicate) {
        return Some("two machines go by this name: take one off the network");
    }
    if host.status.as_ref().is_none_or(|s| s.incarnation.is_none()) {
        return Some("has never joined: join it or delete its Host object");
    }
    (world.freshness(name) == Freshness::Silent).then_some("silent")
}

/// Whether somebody confirmed in writing, in this session, that the host's present incarnation is over.
fn is_confirmed_off(world: &World, name: &str, host: &Host) -> bool {
    let Some(value) = host::confirmed_over(host) else {
        return false;
    };
    let present = host.status.as_ref().and_then(|s| s.incarnation.as_ref());
    let is_old = world.session().is_none_or(|s| s.old_confirmations.get(name) == Some(value));
    let alive = world.liveness(name).is_none_or(|l| l.may_live(value));
    present == Some(value) && (!is_old || !stands(Guard::OldConfirmation)) && !alive
}

/// Leave to write placements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage<'a> {
    /// The session it holds for.
    pub nonce: &'a str,
    /// Confirmations it rests on, to be read once more.
    pub read_first: Vec<FreshRead>,
}

/// The barrier: whether a placement of this VM may be written now.
pub fn barrier<'a>(world: &'a World, vm: &VirtualMachine) -> Result<Passage<'a>, Blocked> {
    let session = world.session().ok_or(Blocked::NoSession)?;
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let unexplained = attested(world, vm).unexplained;
    let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
    let holder_known =
        placement.is_some_and(|p| session.granted.contains(&p.id) || session.attested.contains(&p.id));
    let passage = if session.is_younger_than(uid) || holder_known {
        Passage { nonce: &session.nonce, read_first: Vec::new() }
    } else {
        all_attested(world)?
    };
    if unexplained.is_empty() { Ok(passage) } else { Err(Blocked::Claims(unexplained)) }
}

/// Whether every host has said what it runs, so that what none of them claims runs nowhere.
pub fn all_attested(world: &World) -> Result<Passage<'_>, Blocked> {
    let session = world.session().ok_or(Blocked::NoSession)?;
    let pending = hosts_pending(world);
    if !pending.is_empty() && stands(Guard::Barrier) {
        return Err(Blocked::Hosts(pending));
    }
    let unheard = world.hosts().filter(|(name, _)| world.attestation(name).is_none());
    let read = |host: &Host| {
        let confirm_annotation = host::confirmed_over(host)?.clone();
        Some(FreshRead { object: ObjectRef::of(Kind::Host, host)?, confirm_annotation })
    };
    Ok(Passage { nonce: &session.nonce, read_first: unheard.filter_map(|(_, host)| read(host)).collect() })
}

impl Blocked {
    /// In words, and what to do.
    pub fn message(&self) -> String {
        match self {
            Self::NoSession => "the controller has not begun a session yet".into(),
            Self::Hosts(hosts) => {
                let names: Vec<_> = hosts
                    .iter()
                    .take(8)
                    .map(|h| h.why.map_or_else(|| h.name.clone(), |why| format!("{} ({why})", h.name)))
                    .collect();
                let more = hosts.len().saturating_sub(names.len());
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!(
                    "not yet told by {}{more} what runs there, and acting before could start a second copy; bring these hosts back or, \
                     if one is off for sure, say so: kubectl annotate host NAME {}=INCARNATION",
                    names.join(", "),
                    meta::CONFIRM_ANNOTATION
                )
            }
            Self::Claims(claims) => {
                let held: Vec<_> = claims
                    .iter()
                    .map(|c| {
                        format!("{} holds grant {} (number {})", c.grant.host, c.grant.id, c.grant.epoch)
                    })
                    .collect();
                format!("the store and the hosts disagree: {}", held.join(", "))
            }
        }
    }

    /// Records what is waited for.
    pub(crate) fn wait(&self, plan: &mut Plan) {
        let message = self.message();
        match self {
            Self::NoSession => plan.wait(WaitFor::Session, message),
            Self::Hosts(_) | Self::Claims(_) => plan.wait(WaitFor::AnyHost, message),
        }
    }
}
