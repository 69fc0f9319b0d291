//! Ledger entries as they lie on the disk.

use node_plan::ledger;

const UID: &str = "u1";

/// An entry that is read is written and read as the same.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(entry) = ledger::decode(text, UID) else { return };
    assert_eq!(entry.vm.uid, UID);
    let written = ledger::encode(&entry).expect("an entry can be written");
    assert_eq!(ledger::decode(&written, UID).ok(), Some(entry));
}
