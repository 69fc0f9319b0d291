//! What can go wrong with storage, with its reason for conditions and its retry class.

use std::{io, path::Path};

use node_plan::{image::ImageRefusal, url_policy::UrlRefusal};
use vireo_crds::reasons;

use crate::error::RetryClass;

/// A failure of storage work.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The image may not be read.
    #[error("{0}")]
    Image(#[from] ImageRefusal),
    /// The URL may not be fetched.
    #[error("spec.source.http.url: {0}")]
    Url(#[from] UrlRefusal),
    /// The path may not be opened.
    #[error("{0}")]
    Path(String),
    /// What a field of the spec names cannot be used.
    #[error("{field}: \"{value}\": {source}")]
    Named {
        /// The field.
        field: &'static str,
        /// What it says, without secrets.
        value: String,
        /// Why that cannot be used.
        source: Box<StorageError>,
    },
    /// What was fetched is not what was promised.
    #[error(
        "spec.source.http.checksum: it says {wanted}, but what the server sent has {found}: correct the one or the other"
    )]
    Digest {
        /// Digest in the spec.
        wanted: String,
        /// Digest of what came.
        found: String,
    },
    /// Too few bytes free.
    #[error("{0}")]
    NoSpace(String),
    /// Somebody has the volume open.
    #[error("volume {0} is open in another process, such as a running VM")]
    InUse(String),
    /// A file that must not be there is there.
    #[error("{0} exists already and is not overwritten")]
    Exists(String),
    /// The server does not give the image.
    #[error("{url}: the server answers {status}: check the URL")]
    HttpStatus {
        /// The URL, without secrets.
        url: String,
        /// What it answers.
        status: u16,
    },
    /// The transfer failed.
    #[error("{url}: {why}")]
    Http {
        /// The URL, without secrets.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// Certificates that cannot be used.
    #[error("spec.source.http.caBundle: {0}")]
    CaBundle(String),
    /// A tool failed.
    #[error("{tool} failed: {message}")]
    Tool {
        /// Which tool.
        tool: &'static str,
        /// What it said.
        message: String,
    },
    /// A thread of ours ended early.
    #[error("a worker ended early: {0}")]
    Worker(String),
}

impl StorageError {
    /// An I/O failure on a path.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { what, path, source }
    }

    /// Says which field named it; failures that are not about what was named stay as they are.
    pub fn named(self, field: &'static str, value: impl Into<String>) -> Self {
        match self {
            Self::Image(_) | Self::Path(_) => Self::Named { field, value: value.into(), source: self.into() },
            other => other,
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Self::Named { source, .. } => source.is_full(),
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Tool { message, .. } => message.contains("No space left"),
            Self::NoSpace(_) => true,
            _ => false,
        }
    }

    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Named { source, .. } => source.class(),
            _ if self.is_full() => RetryClass::WaitFor,
            Self::Image(_) | Self::Url(_) | Self::Digest { .. } | Self::CaBundle(_) => RetryClass::Rejected,
            // A file may still be put there, a server may still be given the image, a VM may still stop.
            Self::Path(_) | Self::HttpStatus { .. } | Self::InUse(_) | Self::NoSpace(_) => {
                RetryClass::WaitFor
            }
            Self::Io { .. } | Self::Http { .. } | Self::Tool { .. } => RetryClass::Transient,
            Self::Exists(_) | Self::Worker(_) => RetryClass::Bug,
        }
    }

    /// Whether nothing but an edit by the user helps.
    pub fn is_final(&self) -> bool {
        self.class() == RetryClass::Rejected
    }

    /// Reason for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Named { source, .. } => source.reason(),
            _ if self.is_full() => reasons::NO_SPACE,
            Self::Image(ImageRefusal::LargerThanDisk { .. }) => reasons::IMAGE_TOO_LARGE,
            Self::Image(_) => reasons::IMAGE_REFUSED,
            Self::Url(_) => reasons::URL_REFUSED,
            Self::Path(_) => reasons::PATH_REFUSED,
            Self::Digest { .. } => reasons::DIGEST_MISMATCH,
            Self::InUse(_) => reasons::IN_USE,
            Self::HttpStatus { .. } | Self::Http { .. } | Self::CaBundle(_) => reasons::IMPORT_FAILED,
            Self::NoSpace(_) => reasons::NO_SPACE,
            Self::Io { .. } | Self::Exists(_) | Self::Tool { .. } | Self::Worker(_) => reasons::PROVISIONING,
        }
    }
}
