//! Condition types, reasons and the merge that keeps transition times. Time is always passed in.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

/// Longest message a condition carries, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// Every condition type of every kind.
pub mod kind {
    /// The object is as wanted (kstatus).
    pub const READY: &str = "Ready";
    /// Work is going on (kstatus); present only while true.
    pub const RECONCILING: &str = "Reconciling";
    /// The user must act (kstatus); present only while true.
    pub const STALLED: &str = "Stalled";
    /// The controller has checked the newest spec and will act on it.
    pub const ACCEPTED: &str = "Accepted";
    /// A VM has a host.
    pub const PLACED: &str = "Placed";
    /// Everything a VM needs on its host exists; a Disk's volume exists.
    pub const PROVISIONED: &str = "Provisioned";
    /// The guest runs.
    pub const RUNNING: &str = "Running";
    /// The guest agent answers.
    pub const AGENT_CONNECTED: &str = "AgentConnected";
    /// Some edits wait for the next boot; the message names them.
    pub const RESTART_REQUIRED: &str = "RestartRequired";
    /// The VM could be moved while it runs.
    pub const LIVE_MIGRATABLE: &str = "LiveMigratable";
    /// The host's Lease is fresh.
    pub const REACHABLE: &str = "Reachable";
    /// New VMs may be placed on the host.
    pub const SCHEDULABLE: &str = "Schedulable";
    /// The hypervisor of the host answers.
    pub const HYPERVISOR_READY: &str = "HypervisorReady";
    /// All storage domains the host should reach are usable.
    pub const STORAGE_READY: &str = "StorageReady";
    /// All networks the host should carry are there.
    pub const NETWORK_READY: &str = "NetworkReady";
}

/// A condition before its transition time is known.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionValue {
    /// Condition type, one of [`kind`].
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// CamelCase reason, listed in docs/reasons.md.
    pub reason: String,
    /// What, which object, what to do.
    pub message: String,
}

impl ConditionValue {
    /// A condition that holds.
    pub fn yes(type_: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(type_, "True", reason, message)
    }

    /// A condition that does not hold.
    pub fn no(type_: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(type_, "False", reason, message)
    }

    /// A condition nobody can vouch for.
    pub fn unknown(type_: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(type_, "Unknown", reason, message)
    }

    fn new(type_: &str, status: &str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message: cut(message.into()),
        }
    }

    /// The full condition; the transition time is kept from `old` unless the status changed.
    pub fn at(&self, old: &[Condition], generation: i64, now: jiff::Timestamp) -> Condition {
        let kept =
            get(old, &self.type_).filter(|c| c.status == self.status).map(|c| c.last_transition_time.clone());
        Condition {
            type_: self.type_.clone(),
            status: self.status.clone(),
            reason: self.reason.clone(),
            message: self.message.clone(),
            observed_generation: Some(generation),
            last_transition_time: kept.unwrap_or(Time(now)),
        }
    }
}

/// Cuts a message at a character boundary so that it fits.
fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - '…'.len_utf8();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

/// The condition of this type.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of this type is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|c| c.status == "True")
}

/// Full conditions for `values`, transition times kept from `old`.
pub fn merge(
    old: &[Condition],
    values: &[ConditionValue],
    generation: i64,
    now: jiff::Timestamp,
) -> Vec<Condition> {
    values.iter().map(|value| value.at(old, generation, now)).collect()
}

/// Schema of a condition list: metav1.Condition with bounds, keyed by type so that two appliers share it.
pub fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 64, "description": "What the condition is about."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "reason": {"type": "string", "maxLength": 64, "description": "CamelCase word for programs; docs/reasons.md explains each."},
                "message": {"type": "string", "maxLength": MAX_MESSAGE, "description": "What is so, on which object, and what to do."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                "observedGeneration": {"type": "integer", "format": "int64", "description": "The spec generation this was decided for."},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let early = jiff::Timestamp::from_second(10).unwrap();
        let late = jiff::Timestamp::from_second(20).unwrap();
        let first = ConditionValue::yes(kind::READY, "Running", "").at(&[], 1, early);
        let reworded = ConditionValue::yes(kind::READY, "Stopped", "as wanted").at(
            std::slice::from_ref(&first),
            2,
            late,
        );
        assert_eq!(reworded.last_transition_time.0, early);
        let lost = ConditionValue::unknown(kind::READY, "HostSilent", "").at(&[first], 2, late);
        assert_eq!(lost.last_transition_time.0, late);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let value = ConditionValue::no(kind::READY, "Long", "ü".repeat(MAX_MESSAGE));
        assert!(value.message.len() <= MAX_MESSAGE && value.message.ends_with('…'));
    }
}
