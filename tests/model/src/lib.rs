//! Explores every history of a small fleet: the planners are the real ones, the state around them is as small as it
//! can be. `docs/correctness.md` says what is in it and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod act;
mod canonical;
mod check;
mod concrete;
mod controller;
mod daemon;
mod explore;
mod fault;
mod host;
mod lead;
mod settle;
mod state;

pub use explore::{Fleet, Guards, Outcome, explore};
pub use state::Budget;
