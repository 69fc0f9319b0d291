//! What a planner answers: what to write, what is waited for, what was refused, what to tell people.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::step::{Kind, ObjectRef, Step};

/// What should be done about one object now. Empty steps: the API says what it should.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Writes, in order; stop at the first that fails, and plan again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// What would let the plan go further: plan again when it changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Wait>,
    /// What was asked for and is not possible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Events to record once all steps have succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventRecord>,
    /// Plan again at this time even if nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_wakeup: Option<Timestamp>,
}

impl Plan {
    /// Whether nothing has to be written.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn wait(&mut self, on: WaitFor, message: impl Into<String>) {
        self.waits.push(Wait { on, message: message.into() });
    }

    pub(crate) fn refuse(&mut self, reason: &str, path: &str, message: impl Into<String>) {
        self.refusals.push(Refusal { reason: reason.into(), path: path.into(), message: message.into() });
    }

    pub(crate) fn wake_at(&mut self, at: Timestamp) {
        self.next_wakeup = Some(self.next_wakeup.map_or(at, |earlier| earlier.min(at)));
    }

    pub(crate) fn event(
        &mut self,
        object: &ObjectRef,
        type_: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.events.push(EventRecord {
            object: object.clone(),
            type_,
            reason: reason.into(),
            message: message.into(),
        });
    }
}

/// Something that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// What would end the waiting.
    pub on: WaitFor,
    /// In words, as the object's condition says it.
    pub message: String,
}

/// What wakes a planner up again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum WaitFor {
    /// This object appears, changes or goes.
    Object {
        /// Its kind.
        kind: Kind,
        /// Its namespace, if the kind has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// Any Host changes, appears, goes, or its freshness changes; or a placement frees room.
    AnyHost,
    /// This process enters a session.
    Session,
    /// The installation id becomes known.
    Installation,
}

impl WaitFor {
    pub(crate) fn cluster_scoped(kind: Kind, name: &str) -> Self {
        Self::Object { kind, namespace: None, name: name.into() }
    }

    pub(crate) fn namespaced(kind: Kind, namespace: &str, name: &str) -> Self {
        Self::Object { kind, namespace: Some(namespace.into()), name: name.into() }
    }
}

/// Something asked for and not possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// CamelCase reason, in docs/reasons.md.
    pub reason: String,
    /// Field it is about; empty if none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What, which value, what to do.
    pub message: String,
}

/// Kind of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventType {
    /// As expected.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An Event to record (events.k8s.io/v1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// What it is about.
    pub object: ObjectRef,
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub type_: EventType,
    /// CamelCase reason.
    pub reason: String,
    /// In words.
    pub message: String,
}
