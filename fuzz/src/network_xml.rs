//! A libvirt network's XML read back.

use node_plan::xml::network::{parse_nat, render_nat};

/// What is read can be written and read again.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(network) = parse_nat(text) else { return };
    let _ = parse_nat(&render_nat(&network));
}
