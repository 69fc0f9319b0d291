//! Words a verdict as the daemon's conditions of a VM.

use vireo_crds::{
    condition::{ConditionValue, kind},
    reasons,
    v1alpha1::{Applies, PendingChange, Power},
};

use super::{Health, Scene, Verdict, known_reason, live};
use crate::facts::AgentState;

pub(super) fn conditions(
    scene: &Scene<'_>,
    verdict: &Verdict,
    pending: &[PendingChange],
) -> Vec<ConditionValue> {
    let message = verdict.message.as_str();
    let reason = verdict.reason;
    let mut conditions = match verdict.ready {
        Health::Ready => vec![ConditionValue::yes(kind::READY, reason, message)],
        Health::Unknown => vec![ConditionValue::unknown(kind::READY, reason, message)],
        Health::Reconciling => vec![
            ConditionValue::no(kind::READY, reason, message),
            ConditionValue::yes(kind::RECONCILING, reason, message),
        ],
        Health::Stalled => vec![
            ConditionValue::no(kind::READY, reason, message),
            ConditionValue::yes(kind::STALLED, reason, message),
        ],
    };
    conditions.push(match verdict.power {
        Power::On => ConditionValue::yes(kind::RUNNING, reason, message),
        Power::Off | Power::Starting | Power::Paused => ConditionValue::no(kind::RUNNING, reason, message),
        Power::Stopping => ConditionValue::yes(kind::RUNNING, reason, message),
        Power::Unknown => ConditionValue::unknown(kind::RUNNING, reason, message),
    });
    conditions.push(provisioned(scene));
    conditions.push(agent(scene));
    conditions.push(restart_required(pending));
    conditions.push(ConditionValue::no(
        kind::LIVE_MIGRATABLE,
        reasons::NOT_SUPPORTED,
        "this version does not move running VMs",
    ));
    conditions
}

fn provisioned(scene: &Scene<'_>) -> ConditionValue {
    if live(scene).is_some() {
        return ConditionValue::yes(kind::PROVISIONED, reasons::PROVISIONED, "");
    }
    match (scene.intent.faults.first(), scene.intent.waits.first()) {
        (Some(fault), _) => ConditionValue::no(kind::PROVISIONED, reasons::REFUSED, fault.to_string()),
        (None, Some(wait)) => {
            ConditionValue::no(kind::PROVISIONED, known_reason(&wait.reason), wait.message.as_str())
        }
        (None, None) => ConditionValue::yes(kind::PROVISIONED, reasons::PROVISIONED, ""),
    }
}

fn agent(scene: &Scene<'_>) -> ConditionValue {
    match live(scene).map(|live| live.agent) {
        Some(AgentState::Connected) => {
            ConditionValue::yes(kind::AGENT_CONNECTED, reasons::AGENT_CONNECTED, "")
        }
        Some(AgentState::Disconnected) => ConditionValue::no(
            kind::AGENT_CONNECTED,
            reasons::AGENT_MISSING,
            "no agent answers; install and start qemu-guest-agent in the guest",
        ),
        Some(AgentState::None) => ConditionValue::no(
            kind::AGENT_CONNECTED,
            reasons::AGENT_MISSING,
            "the guest has no agent channel (spec.guestAgent)",
        ),
        None => ConditionValue::no(kind::AGENT_CONNECTED, reasons::AGENT_MISSING, "the guest is not running"),
    }
}

fn restart_required(pending: &[PendingChange]) -> ConditionValue {
    let paths = |applies: Applies| {
        let paths: Vec<_> = pending
            .iter()
            .filter(|change| change.applies == applies)
            .map(|change| change.path.as_str())
            .collect();
        paths.join(", ")
    };
    let (waiting, refused) = (paths(Applies::NextBoot), paths(Applies::Refused));
    let refusal = if refused.is_empty() {
        String::new()
    } else {
        format!(
            "refused for ever: {refused}; the guest's hardware depends on it: make a new VM, or set it back"
        )
    };
    if waiting.is_empty() {
        let reason = if refused.is_empty() { reasons::UP_TO_DATE } else { reasons::REFUSED };
        return ConditionValue::no(kind::RESTART_REQUIRED, reason, refusal);
    }
    let message = format!("applied at the next boot, from inside or outside: {waiting}");
    let message = if refusal.is_empty() { message } else { format!("{message}; {refusal}") };
    ConditionValue::yes(kind::RESTART_REQUIRED, reasons::EDITS_WAIT, message)
}
