//! One lab for all tests of a binary, several at a time; a test that breaks what others stand on has it alone.

use std::{
    ops::Deref,
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use anyhow::Result;

use super::Lab;

static TURNS: RwLock<()> = RwLock::new(());

/// The lab, for as long as a test holds this.
pub struct Turn {
    lab: &'static Lab,
    _held: Held,
}

#[allow(dead_code, reason = "held, never read")]
enum Held {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Deref for Turn {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab
    }
}

/// The lab beside other tests: with network `nat`, domains `shared` and `local`, and the tiny guest's image and kernel.
pub fn shared() -> Result<Turn> {
    // A test that failed while it was alone leaves nothing the others cannot bear, or they will say so.
    let held = Held::Shared(TURNS.read().unwrap_or_else(PoisonError::into_inner));
    Ok(Turn { lab: lab()?, _held: held })
}

/// The lab with no other test in it.
pub fn alone() -> Result<Turn> {
    let held = Held::Alone(TURNS.write().unwrap_or_else(PoisonError::into_inner));
    Ok(Turn { lab: lab()?, _held: held })
}

/// Brought up once per test run and left to the next (`VIREO_LAB_TEST_STATE` names another state folder than
/// `target/lab-test`).
fn lab() -> Result<&'static Lab> {
    static LAB: OnceLock<Result<Lab, String>> = OnceLock::new();
    let state = std::env::var("VIREO_LAB_TEST_STATE").unwrap_or_else(|_| "target/lab-test".to_owned());
    LAB.get_or_init(|| Lab::up(&state, 3).map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}
