//! Filter `networks`: every network the VM is plugged into is ready on the host.

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn lack(candidate: &Candidate<'_>) -> Option<Lack> {
    candidate.request.valid.networks.iter().find_map(|(name, uid)| {
        let here = candidate.status.networks.iter().find(|n| n.name == *name && n.uid == *uid);
        let why = here.and_then(|n| n.message.clone()).unwrap_or_default();
        (!here.is_some_and(|n| n.ready)).then(|| Lack::Network { name: (*name).into(), why })
    })
}
