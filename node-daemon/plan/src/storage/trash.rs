//! Decides which volumes leave the trash: those whose time is over and that explain themselves.

use jiff::{SignedDuration, Timestamp};

use super::sidecar::Sidecar;

/// What to do about the trash of one domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrashPlan {
    /// Volumes to remove now.
    pub purge: Vec<Sidecar>,
    /// When the next one is due.
    pub next: Option<Timestamp>,
}

/// Sorts the trash by its sidecars. Without a readable retention time nothing is removed.
pub fn plan_trash(sidecars: &[Sidecar], retention: Option<SignedDuration>, now: Timestamp) -> TrashPlan {
    let mut plan = TrashPlan::default();
    let Some(retention) = retention.filter(|r| !r.is_negative()) else { return plan };
    for sidecar in sidecars {
        let Some(due) = sidecar.deleted_at.and_then(|at| at.checked_add(retention).ok()) else { continue };
        if due <= now {
            plan.purge.push(sidecar.clone());
        } else {
            plan.next = Some(plan.next.map_or(due, |next| next.min(due)));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::super::sidecar::FORMAT_VERSION;
    use super::*;
    use vireo_crds::v1alpha1::DiskFormat;

    fn deleted(uid: &str, second: i64) -> Sidecar {
        Sidecar {
            format_version: FORMAT_VERSION,
            uid: uid.into(),
            namespace: "default".into(),
            name: "d".into(),
            format: DiskFormat::Qcow2,
            size: 1,
            source: "blank".into(),
            digest: None,
            iso: false,
            wipe: false,
            deleted_at: Timestamp::from_second(second).ok(),
            retained_at: None,
        }
    }

    #[test]
    fn only_what_is_past_its_retention_goes() {
        let now = Timestamp::from_second(1_000).unwrap();
        let hour = Some(SignedDuration::from_secs(600));
        let unexplained = Sidecar { deleted_at: None, ..deleted("kept", 0) };
        let plan = plan_trash(
            &[deleted("old", 400), deleted("young", 401), deleted("younger", 999), unexplained],
            hour,
            now,
        );
        assert_eq!(plan.purge.iter().map(|s| s.uid.as_str()).collect::<Vec<_>>(), ["old"]);
        assert_eq!(plan.next, Timestamp::from_second(1_001).ok());
        assert_eq!(plan_trash(&[deleted("old", 0)], None, now), TrashPlan::default());
    }
}
