//! Decides from an image's first bytes and its length what it is and whether it may be read at all. Images come
//! from strangers: nothing here follows a reference, allocates by a number of the image, or reads past the bytes
//! it was given, so that no backing file is ever opened and no format is ever left to QEMU's guess.

mod other;
mod qcow2;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use other::Foreign;
pub use qcow2::Qcow2Fault;

/// Bytes of the beginning that [`inspect`] can make use of: the largest first cluster of a qcow2 image.
pub const HEAD_BYTES: usize = 2 << 20;

/// Largest disk a guest may see.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// Formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImageFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Bytes as the guest sees them.
    Raw,
    /// A CD, also bytes as the guest sees them.
    Iso,
}

impl ImageFormat {
    /// The format to tell QEMU, which is never left to guess.
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw | Self::Iso => "raw",
        }
    }
}

/// An image that may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// What it is.
    pub format: ImageFormat,
    /// Size the guest would see; unknown for bytes whose end has not been seen.
    pub virtual_size: Option<u64>,
}

/// Why an image may not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageRefusal {
    /// No bytes.
    #[error("the image is empty")]
    Empty,
    /// The qcow2 header asks for something refused or contradicts itself.
    #[error("qcow2 image refused: {0}")]
    Qcow2(#[from] Qcow2Fault),
    /// Another program's format, or no disk image.
    #[error("{0}")]
    Foreign(#[from] Foreign),
    /// More than any disk may have.
    #[error("the image claims a size of {0} bytes; a disk has at most 64Ti")]
    TooLarge(u64),
    /// Larger than the disk it is for.
    #[error(
        "the image has a size of {image} for the guest, but spec.size is {disk}: make a Disk of at least {image}"
    )]
    LargerThanDisk {
        /// Size the guest would see.
        image: String,
        /// Size of the disk.
        disk: String,
    },
}

/// What the image is. `head` are its first bytes, up to [`HEAD_BYTES`]; `length` its whole length once that is known,
/// without which tables are not compared with the end of the file.
pub fn inspect(head: &[u8], length: Option<u64>) -> Result<Image, ImageRefusal> {
    if head.is_empty() || length == Some(0) {
        return Err(ImageRefusal::Empty);
    }
    let image = if qcow2::is_qcow2(head) {
        Image { format: ImageFormat::Qcow2, virtual_size: Some(qcow2::check(head, length)?) }
    } else if let Some(foreign) = other::recognise(head) {
        return Err(foreign.into());
    } else if other::is_iso(head) {
        Image { format: ImageFormat::Iso, virtual_size: length }
    } else {
        Image {
            format: ImageFormat::Raw,
            virtual_size: length.map(|bytes| bytes.div_ceil(512).saturating_mul(512)),
        }
    };
    match image.virtual_size {
        Some(size) if size > MAX_VIRTUAL_SIZE => Err(ImageRefusal::TooLarge(size)),
        _ => Ok(image),
    }
}

/// Whether an image fits a disk of `disk_size` bytes.
pub fn fits(image: &Image, disk_size: u64) -> Result<(), ImageRefusal> {
    match image.virtual_size {
        Some(size) if size > disk_size => {
            Err(ImageRefusal::LargerThanDisk { image: exact_size(size), disk: exact_size(disk_size) })
        }
        _ => Ok(()),
    }
}

/// Longest file that an image for a disk of this size can reasonably be: tables of a qcow2 image take far less than
/// an eighth, and a stranger's server is not given more room than that.
pub fn longest_file(disk_size: u64) -> u64 {
    disk_size.saturating_add(disk_size / 8).saturating_add(16 << 20)
}

/// A size people can copy into `spec.size` without losing a byte.
fn exact_size(bytes: u64) -> String {
    vireo_crds::units::Size::from_bytes(bytes).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn raw_bytes_are_rounded_up_to_sectors() {
        let image = inspect(&[0x33, 0xc0, 0x8e], Some(1000)).unwrap();
        assert_eq!(image, Image { format: ImageFormat::Raw, virtual_size: Some(1024) });
        assert_eq!(inspect(&[0], None).unwrap().virtual_size, None);
        assert_eq!(inspect(&[], Some(0)), Err(ImageRefusal::Empty));
    }

    #[test]
    fn an_image_larger_than_the_disk_is_refused_with_the_size_that_would_do() {
        let image = Image { format: ImageFormat::Raw, virtual_size: Some(3 << 30) };
        let message = fits(&image, 2 << 30).unwrap_err().to_string();
        assert!(message.contains("3Gi") && message.contains("spec.size is 2Gi"), "{message}");
        assert_eq!(fits(&image, 3 << 30), Ok(()));
        assert!(matches!(inspect(&[1], Some(65 << 40)), Err(ImageRefusal::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(head in proptest::collection::vec(any::<u8>(), 0..4096), length in any::<Option<u64>>()) {
            let _ = inspect(&head, length);
        }

        #[test]
        fn any_bytes_after_the_magic_are_judged_without_a_panic(version in 0u8..5, tail in proptest::collection::vec(any::<u8>(), 0..600), length in any::<Option<u64>>()) {
            let mut head = vec![b'Q', b'F', b'I', 0xfb, 0, 0, 0, version];
            head.extend(tail);
            let _ = inspect(&head, length);
        }
    }
}
