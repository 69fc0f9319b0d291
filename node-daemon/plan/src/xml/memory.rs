//! Memory of a domain, in whole MiB: QEMU takes nothing finer, and libvirt would round up behind our back.

use roxmltree::Node;

use super::{
    element::Element,
    read::{NodeExt, XmlError, number},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// `bytes` rounded up to what a domain can have.
pub(crate) fn whole_mib(bytes: u64) -> u64 {
    bytes.div_ceil(MIB).saturating_mul(MIB)
}

pub(crate) fn elements(bytes: u64) -> [Element; 2] {
    ["memory", "currentMemory"].map(|name| Element::text(name, bytes.div_ceil(KIB)).attr("unit", "KiB"))
}

/// Bytes of `<memory>`. `<currentMemory>` moves with the balloon and is not read.
pub(crate) fn of(domain: Node<'_, '_>) -> Result<u64, XmlError> {
    let node = domain.child("memory").ok_or(XmlError::Missing("memory"))?;
    let text = node.text().unwrap_or_default();
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KiB" | "k" | "K" => KIB,
        "MiB" | "M" => MIB,
        "GiB" | "G" => MIB * KIB,
        "TiB" | "T" => MIB * MIB,
        other => return Err(XmlError::invalid("memory/@unit", other)),
    };
    number::<u64>(text, "memory")?.checked_mul(unit).ok_or_else(|| XmlError::invalid("memory", text))
}
