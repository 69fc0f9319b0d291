//! Decides what this host does about one Disk: make its volume, grow it, move it to the trash, or nothing.
//!
//! ```text
//!  remove ordered ── volume there ── Delete ─> MoveToTrash      Retain ─> MarkRetained
//!        │              └ absent ─> Removed
//!  domain not ready ─> wait                      (never a guess about what lies there)
//!  volume there ── smaller than spec.size ─> Grow     else ─> Ready
//!  volume absent ── was Ready once ─> refused: VolumeMissing     (never a new blank in its place)
//!        └ else, room enough ─> Create / Fetch / Copy / Restore
//! ```

use serde::{Deserialize, Serialize};
use vireo_crds::{
    reasons,
    units::human_bytes,
    v1alpha1::{Allocation, Disk, DiskFormat, DiskSource, DiskSpec, ReclaimPolicy},
};

use crate::guard::{Guard, stands};

use super::{
    path::RelativePath,
    sidecar::{FORMAT_VERSION, Sidecar},
};

/// A Disk this host works on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskIntent {
    /// uid of the Disk.
    pub uid: String,
    /// Namespace of the Disk.
    pub namespace: String,
    /// Name of the Disk.
    pub name: String,
    /// What the user wrote.
    pub spec: DiskSpec,
    /// `metadata.generation`.
    #[serde(default)]
    pub generation: i64,
    /// Grows with each change of the working host.
    pub epoch: i64,
    /// The controller ordered the volume to be removed.
    #[serde(default)]
    pub remove: bool,
    /// The Disk is being deleted.
    #[serde(default)]
    pub deleting: bool,
    /// The volume was reported ready once.
    #[serde(default)]
    pub was_ready: bool,
}

impl DiskIntent {
    /// What a Disk asks of `host`; none if another host works on it, or it has no uid yet.
    pub fn of(disk: &Disk, host: &str) -> Option<Self> {
        let meta = &disk.metadata;
        let status = disk.status.as_ref()?;
        let placement = status.placement.as_ref().filter(|placement| placement.host == host)?;
        Some(Self {
            uid: meta.uid.clone()?,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            spec: disk.spec.clone(),
            generation: meta.generation.unwrap_or(0),
            epoch: placement.epoch,
            remove: status.remove.unwrap_or(false),
            deleting: meta.deletion_timestamp.is_some(),
            was_ready: status.volume.is_some(),
        })
    }

    /// uid of the volume it is to be made from.
    pub fn origin(&self) -> Option<&str> {
        match &self.spec.source {
            DiskSource::Volume(source) => Some(&source.uid),
            _ => None,
        }
    }
}

/// The volume as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeFact {
    /// Nothing of that name.
    Absent,
    /// A volume.
    Present {
        /// Size the guest sees.
        capacity: u64,
        /// Space taken.
        allocated: u64,
    },
    /// It cannot be told.
    Unknown(String),
}

/// What was found about one Disk in its domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskFacts {
    /// The volume.
    pub volume: VolumeFact,
    /// Its sidecar, if one can be read.
    #[serde(default)]
    pub sidecar: Option<Sidecar>,
    /// Its sidecar in the trash.
    #[serde(default)]
    pub trashed: Option<Sidecar>,
    /// The sidecar of the volume that `source.volume` names, in the trash or beside a retained volume.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// Unfinished files of this Disk lie in the domain.
    #[serde(default)]
    pub partials: bool,
}

/// A volume that can be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Its sidecar.
    pub sidecar: Sidecar,
    /// It lies in the trash, not beside the other volumes.
    pub in_trash: bool,
}

/// The domain a Disk lies on, as far as Disks are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainFacts {
    /// Why it cannot be used now.
    #[serde(default)]
    pub not_ready: Option<String>,
    /// Free space, in bytes.
    pub available: u64,
    /// Below this much free no new volume is made.
    pub block_free: u64,
}

