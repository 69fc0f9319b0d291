//! A domain's XML as libvirt gives it back, edited by whoever can run virsh.

use node_plan::xml;

/// What is read can be written and read again, and is no different from itself.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = xml::observe::observe(text);
    let _ = xml::metadata::read(text);
    if let Ok(metadata) = xml::metadata::parse_element(text) {
        let again = xml::metadata::parse_element(&xml::metadata::element_for_set(&metadata));
        assert_eq!(again.as_ref(), Ok(&metadata));
    }
    let Ok(domain) = xml::parse(text) else { return };
    assert_eq!(xml::compare(&domain, &domain), []);
    let _ = xml::parse(&xml::render(&domain));
}
