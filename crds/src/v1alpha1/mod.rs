//! Version v1alpha1 of every kind.

mod affinity_group;
mod defaults;
mod disk;
mod host;
mod host_cluster;
mod network;
mod placement;
mod storage_domain;
mod virtual_machine;
mod virtual_machine_action;
mod virtual_machine_devices;
mod virtual_machine_status;

pub use affinity_group::*;
pub use disk::*;
pub use host::*;
pub use host_cluster::*;
pub use network::*;
pub use placement::*;
pub use storage_domain::*;
pub use virtual_machine::*;
pub use virtual_machine_action::*;
pub use virtual_machine_devices::*;
pub use virtual_machine_status::*;
