//! Filter `clusterPolicy`: under the policy `maintenance` only VMs that have had a host are started again.

use vireo_crds::v1alpha1::SchedulingPolicy;

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn lack(candidate: &Candidate<'_>) -> Option<Lack> {
    match &candidate.request.valid.cluster.spec.scheduling.policy {
        SchedulingPolicy::Maintenance(_) => {
            let had_one = candidate.request.vm.status.as_ref().is_some_and(|s| s.placement.is_some());
            (!had_one).then(|| Lack::ClusterInMaintenance(candidate.request.vm.spec.cluster.clone()))
        }
        SchedulingPolicy::None(_)
        | SchedulingPolicy::EvenlyDistributed(_)
        | SchedulingPolicy::VmEvenlyDistributed(_)
        | SchedulingPolicy::PowerSaving(_) => None,
    }
}
