//! Sizes and MAC addresses as users write them.

use std::str::FromStr;

use vireo_crds::units::{Mac, Size, human_bytes};

/// Whatever is accepted means one thing, and can be written down again.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bytes) = Size(text.into()).bytes() {
        assert_eq!(Size::from_bytes(bytes).bytes(), Ok(bytes), "{text}");
        assert!(!human_bytes(bytes).is_empty());
    }
    if let Ok(mac) = Mac::from_str(text) {
        assert_eq!(Mac::from_str(&mac.to_string()), Ok(mac), "{text}");
        assert_eq!(mac.0[0] & 1, 0, "a group address: {text}");
    }
    if let Ok(prefix) = Mac::parse_prefix(text) {
        let mac = Mac::derive(prefix, text, "eth0");
        assert_eq!(mac.0[..3], prefix);
    }
}