/// One thing to do. Each is safe to repeat; each names its volume by uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum DiskStep {
    /// Afterwards no unfinished file of the Disk of this uid lies in the domain and, if it has no volume there, nothing
    /// that explains one.
    RemovePartials(String),
    /// Afterwards an empty volume is there, with its sidecar.
    Create(Sidecar, AllocationWish),
    /// Afterwards a volume with the content of the URL is there, with its sidecar.
    Fetch {
        /// What the sidecar will say.
        sidecar: Sidecar,
        /// The URL, not yet judged.
        url: String,
        /// Digest it must have.
        checksum: Option<String>,
        /// Certificates to trust besides the public ones.
        ca_bundle: Option<String>,
        /// When its space is taken.
        allocation: AllocationWish,
    },
    /// Afterwards a volume with the content of a file of the domain is there, with its sidecar.
    Copy {
        /// What the sidecar will say.
        sidecar: Sidecar,
        /// The file.
        path: String,
        /// When its space is taken.
        allocation: AllocationWish,
    },
    /// Afterwards the named volume is this Disk's, with its sidecar.
    Restore {
        /// What the sidecar will say.
        sidecar: Sidecar,
        /// The volume it comes from.
        origin: Origin,
    },
    /// Afterwards the sidecar says this.
    WriteSidecar(Sidecar),
    /// Afterwards the guest sees at least this size.
    Grow {
        /// What the sidecar will say.
        sidecar: Sidecar,
        /// When the new space is taken.
        allocation: AllocationWish,
    },
    /// Afterwards volume and sidecar are in the trash, if nothing had the volume open.
    MoveToTrash(Sidecar),
    /// Afterwards the sidecar says that nobody owns the volume, if nothing had it open.
    MarkRetained(Sidecar),
}

/// When space is taken, once the spec has been understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocationWish {
    /// As the guest writes.
    Thin,
    /// At once.
    Preallocated,
}

/// Where a Disk stands when no step is left, or while the steps run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// Steps are being run.
    Working {
        /// Reason of the condition.
        reason: String,
        /// For people.
        message: String,
    },
    /// Something must happen first.
    Waiting {
        /// Reason of the condition.
        reason: String,
        /// For people.
        message: String,
    },
    /// The user must act.
    Refused {
        /// Reason of the condition.
        reason: String,
        /// For people.
        message: String,
    },
    /// The volume is there.
    Ready {
        /// Size the guest sees.
        capacity: u64,
        /// Space taken.
        allocated: u64,
        /// Digest of what was imported.
        digest: Option<String>,
        /// What is still to come, such as a growth that waits for a VM to stop.
        #[serde(default)]
        note: Option<String>,
    },
    /// Nothing of this Disk is left to do.
    Removed {
        /// For people.
        message: String,
    },
}

/// Steps in order, and where the Disk stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskPlan {
    /// Steps to run, in order.
    pub steps: Vec<DiskStep>,
    /// What to report.
    pub standing: Standing,
}

impl DiskPlan {
    fn work(steps: Vec<DiskStep>, reason: &str, message: impl Into<String>) -> Self {
        Self { steps, standing: Standing::Working { reason: reason.into(), message: message.into() } }
    }

    fn wait(reason: &str, message: impl Into<String>) -> Self {
        Self { steps: vec![], standing: Standing::Waiting { reason: reason.into(), message: message.into() } }
    }

    fn refuse(reason: &str, message: impl Into<String>) -> Self {
        Self { steps: vec![], standing: Standing::Refused { reason: reason.into(), message: message.into() } }
    }
}

