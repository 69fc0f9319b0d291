//! The alias by which a bridge of ours is known: it survives the daemon, and nothing without it is ever changed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const PREFIX: &str = "vireo";

/// Whose bridge it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BridgeLabel {
    /// Installation.
    pub installation: String,
    /// uid of the Network.
    pub uid: String,
    /// Uplink that was made a port of it.
    #[serde(default)]
    pub uplink: Option<String>,
}

impl fmt::Display for BridgeLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX} {} {} {}", self.installation, self.uid, self.uplink.as_deref().unwrap_or("-"))
    }
}

/// An alias that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOurs;

impl FromStr for BridgeLabel {
    type Err = NotOurs;

    fn from_str(alias: &str) -> Result<Self, NotOurs> {
        let mut words = alias.split(' ');
        match (words.next(), words.next(), words.next(), words.next(), words.next()) {
            (Some(PREFIX), Some(installation), Some(uid), Some(uplink), None) => Ok(Self {
                installation: installation.into(),
                uid: uid.into(),
                uplink: (uplink != "-").then(|| uplink.into()),
            }),
            _ => Err(NotOurs),
        }
    }
}
