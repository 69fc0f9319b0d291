//! Many hosts without hypervisors: the shipped daemon with a host in memory, hundreds of times in one process, against
//! a real API server; loads of VMs for them; and what it all costs.

pub mod figures;
pub mod hollow;
pub mod load;
pub mod plot;
pub mod process;
pub mod site;
