//! What a guest's agent and the lease table tell, made fit to report: hostile until it is plain and short.

use std::collections::BTreeMap;

use vireo_crds::v1alpha1::GuestFacts;

/// Addresses kept per interface; the API takes no more.
const MAX_ADDRESSES: usize = 16;
/// Longest text a guest may tell.
const MAX_TEXT: usize = 250;

/// Facts, from libvirt's table of what the agent answered.
pub fn facts(info: &BTreeMap<String, String>) -> GuestFacts {
    let text = |key: &str| info.get(key).map(|value| clean(value)).filter(|value| !value.is_empty());
    GuestFacts {
        hostname: text("hostname"),
        os: text("os.pretty-name").or_else(|| text("os.name")),
        kernel: text("os.kernel-release"),
        timezone: text("timezone.name").map(|zone| zone.chars().take(64).collect()),
    }
}

/// What a guest says is hostile until it is plain and short.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// Whether an address is worth telling: not the guest's own loopback, not link-local.
pub fn is_told(address: &str) -> bool {
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        Ok(std::net::IpAddr::V6(v6)) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified()
        }
        Err(_) => false,
    }
}

/// Addresses worth telling by MAC in small letters, in an order of their own: the same answer gives the same report.
pub fn tidy(addresses: BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    addresses
        .into_iter()
        .filter_map(|(mac, list)| {
            let mut list: Vec<_> = list.into_iter().filter(|address| is_told(address)).collect();
            // IPv4 first.
            list.sort_by_key(|address| (address.contains(':'), address.clone()));
            list.dedup();
            list.truncate(MAX_ADDRESSES);
            (!list.is_empty()).then(|| (mac.to_lowercase(), list))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_tells_is_cut_and_cleaned() {
        let info = BTreeMap::from([("hostname".to_owned(), format!("a\u{1b}[31m{}", "x".repeat(5000)))]);
        let hostname = facts(&info).hostname.unwrap();
        assert!(!hostname.contains('\u{1b}') && hostname.chars().count() <= MAX_TEXT);
    }

    #[test]
    fn loopback_and_link_local_are_not_told() {
        let told = tidy(BTreeMap::from([
            (
                "AA:BB:CC:00:00:01".into(),
                vec!["fe80::1".into(), "2001:db8::1".into(), "10.0.0.2".into(), "junk".into()],
            ),
            ("aa:bb:cc:00:00:02".into(), vec!["127.0.0.1".into()]),
        ]));
        assert_eq!(
            told,
            BTreeMap::from([("aa:bb:cc:00:00:01".into(), vec!["10.0.0.2".into(), "2001:db8::1".into()])])
        );
    }
}
