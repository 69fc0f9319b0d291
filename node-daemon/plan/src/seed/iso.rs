//! Writes a small ISO 9660 image: one directory of a few files, with Rock Ridge and Joliet names so that every guest
//! reads them as they were given. The same input gives the same bytes.

const SECTOR: usize = 2048;
const PRIMARY_PATHS: u32 = 19;
const JOLIET_PATHS: u32 = 21;
const PRIMARY_ROOT: u32 = 23;
const JOLIET_ROOT: u32 = 24;
const FIRST_FILE: u32 = 25;
/// A path table of a root directory alone.
const PATHS_BYTES: u32 = 10;
/// 2000-01-01 00:00 UTC.
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const NO_DATE: &[u8; 17] = b"0000000000000000\0";

/// Which of the two trees of names a descriptor or a directory belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    Primary,
    Joliet,
}

impl Tree {
    fn root(self) -> u32 {
        match self {
            Self::Primary => PRIMARY_ROOT,
            Self::Joliet => JOLIET_ROOT,
        }
    }

    fn paths(self) -> u32 {
        match self {
            Self::Primary => PRIMARY_PATHS,
            Self::Joliet => JOLIET_PATHS,
        }
    }

    /// Text of a fixed length, padded with blanks.
    fn text(self, text: &str, length: usize) -> Vec<u8> {
        let mut bytes = self.encode(text);
        bytes.truncate(length);
        let blank = self.encode(" ");
        while bytes.len() < length {
            bytes.extend(blank.iter().take(length - bytes.len()));
        }
        bytes
    }

    fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::Primary => text.as_bytes().to_vec(),
            Self::Joliet => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }

    fn identifier(self, name: &str) -> Vec<u8> {
        match self {
            Self::Primary => {
                let short: String = name.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
                format!("{}.;1", short.to_ascii_uppercase()).into_bytes()
            }
            Self::Joliet => self.encode(name),
        }
    }
}

struct Placed<'a> {
    name: &'a str,
    content: &'a [u8],
    sector: u32,
}

/// The image; none if it would be larger than a CD's numbers can say, or the names do not fit.
pub(super) fn image(label: &str, files: &[(&str, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut sector = FIRST_FILE;
    let mut placed = vec![];
    for (name, content) in files {
        placed.push(Placed { name, content, sector });
        sector = sector.checked_add(sectors(content.len())?)?;
    }
    let mut out = vec![0; 16 * SECTOR];
    out.extend(descriptor(Tree::Primary, label, sector));
    out.extend(descriptor(Tree::Joliet, label, sector));
    pad(&mut out, b"\xffCD001\x01");
    for tree in [Tree::Primary, Tree::Joliet] {
        pad(&mut out, &path_table(tree.root().to_le_bytes(), 1u16.to_le_bytes()));
        pad(&mut out, &path_table(tree.root().to_be_bytes(), 1u16.to_be_bytes()));
    }
    for tree in [Tree::Primary, Tree::Joliet] {
        let directory = directory(tree, &placed)?;
        if directory.len() > SECTOR {
            return None;
        }
        pad(&mut out, &directory);
    }
    for file in &placed {
        pad(&mut out, file.content);
    }
    Some(out)
}

fn sectors(bytes: usize) -> Option<u32> {
    u32::try_from(bytes.div_ceil(SECTOR)).ok()
}

/// Appends bytes and fills up the sector.
fn pad(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(SECTOR), 0);
}

fn both32(value: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

fn both16(value: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d]
}

fn descriptor(tree: Tree, label: &str, volume_sectors: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(SECTOR);
    out.push(if tree == Tree::Primary { 1 } else { 2 });
    out.extend(b"CD001\x01\0");
    out.extend(tree.text("", 32));
    out.extend(tree.text(label, 32));
    out.extend([0; 8]);
    out.extend(both32(volume_sectors));
    let mut escapes = [0; 32];
    if tree == Tree::Joliet {
        // UCS-2, level 3.
        escapes = *b"%/E\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    }
    out.extend(escapes);
    out.extend(both16(1));
    out.extend(both16(1));
    out.extend(both16(2048));
    out.extend(both32(PATHS_BYTES));
    out.extend(tree.paths().to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend((tree.paths() + 1).to_be_bytes());
    out.extend(0u32.to_be_bytes());
    out.extend(record(&[0], tree.root(), 2048, true, &[]));
    for length in [128, 128, 128, 128, 37, 37, 37] {
        out.extend(tree.text("", length));
    }
    for _ in 0..4 {
        out.extend(NO_DATE);
    }
    out.push(1);
    out.resize(SECTOR, 0);
    out
}

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut out = vec![1, 0];
    out.extend(root);
    out.extend(parent);
    out.extend([0, 0]);
    out
}

/// A directory record, at most 255 bytes; longer names never come here.
fn record(identifier: &[u8], sector: u32, bytes: u32, is_directory: bool, system_use: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0];
    out.extend(both32(sector));
    out.extend(both32(bytes));
    out.extend(DATE);
    out.extend([if is_directory { 2 } else { 0 }, 0, 0]);
    out.extend(both16(1));
    out.push(u8::try_from(identifier.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(identifier);
    if identifier.len().is_multiple_of(2) {
        out.push(0);
    }
    out.extend_from_slice(system_use);
    if !out.len().is_multiple_of(2) {
        out.push(0);
    }
    let length = u8::try_from(out.len()).unwrap_or(u8::MAX);
    if let Some(first) = out.first_mut() {
        *first = length;
    }
    out
}

fn directory(tree: Tree, files: &[Placed<'_>]) -> Option<Vec<u8>> {
    let rock_ridge = tree == Tree::Primary;
    let own = if rock_ridge {
        [susp(b"SP", &[0xbe, 0xef, 0]), posix(0o040_555, 2), extension()].concat()
    } else {
        vec![]
    };
    let parent = if rock_ridge { posix(0o040_555, 2) } else { vec![] };
    let mut out = record(&[0], tree.root(), 2048, true, &own);
    out.extend(record(&[1], tree.root(), 2048, true, &parent));
    let mut entries: Vec<(Vec<u8>, &Placed<'_>)> =
        files.iter().map(|file| (tree.identifier(file.name), file)).collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (identifier, file) in entries {
        let bytes = u32::try_from(file.content.len()).ok()?;
        let name = if rock_ridge {
            [posix(0o100_444, 1), susp(b"NM", &[&[0], file.name.as_bytes()].concat())].concat()
        } else {
            vec![]
        };
        if 34 + identifier.len() + name.len() > 250 {
            return None;
        }
        out.extend(record(&identifier, file.sector, bytes, false, &name));
    }
    Some(out)
}

/// An entry of the system use sharing protocol.
fn susp(signature: &[u8; 2], data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len() + 4).unwrap_or(u8::MAX);
    [signature.as_slice(), &[length, 1], data].concat()
}

/// Mode, links, owner and group.
fn posix(mode: u32, links: u32) -> Vec<u8> {
    susp(b"PX", &[both32(mode), both32(links), both32(0), both32(0)].concat())
}

/// Says that the entries are Rock Ridge's.
fn extension() -> Vec<u8> {
    let id = b"RRIP_1991A";
    susp(b"ER", &[&[10, 0, 0, 1], id.as_slice()].concat())
}
