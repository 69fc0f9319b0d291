//! Decides which URLs may be fetched into a storage domain. Host and address come from a namespaced object, so a
//! fetch must not become a way to talk to what only the host can reach: the URL, every address its name resolves to,
//! and every redirect are judged, and the connection goes to an address that was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;
use url::{Host, Url};

/// Redirects followed at most.
pub const MAX_REDIRECTS: usize = 5;

/// Why a URL is not fetched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UrlRefusal {
    /// Not a URL.
    #[error("\"{url}\" is not a URL: {why}")]
    Syntax {
        /// The URL, without secrets.
        url: String,
        /// What the parser said.
        why: String,
    },
    /// Neither http nor https.
    #[error("{0}: only http and https are fetched")]
    Scheme(String),
    /// User name or password in the URL.
    #[error(
        "{0}: the URL holds a user name or password, which would be readable to everybody who may read the Disk; offer the image without them"
    )]
    Credentials(String),
    /// Plain http without a listing.
    #[error(
        "{0}: only https is fetched; for http an administrator lists the prefix in the StorageDomain's imports.allowedUrls"
    )]
    Insecure(String),
    /// Not among the listed prefixes.
    #[error("{0}: not among the StorageDomain's imports.allowedUrls; an administrator can add it there")]
    NotListed(String),
    /// An address that is not public.
    #[error(
        "{url}: {host} is at {address}, which is {kind}, not a public address; an administrator can list the prefix in the StorageDomain's imports.allowedUrls"
    )]
    Address {
        /// The URL.
        url: String,
        /// Its host.
        host: String,
        /// The address.
        address: IpAddr,
        /// What is special about it.
        kind: &'static str,
    },
    /// The name has no address.
    #[error("{0}: the name has no address")]
    NoAddress(String),
    /// Too many redirects.
    #[error("{0}: more than 5 redirects")]
    TooManyRedirects(String),
}

/// A URL that may be fetched, once its addresses have been judged too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The URL, in normal form and without a fragment.
    pub url: Url,
    /// An administrator listed it: any address will do.
    pub listed: bool,
}

impl Fetch {
    /// Name and port to resolve; for an address in the URL itself, the address.
    pub fn endpoint(&self) -> (String, u16) {
        let host = match self.url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        };
        (host, self.url.port_or_known_default().unwrap_or(443))
    }

    /// The addresses to connect to: all that the name resolved to, if all of them may be used. One that may not
    /// refuses the whole, so that mixing a public and a private address in one answer gains nothing.
    pub fn judge(&self, addresses: &[IpAddr]) -> Result<(), UrlRefusal> {
        if addresses.is_empty() {
            return Err(UrlRefusal::NoAddress(shown(&self.url)));
        }
        if self.listed {
            return Ok(());
        }
        let special = addresses.iter().find_map(|address| special(*address).map(|kind| (*address, kind)));
        special.map_or(Ok(()), |(address, kind)| {
            Err(UrlRefusal::Address { url: shown(&self.url), host: self.endpoint().0, address, kind })
        })
    }

    /// Where a redirect leads, judged as a URL of its own.
    pub fn redirect(&self, location: &str, allowed: &[String]) -> Result<Self, UrlRefusal> {
        let url = self.url.join(location).map_err(|e| syntax(location, e))?;
        check(url, allowed)
    }
}

/// Judges a URL against the prefixes a storage domain lists; with none listed, https to public addresses.
pub fn check_url(url: &str, allowed: &[String]) -> Result<Fetch, UrlRefusal> {
    check(Url::parse(url).map_err(|e| syntax(url, e))?, allowed)
}

fn check(mut url: Url, allowed: &[String]) -> Result<Fetch, UrlRefusal> {
    url.set_fragment(None);
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(UrlRefusal::Scheme(shown(&url)));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlRefusal::Credentials(shown(&url)));
    }
    if allowed.iter().any(|prefix| is_under(&url, prefix)) {
        return Ok(Fetch { url, listed: true });
    }
    if !allowed.is_empty() {
        return Err(UrlRefusal::NotListed(shown(&url)));
    }
    if url.scheme() != "https" {
        return Err(UrlRefusal::Insecure(shown(&url)));
    }
    let fetch = Fetch { url, listed: false };
    let literal = match fetch.url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    if let Some(address) = literal {
        fetch.judge(&[address])?;
    }
    Ok(fetch)
}

