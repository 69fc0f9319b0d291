//! Moves volumes to the trash, out of it, and for good; only while nothing has them open.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use jiff::Timestamp;
use node_plan::storage::{disk::Origin, sidecar::Sidecar};

use super::{error::StorageError, files, layout::Layout, volume::read_sidecar};

/// Moves a volume with its sidecar to the trash. Blocks.
pub fn move_to_trash(layout: &Layout, sidecar: &Sidecar, now: Timestamp) -> Result<(), StorageError> {
    let path = layout.volume(&sidecar.uid, sidecar.format);
    let held = files::open_exclusive(&path)?;
    let sidecar = Sidecar { deleted_at: Some(now), retained_at: None, ..sidecar.clone() };
    files::write_json(&layout.trashed_sidecar(&sidecar.uid), &sidecar)?;
    files::rename_new(&path, &layout.trashed_volume(&sidecar.uid, sidecar.format))?;
    files::remove(&layout.sidecar(&sidecar.uid))?;
    files::remove(&layout.token(&sidecar.uid))?;
    drop(held);
    Ok(())
}

/// Says of a volume that stays where it is that its Disk is gone. Blocks.
pub fn mark_retained(layout: &Layout, sidecar: &Sidecar, now: Timestamp) -> Result<(), StorageError> {
    let held = files::open_exclusive(&layout.volume(&sidecar.uid, sidecar.format))?;
    files::write_json(&layout.sidecar(&sidecar.uid), &Sidecar { retained_at: Some(now), ..sidecar.clone() })?;
    files::remove(&layout.token(&sidecar.uid))?;
    drop(held);
    Ok(())
}

/// Makes a volume of the trash, or one kept in place, that of another Disk. Blocks.
pub fn restore(layout: &Layout, sidecar: &Sidecar, origin: &Origin) -> Result<(), StorageError> {
    let old = &origin.sidecar;
    let (volume, explained) = if origin.in_trash {
        (layout.trashed_volume(&old.uid, old.format), layout.trashed_sidecar(&old.uid))
    } else {
        (layout.volume(&old.uid, old.format), layout.sidecar(&old.uid))
    };
    let held = files::open_exclusive(&volume)?;
    files::write_json(&layout.sidecar(&sidecar.uid), sidecar)?;
    files::rename_new(&volume, &layout.volume(&sidecar.uid, sidecar.format))?;
    files::remove(&explained)?;
    drop(held);
    Ok(())
}

/// Everything in the trash that explains itself; what cannot be read is kept and skipped. Blocks.
pub fn list(layout: &Layout) -> Result<Vec<Sidecar>, StorageError> {
    let trash = layout.trash();
    let mut found = vec![];
    for entry in fs::read_dir(&trash).map_err(StorageError::io("cannot list", &trash))? {
        let path = entry.map_err(StorageError::io("cannot list", &trash))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_sidecar(&path) {
            Ok(Some(sidecar)) if Some(&sidecar.uid) == stem.as_ref() => found.push(sidecar),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "kept in the trash: its sidecar cannot be read")
            }
        }
    }
    Ok(found)
}

/// Removes a volume from the trash for good, its content first if that was asked for. Blocks.
pub fn purge(layout: &Layout, sidecar: &Sidecar) -> Result<(), StorageError> {
    let path = layout.trashed_volume(&sidecar.uid, sidecar.format);
    match files::open_exclusive(&path) {
        Ok(file) => {
            if sidecar.wipe {
                wipe(&file).map_err(StorageError::io("cannot overwrite", &path))?;
            }
            files::remove(&path)?;
            drop(file);
        }
        Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files::remove(&layout.trashed_sidecar(&sidecar.uid))
}

fn wipe(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let zeros = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < length {
        let room = usize::try_from(length - offset).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(zeros.get(..room).unwrap_or_default(), offset)?;
        offset += room as u64;
    }
    file.sync_all()
}
