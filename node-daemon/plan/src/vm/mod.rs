//! Decides what is left to do for one VM on this host.
//!
//! No disappearance, no older or equal number and no missing object ever stops a guest: only its spec, an act, its
//! deletion, or an order that names its grant.

mod acts;
pub mod backoff;
pub mod diff;
mod down;
mod draft;
mod drift;
pub mod exit;
mod orders;
mod power;
mod release;
pub mod start;
pub mod state;
mod up;

use jiff::Timestamp;
use vireo_crds::{reasons, v1alpha1::Grant};

use crate::{
    facts::{DomainFact, Facts, LiveDomain},
    guard::{Guard, stands},
    intent::{Intent, Observation, VmRef},
    ledger::{Entry, LedgerFact},
    status,
    step::{Plan, VmStep},
};
use diff::Sorted;
use draft::Draft;
use orders::Orders;
use state::Standing;

/// Decides for one VM: what is left to do, what is waited for, and what its status should say of `facts`.
pub fn plan_vm(vm: &VmRef, observation: &Observation, facts: &Facts, now: Timestamp) -> Plan {
    let entry = match &facts.ledger {
        LedgerFact::Entry(entry) => entry.as_ref().clone(),
        LedgerFact::None | LedgerFact::Unreadable { .. } => Entry::new(vm.clone()),
    };
    let orders = Orders::new(observation, &entry);
    let standing = state::standing(vm, facts, installation(observation, &entry));
    let sorted = sorted(&standing, &orders);
    let mut draft = Draft::new(facts, entry.clone(), now);
    match &standing {
        Standing::Locked(why) => {
            draft.wait(reasons::LEDGER_UNREADABLE, format!("nothing is started or touched: {why}"))
        }
        Standing::Unknown(why) => draft.wait(reasons::HYPERVISOR_DOWN, why.clone()),
        Standing::Blocked(why) => draft.wait(reasons::DOMAIN_NAME_TAKEN, why.clone()),
        Standing::Clash { why, .. } => {
            draft.wait(reasons::GRANT_CLASH, why.clone());
            draft.plan.unexplained = Some(why.clone());
        }
        Standing::Up { live, grant } | Standing::Stray { live, grant } => {
            plan_present(&mut draft, observation, &orders, live, grant, sorted.as_ref())
        }
        Standing::Down => plan_absent(&mut draft, observation, &orders),
    }
    draft.plan.needs_get = matches!(observation, Observation::Disappeared);
    if let Observation::Granted(intent) = observation {
        if !draft.plan.steps.is_empty() {
            acts::prune(&mut draft, intent);
        }
        draft.plan.acts = acts::reports(intent, &entry);
    }
    let mut plan = draft.finish();
    if let Observation::Granted(intent) = observation {
        let scene = status::Scene {
            intent,
            facts,
            entry: &entry,
            standing: &standing,
            sorted: sorted.as_ref(),
            plan: &plan,
            now,
        };
        plan.report = Some(status::report(&scene));
    }
    plan
}

fn installation<'a>(observation: &'a Observation, entry: &'a Entry) -> Option<&'a str> {
    let wanted = match observation {
        Observation::Granted(intent) => intent.wanted.as_ref().or(entry.wanted.as_ref()),
        Observation::Unseen
        | Observation::Disappeared
        | Observation::Gone
        | Observation::Elsewhere { .. } => entry.wanted.as_ref(),
    };
    wanted.map(|wanted| wanted.installation_id.as_str())
}

fn sorted(standing: &Standing<'_>, orders: &Orders<'_>) -> Option<Sorted> {
    match standing {
        Standing::Up { live, .. } => {
            let metadata = live.metadata.as_ref()?;
            Some(diff::sort(&metadata.built, orders.wanted?, live))
        }
        Standing::Stray { .. }
        | Standing::Clash { .. }
        | Standing::Locked(_)
        | Standing::Unknown(_)
        | Standing::Blocked(_)
        | Standing::Down => None,
    }
}

