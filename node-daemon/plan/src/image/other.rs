//! Recognises images of other programs and files that are no image, so that the refusal can say what to do.

use thiserror::Error;

/// A file that is recognised and not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Foreign {
    /// VMware.
    #[error(
        "this is a VMDK image (VMware): convert it first with `qemu-img convert -f vmdk -O qcow2 IN OUT`"
    )]
    Vmdk,
    /// VirtualBox.
    #[error(
        "this is a VDI image (VirtualBox): convert it first with `qemu-img convert -f vdi -O qcow2 IN OUT`"
    )]
    Vdi,
    /// Hyper-V.
    #[error(
        "this is a VHDX image (Hyper-V): convert it first with `qemu-img convert -f vhdx -O qcow2 IN OUT`"
    )]
    Vhdx,
    /// Virtual PC.
    #[error(
        "this is a VHD image (Virtual PC): convert it first with `qemu-img convert -f vpc -O qcow2 IN OUT`"
    )]
    Vhd,
    /// The first qcow.
    #[error(
        "this is a qcow image of version 1: convert it first with `qemu-img convert -f qcow -O qcow2 IN OUT`"
    )]
    Qcow1,
    /// QEMU's enhanced disk.
    #[error("this is a QED image: convert it first with `qemu-img convert -f qed -O qcow2 IN OUT`")]
    Qed,
    /// Parallels.
    #[error(
        "this is a Parallels image: convert it first with `qemu-img convert -f parallels -O qcow2 IN OUT`"
    )]
    Parallels,
    /// LUKS.
    #[error("this is an encrypted volume (LUKS): encrypted images are not supported; decrypt it first")]
    Luks,
    /// Compressed.
    #[error("this file is compressed ({0}): unpack it first, then offer the image itself")]
    Compressed(&'static str),
    /// An archive.
    #[error("this is a tar archive, such as an OVA: unpack it first, then offer the disk image in it")]
    Tar,
    /// A web page.
    #[error(
        "this is a web page, not an image: check the URL, it may need a login or point to a download page"
    )]
    WebPage,
}

/// Beginnings of files, by offset.
const MAGICS: &[(usize, &[u8], Foreign)] = &[
    (0, b"KDMV", Foreign::Vmdk),
    (0, b"COWD", Foreign::Vmdk),
    (0, b"# Disk DescriptorFile", Foreign::Vmdk),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], Foreign::Vdi),
    (0, b"vhdxfile", Foreign::Vhdx),
    (0, b"conectix", Foreign::Vhd),
    (0, &[b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1], Foreign::Qcow1),
    (0, b"QED\0", Foreign::Qed),
    (0, b"WithoutFreeSpace", Foreign::Parallels),
    (0, b"WithouFreSpacExt", Foreign::Parallels),
    (0, b"LUKS\xba\xbe", Foreign::Luks),
    (0, &[0x1f, 0x8b], Foreign::Compressed("gzip")),
    (0, b"\xfd7zXZ\0", Foreign::Compressed("xz")),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], Foreign::Compressed("zstd")),
    (0, b"BZh", Foreign::Compressed("bzip2")),
    (0, b"PK\x03\x04", Foreign::Compressed("zip")),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign::Compressed("7z")),
    (257, b"ustar", Foreign::Tar),
];

/// The format the bytes belong to, if it is one that is refused.
pub(super) fn recognise(head: &[u8]) -> Option<Foreign> {
    let found = MAGICS
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)));
    found.map(|(_, _, foreign)| *foreign).or_else(|| is_web_page(head).then_some(Foreign::WebPage))
}

fn is_web_page(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    [b"<!doctype html".as_slice(), b"<html", b"<?xml"]
        .iter()
        .any(|start| text.get(..start.len()).is_some_and(|t| t.eq_ignore_ascii_case(start)))
}

/// Whether the bytes are an ISO 9660 or UDF file system.
pub(super) fn is_iso(head: &[u8]) -> bool {
    const FIRST_DESCRIPTOR: usize = 32 << 10;
    head.get(FIRST_DESCRIPTOR + 1..FIRST_DESCRIPTOR + 6).is_some_and(|id| id == b"CD001" || id == b"BEA01")
}

#[cfg(test)]
mod tests {
    use super::super::{Image, ImageFormat, ImageRefusal, inspect};
    use super::*;

    #[test]
    fn images_of_other_programs_are_named_in_the_refusal() {
        let at = |offset: usize, magic: &[u8]| {
            let mut head = vec![0; 1024];
            head[offset..offset + magic.len()].copy_from_slice(magic);
            inspect(&head, Some(1 << 20))
        };
        for (offset, magic, foreign) in MAGICS {
            assert_eq!(at(*offset, magic), Err(ImageRefusal::Foreign(*foreign)));
        }
        assert!(at(0, b"KDMV").unwrap_err().to_string().contains("qemu-img convert -f vmdk"));
        assert_eq!(inspect(b"\n <!DOCTYPE HTML><title>Login", Some(80)), Err(Foreign::WebPage.into()));
    }

    #[test]
    fn a_cd_is_recognised() {
        let mut head = vec![0; 40 << 10];
        head[0x8001..0x8006].copy_from_slice(b"CD001");
        assert_eq!(
            inspect(&head, Some(1 << 20)),
            Ok(Image { format: ImageFormat::Iso, virtual_size: Some(1 << 20) })
        );
    }
}