/// Decides about one Disk.
pub fn plan_disk(intent: &DiskIntent, facts: &DiskFacts, domain: &DomainFacts) -> DiskPlan {
    if let Some(why) = &domain.not_ready {
        return DiskPlan::wait(
            reasons::DOMAIN_NOT_READY,
            format!("StorageDomain {}: {why}", intent.spec.storage_domain),
        );
    }
    if let VolumeFact::Unknown(why) = &facts.volume {
        return DiskPlan::wait(reasons::DOMAIN_NOT_READY, format!("the volume cannot be looked at: {why}"));
    }
    if intent.remove {
        return plan_removal(intent, facts);
    }
    let wish = match Wish::read(intent) {
        Ok(wish) => wish,
        Err(message) => return DiskPlan::refuse(reasons::REFUSED, message),
    };
    match facts.volume {
        VolumeFact::Present { capacity, allocated } => {
            plan_present(intent, &wish, facts, capacity, allocated)
        }
        VolumeFact::Absent | VolumeFact::Unknown(_) => plan_absent(intent, wish, facts, domain),
    }
}

fn plan_removal(intent: &DiskIntent, facts: &DiskFacts) -> DiskPlan {
    let mut steps = vec![];
    // A move to the trash, or a volume in the making, that was cut off leaves a sidecar without a volume.
    let explains_nothing = facts.volume == VolumeFact::Absent && facts.sidecar.is_some();
    if facts.partials || explains_nothing {
        steps.push(DiskStep::RemovePartials(intent.uid.clone()));
    }
    let retained = facts.sidecar.as_ref().is_some_and(|s| s.retained_at.is_some());
    if matches!(facts.volume, VolumeFact::Present { .. }) && !retained {
        let sidecar =
            facts.sidecar.clone().unwrap_or_else(|| described(intent, intent.spec.size.bytes().unwrap_or(0)));
        let sidecar = Sidecar { wipe: intent.spec.wipe_after_delete, ..sidecar };
        steps.push(match intent.spec.reclaim_policy {
            ReclaimPolicy::Delete => DiskStep::MoveToTrash(sidecar),
            ReclaimPolicy::Retain | ReclaimPolicy::Unknown => DiskStep::MarkRetained(sidecar),
        });
    }
    if !steps.is_empty() {
        return DiskPlan::work(steps, reasons::REMOVING, "removing the volume");
    }
    let message = match (&facts.trashed, retained) {
        (Some(_), _) => {
            "the volume is in the trash of its domain; source.volume brings it back within the retention time"
        }
        (None, true) => "the volume is left in its domain; source.volume makes it a Disk again",
        (None, false) => "no volume is left",
    };
    DiskPlan { steps, standing: Standing::Removed { message: message.into() } }
}

/// What the spec asks for, once it has been understood.
struct Wish {
    size: u64,
    allocation: AllocationWish,
}

impl Wish {
    fn read(intent: &DiskIntent) -> Result<Self, String> {
        let spec = &intent.spec;
        let size = spec.size.bytes().map_err(|e| format!("spec.size: {e}"))?;
        if size == 0 || size > crate::image::MAX_VIRTUAL_SIZE {
            return Err(format!("spec.size: {} is not between 1Mi and 64Ti", spec.size));
        }
        if spec.format == DiskFormat::Unknown {
            return Err(
                "spec.format: this version of the node daemon knows qcow2 and raw; upgrade it for others"
                    .into(),
            );
        }
        let allocation = match spec.allocation {
            Allocation::Thin => AllocationWish::Thin,
            Allocation::Preallocated => AllocationWish::Preallocated,
            Allocation::Unknown => {
                return Err("spec.allocation: this version of the node daemon knows Thin and Preallocated; upgrade it for others".into());
            }
        };
        // Sectors are what a guest can address.
        Ok(Self { size: size.div_ceil(512).saturating_mul(512), allocation })
    }
}

