//! URLs of images, and where their servers redirect to.

use node_plan::url_policy::{Fetch, check_url, shown, special};

/// One line per part: the URL, a redirect, then prefixes an administrator listed.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let url = lines.next().unwrap_or_default();
    let redirect = lines.next().unwrap_or_default();
    let allowed: Vec<String> = lines.take(4).map(Into::into).collect();
    for allowed in [&allowed[..], &[]] {
        let Ok(fetch) = check_url(url, allowed) else { continue };
        check(&fetch, allowed);
        if let Ok(next) = fetch.redirect(redirect, allowed) {
            check(&next, allowed);
        }
    }
}

fn check(fetch: &Fetch, allowed: &[String]) {
    let (host, port) = fetch.endpoint();
    assert!(!host.is_empty() && !shown(&fetch.url).is_empty());
    assert!(fetch.url.username().is_empty() && fetch.url.password().is_none());
    assert_eq!(fetch.url.fragment(), None);
    if fetch.listed {
        assert!(!allowed.is_empty());
        return;
    }
    assert_eq!(fetch.url.scheme(), "https");
    if let Ok(address) = host.parse() {
        assert_eq!(special(address), None, "{}: {port}", fetch.url);
    }
}
