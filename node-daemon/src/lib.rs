//! Makes one KVM host true. Deciding is `node_plan`'s; this crate carries out: it watches what is bound to this host,
//! talks to libvirt, keeps the ledger, reports.

pub mod args;
pub mod backing;
pub mod backoff;
pub mod console;
pub mod daemon;
pub mod directories;
pub mod disk_report;
pub mod error;
pub mod heartbeat;
pub mod host;
pub mod host_report;
pub mod http;
pub mod import;
pub mod incarnation;
pub mod join;
pub mod ledger;
pub mod metrics;
pub mod network;
pub mod objects;
pub mod reconcile;
pub mod report;
pub mod resolve;
pub mod run;
pub mod seed;
pub mod seed_data;
pub mod session;
pub mod step_names;
pub mod storage;
pub mod telemetry;
pub mod watch;
pub mod workers;
pub mod write_back;