fn plan_present(
    intent: &DiskIntent,
    wish: &Wish,
    facts: &DiskFacts,
    capacity: u64,
    allocated: u64,
) -> DiskPlan {
    let known = facts.sidecar.clone().unwrap_or_else(|| described(intent, capacity));
    if !intent.deleting && !known.iso && capacity < wish.size {
        let sidecar = Sidecar { size: wish.size, retained_at: None, ..known };
        let message = format!("growing from {} to {}", human_bytes(capacity), human_bytes(wish.size));
        return DiskPlan::work(
            vec![DiskStep::Grow { sidecar, allocation: wish.allocation }],
            reasons::PROVISIONING,
            message,
        );
    }
    let mut steps = vec![];
    if facts.partials {
        steps.push(DiskStep::RemovePartials(intent.uid.clone()));
    }
    if facts.sidecar.is_none() || known.retained_at.is_some() {
        steps.push(DiskStep::WriteSidecar(Sidecar { retained_at: None, ..known.clone() }));
    }
    DiskPlan { steps, standing: Standing::Ready { capacity, allocated, digest: known.digest, note: None } }
}

fn plan_absent(intent: &DiskIntent, wish: Wish, facts: &DiskFacts, domain: &DomainFacts) -> DiskPlan {
    if let Some(trashed) = facts.trashed.as_ref().filter(|_| stands(Guard::MissingVolume)) {
        return DiskPlan::refuse(
            reasons::VOLUME_MISSING,
            format!(
                "the volume is in the trash of its domain; make a new Disk with source.volume.uid {} to bring it back",
                trashed.uid
            ),
        );
    }
    if intent.was_ready && stands(Guard::MissingVolume) {
        return DiskPlan::refuse(
            reasons::VOLUME_MISSING,
            format!(
                "volume volumes/{} was there and is gone; it is never replaced by an empty one: put it back, or delete this Disk",
                volume_name(intent)
            ),
        );
    }
    if intent.deleting {
        return DiskPlan::wait(reasons::REMOVING, "the Disk is being deleted; no volume was made");
    }
    if let Some(message) = no_room(&wish, domain, &intent.spec.source) {
        return DiskPlan::wait(reasons::NO_SPACE, message);
    }
    let sidecar = described(intent, wish.size);
    let allocation = wish.allocation;
    let (step, reason, message) = match &intent.spec.source {
        DiskSource::Blank(_) => {
            (DiskStep::Create(sidecar, allocation), reasons::PROVISIONING, "making the volume".to_owned())
        }
        DiskSource::Http(source) => (
            DiskStep::Fetch {
                sidecar,
                url: source.url.clone(),
                checksum: source.checksum.clone(),
                ca_bundle: source.ca_bundle.clone(),
                allocation,
            },
            reasons::IMPORTING,
            "fetching the image".to_owned(),
        ),
        DiskSource::File(source) => match RelativePath::parse(&source.path) {
            Ok(path) => (
                DiskStep::Copy { sidecar, path: path.as_str().into(), allocation },
                reasons::IMPORTING,
                format!("copying files/{path}"),
            ),
            Err(refusal) => {
                return DiskPlan::refuse(reasons::PATH_REFUSED, format!("spec.source.file.path: {refusal}"));
            }
        },
        DiskSource::Volume(source) => match restorable(intent, &source.uid, facts.origin.as_ref(), &wish) {
            Ok(origin) => {
                let kept = &origin.sidecar;
                let sidecar =
                    Sidecar { size: kept.size, digest: kept.digest.clone(), iso: kept.iso, ..sidecar };
                (
                    DiskStep::Restore { sidecar, origin },
                    reasons::PROVISIONING,
                    format!("bringing back volume {}", source.uid),
                )
            }
            Err((reason, message)) => return DiskPlan::refuse(reason, message),
        },
    };
    let mut steps = vec![];
    if facts.partials {
        steps.push(DiskStep::RemovePartials(intent.uid.clone()));
    }
    steps.push(step);
    DiskPlan::work(steps, reason, message)
}

/// Why there is no room for a new volume.
fn no_room(wish: &Wish, domain: &DomainFacts, source: &DiskSource) -> Option<String> {
    let takes = match (source, wish.allocation) {
        // Its blocks are there already.
        (DiskSource::Volume(_), _) => return None,
        (_, AllocationWish::Preallocated) => wish.size,
        (_, AllocationWish::Thin) => 0,
    };
    let needed = takes.saturating_add(domain.block_free);
    (domain.available < needed).then(|| {
        format!(
            "the domain has {} free; this volume takes {} at once and thresholds.blockFreeBytes keeps {} free: free some space or lower the threshold",
            human_bytes(domain.available),
            human_bytes(takes),
            human_bytes(domain.block_free)
        )
    })
}

