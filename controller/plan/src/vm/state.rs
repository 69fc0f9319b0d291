//! Decides where a VM stands between its grants.
//!
//! ```text
//!            grant                       evidence for every listed grant
//!   New ───────────────▶ Held ───────────────────────────────────▶ Over ──┐
//!                         ▲   (target may be open while holder is)        │ grant, if it is to run
//!                         └───────────────────────────────────────────────┘
//! ```

use vireo_crds::v1alpha1::{Placement, StopCause, VirtualMachine};

use crate::{
    evidence::{self, Closed, Open, Role},
    world::World,
};

/// Where a VM stands.
#[derive(Debug)]
pub(crate) enum Standing<'a> {
    /// It never had a grant.
    New,
    /// A listed grant is not known to be over.
    Held(Held<'a>),
    /// Every listed grant is known to be over.
    Over(Over<'a>),
}

/// A VM somebody may be running.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    /// Its placement.
    pub placement: &'a Placement,
    /// Why the grant is not known to be over: the holder's, if that one is open.
    pub why: Open,
    /// Host of that grant.
    pub host: String,
}

/// A VM nobody runs.
#[derive(Debug)]
pub(crate) struct Over<'a> {
    /// Its last placement.
    pub placement: &'a Placement,
    /// What shows it, for each listed grant.
    pub closed: Vec<Closed>,
    /// Why it went down.
    pub last_stop: Option<StopCause>,
}

/// Where this VM stands.
pub(crate) fn standing<'a>(world: &World, vm: &'a VirtualMachine) -> Standing<'a> {
    let Some(placement) = vm.status.as_ref().and_then(|s| s.placement.as_ref()) else { return Standing::New };
    let mut over = Over { placement, closed: Vec::new(), last_stop: None };
    for (role, grant) in evidence::grants(placement) {
        match evidence::closed(world, vm, role, &grant) {
            Err(why) => return Standing::Held(Held { placement, why, host: grant.host }),
            Ok(closed) => {
                if role == Role::Holder {
                    over.last_stop = closed.stop_cause;
                }
                over.closed.push(closed);
            }
        }
    }
    Standing::Over(over)
}
