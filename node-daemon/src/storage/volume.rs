//! Looks at volumes, makes them, grows them; decides nothing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use node_plan::{
    image::{self, Image, ImageFormat},
    storage::{
        disk::{AllocationWish, DiskFacts, Origin, VolumeFact},
        sidecar::{FORMAT_VERSION, Sidecar},
    },
};
use vireo_crds::v1alpha1::DiskFormat;

use super::{
    error::StorageError,
    files,
    layout::Layout,
    qemu_img::{ConvertWish, QemuImg},
};

/// Everything a plan about one Disk needs to know. Blocks.
pub fn observe(layout: &Layout, uid: &str, format: DiskFormat, origin: Option<&str>) -> DiskFacts {
    match observe_all(layout, uid, format, origin) {
        Ok(facts) => facts,
        Err(error) => DiskFacts {
            volume: VolumeFact::Unknown(error.to_string()),
            sidecar: None,
            trashed: None,
            origin: None,
            partials: false,
        },
    }
}

fn observe_all(
    layout: &Layout,
    uid: &str,
    format: DiskFormat,
    origin: Option<&str>,
) -> Result<DiskFacts, StorageError> {
    let trashed =
        read_sidecar(&layout.trashed_sidecar(uid))?.filter(|s| layout.trashed_volume(uid, s.format).exists());
    Ok(DiskFacts {
        volume: observe_volume(&layout.volume(uid, format))?,
        sidecar: read_sidecar(&layout.sidecar(uid))?,
        trashed,
        origin: origin.map(|origin| find_origin(layout, origin)).transpose()?.flatten(),
        partials: !layout.partials(uid)?.is_empty(),
    })
}

/// A volume that can be brought back: in the trash, or kept by `Retain`. Only if volume and sidecar are both there.
fn find_origin(layout: &Layout, uid: &str) -> Result<Option<Origin>, StorageError> {
    let trashed = read_sidecar(&layout.trashed_sidecar(uid))?;
    if let Some(sidecar) = trashed.filter(|s| layout.trashed_volume(uid, s.format).exists()) {
        return Ok(Some(Origin { sidecar, in_trash: true }));
    }
    let kept = read_sidecar(&layout.sidecar(uid))?
        .filter(|s| s.retained_at.is_some() && layout.volume(uid, s.format).exists());
    Ok(kept.map(|sidecar| Origin { sidecar, in_trash: false }))
}

/// Reads a sidecar; a newer format is an error, so that nothing is decided from half of it.
pub fn read_sidecar(path: &Path) -> Result<Option<Sidecar>, StorageError> {
    match files::read_json::<Sidecar>(path)? {
        Some(sidecar) if sidecar.format_version != FORMAT_VERSION => Err(StorageError::Path(format!(
            "{}: format version {}, this version knows {FORMAT_VERSION}",
            path.display(),
            sidecar.format_version
        ))),
        other => Ok(other),
    }
}

fn observe_volume(path: &Path) -> Result<VolumeFact, StorageError> {
    let mut file = match OpenOptions::new().read(true).custom_flags(files::no_follow()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VolumeFact::Absent),
        Err(error) => return Err(StorageError::io("cannot open", path)(error)),
    };
    let metadata = file.metadata().map_err(StorageError::io("cannot look at", path))?;
    if !metadata.is_file() {
        return Err(StorageError::Path(format!("{} is not a regular file", path.display())));
    }
    let allocated = files::allocated(&metadata);
    // A raw volume may hold anything, the header of another format included: its name says what it is.
    if path.extension().is_some_and(|extension| extension == "raw") {
        return Ok(VolumeFact::Present { capacity: metadata.len(), allocated });
    }
    let image = image::inspect(&read_head(&mut file, path)?, Some(metadata.len()))?;
    match (image.format, image.virtual_size) {
        (ImageFormat::Qcow2, Some(capacity)) => Ok(VolumeFact::Present { capacity, allocated }),
        _ => Err(StorageError::Path(format!("{} is no qcow2 image any more", path.display()))),
    }
}

/// The bytes by which an image is judged.
fn read_head(file: &mut File, path: &Path) -> Result<Vec<u8>, StorageError> {
    let mut head = Vec::new();
    file.take(image::HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(StorageError::io("cannot read", path))?;
    Ok(head)
}

/// Judges a file of ours that a stranger's image has been written to. Blocks.
pub fn inspect(path: &Path, disk_size: u64) -> Result<Image, StorageError> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(files::no_follow())
        .open(path)
        .map_err(StorageError::io("cannot open", path))?;
    let length = file.metadata().map_err(StorageError::io("cannot look at", path))?.len();
    let found = image::inspect(&read_head(&mut file, path)?, Some(length))?;
    image::fits(&found, disk_size)?;
    Ok(found)
}

/// Volumes of one domain.
#[derive(Debug, Clone)]
pub struct Volumes {
    /// Where they lie.
    pub layout: Layout,
    /// What makes qcow2 images.
    pub qemu_img: QemuImg,
}

