//! API types of `vireo.dev` and the vocabulary controller and node daemon share. No client, no clock, no I/O.

// One `validation` attribute per rule and one `printcolumn` per column is how the derive is fed.
#![allow(clippy::duplicated_attributes)]

pub mod condition;
pub mod meta;
pub mod power;
pub mod reasons;
pub mod schema;
pub mod units;
pub mod v1alpha1;

pub use schema::all_crds;
