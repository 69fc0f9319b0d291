//! What is known of a host's signs of life, as values: the controller's clock measures them, planners only read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Whether a host renews its Lease. Suspicion only: silence is never evidence that a guest is down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freshness {
    /// A renewal was observed lately.
    Fresh,
    /// None was, for longer than a host may miss.
    Silent,
    /// Nobody has watched for long enough to say either.
    #[default]
    NotYetKnown,
}

/// Signs of life of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostLiveness {
    /// Whether its Lease is being renewed.
    #[serde(default)]
    pub freshness: Freshness,
    /// Incarnation that holds the Lease now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Incarnations that may still be alive: each that renewed within the last two and a half renewal intervals,
    /// measured on our own monotonic clock, the holder included while it is fresh.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub alive: BTreeSet<String>,
    /// Two incarnations renew in turn.
    #[serde(default)]
    pub duplicate: bool,
    /// The Lease has been watched without a gap for two and a half renewal intervals: before that, an incarnation
    /// missing from `alive` means nothing.
    #[serde(default)]
    pub watched: bool,
}

impl HostLiveness {
    /// Whether this incarnation shows life, or could without our having noticed.
    pub fn may_live(&self, incarnation: &str) -> bool {
        !self.watched
            || self.alive.contains(incarnation)
            || (self.freshness != Freshness::Silent && self.holder.as_deref() == Some(incarnation))
    }
}