impl Volumes {
    /// Makes an empty volume.
    pub async fn create(
        &self,
        sidecar: &Sidecar,
        allocation: AllocationWish,
        epoch: i64,
    ) -> Result<(), StorageError> {
        let partial = self.layout.partial(&sidecar.uid, epoch);
        files::remove(&partial)?;
        let preallocated = allocation == AllocationWish::Preallocated;
        match sidecar.format {
            DiskFormat::Raw => {
                let (path, size) = (partial.clone(), sidecar.size);
                blocking(move || make_raw(&path, size, preallocated)).await?;
            }
            DiskFormat::Qcow2 | DiskFormat::Unknown => {
                self.qemu_img.create(&partial, sidecar.size, preallocated).await?
            }
        }
        self.publish(partial, sidecar.clone()).await
    }

    /// Turns a file that holds a stranger's image into a volume: judged again as a whole, rewritten by a confined
    /// process unless it is raw already, grown to the disk's size.
    pub async fn adopt(
        &self,
        source: PathBuf,
        sidecar: Sidecar,
        allocation: AllocationWish,
        epoch: i64,
        progress: impl Fn(u8),
    ) -> Result<(), StorageError> {
        let (path, disk_size) = (source.clone(), sidecar.size);
        let found = blocking(move || inspect(&path, disk_size)).await?;
        let iso = found.format == ImageFormat::Iso;
        let size = match found.virtual_size.filter(|_| iso) {
            Some(bytes) => bytes.div_ceil(512).saturating_mul(512),
            None => disk_size,
        };
        let preallocated = allocation == AllocationWish::Preallocated && !iso;
        let sidecar = Sidecar { size, iso, ..sidecar };
        let partial = self.layout.partial(&sidecar.uid, epoch);
        files::remove(&partial)?;
        let target = sidecar.format.qemu_name().unwrap_or("qcow2");
        if found.format.qemu_name() == "raw" && sidecar.format == DiskFormat::Raw {
            let (from, to) = (source.clone(), partial.clone());
            blocking(move || files::rename_new(&from, &to)).await?;
        } else {
            let wish =
                ConvertWish { size, preallocated: preallocated && sidecar.format == DiskFormat::Qcow2 };
            self.qemu_img
                .convert((&source, found.format.qemu_name()), (&partial, target), wish, progress)
                .await?;
            let rest = source.clone();
            blocking(move || files::remove(&rest)).await?;
        }
        if sidecar.format == DiskFormat::Raw {
            let path = partial.clone();
            blocking(move || extend_raw(&path, size, preallocated)).await?;
        } else {
            self.qemu_img.grow(&partial, target, size, preallocated).await?;
        }
        self.publish(partial, sidecar).await
    }

    /// Makes the bytes, then the explanation, then the name of a finished volume survive a power cut, in this order:
    /// a volume that is there is whole and explained.
    async fn publish(&self, partial: PathBuf, sidecar: Sidecar) -> Result<(), StorageError> {
        let layout = self.layout.clone();
        blocking(move || {
            set_private(&partial)?;
            files::sync_file(&partial)?;
            files::write_json(&layout.sidecar(&sidecar.uid), &sidecar)?;
            files::rename_new(&partial, &layout.volume(&sidecar.uid, sidecar.format))
        })
        .await
    }

    /// Grows a volume that nothing has open.
    pub async fn grow(&self, sidecar: &Sidecar, allocation: AllocationWish) -> Result<(), StorageError> {
        let path = self.layout.volume(&sidecar.uid, sidecar.format);
        let preallocated = allocation == AllocationWish::Preallocated;
        match sidecar.format {
            DiskFormat::Raw => {
                let (path, size) = (path.clone(), sidecar.size);
                blocking(move || {
                    let file = files::open_exclusive(&path)?;
                    grow_raw(&file, size, preallocated).map_err(StorageError::io("cannot grow", &path))
                })
                .await?;
            }
            DiskFormat::Qcow2 | DiskFormat::Unknown => {
                let checked = path.clone();
                blocking(move || files::open_exclusive(&checked).map(drop)).await?;
                self.qemu_img.grow(&path, "qcow2", sidecar.size, preallocated).await?;
            }
        }
        let (layout, sidecar) = (self.layout.clone(), sidecar.clone());
        blocking(move || {
            files::sync_file(&path)?;
            files::write_json(&layout.sidecar(&sidecar.uid), &sidecar)
        })
        .await
    }
}

/// Runs something that blocks on a thread of its own.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(StorageError::Worker(e.to_string())))
}

fn make_raw(path: &Path, size: u64, preallocated: bool) -> Result<(), StorageError> {
    let make = || {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        grow_raw(&file, size, preallocated)
    };
    make().map_err(StorageError::io("cannot make", path))
}

fn extend_raw(path: &Path, size: u64, preallocated: bool) -> Result<(), StorageError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(files::no_follow())
        .open(path)
        .map_err(StorageError::io("cannot open", path))?;
    grow_raw(&file, size, preallocated).map_err(StorageError::io("cannot grow", path))
}

fn grow_raw(file: &File, size: u64, preallocated: bool) -> io::Result<()> {
    if file.metadata()?.len() < size {
        file.set_len(size)?;
    }
    if preallocated {
        files::allocate(file, size)?;
    }
    file.sync_all()
}

fn set_private(path: &Path) -> Result<(), StorageError> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, permissions).map_err(StorageError::io("cannot set the mode of", path))
}
