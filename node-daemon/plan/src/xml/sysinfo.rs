//! What the guest reads in SMBIOS about its machine.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt};

/// By this OEM string systemd in the guest learns a host name that nothing else has set.
const HOSTNAME_CREDENTIAL: &str = "io.systemd.credential:system.hostname=";

/// SMBIOS fields. The UUID is the domain's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sysinfo {
    /// Serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Host name, for guests that look here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

impl Sysinfo {
    pub(crate) fn element(&self) -> Element {
        let entry = |name: &str, value: &str| Element::text("entry", value).attr("name", name);
        let system = Element::new("system")
            .child(entry("manufacturer", "Vireo"))
            .child(entry("product", "VirtualMachine"))
            .children(self.serial.as_ref().map(|serial| entry("serial", serial)));
        let oem = self.hostname.as_ref().map(|hostname| {
            Element::new("oemStrings")
                .child(Element::text("entry", format!("{HOSTNAME_CREDENTIAL}{hostname}")))
        });
        Element::new("sysinfo").attr("type", "smbios").child(system).children(oem)
    }

    pub(crate) fn of(domain: Node<'_, '_>) -> Option<Self> {
        let node = domain.child("sysinfo").filter(|node| node.attribute("type") == Some("smbios"))?;
        let serial = node.child("system").and_then(|system| {
            system
                .all("entry")
                .find(|entry| entry.attribute("name") == Some("serial"))
                .and_then(|entry| entry.text())
        });
        let hostname = node.child("oemStrings").and_then(|strings| {
            strings.all("entry").find_map(|entry| entry.text()?.strip_prefix(HOSTNAME_CREDENTIAL))
        });
        Some(Self { serial: serial.map(Into::into), hostname: hostname.map(Into::into) })
    }
}
