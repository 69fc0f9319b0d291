//! Decides whether a path written by a user may name a file inside a storage domain. Links that leave the domain are
//! caught when the path is opened: no text can show them.

use std::{fmt, path::Path};

use thiserror::Error;

/// Longest path, in bytes.
pub const MAX_PATH: usize = 255;

/// Why a path is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathRefusal {
    /// Empty.
    #[error("the path is empty: name a file relative to the domain's files directory")]
    Empty,
    /// Too long.
    #[error("the path has {0} bytes; at most 255 are allowed")]
    TooLong(usize),
    /// Absolute.
    #[error(
        "\"{0}\" is absolute: name the file relative to the domain's files directory, and put it there with `vireo-node import`"
    )]
    Absolute(String),
    /// `..`, `.` or an empty part.
    #[error(
        "\"{0}\" has a part that is empty, \".\" or \"..\": a path may not leave the domain's files directory"
    )]
    Part(String),
    /// Control characters.
    #[error("the path holds a control character")]
    Control,
}

/// A path relative to a domain's files directory, of plain parts only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelativePath(String);

impl RelativePath {
    /// Checks a path a user wrote.
    pub fn parse(text: &str) -> Result<Self, PathRefusal> {
        if text.is_empty() {
            return Err(PathRefusal::Empty);
        }
        if text.len() > MAX_PATH {
            return Err(PathRefusal::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(PathRefusal::Control);
        }
        if text.starts_with('/') {
            return Err(PathRefusal::Absolute(text.into()));
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(PathRefusal::Part(text.into()));
        }
        Ok(Self(text.into()))
    }

    /// The path as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, for calls of the operating system.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_paths_are_taken_and_others_refused() {
        for good in ["vmlinuz", "debian/12/vmlinuz", "..hidden", "ünïcode.iso", "a b"] {
            assert_eq!(RelativePath::parse(good).unwrap().as_str(), good);
        }
        assert_eq!(RelativePath::parse(""), Err(PathRefusal::Empty));
        assert!(matches!(RelativePath::parse("/etc/shadow"), Err(PathRefusal::Absolute(_))));
        for bad in ["..", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "."] {
            assert!(matches!(RelativePath::parse(bad), Err(PathRefusal::Part(_))), "{bad}");
        }
        assert_eq!(RelativePath::parse("a\0b"), Err(PathRefusal::Control));
        assert_eq!(RelativePath::parse("a\nb"), Err(PathRefusal::Control));
        assert!(RelativePath::parse(&"a".repeat(255)).is_ok());
        assert_eq!(RelativePath::parse(&"a".repeat(256)), Err(PathRefusal::TooLong(256)));
    }

    proptest! {
        #[test]
        fn what_is_taken_stays_below(text in "[a./]{0,20}") {
            if let Ok(path) = RelativePath::parse(&text) {
                let plain = path.as_path().components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(plain && path.as_path().is_relative());
            }
        }
    }
}