/// Whether the URL lies under a listed prefix: same scheme, host and port, and a path below the listed one. Escaped
/// slashes are refused because servers disagree on what they mean.
fn is_under(url: &Url, prefix: &str) -> bool {
    let Ok(prefix) = Url::parse(prefix) else { return false };
    let path = url.path().to_ascii_lowercase();
    url.scheme() == prefix.scheme()
        && url.host() == prefix.host()
        && url.port_or_known_default() == prefix.port_or_known_default()
        && prefix.path().ends_with('/')
        && url.path().starts_with(prefix.path())
        && !path.contains("%2f")
        && !path.contains("%5c")
}

/// A URL for a message: no user name, password or query, which may hold a key.
pub fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path: String = url.path().chars().take(200).collect();
    format!("{}://{}{port}{path}", url.scheme(), url.host_str().unwrap_or_default())
}

fn syntax(url: &str, error: url::ParseError) -> UrlRefusal {
    let url = url
        .split(['?', '#'])
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(100)
        .collect();
    UrlRefusal::Syntax { url, why: error.to_string() }
}

/// What is special about an address, if it is not one of the public internet.
pub fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0, _, _) => Some("\"this network\""),
        (10, _, _) | (192, 168, _) | (172, 16..=31, _) => Some("private"),
        (127, _, _) => Some("the host itself"),
        (169, 254, _) => Some("link-local"),
        (100, 64..=127, _) => Some("shared by a carrier (CGNAT)"),
        (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => Some("reserved"),
        (198, 18..=19, _) => Some("for benchmarks"),
        (224..=239, _, _) => Some("multicast"),
        (240..=255, _, _) => Some("reserved"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        special_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (s0, s1, s2, s3, s4, s5) {
        _ if address.is_loopback() => Some("the host itself"),
        _ if address.is_unspecified() => Some("no address"),
        (0, 0, 0, 0, 0, 0xffff) => Some("an IPv4 address in IPv6 form"),
        (0x64, 0xff9b, 0, 0, 0, 0) => embedded(s6, s7),
        (0x2002, _, _, _, _, _) => embedded(s1, s2).or(Some("a tunnel (6to4)")),
        (0x2001, 0..=0x1ff, _, _, _, _) => Some("reserved"),
        (0x2001, 0xdb8, _, _, _, _) | (0x3fff, 0..=0xfff, _, _, _, _) => Some("for documentation"),
        (0xfc00..=0xfdff, _, _, _, _, _) => Some("private (ULA)"),
        (0xfe80..=0xfebf, _, _, _, _, _) => Some("link-local"),
        (0xff00..=0xffff, _, _, _, _, _) => Some("multicast"),
        (0x2000..=0x3fff, _, _, _, _, _) => None,
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listed(prefixes: &[&str]) -> Vec<String> {
        prefixes.iter().map(|p| (*p).into()).collect()
    }

    #[test]
    fn without_a_list_only_https_to_public_addresses_is_fetched() {
        let fetch = check_url("https://images.example/debian.qcow2?x=1#frag", &[]).unwrap();
        assert!(!fetch.listed && fetch.url.fragment().is_none());
        assert_eq!(fetch.endpoint(), ("images.example".into(), 443));
        assert_eq!(
            fetch.judge(&["93.184.216.34".parse().unwrap(), "2606:2800:220:1::1".parse().unwrap()]),
            Ok(())
        );
        assert!(matches!(check_url("http://images.example/x", &[]), Err(UrlRefusal::Insecure(_))));
        assert!(matches!(check_url("file:///etc/shadow", &[]), Err(UrlRefusal::Scheme(_))));
        assert!(
            matches!(check_url("https://me:secret@images.example/x", &[]), Err(UrlRefusal::Credentials(m)) if !m.contains("secret"))
        );
    }

    #[test]
    fn addresses_that_are_not_public_are_refused_however_they_are_written() {
        for url in [
            "https://127.0.0.1/x",
            "https://0x7f.1/x",
            "https://2130706433/x",
            "https://017700000001/x",
            "https://[::1]/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://[::ffff:8.8.8.8]/x",
            "https://10.1.2.3/x",
            "https://172.31.0.1/x",
            "https://192.168.0.1/x",
            "https://169.254.169.254/latest/meta-data",
            "https://100.64.0.1/x",
            "https://0.0.0.0/x",
            "https://224.0.0.1/x",
            "https://255.255.255.255/x",
            "https://[fd00::1]/x",
            "https://[fe80::1]/x",
            "https://[ff02::1]/x",
            "https://[64:ff9b::7f00:1]/x",
            "https://[2002:7f00:1::]/x",
            "https://[::]/x",
            "https://[::127.0.0.1]/x",
            "https://[2001:db8::1]/x",
        ] {
            assert!(matches!(check_url(url, &[]), Err(UrlRefusal::Address { .. })), "{url}");
        }
        assert!(check_url("https://8.8.8.8/x", &[]).is_ok());
    }

    #[test]
    fn one_private_address_among_public_ones_refuses_the_name() {
        let fetch = check_url("https://images.example/x", &[]).unwrap();
        let refusal =
            fetch.judge(&["93.184.216.34".parse().unwrap(), "10.0.0.1".parse().unwrap()]).unwrap_err();
        assert!(refusal.to_string().contains("images.example is at 10.0.0.1, which is private"), "{refusal}");
        assert!(matches!(fetch.judge(&[]), Err(UrlRefusal::NoAddress(_))));
    }

    #[test]
    fn a_list_replaces_the_rule() {
        let allowed = listed(&["http://127.0.0.1:8080/images/", "https://mirror.internal/"]);
        let fetch = check_url("http://127.0.0.1:8080/images/a.qcow2", &allowed).unwrap();
        assert!(fetch.listed && fetch.judge(&["127.0.0.1".parse().unwrap()]).is_ok());
        for url in [
            "http://127.0.0.1:8080/other/a",
            "http://127.0.0.1:8081/images/a",
            "https://127.0.0.1:8080/images/a",
            "http://127.0.0.1:8080/images/../secret",
            "http://127.0.0.1:8080/images/%2e%2e/secret",
            "http://127.0.0.1:8080/images/..%2fsecret",
            "http://127.0.0.1:8080/images",
            "https://mirror.internal.evil.example/x",
            "https://public.example/x",
        ] {
            assert!(matches!(check_url(url, &allowed), Err(UrlRefusal::NotListed(_))), "{url}");
        }
    }

    #[test]
    fn redirects_are_judged_as_urls_of_their_own() {
        let fetch = check_url("https://images.example/x", &[]).unwrap();
        assert!(fetch.redirect("/y", &[]).is_ok());
        assert!(matches!(fetch.redirect("https://127.0.0.1/y", &[]), Err(UrlRefusal::Address { .. })));
        assert!(matches!(fetch.redirect("http://images.example/y", &[]), Err(UrlRefusal::Insecure(_))));
        assert!(matches!(fetch.redirect("file:///etc/shadow", &[]), Err(UrlRefusal::Scheme(_))));
        let allowed = listed(&["http://127.0.0.1/a/"]);
        let fetch = check_url("http://127.0.0.1/a/x", &allowed).unwrap();
        assert!(matches!(fetch.redirect("/b/x", &allowed), Err(UrlRefusal::NotListed(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(url in "(https?://)?.{0,60}", prefix in ".{0,20}") {
            let _ = check_url(&url, &[prefix]);
        }

        #[test]
        fn no_unlisted_url_reaches_a_special_address(octets in any::<[u8; 4]>()) {
            let address = Ipv4Addr::from(octets);
            let fetched = check_url(&format!("https://{address}/x"), &[]).is_ok();
            prop_assert_eq!(fetched, special(IpAddr::V4(address)).is_none());
            prop_assert!(!fetched || !(address.is_private() || address.is_loopback() || address.is_link_local() || address.is_multicast()));
        }
    }
}
