//! Decides what a Disk's status says, from where it stands, and whether that is news.

use vireo_crds::{
    condition::{self, ConditionValue, kind},
    reasons,
    units::human_bytes,
    v1alpha1::{DiskPhase, DiskStatus, DiskSummary},
};

use super::disk::{DiskIntent, Standing, volume_name};

/// Below this, a change of the space taken is no news by itself.
const NOTABLE_BYTES: u64 = 64 << 20;

/// Where the report is made, and how far the work is.
#[derive(Debug, Clone, Copy)]
pub struct Teller<'a> {
    /// This host.
    pub host: &'a str,
    /// The domain is the same directory on every host.
    pub shared: bool,
    /// How far an import is.
    pub progress: Option<&'a str>,
}

/// The daemon's part of a Disk's status: every field of it, so that none is lost by being left out.
pub fn disk_report(
    intent: &DiskIntent,
    standing: &Standing,
    teller: Teller<'_>,
    old: &DiskStatus,
    now: jiff::Timestamp,
) -> DiskStatus {
    let conditions = condition::merge(&old.conditions, &conditions(intent, standing), intent.generation, now);
    let mut report = DiskStatus {
        observed_generation: Some(intent.generation),
        conditions,
        phase: Some(phase(intent, standing)),
        progress: teller.progress.map(Into::into),
        capacity: old.capacity,
        allocated: old.allocated,
        volume: old.volume.clone(),
        local_host: old.local_host.clone(),
        content_digest: old.content_digest.clone(),
        ..DiskStatus::default()
    };
    if let Standing::Ready { capacity, allocated, digest, .. } = standing {
        report.capacity = i64::try_from(*capacity).ok();
        report.volume = Some(volume_name(intent));
        report.local_host = (!teller.shared).then(|| teller.host.into());
        report.content_digest.clone_from(digest);
        let known = old.allocated.and_then(|bytes| u64::try_from(bytes).ok());
        if known.is_none_or(|known| known.abs_diff(*allocated) > NOTABLE_BYTES.max(capacity / 20)) {
            report.allocated = i64::try_from(*allocated).ok();
        }
    }
    let shown = report.allocated.and_then(|bytes| u64::try_from(bytes).ok()).map(human_bytes);
    report.summary = shown.map(|allocated| DiskSummary { used_by: None, allocated: Some(allocated) });
    report
}

/// Whether the report says anything that the object does not say already; times alone are no news.
pub fn is_news(report: &DiskStatus, old: &DiskStatus) -> bool {
    let ours = |status: &DiskStatus| DiskStatus {
        conditions: vec![],
        placement: None,
        attachments: vec![],
        remove: None,
        summary: status
            .summary
            .as_ref()
            .and_then(|s| s.allocated.clone())
            .map(|allocated| DiskSummary { used_by: None, allocated: Some(allocated) }),
        ..status.clone()
    };
    let said = |status: &DiskStatus, type_: &str| {
        condition::get(&status.conditions, type_)
            .map(|c| (c.status.clone(), c.reason.clone(), c.message.clone(), c.observed_generation))
    };
    ours(report) != ours(old)
        || [kind::READY, kind::PROVISIONED, kind::RECONCILING, kind::STALLED]
            .iter()
            .any(|type_| said(report, type_) != said(old, type_))
}

fn phase(intent: &DiskIntent, standing: &Standing) -> DiskPhase {
    match standing {
        Standing::Removed { .. } => DiskPhase::Removed,
        Standing::Working { .. } | Standing::Waiting { .. } if intent.remove => DiskPhase::Removing,
        Standing::Ready { .. } => DiskPhase::Ready,
        Standing::Refused { reason, .. } if !intent.was_ready || reason == reasons::VOLUME_MISSING => {
            DiskPhase::Failed
        }
        Standing::Working { .. } | Standing::Waiting { .. } if !intent.was_ready => DiskPhase::Provisioning,
        Standing::Working { .. } | Standing::Waiting { .. } | Standing::Refused { .. } => DiskPhase::Ready,
    }
}

