//! Filters `hostDeletion` and `hostState`: the host stays, is alive in its present incarnation, takes VMs and has a
//! hypervisor that works. Suspicion is enough to place elsewhere; it is evidence of nothing.

use vireo_crds::condition::{self, kind};

use crate::{
    host::{self, liveness::Freshness},
    placement::{candidate::Candidate, lack::Lack},
};

pub(super) fn deletion(candidate: &Candidate<'_>) -> Option<Lack> {
    candidate.host.metadata.deletion_timestamp.is_some().then_some(Lack::Leaving)
}

pub(super) fn state(candidate: &Candidate<'_>) -> Option<Lack> {
    let Candidate { world, name, host, status, .. } = candidate;
    let Some(incarnation) = &status.incarnation else { return Some(Lack::NotJoined) };
    let liveness = world.liveness(name);
    if liveness.is_some_and(|l| l.duplicate) {
        return Some(Lack::Duplicate);
    }
    // A grant for it would be over before it began.
    if host::confirmed_over(host) == Some(incarnation) {
        return Some(Lack::ConfirmedOver);
    }
    match liveness.map(|l| l.freshness).unwrap_or_default() {
        Freshness::Silent => return Some(Lack::Silent),
        // Its answer to this session is a sign of life, though no renewal has been seen yet.
        Freshness::NotYetKnown if world.attestation(name).is_none() => return Some(Lack::NotHeardYet),
        Freshness::Fresh
            if liveness.and_then(|l| l.holder.as_ref()).is_some_and(|holder| holder != incarnation) =>
        {
            return Some(Lack::NotHeardYet);
        }
        Freshness::NotYetKnown | Freshness::Fresh => {}
    }
    if !host.spec.schedulable {
        return Some(Lack::Unschedulable);
    }
    let hypervisor =
        condition::get(&status.conditions, kind::HYPERVISOR_READY).filter(|c| c.status == "False");
    hypervisor.map(|c| Lack::Hypervisor(c.message.clone()))
}
