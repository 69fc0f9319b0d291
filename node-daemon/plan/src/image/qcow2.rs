//! Checks the header of a qcow2 image, versions 2 and 3: what it says of itself must hold together, must lie inside
//! the file, and must refer to no other file.

use thiserror::Error;

const MAGIC: [u8; 4] = [b'Q', b'F', b'I', 0xfb];
const V2_HEADER: u64 = 72;
const V3_HEADER: u64 = 104;
/// QEMU's own bounds on the tables it loads into memory.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_NAME: u32 = 1023;

mod incompatible {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const ENCRYPTION: u32 = 0x0537_be77;
    pub(super) const DATA_FILE: u32 = 0x4441_5441;
}

/// What is wrong with a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Qcow2Fault {
    /// The header does not fit into the file.
    #[error("the file ends inside its header; fetch it again, it may be cut short")]
    Short,
    /// Not 2 or 3.
    #[error("version {0} is not known; versions 2 and 3 are")]
    Version(u32),
    /// It refers to another file.
    #[error(
        "it has a backing file (\"{0}\"); images may refer to no other file: flatten it with `qemu-img convert -O qcow2 IN OUT`"
    )]
    BackingFile(String),
    /// It keeps its data elsewhere.
    #[error(
        "it keeps its data in another file (\"{0}\"); images may refer to no other file: flatten it with `qemu-img convert -O qcow2 IN OUT`"
    )]
    DataFile(String),
    /// Encrypted.
    #[error("it is encrypted; encrypted images are not supported: convert it to a plain one first")]
    Encrypted,
    /// It says of itself that it is broken.
    #[error("it is marked as corrupt; repair it with `qemu-img check -r all IN` first")]
    Corrupt,
    /// It needs something unknown.
    #[error(
        "it needs features this version does not know (bits {0:#x}); write it with an older compatibility level"
    )]
    Features(u64),
    /// A number of the header is out of its range.
    #[error(
        "its header is not consistent: {field} is {value}, {expected}; take the image from where it comes from again"
    )]
    Field {
        /// Field of the header.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        expected: &'static str,
    },
    /// A table lies outside the file.
    #[error(
        "its header is not consistent: the {table} ends at byte {end}, but the file has only {length}; it may be cut short"
    )]
    Outside {
        /// Which table.
        table: &'static str,
        /// Where it would end.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// The tables cannot describe a disk of the size claimed.
    #[error("it claims a disk of {size} bytes but has tables for {covered} only")]
    SizeNotCovered {
        /// Size claimed.
        size: u64,
        /// Size the tables cover.
        covered: u64,
    },
}

/// Whether these are the first bytes of a qcow2 image of a version other than the first.
pub(super) fn is_qcow2(head: &[u8]) -> bool {
    head.starts_with(&MAGIC) && u32_at(head, 4) != Ok(1)
}

/// Checks the header and returns the size the guest would see.
pub(super) fn check(head: &[u8], length: Option<u64>) -> Result<u64, Qcow2Fault> {
    let header = Header::read(head)?;
    header.check_fields()?;
    header.check_references(head)?;
    header.check_extensions(head)?;
    header.check_tables(length)?;
    Ok(header.size)
}

struct Header {
    version: u32,
    backing_offset: u64,
    backing_size: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_entries: u64,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u64,
    snapshots: u32,
    snapshots_offset: u64,
    incompatible: u64,
    refcount_order: u32,
    length: u64,
    compression: u8,
}

