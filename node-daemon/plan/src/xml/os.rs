//! Architecture, machine type, firmware, and a kernel booted directly.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    element::Element,
    read::{NodeExt, XmlError},
};

/// What boots the guest on what machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Os {
    /// Architecture, as libvirt and QEMU name it.
    pub arch: String,
    /// Machine type.
    pub machine: String,
    /// Firmware.
    pub firmware: Firmware,
    /// Kernel booted directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// Firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Firmware {
    /// What the machine has without further words.
    Bios,
    /// UEFI. libvirt picks the image by its descriptors; the file of the variables is ours to name.
    Uefi {
        /// Only signed loaders, with the vendor's keys enrolled.
        secure_boot: bool,
        /// File of the variables, made from the image's template when it does not exist.
        nvram: String,
    },
}

/// Whether machine type `live` is what `wanted` asks for: the same, or the versioned name behind an alias.
pub fn machine_is(wanted: &str, live: &str) -> bool {
    wanted == live
        || match wanted {
            "q35" => live.starts_with("pc-q35-"),
            "virt" => live.starts_with("virt-"),
            "pc" => live.starts_with("pc-i440fx-"),
            _ => false,
        }
}

impl Os {
    /// Whether it is a PC.
    pub(crate) fn is_pc(&self) -> bool {
        self.arch == "x86_64"
    }

    pub(crate) fn element(&self, sysinfo: bool) -> Element {
        let kind = Element::text("type", "hvm").attr("arch", &self.arch).attr("machine", &self.machine);
        let mut os = Element::new("os");
        if let Firmware::Uefi { secure_boot, nvram } = &self.firmware {
            let enabled = if *secure_boot { "yes" } else { "no" };
            let feature = |name| Element::new("feature").attr("enabled", enabled).attr("name", name);
            os = os
                .attr("firmware", "efi")
                .child(kind)
                .child(Element::new("firmware").child(feature("secure-boot")).child(feature("enrolled-keys")))
                .child(Element::text("nvram", nvram));
        } else {
            os = os.child(kind);
        }
        os = os
            .children(self.kernel.as_ref().map(|path| Element::text("kernel", path)))
            .children(self.initrd.as_ref().map(|path| Element::text("initrd", path)))
            .children(self.cmdline.as_ref().map(|line| Element::text("cmdline", line)));
        if sysinfo { os.child(Element::new("smbios").attr("mode", "sysinfo")) } else { os }
    }

    pub(crate) fn of(domain: Node<'_, '_>) -> Result<Self, XmlError> {
        let os = domain.child("os").ok_or(XmlError::Missing("os"))?;
        let kind = os.child("type").ok_or(XmlError::Missing("os/type"))?;
        let text = |name| os.child_text(name).map(Into::into);
        Ok(Self {
            arch: kind.attribute("arch").unwrap_or_default().into(),
            machine: kind.attribute("machine").unwrap_or_default().into(),
            firmware: firmware(os),
            kernel: text("kernel"),
            initrd: text("initrd"),
            cmdline: text("cmdline"),
        })
    }
}

/// Some versions of libvirt replace the wish (`firmware='efi'`) by the image they picked; both are read.
fn firmware(os: Node<'_, '_>) -> Firmware {
    let loader = |name| os.child_attr("loader", name);
    if os.attribute("firmware") != Some("efi") && loader("type") != Some("pflash") {
        return Firmware::Bios;
    }
    let wished = os
        .child("firmware")
        .and_then(|node| node.all("feature").find(|feature| feature.attribute("name") == Some("secure-boot")))
        .and_then(|feature| feature.attribute("enabled"));
    Firmware::Uefi {
        secure_boot: wished.or(loader("secure")) == Some("yes"),
        nvram: os.child_text("nvram").unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::machine_is;

    #[test]
    fn an_alias_stands_for_its_versions() {
        assert!(machine_is("q35", "pc-q35-10.0"));
        assert!(machine_is("virt", "virt-7.2"));
        assert!(machine_is("pc-q35-9.0", "pc-q35-9.0"));
        assert!(!machine_is("pc-q35-9.0", "pc-q35-10.0"));
        assert!(!machine_is("q35", "pc-i440fx-10.0"));
    }
}
