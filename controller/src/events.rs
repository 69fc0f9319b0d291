//! Tells people what happened, as Events on the object. Called only after the write an Event describes succeeded.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::{apply::ANSWER_TIMEOUT, error::chain};

/// Longest note the API accepts.
const MAX_NOTE: usize = 1024;

/// Publishes Events in the background: a lost Event never delays or fails an act.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// `instance` names this replica.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: "vireo.dev/controller".into(), instance: Some(instance.to_owned()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Publishes one Event about `regarding`.
    pub fn publish(&self, regarding: ObjectReference, warning: bool, reason: &str, note: &str) {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(cut(note)),
            action: reason.to_owned(),
            secondary: None,
        };
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let published = recorder.publish(&event, &regarding);
            // An Event nobody answers for is given up, or such tasks would gather.
            match tokio::time::timeout(ANSWER_TIMEOUT, published).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error = %chain(&error), reason = event.reason, "an Event could not be written");
                }
                Err(_) => tracing::debug!(reason = event.reason, "an Event was not answered"),
            }
        });
    }
}

fn cut(note: &str) -> String {
    if note.len() <= MAX_NOTE {
        return note.to_owned();
    }
    let mut end = MAX_NOTE - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", note.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_cut_between_characters() {
        let note = cut(&"ü".repeat(2000));
        assert!(note.len() <= MAX_NOTE && note.ends_with('…'));
        assert_eq!(cut("short"), "short");
    }
}
