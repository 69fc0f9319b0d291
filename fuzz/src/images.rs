//! Headers of disk images. The first eight bytes say how long the file is, the rest is its head.

use node_plan::image::{self, ImageFormat};

const LARGEST: u64 = 64 << 40;

/// An image that is accepted has a size, and knowing more about it never makes it acceptable.
pub fn run(data: &[u8]) {
    let Some((length, head)) = data.split_first_chunk::<8>() else { return };
    let head = &head[..head.len().min(image::HEAD_BYTES)];
    let length = u64::from_le_bytes(*length) % (LARGEST << 1);
    let unknown = image::inspect(head, None);
    let known = image::inspect(head, Some(length.max(head.len() as u64)));
    if let Ok(found) = &known {
        assert!(found.virtual_size.is_some_and(|size| size <= LARGEST));
        assert!(unknown.is_ok(), "refused before its length was known, and taken after");
        let _ = image::fits(found, length);
        assert!(found.format != ImageFormat::Qcow2 || head.starts_with(b"QFI\xfb"));
    }
    assert!(image::longest_file(length) >= length);
}