fn plan_present(
    draft: &mut Draft<'_>,
    observation: &Observation,
    orders: &Orders<'_>,
    live: &LiveDomain,
    grant: &Grant,
    sorted: Option<&Sorted>,
) {
    if draft.entry.open_in(&draft.facts.incarnation) != Some(grant) {
        let (incarnation, now) = (draft.facts.incarnation.clone(), draft.now);
        draft.record(|entry| entry.adopt(grant, &incarnation, now));
        draft.tell(reasons::GUEST_FOUND, "found the guest running and left it as it is");
    }
    up::plan_notice(draft, live, grant);
    match observation {
        Observation::Granted(intent) if intent.grant == *grant => {
            up::plan_up(draft, orders, live, grant, sorted)
        }
        Observation::Granted(intent) => {
            let message = format!(
                "the guest runs under grant {} (number {}), the API names grant {} (number {}); it runs on until the controller has sorted that out",
                grant.id, grant.epoch, intent.grant.id, intent.grant.epoch
            );
            draft.wait(reasons::GRANT_CLASH, message);
        }
        Observation::Unseen => up::plan_up(draft, orders, live, grant, sorted),
        Observation::Disappeared | Observation::Gone if !stands(Guard::DisappearanceStopsNothing) => {
            draft.step(VmStep::Destroy { grant: grant.clone() });
        }
        Observation::Disappeared => {}
        Observation::Gone => {
            draft.plan.unexplained = Some(
                "its VirtualMachine is gone; the guest runs on until somebody destroys it with virsh".into(),
            )
        }
        Observation::Elsewhere { holder, destroy_order } if holder.epoch > grant.epoch => {
            draft.plan.unexplained = Some(format!(
                "superseded: host {} holds a newer grant (number {})",
                holder.host, holder.epoch
            ));
            see_epoch(draft, holder.epoch);
            up::plan_superseded(draft, live, grant, destroy_order.as_deref());
        }
        Observation::Elsewhere { holder, .. } => {
            let relation = if holder.epoch == grant.epoch { "the same" } else { "an older" };
            draft.plan.unexplained = Some(format!(
                "the API places it on host {} under {relation} number {}; the guest runs on",
                holder.host, holder.epoch
            ));
        }
    }
}

fn plan_absent(draft: &mut Draft<'_>, observation: &Observation, orders: &Orders<'_>) {
    if let DomainFact::Absent { defined: true } = draft.facts.domain {
        let name = draft.entry.vm.domain_name();
        draft.step(VmStep::Undefine { name });
    }
    let open = draft.entry.open_in(&draft.facts.incarnation).cloned();
    match observation {
        Observation::Granted(intent) => plan_granted(draft, orders, intent, open.as_ref()),
        // The ledger speaks: a crashed guest of this very incarnation is started again, nothing else is.
        Observation::Unseen => {
            if let Some(grant) = open {
                let hardware = draft.facts.files.kept_hardware.clone();
                down::plan_down(draft, orders, &grant, hardware.as_ref());
            }
        }
        Observation::Disappeared => {}
        Observation::Gone => down::plan_close(draft, orders),
        Observation::Elsewhere { holder, .. } => {
            if open.is_none_or(|open| open.epoch < holder.epoch) {
                see_epoch(draft, holder.epoch);
                down::plan_close(draft, orders);
            }
        }
    }
}

fn plan_granted(draft: &mut Draft<'_>, orders: &Orders<'_>, intent: &Intent, open: Option<&Grant>) {
    let grant = &intent.grant;
    let hardware = intent.hardware.as_ref();
    if draft.entry.is_released(grant) && stands(Guard::Released) {
        down::plan_released(draft, orders);
    } else if open == Some(grant) {
        down::plan_down(draft, orders, grant, hardware);
    } else {
        down::plan_new_grant(draft, orders, intent, hardware);
    }
}

/// Notes a higher number, in an entry that is there anyway.
fn see_epoch(draft: &mut Draft<'_>, epoch: i64) {
    if epoch > draft.entry.highest_epoch && draft.entry.held.is_some() {
        draft.record(|entry| entry.see_epoch(epoch));
    }
}
