//! What libvirt does by itself when a guest shuts down, reboots or crashes.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt, token::tokens};

tokens! {
    /// What is done.
    pub enum LifecycleAction {
        /// The domain ends.
        Destroy = "destroy",
        /// The same QEMU starts the guest again.
        Restart = "restart",
    }
}

/// What is done when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// When the guest powers off.
    pub on_poweroff: LifecycleAction,
    /// When it reboots. `destroy` only while an edit waits for the next boot.
    pub on_reboot: LifecycleAction,
    /// When it crashes.
    pub on_crash: LifecycleAction,
}

impl Default for Lifecycle {
    /// A reboot works without us; an end is seen, and decided about, by us.
    fn default() -> Self {
        Self {
            on_poweroff: LifecycleAction::Destroy,
            on_reboot: LifecycleAction::Restart,
            on_crash: LifecycleAction::Destroy,
        }
    }
}

impl Lifecycle {
    pub(crate) fn elements(&self) -> [Element; 3] {
        [
            Element::text("on_poweroff", &self.on_poweroff),
            Element::text("on_reboot", &self.on_reboot),
            Element::text("on_crash", &self.on_crash),
        ]
    }

    /// Absent elements mean libvirt's own defaults, which are ours.
    pub(crate) fn of(domain: Node<'_, '_>) -> Self {
        let default = Self::default();
        let action = |name, default| domain.child_text(name).map_or(default, LifecycleAction::from);
        Self {
            on_poweroff: action("on_poweroff", default.on_poweroff),
            on_reboot: action("on_reboot", default.on_reboot),
            on_crash: action("on_crash", default.on_crash),
        }
    }
}
