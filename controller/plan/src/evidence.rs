//! Decides whether a grant is known to be over. A stale heartbeat is suspicion and never evidence.

use vireo_crds::{
    meta,
    v1alpha1::{Evidence, EvidenceKind, Grant, Holding, Host, Placement, StopCause, VirtualMachine},
};

use crate::{
    guard::{Guard, stands},
    host::liveness::Freshness,
    session,
    step::{FreshRead, Kind, ObjectRef},
    world::World,
};

/// Place of a grant in a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The grant itself.
    Holder,
    /// The conditional one.
    Target,
}

/// A grant known to be over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What is stored beside the grant that replaces it.
    pub evidence: Evidence,
    /// What has to be read from the API server once more before it is relied on.
    pub read_first: Option<FreshRead>,
    /// Why the guest went down under it.
    pub stop_cause: Option<StopCause>,
}

/// Why a grant is not known to be over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Open {
    /// Its host lives in the incarnation the grant is for.
    Held,
    /// Its host is silent, which proves nothing.
    Silent,
    /// Its host has rebooted; the old Lease has to stay quiet a little longer.
    Settling,
    /// Only a person can tell, by confirming; the text says why.
    Unproven(String),
}

/// Grants of a placement, each with its role.
pub fn grants(placement: &Placement) -> impl Iterator<Item = (Role, Grant)> + '_ {
    std::iter::once((Role::Holder, placement.grant()))
        .chain(placement.target.iter().map(|t| (Role::Target, t.clone())))
}

/// Grants of a placement, each with whether it still takes room on its host as far as reports tell.
pub(crate) fn reported_open(vm: &VirtualMachine, placement: &Placement) -> Vec<(Grant, bool)> {
    grants(placement).map(|(role, grant)| (grant.clone(), reported(vm, role, &grant).is_none())).collect()
}

/// Whether the holder's host has reported the end of this grant.
pub(crate) fn is_reported_closed(vm: &VirtualMachine, grant: &Grant) -> bool {
    reported(vm, Role::Holder, grant).is_some()
}

/// The end of a grant as its own host reports it; the report must be about this VM and exactly this grant.
fn reported(vm: &VirtualMachine, role: Role, grant: &Grant) -> Option<EvidenceKind> {
    let status = vm.status.as_ref()?;
    let uid = vm.metadata.uid.as_deref()?;
    if !stands(Guard::ReportNamesGrant) {
        let released = status.runtime.as_ref().is_some_and(|r| r.holding == Holding::Released);
        return (role == Role::Holder && released).then_some(EvidenceKind::Released);
    }
    let of_runtime =
        status.runtime.as_ref().filter(|r| r.vm_uid == uid && r.grant.names(grant)).map(|r| r.holding);
    let of_incoming =
        status.incoming.as_ref().filter(|i| i.vm_uid == uid && i.grant.names(grant)).map(|i| i.holding);
    match (role, of_runtime, of_incoming) {
        (Role::Holder, Some(Holding::Released), _) => Some(EvidenceKind::Released),
        (Role::Target, _, Some(Holding::Renounced)) => Some(EvidenceKind::Renounced),
        (Role::Target, _, Some(Holding::Released)) => Some(EvidenceKind::Released),
        _ => None,
    }
}

/// Whether this grant is over, with the evidence to store, or why that is not known.
pub fn closed(world: &World, vm: &VirtualMachine, role: Role, grant: &Grant) -> Result<Closed, Open> {
    let evidence = |kind, detail: String| Evidence {
        grant_id: grant.id.clone(),
        kind,
        session: world.session().map(|s| s.nonce.clone()).unwrap_or_default(),
        detail: Some(detail),
    };
    if let Some(kind) = reported(vm, role, grant) {
        let stop_cause = match role {
            Role::Holder => vm.status.as_ref().and_then(|s| s.runtime.as_ref()).and_then(|r| r.stop_cause),
            Role::Target => None,
        };
        let detail = format!("reported by {}", grant.host);
        return Ok(Closed { evidence: evidence(kind, detail), read_first: None, stop_cause });
    }
    let host = world.host(&grant.host);
    let over = |evidence, read_first| Closed { evidence, read_first, stop_cause: Some(StopCause::HostLost) };
    let rebooted = host.map(|host| rebooted(world, host, grant));
    if let Some(Ok(detail)) = rebooted {
        return Ok(over(evidence(EvidenceKind::Rebooted, detail), None));
    }
    let confirmation = confirmation(vm, host.map(AsRef::as_ref), grant);
    if let Some((object, detail)) = confirmation {
        let doubt = if !stands(Guard::ConfirmationWhileAlive) {
            None
        } else if may_live(world, grant) {
            Some("is refused: it still shows life")
        } else if has_yet_to_say(world, grant) {
            Some("is not relied on yet: it lives on and has not said what it runs")
        } else if runs_unexplained(world, vm, &grant.host) {
            Some("is refused: it says that a process of this VM runs there")
        } else {
            None
        };
        if let Some(doubt) = doubt {
            let host = &grant.host;
            let text = format!("the confirmation about {host} on {} {} {doubt}", object.kind, object.name);
            return Err(Open::Unproven(text));
        }
        let value = if object.kind == Kind::Host { grant.incarnation.clone() } else { grant.id.clone() };
        return Ok(over(
            evidence(EvidenceKind::Confirmed, detail),
            Some(FreshRead { object, confirm_annotation: value }),
        ));
    }
    match rebooted {
        Some(Err(open)) => Err(open),
        _ if may_live(world, grant) => Err(Open::Held),
        _ => Err(Open::Unproven(format!("Host {} does not exist any more", grant.host))),
    }
}

