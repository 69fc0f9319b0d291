//! Writes the bytes of a stranger's image to a file of ours, on a thread of its own: hashed, holes kept, never more
//! than the limit, and judged as soon as enough of it is there.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use node_plan::image::{self, ImageRefusal};
use sha2::{Digest, Sha256};

use super::{domain, error::StorageError};

/// Bytes that are looked at together: a run of zeros of this size becomes a hole.
const BLOCK: usize = 64 << 10;
/// Free space is looked at after this many bytes.
const SPACE_CHECK: u64 = 64 << 20;

/// How far an import is.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    total: AtomicU64,
    converted: AtomicU64,
}

impl Progress {
    /// How many bytes there will be, if that is known.
    pub fn expect(&self, total: Option<u64>) {
        self.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }

    /// Percent of the rewriting that follows.
    pub fn convert(&self, percent: u8) {
        self.converted.store(u64::from(percent.min(100)).max(1), Ordering::Relaxed);
    }

    /// For people: `42%`, `converting 7%`, or an amount while the end is not known.
    pub fn shown(&self) -> String {
        let (received, total) = (self.received.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        match (
            self.converted.load(Ordering::Relaxed),
            (u128::from(received) * 100).checked_div(u128::from(total)),
        ) {
            (converted @ 1.., _) => format!("converting {converted}%"),
            (0, Some(percent)) => format!("{}%", percent.min(100)),
            (0, None) => vireo_crds::units::human_bytes(received),
        }
    }
}

/// What an import may take.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Size of the disk it is for.
    pub disk_size: u64,
    /// The domain it goes to.
    pub domain: PathBuf,
    /// Free space that must be left.
    pub keep_free: u64,
}

/// Receives one image.
pub struct Receiver {
    file: File,
    path: PathBuf,
    bounds: Bounds,
    progress: Arc<Progress>,
    hash: Sha256,
    head: Vec<u8>,
    judged: bool,
    block: Vec<u8>,
    written: u64,
    received: u64,
    next_check: u64,
}

impl Receiver {
    /// Receives into a file that is made anew.
    pub fn new(path: &Path, bounds: Bounds, progress: Arc<Progress>) -> Result<Self, StorageError> {
        super::files::remove(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(StorageError::io("cannot make", path))?;
        Ok(Self {
            file,
            path: path.into(),
            bounds,
            progress,
            hash: Sha256::new(),
            head: Vec::new(),
            judged: false,
            block: Vec::with_capacity(BLOCK),
            written: 0,
            received: 0,
            next_check: 0,
        })
    }

    /// Takes some bytes.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > image::longest_file(self.bounds.disk_size) {
            return Err(too_long(self.received, self.bounds.disk_size));
        }
        self.hash.update(bytes);
        self.judge(bytes)?;
        self.check_space()?;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK {
                self.flush()?;
            }
        }
        self.progress.received.store(self.received, Ordering::Relaxed);
        Ok(())
    }

    /// Takes everything a reader has.
    pub fn take_all(&mut self, mut reader: impl Read, from: &Path) -> Result<(), StorageError> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.take(buffer.get(..read).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StorageError::io("cannot read", from)(error)),
            }
        }
    }

    /// Ends the file and returns its digest.
    pub fn finish(mut self, checksum: Option<&str>) -> Result<String, StorageError> {
        self.flush()?;
        let end = |file: &File| file.set_len(self.written);
        end(&self.file).map_err(StorageError::io("cannot write", &self.path))?;
        let digest: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let found = format!("sha256:{digest}");
        match checksum {
            Some(wanted) if wanted != found => Err(StorageError::Digest { wanted: wanted.into(), found }),
            _ => Ok(found),
        }
    }

    /// Judges the image as soon as its whole header is there, so that a bad one does not have to be fetched.
    fn judge(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        if self.judged {
            return Ok(());
        }
        let room = image::HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if self.head.len() >= image::HEAD_BYTES {
            self.judged = true;
            let head = std::mem::take(&mut self.head);
            image::fits(&image::inspect(&head, None)?, self.bounds.disk_size)?;
        }
        Ok(())
    }

    fn check_space(&mut self) -> Result<(), StorageError> {
        if self.received < self.next_check {
            return Ok(());
        }
        self.next_check = self.received.saturating_add(SPACE_CHECK);
        let available = domain::available(&self.bounds.domain)?;
        enough(available, 0, self.bounds.keep_free)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        if self.block.iter().any(|byte| *byte != 0) {
            self.file
                .write_all_at(&self.block, self.written)
                .map_err(StorageError::io("cannot write", &self.path))?;
        }
        self.written = self.written.saturating_add(self.block.len() as u64);
        self.block.clear();
        Ok(())
    }
}

/// Refuses what would leave less free than must be.
pub fn enough(available: u64, needed: u64, keep_free: u64) -> Result<(), StorageError> {
    let human = vireo_crds::units::human_bytes;
    if available >= needed.saturating_add(keep_free) {
        return Ok(());
    }
    Err(StorageError::NoSpace(format!(
        "the domain has {} free; the image takes up to {} and thresholds.blockFreeBytes keeps {} free: free some space or lower the threshold",
        human(available),
        human(needed),
        human(keep_free)
    )))
}

/// Refuses a file that cannot be an image for a disk of this size.
pub fn too_long(length: u64, disk_size: u64) -> StorageError {
    let human = vireo_crds::units::human_bytes;
    StorageError::Image(ImageRefusal::LargerThanDisk {
        image: format!("{} or more", human(length)),
        disk: human(disk_size),
    })
}