fn conditions(intent: &DiskIntent, standing: &Standing) -> Vec<ConditionValue> {
    let provisioned = |reason: &str, message: &str| {
        if intent.was_ready && reason != reasons::VOLUME_MISSING {
            ConditionValue::yes(kind::PROVISIONED, reasons::VOLUME_READY, "the volume is there")
        } else {
            ConditionValue::no(kind::PROVISIONED, reason, message)
        }
    };
    match standing {
        Standing::Ready { note: None, .. } => vec![
            ConditionValue::yes(kind::READY, reasons::VOLUME_READY, "the volume is there"),
            ConditionValue::yes(kind::PROVISIONED, reasons::VOLUME_READY, "the volume is there"),
        ],
        Standing::Ready { note: Some(note), .. } => vec![
            ConditionValue::yes(kind::READY, reasons::VOLUME_READY, note),
            ConditionValue::yes(kind::PROVISIONED, reasons::VOLUME_READY, "the volume is there"),
            ConditionValue::yes(kind::RECONCILING, reasons::PROVISIONING, note),
        ],
        Standing::Working { reason, message } => vec![
            ConditionValue::no(kind::READY, reason, message),
            provisioned(reason, message),
            ConditionValue::yes(kind::RECONCILING, reason, message),
        ],
        // A host that cannot see the volume cannot say that it is lost.
        Standing::Waiting { reason, message } if intent.was_ready && !intent.remove => {
            vec![ConditionValue::unknown(kind::READY, reason, message), provisioned(reason, message)]
        }
        Standing::Waiting { reason, message } => vec![
            ConditionValue::no(kind::READY, reason, message),
            provisioned(reason, message),
            ConditionValue::yes(kind::RECONCILING, reason, message),
        ],
        Standing::Refused { reason, message } => vec![
            ConditionValue::no(kind::READY, reason, message),
            provisioned(reason, message),
            ConditionValue::yes(kind::STALLED, reason, message),
        ],
        Standing::Removed { message } => vec![
            ConditionValue::no(kind::READY, reasons::REMOVED, message),
            ConditionValue::no(kind::PROVISIONED, reasons::REMOVED, message),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_crds::{
        units::Size,
        v1alpha1::{Allocation, DiskFormat, DiskSource, DiskSpec, ReclaimPolicy},
    };

    fn intent(was_ready: bool) -> DiskIntent {
        DiskIntent {
            uid: "u".into(),
            namespace: "default".into(),
            name: "d".into(),
            spec: DiskSpec {
                storage_domain: "shared".into(),
                size: Size("1Gi".into()),
                format: DiskFormat::Qcow2,
                allocation: Allocation::Thin,
                source: DiskSource::default(),
                reclaim_policy: ReclaimPolicy::Delete,
                wipe_after_delete: false,
            },
            generation: 2,
            epoch: 1,
            remove: false,
            deleting: false,
            was_ready,
        }
    }

    const TELLER: Teller<'_> = Teller { host: "host1", shared: false, progress: None };

    fn report(intent: &DiskIntent, standing: &Standing, old: &DiskStatus) -> DiskStatus {
        disk_report(intent, standing, TELLER, old, jiff::Timestamp::UNIX_EPOCH)
    }

    fn ready(allocated: u64) -> Standing {
        Standing::Ready { capacity: 1 << 30, allocated, digest: None, note: None }
    }

    #[test]
    fn a_ready_disk_says_where_it_lies_and_then_nothing_more() {
        let first = report(&intent(false), &ready(1 << 20), &DiskStatus::default());
        assert_eq!(
            (first.phase, first.volume.as_deref(), first.local_host.as_deref()),
            (Some(DiskPhase::Ready), Some("u.qcow2"), Some("host1"))
        );
        assert!(is_news(&first, &DiskStatus::default()));
        let later = disk_report(
            &intent(true),
            &ready(2 << 20),
            TELLER,
            &first,
            jiff::Timestamp::from_second(99).unwrap(),
        );
        assert!(!is_news(&later, &first), "{later:?}");
        let much_later = report(&intent(true), &ready(900 << 20), &first);
        assert!(is_news(&much_later, &first));
        assert_eq!(much_later.summary.unwrap().allocated.as_deref(), Some("900Mi"));
    }

    #[test]
    fn what_the_controller_wrote_is_no_news() {
        let ours = report(&intent(false), &ready(0), &DiskStatus::default());
        let both = DiskStatus {
            remove: Some(false),
            summary: Some(DiskSummary { used_by: Some("web-1".into()), allocated: Some("0".into()) }),
            conditions: ours
                .conditions
                .iter()
                .cloned()
                .chain(condition::merge(
                    &[],
                    &[ConditionValue::yes(kind::ACCEPTED, "Accepted", "")],
                    2,
                    jiff::Timestamp::UNIX_EPOCH,
                ))
                .collect(),
            ..ours.clone()
        };
        assert!(!is_news(&report(&intent(true), &ready(0), &both), &both));
    }

    #[test]
    fn a_domain_that_vanishes_leaves_the_disk_unknown_and_not_lost() {
        let before = report(&intent(false), &ready(0), &DiskStatus::default());
        let gone =
            Standing::Waiting { reason: reasons::DOMAIN_NOT_READY.into(), message: "looks unmounted".into() };
        let after = report(&intent(true), &gone, &before);
        assert_eq!(after.phase, Some(DiskPhase::Ready));
        assert_eq!(condition::get(&after.conditions, kind::READY).unwrap().status, "Unknown");
        assert_eq!(after.volume, before.volume);
    }

    #[test]
    fn refusals_stall_and_keep_their_words() {
        let refused =
            Standing::Refused { reason: reasons::DIGEST_MISMATCH.into(), message: "it says …".into() };
        let said = report(&intent(false), &refused, &DiskStatus::default());
        assert_eq!(said.phase, Some(DiskPhase::Failed));
        assert!(condition::is_true(&said.conditions, kind::STALLED));
        assert_eq!(condition::get(&said.conditions, kind::READY).unwrap().reason, reasons::DIGEST_MISMATCH);
    }
}