/// Whether the machine came back in a new boot whose ledger names the old incarnation.
fn rebooted(world: &World, host: &Host, grant: &Grant) -> Result<String, Open> {
    let liveness = world.liveness(&grant.host).cloned().unwrap_or_default();
    let unproven = |text: &str| Err(Open::Unproven(format!("{}: {text}", grant.host)));
    if liveness.duplicate && stands(Guard::RebootOfSameMachine) {
        return unproven("two machines go by this name, so neither proves anything");
    }
    let status = host.status.as_ref();
    let Some(present) = status.and_then(|s| s.incarnation.as_deref()) else {
        return unproven("it has never reported");
    };
    if present == grant.incarnation {
        if !stands(Guard::SilenceIsNoEvidence) && liveness.freshness == Freshness::Silent {
            return Ok("silent".into());
        }
        return Err(if liveness.freshness == Freshness::Silent { Open::Silent } else { Open::Held });
    }
    let (Some(boot), Some(machine)) = (
        status.and_then(|s| s.boot_id.as_deref()),
        status.and_then(|s| s.identity.as_ref()).map(|i| i.machine_uuid.as_str()),
    ) else {
        return unproven("it does not say which machine and boot it is");
    };
    let Some(past) =
        status.into_iter().flat_map(|s| &s.past_incarnations).find(|p| p.incarnation == grant.incarnation)
    else {
        return unproven(
            "its ledger does not know the incarnation this VM was placed with: lost, or another machine",
        );
    };
    if past.machine_uuid != machine && stands(Guard::RebootOfSameMachine) {
        return unproven("it is another machine than the one this VM was placed on");
    }
    if past.boot_id == boot {
        return unproven("it has a new ledger but has not rebooted, so guests may still run");
    }
    if claims(world, grant) {
        return unproven("it says that it still holds the grant");
    }
    if liveness.freshness == Freshness::Silent {
        return Err(Open::Silent);
    }
    if !liveness.watched
        || liveness.alive.contains(&grant.incarnation)
        || liveness.holder.as_deref() != Some(present)
    {
        return Err(Open::Settling);
    }
    Ok(format!("{} came back in boot {boot}", grant.host))
}

/// The annotation by which somebody confirms that this grant, or its whole incarnation, is over.
fn confirmation(vm: &VirtualMachine, host: Option<&Host>, grant: &Grant) -> Option<(ObjectRef, String)> {
    let value = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        meta.annotations.as_ref().and_then(|a| a.get(meta::CONFIRM_ANNOTATION)).cloned()
    };
    if value(&vm.metadata).as_deref() == Some(&grant.id) {
        return Some((
            ObjectRef::of(Kind::VirtualMachine, vm)?,
            format!("annotation {} on the VirtualMachine", meta::CONFIRM_ANNOTATION),
        ));
    }
    let host = host.filter(|h| value(&h.metadata).as_deref() == Some(&grant.incarnation))?;
    Some((
        ObjectRef::of(Kind::Host, host)?,
        format!("annotation {} on Host {}", meta::CONFIRM_ANNOTATION, grant.host),
    ))
}

/// Whether the incarnation of a grant shows life, or could without our having noticed. A claim in an attestation is a
/// sign of life as long as whoever made it shows one: of a host that has fallen silent since, a person may know more.
fn may_live(world: &World, grant: &Grant) -> bool {
    let Some(lease) = world.liveness(&grant.host) else { return world.host(&grant.host).is_some() };
    let attester_may_live = || world.attestation(&grant.host).is_some_and(|a| lease.may_live(&a.incarnation));
    lease.may_live(&grant.incarnation) || (claims(world, grant) && attester_may_live())
}

/// Whether the machine lives on in another incarnation that has not said in this session what it runs: a guest goes on
/// running when its host loses the ledger, and the new incarnation finds it in its census.
fn has_yet_to_say(world: &World, grant: &Grant) -> bool {
    let Some(liveness) = world.liveness(&grant.host) else { return false };
    let heard = world.attestation(&grant.host).map(|a| a.incarnation.as_str());
    liveness.freshness != Freshness::Silent && (heard.is_none() || heard != liveness.holder.as_deref())
}

/// Whether the host says that a process of this VM runs there, and that nobody can name its grant any more.
fn runs_unexplained(world: &World, vm: &VirtualMachine, host: &str) -> bool {
    let nameless =
        |held: &session::HeldClaim| held.running && held.grant.epoch == 0 && held.grant.host == host;
    world.freshness(host) != Freshness::Silent
        && session::attested(world, vm).unexplained.iter().any(nameless)
}

/// Whether the host attests in this session that it still holds this grant.
fn claims(world: &World, grant: &Grant) -> bool {
    let attestation = world.attestation(&grant.host);
    attestation.is_some_and(|a| {
        let open = |h| !matches!(h, Holding::Released | Holding::Renounced);
        a.claims.iter().chain(&a.conditional).any(|c| c.grant.id == grant.id && open(c.holding))
    })
}
