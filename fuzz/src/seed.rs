//! First-boot data: three texts, split at NUL, laid out as an image.

use node_plan::seed::{Seed, nocloud};

const SECTOR: usize = 2048;

/// Whole sectors, every text inside, and the same each time.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.split('\0');
    let mut next = || parts.next().map(str::to_owned);
    let seed = Seed {
        local_hostname: next().unwrap_or_default(),
        user_data: next(),
        network_config: next(),
        instance_id: next().unwrap_or_default(),
    };
    let image = nocloud(&seed).expect("so little data fits");
    assert!(image.len().is_multiple_of(SECTOR) && image[16 * SECTOR..].starts_with(b"\x01CD001"));
    for text in [&seed.user_data, &seed.network_config].into_iter().flatten() {
        let found = image.chunks(SECTOR).skip(25).any(|sector| {
            let length = text.len().min(SECTOR);
            sector[..length] == text.as_bytes()[..length]
        });
        assert!(found, "a text is not where a file begins");
    }
    assert_eq!(nocloud(&seed), Some(image));
}
