//! Filters `vmAffinity` and `hostAffinity`: the hard rules of the VM's affinity groups.

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn vms(candidate: &Candidate<'_>) -> Option<Lack> {
    candidate.request.ties.vm_lack(candidate.name)
}

pub(super) fn hosts(candidate: &Candidate<'_>) -> Option<Lack> {
    candidate.request.ties.host_lack(candidate.name, candidate.host)
}