fn restorable(
    intent: &DiskIntent,
    uid: &str,
    origin: Option<&Origin>,
    wish: &Wish,
) -> Result<Origin, (&'static str, String)> {
    let Some(origin) = origin else {
        let message = format!(
            "spec.source.volume.uid: neither the trash nor the kept volumes of this domain have a volume {uid}"
        );
        return Err((reasons::NOT_IN_TRASH, message));
    };
    let kept = &origin.sidecar;
    if kept.namespace != intent.namespace {
        let message = format!(
            "spec.source.volume.uid: volume {uid} belonged to another namespace; it can be brought back only there"
        );
        return Err((reasons::NOT_IN_TRASH, message));
    }
    if kept.format != intent.spec.format {
        let found = kept.format.qemu_name().unwrap_or("unknown");
        return Err((reasons::REFUSED, format!("spec.format: volume {uid} is {found}; write that")));
    }
    if kept.size > wish.size && !kept.iso {
        let message = format!(
            "spec.size: volume {uid} has {}; a disk never shrinks: write at least that",
            human_bytes(kept.size)
        );
        return Err((reasons::REFUSED, message));
    }
    Ok(origin.clone())
}

/// File name of the volume.
pub fn volume_name(intent: &DiskIntent) -> String {
    format!("{}.{}", intent.uid, intent.spec.format.qemu_name().unwrap_or("unknown"))
}

