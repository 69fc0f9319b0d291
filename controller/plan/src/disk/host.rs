//! Decides which host works on a Disk: makes, grows or removes its volume.

use vireo_crds::v1alpha1::{Disk, Host};

use crate::{host::liveness::Freshness, world::World};

/// A live host that reaches the Disk's domain. Ties break on a stable hash, so that imports spread over hosts.
pub(super) fn choose<'a>(world: &'a World, disk: &Disk) -> Result<&'a str, String> {
    let name = &disk.spec.storage_domain;
    let domain = world.domain(name).ok_or_else(|| format!("StorageDomain {name} does not exist"))?;
    let uid = domain.metadata.uid.as_deref().unwrap_or_default();
    let pinned = if domain.spec.directory.shared { None } else { pin(disk) };
    let deleting = disk.metadata.deletion_timestamp.is_some();
    let fits = |host_name: &str, host: &Host| {
        let reaches = host
            .status
            .iter()
            .flat_map(|s| &s.storage_domains)
            .any(|d| d.name == *name && d.uid == uid && d.ready);
        let alive = match world.freshness(host_name) {
            Freshness::Fresh => true,
            Freshness::NotYetKnown => world.attestation(host_name).is_some(),
            Freshness::Silent => false,
        };
        reaches
            && alive
            && host.metadata.deletion_timestamp.is_none()
            && pinned.is_none_or(|p| p == host_name)
    };
    let disk_uid = disk.metadata.uid.as_deref().unwrap_or_default();
    let mut fitting: Vec<_> = world.hosts().filter(|(host_name, host)| fits(host_name, host)).collect();
    fitting.sort_by_key(|(host_name, host)| {
        (!host.spec.schedulable, spread(disk_uid, host_name), (*host_name).clone())
    });
    let free = domain.status.as_ref().and_then(|s| s.available).and_then(|bytes| u64::try_from(bytes).ok());
    let floor = domain.spec.thresholds.block_free_bytes.bytes().unwrap_or(0);
    if !deleting && free.is_some_and(|free| free < floor) {
        let floor = &domain.spec.thresholds.block_free_bytes;
        return Err(format!(
            "StorageDomain {name} has less than thresholds.blockFreeBytes ({floor}) free: free space there"
        ));
    }
    match (fitting.first(), pinned) {
        (Some((host, _)), _) => Ok(host),
        (None, Some(host)) => {
            Err(format!("the volume lies on {host}, which is silent or does not have StorageDomain {name}"))
        }
        (None, None) => Err(format!("no live host has StorageDomain {name}: see its status")),
    }
}

/// The host a local volume lies on, or may lie on.
fn pin(disk: &Disk) -> Option<&str> {
    let status = disk.status.as_ref()?;
    status.local_host.as_deref().or(status.placement.as_ref().map(|p| p.host.as_str()))
}

/// FNV-1a: the same on every machine and in every version.
fn spread(uid: &str, host: &str) -> u64 {
    uid.bytes()
        .chain(host.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
