//! Decides about one AffinityGroup: which VMs it applies to, which of them are where a rule does not want them, and
//! whether it contradicts other groups. Nothing is moved: a broken rule is told, and heeded at the next start.

mod conflict;
mod violation;

use jiff::Timestamp;
use vireo_crds::{
    condition::{ConditionValue, kind},
    reasons,
    v1alpha1::{AffinityGroup, AffinityGroupStatus, AffinityGroupSummary, Enforcement, Polarity},
};

use crate::{
    conditions,
    placement::affinity::is_hard,
    plan::{EventType, Plan, WaitFor},
    step::{GroupStatusApply, Kind, ObjectRef, Step},
    world::{Key, World},
};

/// Most violations a status lists.
const LISTED: usize = 64;

/// What should be done about this group.
pub fn plan_group(world: &World, group: &AffinityGroup, now: Timestamp) -> Plan {
    let _ = now;
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::AffinityGroup, group) else { return plan };
    if group.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    if group.spec.host_rule.is_some() {
        plan.wait(WaitFor::AnyHost, "labels of hosts");
    }
    let key = Key::of(group);
    let mut violations = violation::of(world, &key, group);
    let conflicts = conflict::of(world, &key);
    let members = world.members_of(&key).count();
    let hard = violations.iter().filter(|v| is_hard(v.enforcement)).count();
    let summary = AffinityGroupSummary {
        vms: members.to_string(),
        vm_rule: group.spec.vm_rule.as_ref().map(|rule| column(rule.polarity, rule.enforcement)),
        host_rule: group.spec.host_rule.as_ref().map(|rule| column(rule.polarity, rule.enforcement)),
        broken: violations.len().to_string(),
    };
    let conditions = if let Some(unknown) = unknown(group) {
        stalled(reasons::REFUSED, &unknown)
    } else if !conflicts.is_empty() {
        stalled(reasons::CONTRADICTORY_RULES, &conflicts.join("; "))
    } else if hard > 0 {
        let told: Vec<_> = violations
            .iter()
            .filter(|v| is_hard(v.enforcement))
            .take(3)
            .map(|v| format!("{} on {} {}", v.vm, v.host, v.message))
            .collect();
        let more =
            if hard > told.len() { format!("; and {} more", hard - told.len()) } else { String::new() };
        let message = format!("{}{more}. Restart what should move", told.join("; "));
        vec![ConditionValue::no(kind::READY, reasons::RULE_BROKEN, message)]
    } else {
        let message = if members == 0 { "no VM is a member yet" } else { "" };
        vec![ConditionValue::yes(kind::READY, reasons::READY, message)]
    };
    violations.truncate(LISTED);
    let apply = GroupStatusApply { conditions, observed_generation: subject.generation, violations, summary };
    let empty = AffinityGroupStatus::default();
    let status = group.status.as_ref().unwrap_or(&empty);
    let differs = conditions::differ(&group.metadata, &status.conditions, &apply.conditions)
        || status.observed_generation != Some(apply.observed_generation)
        || status.violations != apply.violations
        || status.summary.as_ref() != Some(&apply.summary);
    if differs {
        tell(&mut plan, &subject, status, &apply);
        plan.steps.push(Step::SetGroupStatus { group: subject, status: Box::new(apply) });
    }
    plan
}

/// A contradiction is news once.
fn tell(plan: &mut Plan, subject: &ObjectRef, status: &AffinityGroupStatus, apply: &GroupStatusApply) {
    let Some(stalled) = apply.conditions.iter().find(|c| c.type_ == kind::STALLED) else { return };
    let stored = vireo_crds::condition::get(&status.conditions, kind::STALLED);
    if stored.is_none_or(|stored| stored.message != stalled.message) {
        plan.event(subject, EventType::Warning, &stalled.reason, stalled.message.clone());
    }
}

fn stalled(reason: &str, message: &str) -> Vec<ConditionValue> {
    vec![
        ConditionValue::no(kind::READY, reason, message),
        ConditionValue::yes(kind::STALLED, reason, message),
    ]
}

fn unknown(group: &AffinityGroup) -> Option<String> {
    let of_vms = group.spec.vm_rule.as_ref().map(|rule| ("vmRule", rule.polarity));
    let of_hosts = group.spec.host_rule.as_ref().map(|rule| ("hostRule", rule.polarity));
    let (rule, _) =
        of_vms.into_iter().chain(of_hosts).find(|(_, polarity)| *polarity == Polarity::Unknown)?;
    Some(format!("spec.{rule}.polarity: this version knows Positive and Negative; the rule is not heeded"))
}

fn column(polarity: Polarity, enforcement: Enforcement) -> String {
    format!("{polarity:?}, {enforcement:?}")
}
