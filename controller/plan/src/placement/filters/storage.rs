//! Filters `localDisks` and `storage`: volumes that lie on one host bind the VM to it, and every storage domain the
//! VM uses is ready on the host.

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn local_disks(candidate: &Candidate<'_>) -> Option<Lack> {
    let (disk, host) = candidate.request.pins.iter().find(|(_, host)| *host != candidate.name)?;
    Some(Lack::DiskElsewhere { disk: (*disk).into(), host: (*host).into() })
}

pub(super) fn domains(candidate: &Candidate<'_>) -> Option<Lack> {
    candidate.request.valid.domains.iter().find_map(|(name, uid)| {
        let here = candidate.status.storage_domains.iter().find(|d| d.name == *name && d.uid == *uid);
        let why = here.and_then(|d| d.message.clone()).unwrap_or_default();
        (!here.is_some_and(|d| d.ready)).then(|| Lack::Domain { name: (*name).into(), why })
    })
}
