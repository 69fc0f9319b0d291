//! Decides for one host: from what it must have ([`intent`]) and what it has ([`facts`]) to the steps that are left
//! ([`step`]). Values in, values out: no clock, no I/O, no log lines.

pub mod attest;
#[cfg(any(test, feature = "model"))]
pub mod effect;
pub mod facts;
#[cfg(test)]
mod golden;
#[cfg(feature = "mutations")]
pub mod guard;
#[cfg(not(feature = "mutations"))]
mod guard;
pub mod hardware;
pub mod identity;
pub mod image;
pub mod intent;
pub mod ledger;
#[cfg(any(test, feature = "model"))]
pub mod lint;
pub mod network;
pub mod orphan;
pub mod qemu_log;
#[cfg(test)]
mod random;
pub mod seed;
pub mod status;
pub mod step;
pub mod storage;
pub mod told;
pub mod url_policy;
pub mod vm;
pub mod xml;
