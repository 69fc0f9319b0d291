//! Filters `memory` and `cpus`: what is free on the host by the formulas of [`crate::capacity`].

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn memory(candidate: &Candidate<'_>) -> Option<Lack> {
    let (need, free) = (candidate.request.valid.need.memory, candidate.free().memory);
    (free < need).then_some(Lack::Memory { need, free })
}

pub(super) fn cpus(candidate: &Candidate<'_>) -> Option<Lack> {
    let (need, free) = (candidate.request.valid.need.cpus, candidate.free().cpus);
    (free < need).then_some(Lack::Cpus { need, free })
}
