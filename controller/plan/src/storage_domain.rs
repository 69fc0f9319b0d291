//! Decides about one StorageDomain: who may mark it, where it is ready, how much room it has.

use jiff::Timestamp;
use vireo_crds::{
    condition::{ConditionValue, kind},
    reasons,
    units::human_bytes,
    v1alpha1::{Host, HostStorageDomain, Marker, StorageDomain, StorageDomainStatus, StorageDomainSummary},
};

use crate::{
    conditions,
    host::liveness::Freshness,
    network::Readiness,
    plan::{Plan, WaitFor},
    step::{DomainStatusApply, Kind, ObjectRef, Step},
    world::World,
};

/// What should be done about this domain.
pub fn plan_domain(world: &World, domain: &StorageDomain, now: Timestamp) -> Plan {
    let _ = now;
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::StorageDomain, domain) else { return plan };
    if domain.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.wait(WaitFor::AnyHost, "its hosts");
    let empty = StorageDomainStatus::default();
    let status = domain.status.as_ref().unwrap_or(&empty);
    let marker = status.marker.clone().or_else(|| {
        let installation_id = world.installation_id()?.to_owned();
        Some(Marker { installation_id, domain_uid: subject.uid.clone() })
    });
    if marker.is_none() {
        plan.wait(WaitFor::Installation, "the installation id");
    }
    let initialized = initialized(world, &subject, status);
    let initialize =
        if marker.is_some() { initialize(world, domain, status, &initialized) } else { Vec::new() };
    let hosts = Readiness::of(world, &domain.spec.host_selector, |host| {
        here(host, &subject).map(|d| (d.ready, d.message.clone()))
    });
    let room = Room::of(world, domain, &subject);
    let type_ = if domain.spec.directory.shared { "shared directory" } else { "local directory" };
    let text = |bytes: Option<i64>| bytes.and_then(|b| u64::try_from(b).ok()).map(human_bytes);
    let apply = DomainStatusApply {
        conditions: vec![ready(domain, &hosts, &room, &initialized, &initialize)],
        observed_generation: subject.generation,
        marker,
        initialize,
        initialized,
        capacity: room.capacity,
        available: room.available,
        summary: StorageDomainSummary {
            type_: type_.into(),
            hosts: hosts.column(),
            capacity: text(room.capacity),
            available: text(room.available),
        },
        hosts: hosts.listed,
    };
    let differs = conditions::differ(&domain.metadata, &status.conditions, &apply.conditions)
        || status.observed_generation != Some(apply.observed_generation)
        || status.marker != apply.marker
        || status.initialize != apply.initialize
        || status.initialized != apply.initialized
        || status.capacity != apply.capacity
        || status.available != apply.available
        || status.hosts != apply.hosts
        || status.summary.as_ref() != Some(&apply.summary);
    if differs {
        plan.steps.push(Step::SetDomainStatus { domain: subject, status: Box::new(apply) });
    }
    plan
}

/// What a host says of this very domain, not of another of the same name.
fn here<'a>(host: &'a Host, domain: &ObjectRef) -> Option<&'a HostStorageDomain> {
    host.status.as_ref()?.storage_domains.iter().find(|d| d.name == domain.name && d.uid == domain.uid)
}

/// Hosts on which the marker has been seen, ever.
fn initialized(world: &World, subject: &ObjectRef, status: &StorageDomainStatus) -> Vec<String> {
    let mut names = status.initialized.clone();
    let marked = world.hosts().filter(|(_, host)| here(host, subject).is_some_and(|d| d.marked));
    names.extend(marked.map(|(name, _)| name.clone()));
    names.sort_unstable();
    names.dedup();
    names
}

/// Hosts that may write the marker: never one on which it has been seen, and of a shared directory only one host,
/// and none once anybody has seen it. A marker that is missing later means that something is not mounted.
fn initialize(
    world: &World,
    domain: &StorageDomain,
    status: &StorageDomainStatus,
    initialized: &[String],
) -> Vec<String> {
    let selected = |host: &Host| {
        host.status.as_ref().is_some_and(|s| s.incarnation.is_some())
            && host.metadata.deletion_timestamp.is_none()
            && domain.spec.host_selector.matches(host.metadata.labels.as_ref())
    };
    let candidates = world.hosts().filter(|(name, host)| selected(host) && !initialized.contains(name));
    if !domain.spec.directory.shared {
        return candidates.map(|(name, _)| name.clone()).take(512).collect();
    }
    if !initialized.is_empty() {
        return Vec::new();
    }
    let alive = |name: &str| world.freshness(name) == Freshness::Fresh || world.attestation(name).is_some();
    let mut candidates: Vec<_> = candidates.map(|(name, _)| name.clone()).collect();
    if let Some(named) =
        status.initialize.iter().find(|n| candidates.contains(n) && world.freshness(n) != Freshness::Silent)
    {
        return vec![named.clone()];
    }
    candidates.retain(|name| alive(name) && world.freshness(name) != Freshness::Silent);
    candidates.into_iter().take(1).collect()
}

/// Size and free space.
struct Room {
    capacity: Option<i64>,
    available: Option<i64>,
}

impl Room {
    /// Of a shared directory as its first ready host sees it, of a local one of all ready hosts together.
    fn of(world: &World, domain: &StorageDomain, subject: &ObjectRef) -> Self {
        let reports = world
            .hosts()
            .filter(|(name, _)| world.freshness(name) != Freshness::Silent)
            .filter_map(|(_, host)| here(host, subject))
            .filter(|d| d.ready && d.capacity.is_some());
        let taken = if domain.spec.directory.shared { 1 } else { usize::MAX };
        let mut room = Self { capacity: None, available: None };
        for report in reports.take(taken) {
            let add = |sum: Option<i64>, more: Option<i64>| {
                more.map(|more| sum.unwrap_or(0).saturating_add(more)).or(sum)
            };
            room.capacity = add(room.capacity, report.capacity);
            room.available = add(room.available, report.available);
        }
        room
    }
}

fn ready(
    domain: &StorageDomain,
    hosts: &Readiness,
    room: &Room,
    initialized: &[String],
    initialize: &[String],
) -> ConditionValue {
    let ready = hosts.ready();
    if ready.status != "True" {
        if initialized.is_empty() && !initialize.is_empty() && ready.reason == reasons::NOT_ON_ALL_HOSTS {
            return ConditionValue::no(kind::READY, reasons::INITIALIZING, ready.message);
        }
        return ready;
    }
    let (Some(capacity), Some(available)) = (room.capacity, room.available) else { return ready };
    let free = u64::try_from(available).unwrap_or(0);
    let thresholds = &domain.spec.thresholds;
    if thresholds.block_free_bytes.bytes().is_ok_and(|floor| free < floor) {
        let message = format!(
            "less than thresholds.blockFreeBytes ({}) is free: no new volume is made. Free space, or enlarge it",
            thresholds.block_free_bytes
        );
        return ConditionValue::yes(kind::READY, reasons::FULL, message);
    }
    let percent = i128::from(available) * 100 / i128::from(capacity.max(1));
    if percent < i128::from(thresholds.warn_free_percent) {
        let message =
            format!("less than thresholds.warnFreePercent ({} %) is free", thresholds.warn_free_percent);
        return ConditionValue::yes(kind::READY, reasons::LOW_SPACE, message);
    }
    ready
}
