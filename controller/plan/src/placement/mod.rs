//! Decides which host a VM goes to: every host of its cluster passes the filters, the lowest sum of weights wins.
//! The same world and the same VM give the same host: nothing here depends on the order of a map, on time or on chance.

pub(crate) mod affinity;
mod candidate;
pub(crate) mod explain;
mod filters;
mod lack;
mod refusal;
#[cfg(test)]
mod scale;
mod weights;

use vireo_crds::v1alpha1::VirtualMachine;

use crate::{vm::references::ValidatedVm, world::World};

use candidate::{Candidate, Request};
pub(crate) use refusal::NoHostFits;
use weights::{Factors, Score};

/// The best host for this VM, or why none fits.
pub(crate) fn choose<'a>(
    world: &'a World,
    vm: &'a VirtualMachine,
    valid: &'a ValidatedVm<'a>,
) -> Result<&'a str, NoHostFits> {
    let request = Request::of(world, vm, valid);
    let factors = Factors::of(valid.cluster);
    let mut best: Option<Score<'_>> = None;
    let mut chosen = None;
    let mut refused = Vec::new();
    for (name, host) in world.hosts_of_cluster(&vm.spec.cluster) {
        #[cfg(test)]
        scale::count_host();
        let candidate = Candidate::of(world, &request, name, host);
        match filters::first_lack(&candidate) {
            Some(lack) => refused.push((name.as_str(), lack)),
            None => {
                let score = factors.score(&candidate);
                if best.as_ref().is_none_or(|held| score < *held) {
                    best = Some(score);
                    chosen = Some(name.as_str());
                }
            }
        }
    }
    // Without a choice every host was refused.
    chosen.ok_or_else(|| NoHostFits::of(&vm.spec.cluster, refused.len(), &refused))
}