fn described(intent: &DiskIntent, size: u64) -> Sidecar {
    let source = match &intent.spec.source {
        DiskSource::Blank(_) => "blank".to_owned(),
        // A query may hold a key.
        DiskSource::Http(source) => {
            format!("http {}", source.url.split(['?', '#']).next().unwrap_or_default())
        }
        DiskSource::File(source) => format!("file {}", source.path),
        DiskSource::Volume(source) => format!("volume {}", source.uid),
    };
    Sidecar {
        format_version: FORMAT_VERSION,
        uid: intent.uid.clone(),
        namespace: intent.namespace.clone(),
        name: intent.name.clone(),
        format: intent.spec.format,
        size,
        source,
        digest: None,
        iso: false,
        wipe: intent.spec.wipe_after_delete,
        deleted_at: None,
        retained_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_crds::{units::Size, v1alpha1::VolumeSource};

    fn intent(source: DiskSource) -> DiskIntent {
        DiskIntent {
            uid: "u".into(),
            namespace: "default".into(),
            name: "web-1-root".into(),
            spec: DiskSpec {
                storage_domain: "shared".into(),
                size: Size("10Gi".into()),
                format: DiskFormat::Qcow2,
                allocation: Allocation::Thin,
                source,
                reclaim_policy: ReclaimPolicy::Delete,
                wipe_after_delete: false,
            },
            generation: 1,
            epoch: 1,
            remove: false,
            deleting: false,
            was_ready: false,
        }
    }

    fn absent() -> DiskFacts {
        DiskFacts { volume: VolumeFact::Absent, sidecar: None, trashed: None, origin: None, partials: false }
    }

    fn roomy() -> DomainFacts {
        DomainFacts { not_ready: None, available: 100 << 30, block_free: 5 << 30 }
    }

    /// What the executor's steps do to the facts.
    fn apply(facts: &mut DiskFacts, step: &DiskStep) {
        match step {
            DiskStep::RemovePartials(_) => {
                facts.partials = false;
                if facts.volume == VolumeFact::Absent {
                    facts.sidecar = None;
                }
            }
            DiskStep::Create(sidecar, _)
            | DiskStep::Fetch { sidecar, .. }
            | DiskStep::Copy { sidecar, .. }
            | DiskStep::Restore { sidecar, .. }
            | DiskStep::Grow { sidecar, .. } => {
                facts.volume = VolumeFact::Present { capacity: sidecar.size, allocated: 0 };
                facts.sidecar = Some(sidecar.clone());
            }
            DiskStep::WriteSidecar(sidecar) => facts.sidecar = Some(sidecar.clone()),
            DiskStep::MoveToTrash(sidecar) => {
                facts.volume = VolumeFact::Absent;
                facts.trashed = Some(sidecar.clone());
                facts.sidecar = None;
            }
            DiskStep::MarkRetained(sidecar) => {
                facts.sidecar =
                    Some(Sidecar { retained_at: Some(jiff::Timestamp::UNIX_EPOCH), ..sidecar.clone() });
            }
        }
    }

    /// Plans, applies, plans again: the second plan has no step.
    fn settle(intent: &DiskIntent, mut facts: DiskFacts) -> (Vec<DiskStep>, Standing) {
        let first = plan_disk(intent, &facts, &roomy());
        for step in &first.steps {
            apply(&mut facts, step);
        }
        let second = plan_disk(intent, &facts, &roomy());
        assert_eq!(second.steps, [], "planning again after applying must give nothing");
        (first.steps, second.standing)
    }

    #[test]
    fn a_blank_disk_is_made_and_then_left_alone() {
        let (steps, standing) = settle(&intent(DiskSource::default()), absent());
        assert!(
            matches!(steps.as_slice(), [DiskStep::Create(sidecar, AllocationWish::Thin)] if sidecar.size == 10 << 30)
        );
        assert_eq!(standing, Standing::Ready { capacity: 10 << 30, allocated: 0, digest: None, note: None });
    }

    #[test]
    fn a_volume_that_was_there_is_never_replaced_by_a_blank_one() {
        let lost = DiskIntent { was_ready: true, ..intent(DiskSource::default()) };
        let plan = plan_disk(&lost, &absent(), &roomy());
        assert!(plan.steps.is_empty());
        assert!(
            matches!(plan.standing, Standing::Refused { reason, .. } if reason == reasons::VOLUME_MISSING)
        );
    }

    #[test]
    fn nothing_is_done_in_a_domain_that_is_not_ready() {
        let unmounted = DomainFacts { not_ready: Some("/srv has no marker".into()), ..roomy() };
        for remove in [false, true] {
            let plan =
                plan_disk(&DiskIntent { remove, ..intent(DiskSource::default()) }, &absent(), &unmounted);
            assert!(plan.steps.is_empty());
            assert!(
                matches!(plan.standing, Standing::Waiting { reason, .. } if reason == reasons::DOMAIN_NOT_READY)
            );
        }
    }

    #[test]
    fn too_little_room_is_said_with_figures() {
        let full = DomainFacts { available: 6 << 30, ..roomy() };
        assert_eq!(plan_disk(&intent(DiskSource::default()), &absent(), &full).steps.len(), 1);
        let mut thick = intent(DiskSource::default());
        thick.spec.allocation = Allocation::Preallocated;
        let plan = plan_disk(&thick, &absent(), &full);
        assert!(
            matches!(plan.standing, Standing::Waiting { reason, message } if reason == reasons::NO_SPACE && message.contains("6Gi free") && message.contains("10Gi"))
        );
        let fuller = DomainFacts { available: 1 << 30, ..roomy() };
        assert!(plan_disk(&intent(DiskSource::default()), &absent(), &fuller).steps.is_empty());
    }

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        let there =
            |capacity| DiskFacts { volume: VolumeFact::Present { capacity, allocated: 1 }, ..absent() };
        let (steps, standing) = settle(&intent(DiskSource::default()), there(1 << 30));
        assert!(matches!(steps.as_slice(), [DiskStep::Grow { .. }]));
        assert!(matches!(standing, Standing::Ready { capacity, .. } if capacity == 10 << 30));
        let (steps, standing) = settle(&intent(DiskSource::default()), there(20 << 30));
        assert!(matches!(steps.as_slice(), [DiskStep::WriteSidecar(_)]));
        assert!(matches!(standing, Standing::Ready { capacity, .. } if capacity == 20 << 30));
    }

    #[test]
    fn removal_moves_to_the_trash_or_leaves_in_place() {
        let there = DiskFacts {
            volume: VolumeFact::Present { capacity: 10 << 30, allocated: 1 },
            partials: true,
            ..absent()
        };
        let going = DiskIntent { remove: true, was_ready: true, ..intent(DiskSource::default()) };
        let (steps, standing) = settle(&going, there.clone());
        assert!(matches!(steps.as_slice(), [DiskStep::RemovePartials(_), DiskStep::MoveToTrash(_)]));
        assert!(matches!(standing, Standing::Removed { .. }));
        let mut kept = going;
        kept.spec.reclaim_policy = ReclaimPolicy::Retain;
        let (steps, standing) = settle(&kept, there);
        assert!(matches!(steps.as_slice(), [DiskStep::RemovePartials(_), DiskStep::MarkRetained(_)]));
        assert!(matches!(standing, Standing::Removed { .. }));
        assert!(settle(&kept, absent()).0.is_empty());
    }

    #[test]
    fn paths_that_leave_the_domain_are_refused() {
        for path in ["/etc/shadow", "../other/disk.raw"] {
            let source = DiskSource::File(vireo_crds::v1alpha1::FileSource { path: path.into() });
            let plan = plan_disk(&intent(source), &absent(), &roomy());
            assert!(
                matches!(plan.standing, Standing::Refused { reason, message } if reason == reasons::PATH_REFUSED && message.contains(path))
            );
        }
    }

    #[test]
    fn only_the_same_namespace_brings_a_volume_back() {
        let wanted = intent(DiskSource::Volume(VolumeSource { uid: "old".into() }));
        let sidecar = Sidecar {
            uid: "old".into(),
            size: 5 << 30,
            digest: Some("sha256:1".into()),
            ..described(&wanted, 0)
        };
        let with =
            |sidecar: Sidecar| DiskFacts { origin: Some(Origin { sidecar, in_trash: true }), ..absent() };
        let plan = plan_disk(&wanted, &with(sidecar.clone()), &roomy());
        assert!(
            matches!(plan.steps.as_slice(), [DiskStep::Restore { sidecar, .. }] if sidecar.size == 5 << 30 && sidecar.digest.is_some())
        );
        let refused = |facts: &DiskFacts| match plan_disk(&wanted, facts, &roomy()).standing {
            Standing::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            refused(&with(Sidecar { namespace: "other".into(), ..sidecar.clone() })),
            reasons::NOT_IN_TRASH
        );
        assert_eq!(refused(&with(Sidecar { format: DiskFormat::Raw, ..sidecar.clone() })), reasons::REFUSED);
        assert_eq!(refused(&with(Sidecar { size: 11 << 30, ..sidecar })), reasons::REFUSED);
        assert_eq!(refused(&absent()), reasons::NOT_IN_TRASH);
    }

    #[test]
    fn sizes_that_cannot_be_read_name_the_field() {
        let mut bad = intent(DiskSource::default());
        bad.spec.size = Size("12 bananas".into());
        let plan = plan_disk(&bad, &absent(), &roomy());
        assert!(
            matches!(plan.standing, Standing::Refused { message, .. } if message.starts_with("spec.size: \"12 bananas\""))
        );
    }

    #[test]
    fn a_url_in_a_sidecar_loses_its_query() {
        let source = DiskSource::Http(vireo_crds::v1alpha1::HttpSource {
            url: "https://x/y?token=secret".into(),
            checksum: None,
            ca_bundle: None,
        });
        assert_eq!(described(&intent(source), 1).source, "http https://x/y");
    }
}
