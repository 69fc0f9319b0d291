//! Sorts what can go wrong into retry classes, and turns a class into what the queue does next.

use std::time::Duration;

use kube::{core::Status, runtime::watcher};

use crate::backoff::Backoff;

/// What went wrong while acting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("cannot {what}")]
    Api {
        /// Act and object, such as `apply VirtualMachine default/web`.
        what: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// A request was not answered in time; whether it was carried out is not known.
    #[error("no answer within {} s to: {what}", .after.as_secs())]
    NoAnswer {
        /// Act and object.
        what: String,
        /// How long we waited.
        after: Duration,
    },
    /// A placement may only be written inside a session.
    #[error("the placement session is over: {0}")]
    SessionOver(String),
    /// Another replica leads, or may.
    #[error("this replica does not lead any more")]
    NotLeader,
    /// A kind is being removed from the API: nothing is obeyed as a deletion meanwhile.
    #[error("the CustomResourceDefinition {0} is being deleted: no finalizer is removed meanwhile")]
    KindTerminating(String),
    /// A confirmation that a decision rests on is gone.
    #[error("the confirmation on {0} was withdrawn")]
    Withdrawn(String),
    /// A connection could not be made.
    #[error("cannot connect to the API server at {server}")]
    Connect {
        /// Address of the server.
        server: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// A document could not be put together or read.
    #[error("{what}: {cause}")]
    Document {
        /// Which one.
        what: String,
        /// Cause.
        cause: String,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}")]
    Certificate {
        /// For whom.
        subject: String,
        /// Cause.
        #[source]
        source: Box<rcgen::Error>,
    },
}

/// What may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryClass {
    /// The same again, later.
    Transient,
    /// Something else must change first; a watch tells when.
    WaitFor,
    /// Somebody must change a setting or an object first.
    Rejected,
    /// Our own mistake.
    Bug,
}

impl RetryClass {
    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::WaitFor => "waiting",
            Self::Rejected => "rejected",
            Self::Bug => "bug",
        }
    }
}

impl Error {
    /// An API error with what was attempted.
    pub fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { what: what.into(), source: Box::new(source) }
    }

    /// HTTP status of the API server's answer.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the object was gone.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }

    /// Whether the object had changed, or existed already.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409)
    }

    /// What may help.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Api { .. } => self.status().map_or(RetryClass::Transient, class_of_status),
            Self::NoAnswer { .. } | Self::Connect { .. } => RetryClass::Transient,
            Self::SessionOver(_) | Self::NotLeader | Self::KindTerminating(_) | Self::Withdrawn(_) => {
                RetryClass::WaitFor
            }
            Self::Config(_) => RetryClass::Rejected,
            Self::Document { .. } | Self::Certificate { .. } => RetryClass::Bug,
        }
    }
}

fn class_of_status(status: &kube::core::Status) -> RetryClass {
    let terminating =
        status.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"));
    match status.code {
        404 | 409 | 410 => RetryClass::WaitFor,
        403 if terminating => RetryClass::WaitFor,
        401 | 403 => RetryClass::Rejected,
        400 | 405 | 406 | 413 | 415 | 422 => RetryClass::Bug,
        _ => RetryClass::Transient,
    }
}

/// When the queue looks at the object again if nothing wakes it earlier.
pub fn retry_after(class: RetryClass, backoff: &mut Backoff) -> Duration {
    match class {
        RetryClass::Transient => backoff.failed(),
        // The watch wakes it; this is for an event lost by our own mistake.
        RetryClass::WaitFor => Duration::from_secs(30),
        RetryClass::Rejected => Duration::from_secs(60),
        RetryClass::Bug => Duration::from_secs(300),
    }
}

/// An error with its causes, for one log line or Event.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = in_words(error);
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = in_words(next);
        // Some errors repeat their cause in their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        // The message of an answer says it all.
        cause = if answer(next).is_some() { None } else { next.source() };
    }
    text
}

/// What the API server answered, if that is the error.
fn answer<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Status> {
    // A boxed source is seen as the box, not as what is in it.
    let boxed = error.downcast_ref::<Box<kube::Error>>().map(Box::as_ref);
    match boxed.or_else(|| error.downcast_ref())? {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// The error itself. kube prints an answer of the API server with all its fields; people need its message.
fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(status) = answer(error) {
        return status.message.clone();
    }
    match error.downcast_ref() {
        Some(watcher::Error::InitialListFailed(cause)) => format!("the list failed: {}", in_words(cause)),
        Some(watcher::Error::WatchStartFailed(cause)) => {
            format!("it could not be opened: {}", in_words(cause))
        }
        Some(watcher::Error::WatchFailed(cause)) => format!("it failed: {}", in_words(cause)),
        Some(watcher::Error::WatchError(status)) => status.message.clone(),
        Some(watcher::Error::NoResourceVersion) | None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, reason: &str) -> Error {
        let status = Status {
            code,
            reason: reason.into(),
            message: "the object has been modified".into(),
            ..Status::default()
        };
        Error::Api {
            what: "apply VirtualMachine default/web".into(),
            source: Box::new(kube::Error::Api(Box::new(status))),
        }
    }

    #[test]
    fn every_answer_has_one_class() {
        for (code, class) in [
            (409, RetryClass::WaitFor),
            (404, RetryClass::WaitFor),
            (403, RetryClass::Rejected),
            (422, RetryClass::Bug),
            (429, RetryClass::Transient),
            (500, RetryClass::Transient),
            (503, RetryClass::Transient),
        ] {
            assert_eq!(answer(code, "").class(), class, "{code}");
        }
    }

    #[test]
    fn the_chain_says_what_and_why_once() {
        let text = chain(&answer(409, "Conflict"));
        assert_eq!(text, "cannot apply VirtualMachine default/web: the object has been modified");
    }
}
