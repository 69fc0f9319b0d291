//! Features of the platform: what firmware and guests expect to find.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt};

/// Features of the platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// ACPI: power button, reboot.
    #[serde(default)]
    pub acpi: bool,
    /// APIC, on PCs.
    #[serde(default)]
    pub apic: bool,
    /// System management mode, in which secure boot keeps its variables.
    #[serde(default)]
    pub smm: bool,
}

impl Features {
    pub(crate) fn element(&self) -> Element {
        let element = Element::new("features");
        let element = if self.acpi { element.child(Element::new("acpi")) } else { element };
        let element = if self.apic { element.child(Element::new("apic")) } else { element };
        if self.smm { element.child(Element::new("smm").attr("state", "on")) } else { element }
    }

    pub(crate) fn of(domain: Node<'_, '_>) -> Self {
        let Some(node) = domain.child("features") else { return Self::default() };
        Self {
            acpi: node.child("acpi").is_some(),
            apic: node.child("apic").is_some(),
            smm: node.child("smm").is_some_and(|smm| smm.attribute("state") != Some("off")),
        }
    }
}
