//! Decides whether a Disk's spec is possible: sizes, paths, and what may be fetched from where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vireo_crds::{
    reasons,
    v1alpha1::{Allocation, Disk, DiskFormat, DiskSource, DiskSpec},
};

use crate::{
    plan::WaitFor,
    step::Kind,
    vm::fault::{Fault, path_fault, shown},
    world::World,
};

const MIN_SIZE: u64 = 1 << 20;
const MAX_SIZE: u64 = 64 << 40;

/// Everything wrong with a Disk.
pub(super) fn faults(world: &World, disk: &Disk) -> Vec<Fault> {
    let mut faults = spec_faults(&disk.spec, "spec");
    let name = &disk.spec.storage_domain;
    match world.domain(name) {
        None => {
            let message =
                format!("StorageDomain {} does not exist; create it or correct the name", shown(name));
            let waits_for = WaitFor::cluster_scoped(Kind::StorageDomain, name);
            faults.push(Fault::of(reasons::DOMAIN_NOT_FOUND, "spec.storageDomain", message).until(waits_for));
        }
        Some(domain) => {
            if let DiskSource::Http(http) = &disk.spec.source
                && let Some(why) = url_refused(&http.url, &domain.spec.imports.allowed_urls)
            {
                let message = format!(
                    "{} {why}; choose another, or list it in imports.allowedUrls of StorageDomain {name}",
                    shown(&http.url)
                );
                let waits_for = WaitFor::cluster_scoped(Kind::StorageDomain, name);
                faults
                    .push(Fault::of(reasons::URL_REFUSED, "spec.source.http.url", message).unless(waits_for));
            }
        }
    }
    faults
}

/// Everything wrong with a Disk's spec in itself; `at` is the path to it.
pub(crate) fn spec_faults(spec: &DiskSpec, at: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    match spec.size.bytes() {
        Err(error) => faults.push(Fault::refused(format!("{at}.size"), error.to_string())),
        Ok(bytes) if !(MIN_SIZE..=MAX_SIZE).contains(&bytes) => {
            faults.push(Fault::refused(
                format!("{at}.size"),
                format!("{} is not between 1Mi and 64Ti", spec.size),
            ));
        }
        Ok(_) => {}
    }
    if spec.format == DiskFormat::Unknown {
        faults.push(Fault::refused(format!("{at}.format"), "this version knows qcow2 and raw"));
    }
    if spec.allocation == Allocation::Unknown {
        faults.push(Fault::refused(format!("{at}.allocation"), "this version knows Thin and Preallocated"));
    }
    match &spec.source {
        DiskSource::File(file) => faults.extend(path_fault(&format!("{at}.source.file.path"), &file.path)),
        DiskSource::Http(http) => {
            let digest = http.checksum.as_deref().map(|c| c.strip_prefix("sha256:"));
            let is_bad = |d: Option<&str>| {
                d.is_none_or(|d| d.len() != 64 || !d.chars().all(|c| c.is_ascii_hexdigit()))
            };
            if digest.is_some_and(is_bad) {
                let message = "must be sha256: and 64 hexadecimal digits";
                faults.push(Fault::refused(format!("{at}.source.http.checksum"), message));
            }
        }
        DiskSource::Volume(volume) => {
            if volume.uid.is_empty() || !volume.uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
                let message = format!(
                    "{} is no uid; take it from the sidecar in the domain's trash",
                    shown(&volume.uid)
                );
                faults.push(Fault::refused(format!("{at}.source.volume.uid"), message));
            }
        }
        DiskSource::Blank(_) => {}
    }
    faults
}

/// Why this URL may not be fetched, as far as its text tells: what a name resolves to is judged by the host that
/// fetches it.
fn url_refused(url: &str, allowed: &[String]) -> Option<&'static str> {
    let Some((scheme, rest)) = url.split_once("://") else { return Some("is no URL") };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) || authority.is_empty() {
        return Some("is no URL");
    }
    if authority.contains('@') {
        return Some("carries a user name or password");
    }
    let climbs = rest
        .split(['/', '?', '#', '\\'])
        .any(|part| matches!(part.to_ascii_lowercase().as_str(), ".." | "%2e%2e" | ".%2e" | "%2e."));
    if !climbs && allowed.iter().any(|prefix| prefix.ends_with('/') && url.starts_with(prefix.as_str())) {
        return None;
    }
    match scheme {
        "https" => {}
        "http" => return Some("is not https"),
        _ => return Some("is neither https nor http"),
    }
    let host = match authority.strip_prefix('[') {
        Some(inside) => inside.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let local_name =
        host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    let private = host.parse::<IpAddr>().is_ok_and(is_private);
    (local_name || private).then_some("names a private address")
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(|| is_private_v6(v6), is_private_v4),
    }
}

fn is_private_v4(a: Ipv4Addr) -> bool {
    let [first, second, ..] = a.octets();
    let shared = first == 100 && (64..128).contains(&second);
    a.is_private()
        || a.is_loopback()
        || a.is_link_local()
        || a.is_unspecified()
        || a.is_multicast()
        || a.is_broadcast()
        || shared
        || first == 0
}

fn is_private_v6(a: Ipv6Addr) -> bool {
    a.is_loopback()
        || a.is_unspecified()
        || a.is_multicast()
        || a.is_unique_local()
        || a.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_to_public_addresses_unless_listed() {
        let refused = |url: &str| url_refused(url, &["http://10.0.0.1/images/".into()]);
        assert_eq!(refused("https://images.example/debian.qcow2"), None);
        assert_eq!(refused("http://10.0.0.1/images/debian.qcow2"), None);
        for url in [
            "http://images.example/x",
            "https://127.0.0.1/x",
            "https://[::1]:8443/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://169.254.169.254/latest",
            "https://localhost/x",
            "https://user@images.example/x",
            "http://10.0.0.1/images/../secret",
            "http://10.0.0.1/images/%2e%2e/secret",
            "file:///etc/shadow",
            "https:///x",
        ] {
            assert!(refused(url).is_some(), "{url}");
        }
    }

    #[test]
    fn paths_stay_inside_the_domain() {
        for path in ["/etc/shadow", "../x", "a/../../x", "a//b", "./a", "a\nb", ""] {
            assert!(path_fault("p", path).is_some(), "{path}");
        }
        assert!(path_fault("p", "isos/debian 12.iso").is_none());
    }
}
