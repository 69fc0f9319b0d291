//! Single things looked up in the XML of a running domain.

use vireo_crds::v1alpha1::Link;

use super::read::{NodeExt, with_document};

/// File that keeps what the guest writes to its serial console.
pub fn console_log(domain: &str) -> Option<String> {
    let file = with_document(domain, "domain", |root| {
        let devices = root.child("devices");
        let file = devices.and_then(|devices| {
            devices
                .all("serial")
                .chain(devices.all("console"))
                .find_map(|node| node.child_attr("log", "file"))
        });
        Ok(file.map(str::to_owned))
    });
    file.ok().flatten()
}

/// Host ends of a domain's NICs on a libvirt network.
pub fn taps_on(domain: &str, network: &str) -> Vec<String> {
    let taps = with_document(domain, "domain", |root| {
        let Some(devices) = root.child("devices") else { return Ok(vec![]) };
        let taps = devices
            .all("interface")
            .filter(|node| node.child_attr("source", "network") == Some(network))
            .filter_map(|node| node.child_attr("target", "dev").map(str::to_owned));
        Ok(taps.collect())
    });
    taps.unwrap_or_default()
}

/// The live `<interface>` of this address with its link set; everything else as libvirt has it.
pub fn with_link(domain: &str, mac: &str, link: Link) -> Option<String> {
    let state = match link {
        Link::Up => "up",
        Link::Down => "down",
        Link::Unknown => return None,
    };
    let changed = with_document(domain, "domain", |root| {
        let interface = root.child("devices").and_then(|devices| {
            devices.all("interface").find(|node| {
                node.child_attr("mac", "address").is_some_and(|found| found.eq_ignore_ascii_case(mac))
            })
        });
        Ok(interface.and_then(|node| {
            let mut text = domain.get(node.range())?.to_owned();
            let start = node.range().start;
            let element = format!("<link state='{state}'/>");
            match node.child("link").map(|child| child.range()) {
                Some(range) => text.replace_range(range.start - start..range.end - start, &element),
                None => text.insert_str(node.child("mac")?.range().end - start, &element),
            }
            Some(text)
        }))
    });
    changed.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_consoles_file_is_found() {
        let xml = "<domain><devices><serial type='pty'><log file='/var/log/x' append='on'/></serial></devices></domain>";
        assert_eq!(console_log(xml).as_deref(), Some("/var/log/x"));
        assert_eq!(console_log("<domain/>"), None);
    }

    #[test]
    fn taps_are_found_by_their_network() {
        let xml = "<domain><devices>
            <interface type='network'><source network='a' bridge='vna'/><target dev='vnet0'/></interface>
            <interface type='bridge'><source bridge='vna'/><target dev='vnet1'/></interface>
            <interface type='network'><source network='b'/><target dev='vnet2'/></interface>
        </devices></domain>";
        assert_eq!(taps_on(xml, "a"), ["vnet0"]);
        assert!(taps_on("<domain", "a").is_empty());
    }

    #[test]
    fn only_the_link_of_the_named_interface_changes() {
        let domain = "<domain><devices><interface type='network'><mac address='02:76:00:00:00:01'/><x/></interface>\
                      <interface type='network'><mac address='02:76:00:00:00:02'/><link state='up'/><alias name='net1'/></interface></devices></domain>";
        assert_eq!(
            with_link(domain, "02:76:00:00:00:02", Link::Down).unwrap(),
            "<interface type='network'><mac address='02:76:00:00:00:02'/><link state='down'/><alias name='net1'/></interface>"
        );
        assert_eq!(
            with_link(domain, "02:76:00:00:00:01", Link::Down).unwrap(),
            "<interface type='network'><mac address='02:76:00:00:00:01'/><link state='down'/><x/></interface>"
        );
        assert_eq!(with_link(domain, "02:76:00:00:00:03", Link::Down), None);
    }
}
