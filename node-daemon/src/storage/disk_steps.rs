//! Runs the steps of a Disk's plan, one arm each; decides nothing.

use std::{path::PathBuf, sync::Arc};

use fail_points::Moment;
use node_plan::{
    storage::{
        disk::{AllocationWish, DiskStep},
        path::RelativePath,
        sidecar::Sidecar,
    },
    url_policy,
};
use vireo_crds::v1alpha1::DiskFormat;

use crate::step_names::disk_step_name;

use super::{
    beneath, domain,
    error::StorageError,
    fetch, files,
    receive::{self, Bounds, Progress, Receiver},
    trash,
    volume::{Volumes, blocking},
};

/// What a step needs besides itself.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Volumes of the domain.
    pub volumes: Volumes,
    /// Number of this host's work on the Disk.
    pub epoch: i64,
    /// URL prefixes the domain lists.
    pub allowed_urls: Vec<String>,
    /// Free space that must be left.
    pub keep_free: u64,
    /// How far an import is.
    pub progress: Arc<Progress>,
}

impl Bench {
    /// Runs one step.
    pub async fn run(&self, step: DiskStep) -> Result<(), StorageError> {
        let name = disk_step_name(&step);
        fail_points::step(name, Moment::Before);
        let done = self.carry_out(step).await;
        if done.is_ok() {
            fail_points::step(name, Moment::After);
        }
        done
    }

    async fn carry_out(&self, step: DiskStep) -> Result<(), StorageError> {
        let layout = self.volumes.layout.clone();
        let now = jiff::Timestamp::now();
        match step {
            DiskStep::Create(sidecar, allocation) => {
                self.volumes.create(&sidecar, allocation, self.epoch).await
            }
            DiskStep::Fetch { sidecar, url, checksum, ca_bundle, allocation } => {
                let shown = url.parse().map(|url| url_policy::shown(&url)).unwrap_or_default();
                let wanted = fetch::Wanted { url, checksum, ca_bundle, allowed: self.allowed_urls.clone() };
                let source = layout.source(&sidecar.uid, self.epoch);
                let fetched =
                    fetch::fetch(&wanted, &source, self.bounds(&sidecar), self.progress.clone()).await;
                let adopted = self.adopt(source, fetched, sidecar, allocation).await;
                adopted.map_err(|error| error.named("spec.source.http.url", shown))
            }
            DiskStep::Copy { sidecar, path, allocation } => {
                let source = layout.source(&sidecar.uid, self.epoch);
                let copied = self.copy(source.clone(), &path, &sidecar).await;
                let adopted = self.adopt(source, copied, sidecar, allocation).await;
                adopted.map_err(|error| error.named("spec.source.file.path", path))
            }
            DiskStep::Grow { sidecar, allocation } => self.volumes.grow(&sidecar, allocation).await,
            DiskStep::RemovePartials(uid) => self.remove_rest(&uid).await,
            DiskStep::Restore { sidecar, origin } => {
                blocking(move || trash::restore(&layout, &sidecar, &origin)).await
            }
            DiskStep::WriteSidecar(sidecar) => {
                blocking(move || files::write_json(&layout.sidecar(&sidecar.uid), &sidecar)).await
            }
            DiskStep::MoveToTrash(sidecar) => {
                blocking(move || trash::move_to_trash(&layout, &sidecar, now)).await
            }
            DiskStep::MarkRetained(sidecar) => {
                blocking(move || trash::mark_retained(&layout, &sidecar, now)).await
            }
        }
    }

    /// Removes unfinished files of a Disk, and what explains a volume that is not there.
    async fn remove_rest(&self, uid: &str) -> Result<(), StorageError> {
        self.remove_partials(uid).await?;
        let (layout, uid) = (self.volumes.layout.clone(), uid.to_owned());
        blocking(move || {
            for format in [DiskFormat::Qcow2, DiskFormat::Raw] {
                let volume = layout.volume(&uid, format);
                if volume.try_exists().map_err(StorageError::io("cannot look at", &volume))? {
                    return Ok(());
                }
            }
            files::remove(&layout.sidecar(&uid))?;
            files::remove(&layout.token(&uid))
        })
        .await
    }

    /// Removes unfinished files of a Disk.
    pub async fn remove_partials(&self, uid: &str) -> Result<(), StorageError> {
        let (layout, uid) = (self.volumes.layout.clone(), uid.to_owned());
        blocking(move || layout.partials(&uid)?.iter().try_for_each(|path| files::remove(path))).await
    }

    fn bounds(&self, sidecar: &Sidecar) -> Bounds {
        Bounds {
            disk_size: sidecar.size,
            domain: self.volumes.layout.root().into(),
            keep_free: self.keep_free,
        }
    }

    async fn copy(&self, to: PathBuf, path: &str, sidecar: &Sidecar) -> Result<String, StorageError> {
        let path = RelativePath::parse(path).map_err(|refusal| StorageError::Path(refusal.to_string()))?;
        let (bounds, progress) = (self.bounds(sidecar), self.progress.clone());
        blocking(move || {
            let from = bounds.domain.join(beneath::FILES).join(path.as_path());
            let file = beneath::open_file(&bounds.domain, &path)?;
            let metadata = file.metadata().map_err(StorageError::io("cannot look at", &from))?;
            receive::enough(
                domain::available(&bounds.domain)?,
                files::allocated(&metadata),
                bounds.keep_free,
            )?;
            progress.expect(Some(metadata.len()));
            let mut receiver = Receiver::new(&to, bounds, progress)?;
            receiver.take_all(file, &from)?;
            receiver.finish(None)
        })
        .await
    }

    /// Makes a volume of what was received; whatever goes wrong, the received file does not stay.
    async fn adopt(
        &self,
        source: PathBuf,
        received: Result<String, StorageError>,
        sidecar: Sidecar,
        allocation: AllocationWish,
    ) -> Result<(), StorageError> {
        let uid = sidecar.uid.clone();
        let adopted = match received {
            Ok(digest) => {
                let sidecar = Sidecar { digest: Some(digest), ..sidecar };
                self.volumes
                    .adopt(source, sidecar, allocation, self.epoch, |percent| self.progress.convert(percent))
                    .await
            }
            Err(error) => Err(error),
        };
        if adopted.is_err() {
            self.remove_partials(&uid).await?;
        }
        adopted
    }
}
