//! What a guest's agent answers, and the log its QEMU leaves.

use std::collections::BTreeMap;

use node_plan::{
    qemu_log,
    told::{facts, tidy},
};

/// Lines `key=value`: what is reported is plain, short, and the same when it is tidied again.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut info = BTreeMap::new();
    let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        info.insert(key.to_owned(), value.to_owned());
        addresses.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    let told = facts(&info);
    for text in [told.hostname, told.os, told.kernel, told.timezone].into_iter().flatten() {
        assert!(text.chars().count() <= 250 && !text.chars().any(char::is_control));
    }
    let tidied = tidy(addresses);
    assert!(tidied.values().all(|list| list.len() <= 16 && !list.is_empty()));
    assert_eq!(tidy(tidied.clone()), tidied);
    if let Some(exit) = qemu_log::last_end(&text) {
        assert!(exit.detail.is_none_or(|detail| detail.chars().count() <= 300));
    }
}
