//! Devices of a live domain as `virDomainUpdateDeviceFlags` takes them: what libvirt shows, with one part replaced.

use node_plan::xml::{self, DiskSource, InterfaceSource};
use roxmltree::{Document, Node};

/// The live CD drive of this name with another medium in it.
pub fn with_medium(domain: &str, disk: &str, source: &DiskSource) -> Result<String, String> {
    let document = Document::parse(domain).map_err(|e| e.to_string())?;
    let node = with_alias(&document, "disk", &xml::disk_alias(disk))
        .ok_or_else(|| format!("no disk {disk} in the domain"))?;
    let (element, driver) = match source {
        DiskSource::File { path, format, .. } => (
            format!("<source file={}/>", quoted(path)),
            format!("<driver name='qemu' type={}/>", quoted(format.as_str())),
        ),
        DiskSource::Empty => (String::new(), "<driver name='qemu'/>".to_owned()),
        DiskSource::Other(kind) => return Err(format!("a disk of kind {kind} is nothing Vireo makes")),
    };
    // What lies below the old medium, and libvirt's own notes about it, go with it.
    let kept = node.children().filter(|child| {
        child.is_element()
            && !["source", "driver", "backingStore"].iter().any(|name| child.has_tag_name(*name))
    });
    let kept: String = kept.filter_map(|child| domain.get(child.range())).collect();
    Ok(format!("<disk type='file' device='cdrom'>{driver}{element}{kept}</disk>"))
}

/// The live interface of this name plugged into something else.
pub fn with_network(domain: &str, nic: &str, source: &InterfaceSource) -> Result<String, String> {
    let document = Document::parse(domain).map_err(|e| e.to_string())?;
    let node = with_alias(&document, "interface", &xml::nic_alias(nic))
        .ok_or_else(|| format!("no interface {nic} in the domain"))?;
    let (kind, element) = match source {
        InterfaceSource::Bridge(name) => ("bridge", format!("<source bridge={}/>", quoted(name))),
        InterfaceSource::Network(name) => ("network", format!("<source network={}/>", quoted(name))),
        InterfaceSource::Other(kind) => {
            return Err(format!("an interface of kind {kind} is nothing Vireo makes"));
        }
    };
    let kept = node.children().filter(|child| child.is_element() && !child.has_tag_name("source"));
    let kept: String = kept.filter_map(|child| domain.get(child.range())).collect();
    Ok(format!("<interface type='{kind}'>{element}{kept}</interface>"))
}

fn with_alias<'a, 'input>(
    document: &'a Document<'input>,
    tag: &str,
    alias: &str,
) -> Option<Node<'a, 'input>> {
    let is_named =
        |child: Node<'_, '_>| child.has_tag_name("alias") && child.attribute("name") == Some(alias);
    document.descendants().filter(|node| node.has_tag_name(tag)).find(|node| node.children().any(is_named))
}

fn quoted(text: &str) -> String {
    format!("'{}'", quick_xml::escape::escape(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain><devices><disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/tmp/other.iso' index='3'/><backingStore/><target dev='sda' bus='scsi'/><readonly/><alias name='ua-disk-install'/></disk>\
        <interface type='bridge'><mac address='02:76:00:00:00:01'/><source bridge='elsewhere'/><target dev='vt1'/><alias name='ua-nic-eth0'/></interface></devices></domain>";

    #[test]
    fn only_the_medium_changes() {
        let source = DiskSource::File {
            path: "/srv/a & b.iso".into(),
            format: xml::ImageFormat::Raw,
            backing: Vec::new(),
        };
        assert_eq!(
            with_medium(DOMAIN, "install", &source).unwrap(),
            "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/a &amp; b.iso'/>\
             <target dev='sda' bus='scsi'/><readonly/><alias name='ua-disk-install'/></disk>"
        );
        assert_eq!(
            with_medium(DOMAIN, "install", &DiskSource::Empty).unwrap(),
            "<disk type='file' device='cdrom'><driver name='qemu'/>\
             <target dev='sda' bus='scsi'/><readonly/><alias name='ua-disk-install'/></disk>"
        );
        assert!(with_medium(DOMAIN, "other", &DiskSource::Empty).is_err());
    }

    #[test]
    fn only_what_an_interface_is_plugged_into_changes() {
        assert_eq!(
            with_network(DOMAIN, "eth0", &InterfaceSource::Network("lan".into())).unwrap(),
            "<interface type='network'><source network='lan'/><mac address='02:76:00:00:00:01'/>\
             <target dev='vt1'/><alias name='ua-nic-eth0'/></interface>"
        );
        assert!(with_network(DOMAIN, "eth9", &InterfaceSource::Network("lan".into())).is_err());
    }
}
