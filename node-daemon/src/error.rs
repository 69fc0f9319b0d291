//! Retry classes: what kind of failure this is. Only `backoff.rs` turns them into times.

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// Try again soon, then ever later.
    Transient,
    /// Something else must happen first; its watch or event wakes us. A slow timer is the safety net.
    WaitFor,
    /// The user must act; nothing is tried until the object changes. A slow timer is the safety net.
    Rejected,
    /// A fault of ours: loud and slow.
    Bug,
}
