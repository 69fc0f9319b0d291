//! The controller: acts on the API server for the fleet. What to do is decided in `controller-plan`.

pub mod access;
pub mod apply;
pub mod args;
pub mod backoff;
pub mod certificates;
pub mod connection;
pub mod context;
pub mod error;
pub mod events;
pub mod explain;
pub mod http;
pub mod init;
pub mod kinds;
pub mod lease;
pub mod liveness;
pub mod metrics;
pub mod queue;
pub mod reconcile;
pub mod run;
pub mod session;
pub mod telemetry;
pub mod watch;
pub mod world;
