//! Files this host keeps for VMs, and those beside their volumes. What lies on storage may hang: it is read on a
//! thread of its own and counts as unknown after a while.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use node_plan::{
    facts::{DiskToken, HostFiles, StateDirFact, TokenFact},
    intent::Wanted,
    step::VmStep,
};
use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::{DiskFormat, Grant};

use super::{LibvirtConfig, connection::spawn, state_home};
use crate::{
    error::RetryClass,
    host::{Query, SeedContent, StepError, Target},
    ledger::files,
    seed,
    storage::{qemu_img::QemuImg, token},
};

const FORMAT: u32 = 1;

/// A permit: libvirt's hook lets a domain of ours start only while it is there.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Permit {
    format_version: u32,
    grant: Grant,
}

/// What a seed image was made from.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeedNote {
    format_version: u32,
    digest: String,
}

/// Where this host keeps files.
#[derive(Clone)]
pub struct HostPaths {
    permits: PathBuf,
    seeds: PathBuf,
    overlays: PathBuf,
    logs: PathBuf,
    qemu_img: PathBuf,
    /// VMs whose storage is being read right now: a hung read is not joined by others.
    reading: Arc<Mutex<HashSet<String>>>,
}

/// What lies on storage.
type OnStorage = (StateDirFact, Option<vireo_crds::v1alpha1::Hardware>, BTreeMap<String, TokenFact>);

impl HostPaths {
    /// Paths of a host.
    pub fn new(config: &LibvirtConfig) -> Self {
        Self {
            permits: config.run_dir.join("permits"),
            seeds: config.state_dir.join("seeds"),
            overlays: config.state_dir.join("overlays"),
            logs: config.state_dir.join("logs"),
            qemu_img: config.qemu_img.clone(),
            reading: Arc::default(),
        }
    }

    /// File that keeps what a guest writes to its serial console.
    pub fn console_log(&self, vm_uid: &str) -> PathBuf {
        self.logs.join(format!("{vm_uid}.console.log"))
    }

    fn seed_note(&self, vm_uid: &str) -> PathBuf {
        self.seeds.join(format!("{vm_uid}.json"))
    }

    fn seed_image(&self, vm_uid: &str) -> PathBuf {
        self.seeds.join(format!("{vm_uid}.iso"))
    }

    fn permit(&self, uuid: &str) -> PathBuf {
        self.permits.join(uuid)
    }

    /// Files and disk tokens of a VM.
    pub async fn read(&self, query: &Query, patience: Duration) -> (HostFiles, BTreeMap<String, TokenFact>) {
        let own = self.own_files(query);
        let storage = self.on_storage(query, patience).await;
        let (state_dir, kept_hardware, tokens) = storage.unwrap_or_else(|why| {
            let unknown = |path: &String| (path.clone(), TokenFact::Unknown { why: why.clone() });
            let has_dir = query.wanted.as_ref().is_some_and(|wanted| wanted.state.is_some());
            let dir = if has_dir { StateDirFact::Unknown } else { StateDirFact::Absent };
            (dir, None, query.tokens.iter().map(unknown).collect())
        });
        (HostFiles { state_dir, kept_hardware, ..own }, tokens)
    }

    fn own_files(&self, query: &Query) -> HostFiles {
        let uid = &query.vm.uid;
        let permit = files::read_json::<Permit>(&self.permit(&query.uuid), FORMAT).ok().flatten();
        let seed = files::read_json::<SeedNote>(&self.seed_note(uid), FORMAT).ok().flatten();
        HostFiles {
            permit: permit.map(|permit| permit.grant.id),
            seed: seed.filter(|_| self.seed_image(uid).exists()).map(|note| note.digest),
            overlays: self.overlays_of(uid),
            local_tpm: local_tpm(query.wanted.as_ref()).is_some_and(|dir| holds_files(Path::new(&dir))),
            ..HostFiles::default()
        }
    }

