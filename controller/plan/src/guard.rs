//! Guards of the protocol that a test build can take away one at a time, to show that the simulation of the whole
//! notices. Without the feature `mutations` every guard stands, at no cost, and nothing can take it away.

/// A guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Silence is suspicion and never evidence.
    SilenceIsNoEvidence,
    /// Nothing is placed before the hosts have said what they run.
    Barrier,
    /// What one of two machines of the same name attests does not stand for both.
    OneMachineByName,
    /// An open claim that the store does not list stands in the way of a grant.
    UnexplainedClaims,
    /// What was confirmed before the session does not count in place of an attestation.
    OldConfirmation,
    /// A report is about exactly this grant, not about its number.
    ReportNamesGrant,
    /// A confirmation is refused while the incarnation shows life.
    ConfirmationWhileAlive,
    /// A reboot is proven by the same machine only.
    RebootOfSameMachine,
    /// A Disk is claimed by one writer.
    DiskClaim,
    /// A volume is removed only once nobody can use it.
    DiskRelease,
    /// A VM that is being deleted keeps its finalizer until its guest is down for certain.
    DeletionWaits,
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
