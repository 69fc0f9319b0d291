//! Guards of the protocol that a test build can take away one at a time, to show that the simulation of the whole
//! notices. Without the feature `mutations` every guard stands, at no cost, and nothing can take it away.

/// A guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// A grant is for one incarnation of this host.
    Incarnation,
    /// A released grant never runs again.
    Released,
    /// A grant not yet accepted that is found in a list is closed, never accepted.
    ListedGrant,
    /// Only a number above all seen is accepted.
    HighestEpoch,
    /// A disk token of another VM or a newer grant forbids a start.
    DiskToken,
    /// A superseded copy is paused, never destroyed by itself.
    SupersededPauses,
    /// Absent means that no process carries the uuid either.
    ProcessCounts,
    /// A volume that was there is never replaced by a blank one.
    MissingVolume,
    /// No disappearance of an object ends a guest.
    DisappearanceStopsNothing,
    /// Only the machine a Host is tied to speaks for it.
    SameMachine,
}

#[cfg(feature = "mutations")]
thread_local! {
    static REMOVED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Takes these guards away on this thread, and puts those taken before back.
#[cfg(feature = "mutations")]
pub fn remove(guards: &[Guard]) {
    let all = guards.iter().fold(0, |all, guard| all | 1 << *guard as u32);
    REMOVED.with(|removed| removed.set(all));
}

#[cfg(feature = "mutations")]
pub(crate) fn stands(guard: Guard) -> bool {
    REMOVED.with(|removed| removed.get() & 1 << guard as u32 == 0)
}

#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub(crate) const fn stands(_: Guard) -> bool {
    true
}
