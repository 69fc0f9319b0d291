//! Guards of the protocol that a test build can take away one at a time, to show that the simulation of the whole
//! notices. Without the feature `mutations` every guard stands, at no cost, and nothing can take it away.

/// A guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// A grant is for one incarnation of this host.
    Incarnation,
    /// A released grant never runs again.
    Released,
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
}

#[cfg(feature = "mutations")]
thread_local! {
    static REMOVED: std::cell::Cell<Option<Guard>> = const { std::cell::Cell::new(None) };
}

/// Takes this guard away on this thread, and puts the one taken before back.
#[cfg(feature = "mutations")]
pub fn remove(guard: Option<Guard>) {
    REMOVED.with(|removed| removed.set(guard));
}

#[cfg(feature = "mutations")]
pub(crate) fn stands(guard: Guard) -> bool {
    REMOVED.with(|removed| removed.get() != Some(guard))
}

#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub(crate) const fn stands(_: Guard) -> bool {
    true
}
