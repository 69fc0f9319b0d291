//! Decides, for one host, what to do about storage domains and the disks it was given to work on.

pub mod disk;
pub mod domain;
pub mod path;
pub mod report;
pub mod sidecar;
pub mod trash;