impl Header {
    fn read(head: &[u8]) -> Result<Self, Qcow2Fault> {
        let version = u32_at(head, 4)?;
        let v3 = match version {
            2 => false,
            3 => true,
            other => return Err(Qcow2Fault::Version(other)),
        };
        let length = if v3 { u64::from(u32_at(head, 100)?) } else { V2_HEADER };
        Ok(Self {
            version,
            backing_offset: u64_at(head, 8)?,
            backing_size: u32_at(head, 16)?,
            cluster_bits: u32_at(head, 20)?,
            size: u64_at(head, 24)?,
            crypt_method: u32_at(head, 32)?,
            l1_entries: u32_at(head, 36)?.into(),
            l1_offset: u64_at(head, 40)?,
            refcount_offset: u64_at(head, 48)?,
            refcount_clusters: u32_at(head, 56)?.into(),
            snapshots: u32_at(head, 60)?,
            snapshots_offset: u64_at(head, 64)?,
            incompatible: if v3 { u64_at(head, 72)? } else { 0 },
            refcount_order: if v3 { u32_at(head, 96)? } else { 4 },
            length,
            compression: if length > V3_HEADER { head.get(104).copied().unwrap_or(0) } else { 0 },
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits.min(21)
    }

    fn check_fields(&self) -> Result<(), Qcow2Fault> {
        let within = |ok: bool, field, value, expected| {
            if ok { Ok(()) } else { Err(Qcow2Fault::Field { field, value, expected }) }
        };
        within(
            (9..=21).contains(&self.cluster_bits),
            "cluster_bits",
            self.cluster_bits.into(),
            "it must be between 9 and 21",
        )?;
        within(
            self.refcount_order <= 6,
            "refcount_order",
            self.refcount_order.into(),
            "it must be at most 6",
        )?;
        within(self.size > 0, "size", self.size, "a disk has at least one byte")?;
        let known = incompatible::DIRTY
            | incompatible::CORRUPT
            | incompatible::DATA_FILE
            | incompatible::COMPRESSION
            | incompatible::EXTENDED_L2;
        if self.incompatible & !known != 0 {
            return Err(Qcow2Fault::Features(self.incompatible & !known));
        }
        if self.incompatible & incompatible::CORRUPT != 0 {
            return Err(Qcow2Fault::Corrupt);
        }
        if self.version == 3 {
            let fits = (V3_HEADER..=self.cluster()).contains(&self.length) && self.length.is_multiple_of(8);
            within(
                fits,
                "header_length",
                self.length,
                "it must be a multiple of 8 of at least 104 inside the first cluster",
            )?;
        }
        let extended = self.incompatible & incompatible::EXTENDED_L2 != 0;
        within(
            !extended || self.cluster_bits >= 14,
            "cluster_bits",
            self.cluster_bits.into(),
            "extended tables need at least 14",
        )?;
        within(
            self.compression <= 1,
            "compression_type",
            self.compression.into(),
            "0 (zlib) and 1 (zstd) are known",
        )?;
        within(
            self.snapshots <= MAX_SNAPSHOTS,
            "nb_snapshots",
            self.snapshots.into(),
            "it must be at most 65536",
        )
    }

    /// Refuses whatever makes QEMU open another file or ask for a key.
    fn check_references(&self, head: &[u8]) -> Result<(), Qcow2Fault> {
        if self.crypt_method != 0 {
            return Err(Qcow2Fault::Encrypted);
        }
        if self.backing_offset != 0 {
            let name = name_at(head, self.backing_offset, self.backing_size.min(MAX_NAME));
            return Err(Qcow2Fault::BackingFile(name));
        }
        if self.backing_size != 0 {
            return Err(Qcow2Fault::Field {
                field: "backing_file_size",
                value: self.backing_size.into(),
                expected: "there is no backing file",
            });
        }
        Ok(())
    }

    fn check_extensions(&self, head: &[u8]) -> Result<(), Qcow2Fault> {
        let mut offset = self.length;
        let cluster = self.cluster();
        while offset + 8 <= cluster {
            let kind = u32_at(head, offset)?;
            let size = u64::from(u32_at(head, offset + 4)?);
            let data = offset + 8;
            match kind {
                extension::END => break,
                extension::ENCRYPTION => return Err(Qcow2Fault::Encrypted),
                extension::DATA_FILE => {
                    let name = name_at(head, data, u32::try_from(size).unwrap_or(MAX_NAME).min(MAX_NAME));
                    return Err(Qcow2Fault::DataFile(name));
                }
                _ => {}
            }
            if size > cluster - data {
                return Err(Qcow2Fault::Field {
                    field: "header extension length",
                    value: size,
                    expected: "it leaves the first cluster",
                });
            }
            offset = data + size.next_multiple_of(8);
        }
        if self.incompatible & incompatible::DATA_FILE != 0 {
            return Err(Qcow2Fault::DataFile("unnamed".into()));
        }
        Ok(())
    }

    fn check_tables(&self, length: Option<u64>) -> Result<(), Qcow2Fault> {
        let cluster = self.cluster();
        let entry = if self.incompatible & incompatible::EXTENDED_L2 != 0 { 16 } else { 8 };
        let covered_by_one = u128::from(cluster) * u128::from(cluster / entry);
        let covered = covered_by_one * u128::from(self.l1_entries);
        if covered < u128::from(self.size) {
            return Err(Qcow2Fault::SizeNotCovered {
                size: self.size,
                covered: u64::try_from(covered).unwrap_or(u64::MAX),
            });
        }
        if self.l1_entries > MAX_L1_ENTRIES {
            return Err(Qcow2Fault::Field {
                field: "l1_size",
                value: self.l1_entries,
                expected: "QEMU loads at most 32 MiB of it",
            });
        }
        let refcount_bytes = self.refcount_clusters.saturating_mul(cluster);
        if refcount_bytes == 0 || refcount_bytes > MAX_REFCOUNT_TABLE.max(cluster) {
            return Err(Qcow2Fault::Field {
                field: "refcount_table_clusters",
                value: self.refcount_clusters,
                expected: "QEMU loads between one cluster and 8 MiB of it",
            });
        }
        self.table("L1 table", self.l1_offset, self.l1_entries * 8, length)?;
        self.table("refcount table", self.refcount_offset, refcount_bytes, length)?;
        if self.snapshots > 0 {
            self.table("snapshot table", self.snapshots_offset, u64::from(self.snapshots) * 40, length)?;
        }
        Ok(())
    }

    fn table(
        &self,
        table: &'static str,
        offset: u64,
        bytes: u64,
        length: Option<u64>,
    ) -> Result<(), Qcow2Fault> {
        if offset == 0 || !offset.is_multiple_of(self.cluster()) {
            return Err(Qcow2Fault::Field {
                field: table,
                value: offset,
                expected: "it must start at a cluster after the first",
            });
        }
        let end = offset.saturating_add(bytes);
        match length {
            Some(length) if end > length => Err(Qcow2Fault::Outside { table, end, length }),
            _ => Ok(()),
        }
    }
}

fn u32_at(head: &[u8], offset: impl TryInto<usize>) -> Result<u32, Qcow2Fault> {
    bytes_at(head, offset).map(u32::from_be_bytes)
}

fn u64_at(head: &[u8], offset: impl TryInto<usize>) -> Result<u64, Qcow2Fault> {
    bytes_at(head, offset).map(u64::from_be_bytes)
}

fn bytes_at<const N: usize>(head: &[u8], offset: impl TryInto<usize>) -> Result<[u8; N], Qcow2Fault> {
    let offset = offset.try_into().map_err(|_| Qcow2Fault::Short)?;
    head.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(Qcow2Fault::Short)
}

/// A name in the header, for a message: cut, and with nothing that could disturb a terminal.
fn name_at(head: &[u8], offset: u64, size: u32) -> String {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(usize::try_from(size).unwrap_or(0).min(200));
    let bytes = head.get(start..end.min(head.len())).unwrap_or_default();
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{ImageFormat, ImageRefusal, inspect};
    use super::*;

    const LENGTH: u64 = 4 << 16;

    /// A version 3 header of a 1 GiB image with 64 KiB clusters, as QEMU writes it.
    fn header() -> Vec<u8> {
        let mut head = vec![0; 1 << 16];
        head[..4].copy_from_slice(&MAGIC);
        put32(&mut head, 4, 3);
        put32(&mut head, 20, 16);
        put64(&mut head, 24, 1 << 30);
        put32(&mut head, 36, 2);
        put64(&mut head, 40, 3 << 16);
        put64(&mut head, 48, 1 << 16);
        put32(&mut head, 56, 1);
        put32(&mut head, 96, 4);
        put32(&mut head, 100, 112);
        head
    }

    fn put32(head: &mut [u8], at: usize, value: u32) {
        head[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn put64(head: &mut [u8], at: usize, value: u64) {
        head[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn fault(change: impl FnOnce(&mut Vec<u8>)) -> Qcow2Fault {
        let mut head = header();
        change(&mut head);
        match inspect(&head, Some(LENGTH)) {
            Err(ImageRefusal::Qcow2(fault)) => fault,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn what_qemu_writes_is_read() {
        let image = inspect(&header(), Some(LENGTH)).unwrap();
        assert_eq!((image.format, image.virtual_size), (ImageFormat::Qcow2, Some(1 << 30)));
        let mut v2 = header();
        put32(&mut v2, 4, 2);
        v2[72..112].fill(0);
        assert_eq!(inspect(&v2, Some(LENGTH)).unwrap().virtual_size, Some(1 << 30));
        let mut dirty = header();
        put64(&mut dirty, 72, incompatible::DIRTY);
        assert!(inspect(&dirty, Some(LENGTH)).is_ok());
    }

    #[test]
    fn a_backing_file_is_named_and_refused() {
        let found = fault(|head| {
            put64(head, 8, 200);
            put32(head, 16, 11);
            head[200..211].copy_from_slice(b"/etc/shadow");
        });
        assert_eq!(found, Qcow2Fault::BackingFile("/etc/shadow".into()));
        assert!(found.to_string().contains("/etc/shadow") && found.to_string().contains("qemu-img convert"));
        let outside = fault(|head| {
            put64(head, 8, u64::MAX - 3);
            put32(head, 16, u32::MAX);
        });
        assert_eq!(outside, Qcow2Fault::BackingFile(String::new()));
        let nasty = fault(|head| {
            put64(head, 8, 200);
            put32(head, 16, 4);
            head[200..204].copy_from_slice(b"\x1b[2J");
        });
        assert_eq!(nasty, Qcow2Fault::BackingFile("?[2J".into()));
    }

    #[test]
    fn an_external_data_file_is_refused_with_or_without_its_feature_bit() {
        let named = |head: &mut Vec<u8>| {
            put32(head, 112, extension::DATA_FILE);
            put32(head, 116, 11);
            head[120..131].copy_from_slice(b"/etc/shadow");
        };
        assert_eq!(fault(named), Qcow2Fault::DataFile("/etc/shadow".into()));
        assert_eq!(
            fault(|head| put64(head, 72, incompatible::DATA_FILE)),
            Qcow2Fault::DataFile("unnamed".into())
        );
    }

    #[test]
    fn encryption_corruption_and_unknown_features_are_refused() {
        assert_eq!(fault(|head| put32(head, 32, 1)), Qcow2Fault::Encrypted);
        assert_eq!(fault(|head| put32(head, 112, extension::ENCRYPTION)), Qcow2Fault::Encrypted);
        assert_eq!(fault(|head| put64(head, 72, incompatible::CORRUPT)), Qcow2Fault::Corrupt);
        assert_eq!(fault(|head| put64(head, 72, 1 << 40)), Qcow2Fault::Features(1 << 40));
        assert_eq!(fault(|head| put32(head, 4, 9)), Qcow2Fault::Version(9));
    }

    #[test]
    fn a_header_that_lies_about_its_size_is_refused() {
        assert_eq!(
            fault(|head| put64(head, 24, 1 << 40)),
            Qcow2Fault::SizeNotCovered { size: 1 << 40, covered: 1 << 30 }
        );
        assert!(matches!(fault(|head| put64(head, 24, 0)), Qcow2Fault::Field { field: "size", .. }));
        assert!(matches!(
            fault(|head| put32(head, 36, u32::MAX)),
            Qcow2Fault::Field { field: "l1_size", .. }
        ));
        assert!(matches!(
            fault(|head| put64(head, 40, 1 << 40)),
            Qcow2Fault::Outside { table: "L1 table", .. }
        ));
        assert!(matches!(fault(|head| put64(head, 40, 0)), Qcow2Fault::Field { .. }));
        assert!(matches!(fault(|head| put64(head, 40, 513)), Qcow2Fault::Field { .. }));
        assert!(matches!(fault(|head| put32(head, 56, 0)), Qcow2Fault::Field { .. }));
        assert!(matches!(fault(|head| put32(head, 20, 63)), Qcow2Fault::Field { field: "cluster_bits", .. }));
        assert!(matches!(
            fault(|head| put32(head, 100, 3)),
            Qcow2Fault::Field { field: "header_length", .. }
        ));
        assert!(matches!(
            fault(|head| put32(head, 60, u32::MAX)),
            Qcow2Fault::Field { field: "nb_snapshots", .. }
        ));
        let endless = |head: &mut Vec<u8>| {
            put32(head, 112, 77);
            put32(head, 116, u32::MAX);
        };
        assert!(matches!(fault(endless), Qcow2Fault::Field { field: "header extension length", .. }));
    }

    #[test]
    fn a_file_cut_short_is_refused() {
        assert_eq!(inspect(&header()[..60], Some(60)), Err(Qcow2Fault::Short.into()));
        assert_eq!(inspect(&header()[..114], Some(114)), Err(Qcow2Fault::Short.into()));
        assert!(matches!(
            inspect(&header(), Some(1 << 16)),
            Err(ImageRefusal::Qcow2(Qcow2Fault::Outside { .. }))
        ));
    }
}