    fn overlays_of(&self, uid: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.overlays)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| entry.path());
        let of_vm = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(uid))
        };
        let mut found: Vec<_> = entries.filter(of_vm).map(|path| path.display().to_string()).collect();
        found.sort();
        found
    }

    async fn on_storage(&self, query: &Query, patience: Duration) -> Result<OnStorage, String> {
        let dir = query
            .wanted
            .as_ref()
            .and_then(|wanted| wanted.state.as_ref())
            .map(|home| PathBuf::from(&home.dir));
        let tokens: BTreeSet<String> = query.tokens.clone();
        if dir.is_none() && tokens.is_empty() {
            return Ok((StateDirFact::Absent, None, BTreeMap::new()));
        }
        let uid = query.vm.uid.clone();
        let lock = || self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if !lock().insert(uid.clone()) {
            return Err("its storage domain does not answer".into());
        }
        let reading = Arc::clone(&self.reading);
        let read = spawn("read-storage", move || {
            let found = read_storage(dir.as_deref(), &tokens);
            reading.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
            found
        });
        match tokio::time::timeout(patience, read).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                lock().remove(&query.vm.uid);
                Err(error.to_string())
            }
            Err(_) => Err(format!("its storage domain does not answer within {} s", patience.as_secs())),
        }
    }

    /// Carries out a step on files.
    pub async fn run(&self, target: &Target, step: &VmStep) -> Result<(), StepError> {
        if let VmStep::MakeOverlay { path, base, base_format } = step {
            return self.make_overlay(path, base, *base_format).await;
        }
        let (this, target, step) = (self.clone(), target.clone(), step.clone());
        spawn("files", move || this.run_blocking(&target, &step)).await?
    }

    async fn make_overlay(&self, path: &str, base: &str, format: DiskFormat) -> Result<(), StepError> {
        let _ = fs::create_dir_all(&self.overlays);
        let Some(format) = format.qemu_name() else {
            return Err(StepError::new(
                RetryClass::Rejected,
                format!("{base}: has a format this version does not know"),
            ));
        };
        files::remove(Path::new(path)).map_err(transient)?;
        QemuImg::new(&self.qemu_img)
            .create_layer(Path::new(path), Path::new(base), format)
            .await
            .map_err(transient)
    }

    fn run_blocking(&self, target: &Target, step: &VmStep) -> Result<(), StepError> {
        match step {
            VmStep::WritePermit { uuid, grant } => {
                fs::create_dir_all(&self.permits).map_err(transient)?;
                files::write_json(
                    &self.permit(uuid),
                    &Permit { format_version: FORMAT, grant: grant.clone() },
                )
                .map_err(transient)
            }
            VmStep::RemovePermit { uuid } => files::remove(&self.permit(uuid)).map_err(transient),
            VmStep::WriteDiskToken { path, token, replaces } => {
                write_token(Path::new(path), token, replaces.as_ref())
            }
            VmStep::RemoveDiskToken { path, token } => {
                token::remove(Path::new(path), token).map_err(transient)
            }
            VmStep::MakeSeed { seed } => self.make_seed(target, &seed.path, &seed.digest),
            VmStep::RemoveSeed => self.remove_seed(&target.vm.uid),
            VmStep::RemoveOverlay { path } => files::remove(Path::new(path)).map_err(transient),
            VmStep::EnsureStateDir { dir } => make_state_dir(dir).map_err(transient),
            VmStep::CopyTpmIn { from, to } => {
                state_home::copy_tree(Path::new(from), Path::new(to)).map_err(transient)
            }
            VmStep::CopyTpmOut { from, to } => {
                state_home::copy_tree(Path::new(from), Path::new(to)).map_err(transient)?;
                state_home::remove_tree(Path::new(from)).map_err(transient)
            }
            VmStep::KeepHardware { dir, hardware } => {
                make_state_dir(dir).map_err(transient)?;
                state_home::write_hardware(Path::new(dir), hardware).map_err(transient)
            }
            VmStep::RemoveStateDir { dir } => state_home::remove_tree(Path::new(dir)).map_err(transient),
            VmStep::FlushDisks { paths } => paths.iter().try_for_each(|path| flush(path)).map_err(transient),
            other => Err(StepError::new(
                RetryClass::Bug,
                format!("{} is not a step on files", crate::step_names::step_name(other)),
            )),
        }
    }

    fn make_seed(&self, target: &Target, path: &str, digest: &str) -> Result<(), StepError> {
        let Some(content) = &target.seed else {
            return Err(StepError::new(RetryClass::Transient, "the first-boot data has not been read"));
        };
        let SeedContent { instance_id, hostname, user_data, network_data } = content.clone();
        fs::create_dir_all(&self.seeds).map_err(transient)?;
        let _ = fs::remove_file(self.seed_note(&target.vm.uid));
        let input =
            seed::Seed { instance_id, local_hostname: hostname, user_data, network_config: network_data };
        seed::make_seed(Path::new(path), &input).map_err(transient)?;
        let note = SeedNote { format_version: FORMAT, digest: digest.into() };
        files::write_json(&self.seed_note(&target.vm.uid), &note).map_err(transient)
    }

    fn remove_seed(&self, uid: &str) -> Result<(), StepError> {
        seed::remove_seed(&self.seed_image(uid)).map_err(transient)?;
        files::remove(&self.seed_note(uid)).map_err(transient)
    }
}

/// Writes a disk token, unless something stands there that it may not replace.
fn write_token(path: &Path, token: &DiskToken, replaces: Option<&DiskToken>) -> Result<(), StepError> {
    match token::read(path) {
        TokenFact::Present(found) if found != *token && Some(&found) != replaces => {
            let message = format!(
                "{}: holds the token of VM {} (grant {}) meanwhile",
                path.display(),
                found.vm_uid,
                found.id
            );
            Err(StepError::new(RetryClass::Transient, message))
        }
        TokenFact::Unknown { why } => Err(StepError::new(RetryClass::Transient, why)),
        TokenFact::Present(_) | TokenFact::None => token::write(path, token).map_err(transient),
    }
}

fn local_tpm(wanted: Option<&Wanted>) -> Option<String> {
    wanted?.state.as_ref()?.local_tpm.clone()
}

fn holds_files(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

fn read_storage(dir: Option<&Path>, tokens: &BTreeSet<String>) -> OnStorage {
    let (state, hardware) = match dir {
        None => (StateDirFact::Absent, None),
        Some(dir) => match dir.try_exists() {
            Ok(true) => (StateDirFact::Present, state_home::read_hardware(dir)),
            // Absent only if the domain itself is there: an unmounted one looks empty.
            Ok(false) if domain_is_there(dir) => (StateDirFact::Absent, None),
            Ok(false) | Err(_) => (StateDirFact::Unknown, None),
        },
    };
    (state, hardware, tokens.iter().map(|path| (path.clone(), token::read(Path::new(path)))).collect())
}

fn domain_is_there(state_dir: &Path) -> bool {
    state_dir.parent().and_then(Path::parent).is_some_and(|domain| domain.join(".vireo-domain.json").exists())
}

/// QEMU may enter the directory, but only its owner may list it.
fn make_state_dir(dir: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)
}

fn flush(path: &str) -> io::Result<()> {
    match fs::File::open(path) {
        Ok(file) => file.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn transient(error: impl std::fmt::Display) -> StepError {
    StepError::new(RetryClass::Transient, error.to_string())
}
