//! Filters `hostName` and `hostSelector`: the wishes of `spec.scheduling`.

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn host_name(candidate: &Candidate<'_>) -> Option<Lack> {
    let named = candidate.request.vm.spec.scheduling.host_name.as_ref()?;
    (named != candidate.name).then(|| Lack::NotNamed(named.clone()))
}

pub(super) fn host_selector(candidate: &Candidate<'_>) -> Option<Lack> {
    let selector = candidate.request.vm.spec.scheduling.host_selector.as_ref()?;
    (!selector.matches(candidate.host.metadata.labels.as_ref())).then_some(Lack::NotSelected)
}
