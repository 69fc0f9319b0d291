//! The guest's hardware clock.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt};

/// What the clock shows at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Clock {
    /// Universal time.
    Utc,
    /// Local time of this zone.
    Timezone(String),
    /// A kind this version never writes.
    Other(String),
}

impl Clock {
    /// Timers exist on PCs only; the policies are those that keep an idle and a late guest right alike.
    pub(crate) fn element(&self, pc: bool) -> Element {
        let clock = Element::new("clock");
        let clock = match self {
            Self::Utc => clock.attr("offset", "utc"),
            Self::Timezone(zone) => clock.attr("offset", "timezone").attr("timezone", zone),
            Self::Other(kind) => clock.attr("offset", kind),
        };
        if !pc {
            return clock;
        }
        clock
            .child(Element::new("timer").attr("name", "rtc").attr("tickpolicy", "catchup"))
            .child(Element::new("timer").attr("name", "pit").attr("tickpolicy", "delay"))
            .child(Element::new("timer").attr("name", "hpet").attr("present", "no"))
    }

    pub(crate) fn of(domain: Node<'_, '_>) -> Self {
        let node = domain.child("clock");
        let attribute = |name| node.and_then(|node| node.attribute(name));
        match (attribute("offset").unwrap_or("utc"), attribute("timezone")) {
            ("utc", _) => Self::Utc,
            ("timezone", Some(zone)) => Self::Timezone(zone.into()),
            (other, _) => Self::Other(other.into()),
        }
    }
}
