//! What libvirt says of the machine, and single things looked up in a running domain.

use node_plan::xml::{
    capabilities::{machine, usable_models},
    live::{console_log, taps_on, with_link},
};
use vireo_crds::v1alpha1::Link;

/// Nothing too long for the API is told, and a changed interface is still one interface.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(machine) = machine(text) {
        assert!(machine.cpu_model.is_none_or(|model| model.chars().count() <= 64));
    }
    if let Ok(models) = usable_models(text) {
        assert!(models.is_sorted() && models.iter().all(|name| name.len() <= 64));
    }
    let _ = console_log(text);
    let _ = taps_on(text, "default");
    if let Some(interface) = with_link(text, "02:76:00:00:00:01", Link::Down) {
        assert!(interface.contains("<link state='down'/>"));
    }
}
