//! Weights: how good a host that fits is for a VM. Each is a pure function of one candidate with the range 0 (best) to
//! 1000; the policy of the HostCluster gives each a factor, `scheduling.weights` replaces factors one by one, and the
//! lowest sum wins.
//!
//! Every policy has affinity 20, and besides:
//!
//! | Policy | Factors |
//! |---|---|
//! | `none`, `evenlyDistributed`, `maintenance` | load 1 |
//! | `vmEvenlyDistributed` | vms 1000, load 1 |
//! | `powerSaving` | packing 1 |

use vireo_crds::v1alpha1::{HostCluster, PowerSaving, SchedulingPolicy};

use super::candidate::Candidate;
use crate::capacity::share;

/// Largest value of a weight.
pub(crate) const WORST: i64 = 1000;

/// One weight.
pub(crate) struct Weight {
    /// Its name in `scheduling.weights`.
    pub name: &'static str,
    /// Its value for a candidate.
    pub value: fn(&Candidate<'_>) -> i64,
    factor: fn(&HostCluster) -> i64,
}

/// All weights.
pub(crate) const WEIGHTS: [Weight; 6] = [
    Weight {
        name: "load",
        value: load,
        factor: |cluster| {
            let by_policy = match &cluster.spec.scheduling.policy {
                SchedulingPolicy::None(_)
                | SchedulingPolicy::EvenlyDistributed(_)
                | SchedulingPolicy::VmEvenlyDistributed(_)
                | SchedulingPolicy::Maintenance(_) => 1,
                SchedulingPolicy::PowerSaving(_) => 0,
            };
            own(cluster, |w| w.load, by_policy)
        },
    },
    Weight { name: "memory", value: memory, factor: |cluster| own(cluster, |w| w.memory, 0) },
    Weight { name: "cpu", value: cpu, factor: |cluster| own(cluster, |w| w.cpu, 0) },
    Weight {
        name: "packing",
        value: packing,
        factor: |cluster| {
            let saves = matches!(cluster.spec.scheduling.policy, SchedulingPolicy::PowerSaving(_));
            own(cluster, |w| w.packing, i64::from(saves))
        },
    },
    Weight {
        name: "vms",
        value: vms,
        factor: |cluster| {
            let counts = matches!(cluster.spec.scheduling.policy, SchedulingPolicy::VmEvenlyDistributed(_));
            own(cluster, |w| w.vms, if counts { 1000 } else { 0 })
        },
    },
    Weight { name: "affinity", value: affinity, factor: |cluster| own(cluster, |w| w.affinity, 20) },
];

fn own(
    cluster: &HostCluster,
    field: fn(&vireo_crds::v1alpha1::SchedulingWeights) -> Option<i32>,
    by_policy: i64,
) -> i64 {
    cluster.spec.scheduling.weights.as_ref().and_then(field).map_or(by_policy, |own| i64::from(own.max(0)))
}

/// The weights that count in a cluster, with their factors.
pub(crate) struct Factors(Vec<(&'static Weight, i64)>);

impl Factors {
    /// Of this cluster.
    pub fn of(cluster: &HostCluster) -> Self {
        let all = WEIGHTS.iter().map(|weight| (weight, (weight.factor)(cluster)));
        Self(all.filter(|(_, factor)| *factor != 0).collect())
    }

    /// How good this candidate is.
    pub fn score<'a>(&self, candidate: &Candidate<'a>) -> Score<'a> {
        let total = self.0.iter().map(|(weight, factor)| (weight.value)(candidate).saturating_mul(*factor));
        Score { total: total.fold(0, i64::saturating_add), vms: candidate.load.vms, host: candidate.name }
    }

    /// Name, factor and value of each for this candidate.
    pub fn each(&self, candidate: &Candidate<'_>) -> Vec<(&'static str, i64, i64)> {
        self.0.iter().map(|(weight, factor)| (weight.name, *factor, (weight.value)(candidate))).collect()
    }
}

/// How good a host is: the derived order of the struct is the order of preference, the lowest is the best. The name
/// comes last, so that ties always fall the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score<'a> {
    /// Sum of the weights.
    pub total: i64,
    /// Number of VMs there.
    pub vms: i64,
    /// Name.
    pub host: &'a str,
}

fn memory(candidate: &Candidate<'_>) -> i64 {
    share(candidate.load.promised.memory, candidate.request.valid.need.memory, candidate.room.memory)
}

fn cpu(candidate: &Candidate<'_>) -> i64 {
    share(candidate.load.promised.cpus, candidate.request.valid.need.cpus, candidate.room.cpus)
}

/// The scarcer of the two.
fn load(candidate: &Candidate<'_>) -> i64 {
    memory(candidate).max(cpu(candidate))
}

/// What is missing to the mark up to which hosts are filled; a host above it is worse than an empty one.
fn packing(candidate: &Candidate<'_>) -> i64 {
    let fill = match &candidate.request.valid.cluster.spec.scheduling.policy {
        SchedulingPolicy::PowerSaving(policy) => policy.fill_percent,
        SchedulingPolicy::None(_)
        | SchedulingPolicy::EvenlyDistributed(_)
        | SchedulingPolicy::VmEvenlyDistributed(_)
        | SchedulingPolicy::Maintenance(_) => PowerSaving::default().fill_percent,
    };
    let missing = (i64::from(fill) * 10).min(WORST) - load(candidate);
    if missing < 0 { WORST } else { missing }
}

fn vms(candidate: &Candidate<'_>) -> i64 {
    candidate.load.vms.clamp(0, WORST)
}

/// Share of the soft affinity rules that the host would break.
fn affinity(candidate: &Candidate<'_>) -> i64 {
    candidate.request.ties.soft_broken(candidate.name, candidate.host)
}
