//! Decides for the fleet: pure functions from what is known and one object to what should be written.
//!
//! No client, no clock, no randomness, no log line: the same input gives the same plan, and planning again after
//! the plan was carried out gives an empty one.

mod act;
mod affinity;
mod capacity;
mod cluster;
mod conditions;
mod disk;
pub mod effect;
pub mod evidence;
#[cfg(feature = "mutations")]
pub mod guard;
#[cfg(not(feature = "mutations"))]
mod guard;
pub mod host;
pub mod lint;
mod network;
mod placement;
pub mod plan;
pub mod session;
pub mod step;
mod storage_domain;
mod vm;
pub mod world;

pub use act::plan_act;
pub use affinity::plan_group;
pub use cluster::plan_cluster;
pub use disk::plan_disk;
pub use host::{
    liveness::{Freshness, HostLiveness},
    plan_host,
};
pub use network::plan_network;
pub use placement::explain::{Explanation, HostVerdict, LackTold, explain};
pub use plan::{EventRecord, EventType, Plan, Refusal, Wait, WaitFor};
pub use session::Session;
pub use step::{FreshRead, Kind, ObjectRef, Step};
pub use storage_domain::plan_domain;
pub use vm::{plan_vm, resources_of};
pub use world::{Key, SecretAccess, Undecodable, World};
