//! Turns libvirt's error codes into what they mean to the daemon: gone, busy, hopeless, or to be tried again.

use virt::error::{Error, ErrorNumber};

use crate::error::RetryClass;

/// A libvirt call that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LibvirtError {
    /// No connection; it is being reopened.
    #[error("libvirt does not answer")]
    Disconnected,
    /// The call was answered with an error.
    #[error("{call}: {message}")]
    Call {
        /// What was being done.
        call: &'static str,
        /// What kind of error.
        kind: ErrorKind,
        /// libvirt's words.
        message: String,
    },
    /// libvirt's answer cannot be understood.
    #[error("{call}: libvirt's answer cannot be read: {message}")]
    Answer {
        /// What was being read.
        call: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The calling thread panicked.
    #[error("the libvirt call \"{0}\" panicked")]
    Panicked(&'static str),
    /// No thread could be started.
    #[error("no thread for a libvirt call: {0}")]
    NoThread(String),
}

/// Kinds of errors that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The object named does not exist.
    Gone,
    /// The connection broke during the call: whether it took effect is unknown.
    ConnectionLost,
    /// Something else holds what is needed; it will be given up.
    Busy,
    /// The object is not in the state the call needs.
    WrongState,
    /// The document or an argument is refused; trying again changes nothing.
    Refused,
    /// The guest agent does not answer.
    NoAgent,
    /// Anything else.
    Other,
}

impl LibvirtError {
    /// An error of `call`.
    pub fn of(call: &'static str, error: Error) -> Self {
        Self::Call { call, kind: kind(&error), message: error.message().to_owned() }
    }

    /// Whether the object named does not exist.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Call { kind: ErrorKind::Gone, .. })
    }

    /// Whether the object is in another state than the call needs.
    pub fn is_wrong_state(&self) -> bool {
        matches!(self, Self::Call { kind: ErrorKind::WrongState, .. })
    }

    /// Whether nothing is known because the connection is not there.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Call { kind: ErrorKind::ConnectionLost, .. })
    }

    /// When to try again.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Disconnected => RetryClass::WaitFor,
            Self::NoThread(_) => RetryClass::Transient,
            Self::Answer { .. } | Self::Panicked(_) => RetryClass::Bug,
            Self::Call { kind, .. } => match kind {
                ErrorKind::ConnectionLost => RetryClass::WaitFor,
                ErrorKind::Refused => RetryClass::Rejected,
                ErrorKind::Gone
                | ErrorKind::Busy
                | ErrorKind::WrongState
                | ErrorKind::NoAgent
                | ErrorKind::Other => RetryClass::Transient,
            },
        }
    }
}

fn kind(error: &Error) -> ErrorKind {
    let Some(code) = error.code().known() else { return ErrorKind::Other };
    match code {
        ErrorNumber::NoDomain | ErrorNumber::NoNetwork => ErrorKind::Gone,
        ErrorNumber::Rpc | ErrorNumber::NoConnect | ErrorNumber::InvalidConn => ErrorKind::ConnectionLost,
        ErrorNumber::SystemError if broken_pipe(error.message()) => ErrorKind::ConnectionLost,
        ErrorNumber::OperationTimeout | ErrorNumber::ResourceBusy => ErrorKind::Busy,
        ErrorNumber::OperationInvalid => ErrorKind::WrongState,
        ErrorNumber::XmlError
        | ErrorNumber::XmlDetail
        | ErrorNumber::ConfigUnsupported
        | ErrorNumber::InvalidArg
        | ErrorNumber::XmlInvalidSchema => ErrorKind::Refused,
        ErrorNumber::AgentUnresponsive | ErrorNumber::AgentUnsynced | ErrorNumber::AgentCommandTimeout => {
            ErrorKind::NoAgent
        }
        _ => ErrorKind::Other,
    }
}

/// libvirt reports a broken connection during a call as a system error; only its text tells.
fn broken_pipe(message: &str) -> bool {
    [
        "End of file while reading",
        "Broken pipe",
        "Connection reset",
        "Cannot write data",
        "Cannot recv data",
        "Failed to connect socket",
    ]
    .iter()
    .any(|text| message.contains(text))
}
