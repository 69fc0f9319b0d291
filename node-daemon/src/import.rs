//! Puts a local file into the `files` directory of a storage domain: whole or not at all, never over another file, and
//! not if it is an image that lies.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use clap::Args;
use kube::{Api, Client};
use node_plan::{
    image::{self, Foreign, ImageRefusal},
    storage::{
        domain::{DomainIntent, DomainPlan, plan_domain},
        path::{PathRefusal, RelativePath},
    },
};
use vireo_crds::v1alpha1::StorageDomain;

use crate::{
    error::RetryClass,
    join::{JoinError, NodeConfig},
    storage::{beneath, domain, error::StorageError, files, receive},
};

const BLOCK: usize = 1 << 20;

/// Flags of `vireo-node import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// File to put in.
    pub file: PathBuf,
    /// StorageDomain to put it into.
    #[arg(long)]
    pub domain: String,
    /// Path inside the domain's files; left out, the file's own name.
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
    /// Succeed if a file of that name is there already.
    #[arg(long)]
    pub if_missing: bool,
    /// Directory with node.yaml and token.
    #[arg(long, default_value = "/etc/vireo", env = "VIREO_ETC_DIR")]
    pub etc_dir: PathBuf,
}

/// Why a file is not put in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The configuration of this host cannot be used.
    #[error("this machine has not joined: {0}")]
    Config(#[from] JoinError),
    /// The API server refused.
    #[error("cannot read StorageDomain {domain}: {source}")]
    Api {
        /// Which domain.
        domain: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No such domain.
    #[error("there is no StorageDomain {0}: `kubectl get vsd` lists them")]
    NoDomain(String),
    /// The domain is not usable here.
    #[error("StorageDomain {domain} is not ready on this host: {why}")]
    NotReady {
        /// Which domain.
        domain: String,
        /// Why.
        why: String,
    },
    /// The name may not be used.
    #[error("--as: {0}")]
    Name(#[from] PathRefusal),
    /// The file cannot be used.
    #[error("{}: {why}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The domain cannot be written to.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ImportError {
    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Api { .. } => RetryClass::Transient,
            Self::NoDomain(_) | Self::NotReady { .. } => RetryClass::WaitFor,
            Self::Config(error) => error.class(),
            Self::Storage(error) => error.class(),
            Self::Name(_) | Self::File { .. } => RetryClass::Rejected,
        }
    }
}

/// Puts the file in.
pub async fn run(args: ImportArgs) -> Result<(), ImportError> {
    let node = NodeConfig::load(&args.etc_dir)?;
    let failed =
        |source: kube::Error| ImportError::Api { domain: args.domain.clone(), source: Box::new(source) };
    let client = Client::try_from(node.client_config(&args.etc_dir)?).map_err(failed)?;
    let found = Api::<StorageDomain>::all(client).get_opt(&args.domain).await.map_err(failed)?;
    let object = found.ok_or_else(|| ImportError::NoDomain(args.domain.clone()))?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let name = RelativePath::parse(&name)?;
    let wish = Wish {
        file: args.file,
        domain: PathBuf::from(&object.spec.directory.path),
        keep_free: object.spec.thresholds.block_free_bytes.bytes().unwrap_or(u64::MAX),
        name: name.clone(),
        if_missing: args.if_missing,
    };
    let domain = args.domain;
    let imported = tokio::task::spawn_blocking(move || {
        is_ready(&domain, &object)?;
        import(&wish, &mut Bar::new())
    });
    let imported = imported.await.unwrap_or_else(|e| Err(StorageError::Worker(e.to_string()).into()))?;
    match imported {
        Imported::New(bytes) => println!(
            "files/{name} is there ({}): source: {{file: {{path: {name}}}}}",
            vireo_crds::units::human_bytes(bytes)
        ),
        Imported::Present => println!("files/{name} is there already"),
    }
    Ok(())
}

fn is_ready(name: &str, object: &StorageDomain) -> Result<(), ImportError> {
    let path = &object.spec.directory.path;
    let intent = DomainIntent {
        name: name.into(),
        path: path.clone(),
        marker: object.status.as_ref().and_then(|status| status.marker.clone()),
        may_initialize: false,
        initialized_by: None,
        warn_free_percent: 0,
    };
    match plan_domain(&intent, &domain::observe(Path::new(path))) {
        DomainPlan::Ready { .. } => Ok(()),
        DomainPlan::NotReady { message, .. } => {
            Err(ImportError::NotReady { domain: name.into(), why: message })
        }
        DomainPlan::WriteMarker(_) => {
            Err(ImportError::NotReady { domain: name.into(), why: "it has no marker yet".into() })
        }
    }
}

struct Wish {
    file: PathBuf,
    domain: PathBuf,
    keep_free: u64,
    name: RelativePath,
    if_missing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Imported {
    New(u64),
    Present,
}

fn import(wish: &Wish, bar: &mut Bar) -> Result<Imported, ImportError> {
    let target = wish.domain.join(beneath::FILES).join(wish.name.as_path());
    if target.symlink_metadata().is_ok() {
        return if wish.if_missing {
            Ok(Imported::Present)
        } else {
            Err(StorageError::Exists(target.display().to_string()).into())
        };
    }
    let refused = |why: String| ImportError::File { file: wish.file.clone(), why };
    let mut source = File::open(&wish.file).map_err(|e| refused(e.to_string()))?;
    let metadata = source.metadata().map_err(|e| refused(e.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("is not a regular file".into()));
    }
    judge(&mut source, metadata.len()).map_err(|refusal| refused(refusal.to_string()))?;
    receive::enough(domain::available(&wish.domain)?, files::allocated(&metadata), wish.keep_free)?;
    let parent = parent_of(&wish.domain, &wish.name)?;
    let partial = parent.join(format!(
        ".{}.{}.partial",
        wish.name.as_path().file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let copied =
        copy(&source, &partial, metadata.len(), bar).map_err(StorageError::io("cannot write", &partial));
    let placed = copied.and_then(|()| files::rename_new(&partial, &target));
    if placed.is_err() {
        files::remove(&partial)?;
    }
    placed?;
    Ok(Imported::New(metadata.len()))
}

/// Refuses images that would be refused as a Disk's source anyway. Kernels, RAM disks and archives are no images.
fn judge(source: &mut File, length: u64) -> Result<(), ImageRefusal> {
    let mut head = Vec::new();
    if source.take(image::HEAD_BYTES as u64).read_to_end(&mut head).is_err() {
        return Ok(());
    }
    match image::inspect(&head, Some(length)) {
        Ok(_) | Err(ImageRefusal::Foreign(Foreign::Compressed(_) | Foreign::Tar | Foreign::WebPage)) => {
            Ok(())
        }
        Err(refusal) => Err(refusal),
    }
}

/// Makes the directories above a file, and refuses any that leads out of the domain.
fn parent_of(domain: &Path, name: &RelativePath) -> Result<PathBuf, StorageError> {
    let root = domain.join(beneath::FILES);
    let real_root = root.canonicalize().map_err(StorageError::io("cannot open", &root))?;
    let mut directory = real_root.clone();
    for part in name.as_path().parent().into_iter().flat_map(Path::components) {
        directory.push(part);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StorageError::io("cannot make", &directory)(error));
            }
            _ => {}
        }
        directory = directory.canonicalize().map_err(StorageError::io("cannot open", &directory))?;
        if !directory.starts_with(&real_root) {
            return Err(StorageError::Path(format!(
                "files/{name} leads through a link out of the domain's files directory"
            )));
        }
    }
    Ok(directory)
}

/// Copies into a new file; runs of zeros become holes.
fn copy(source: &File, to: &Path, length: u64, bar: &mut Bar) -> io::Result<()> {
    let target = OpenOptions::new().write(true).create_new(true).mode(0o644).open(to)?;
    let mut block = vec![0; BLOCK];
    let mut offset = 0;
    loop {
        let read = source.read_at(&mut block, offset)?;
        let part = block.get(..read).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        if part.iter().any(|byte| *byte != 0) {
            target.write_all_at(part, offset)?;
        }
        offset += read as u64;
        bar.show(offset, length);
    }
    target.set_len(offset)?;
    target.sync_all()?;
    bar.done();
    Ok(())
}

/// Shows progress to whoever watches.
struct Bar {
    terminal: bool,
    shown: Option<u64>,
}

impl Bar {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, done: u64, total: u64) {
        let percent = u64::try_from(u128::from(done) * 100 / u128::from(total.max(1))).unwrap_or(100);
        if self.terminal && self.shown != Some(percent) {
            self.shown = Some(percent);
            let filled = usize::try_from(percent / 4).unwrap_or(0).min(25);
            eprint!("\r[{:<25}] {percent:>3}%", "#".repeat(filled));
            let _ = io::stderr().flush();
        }
    }

    fn done(&mut self) {
        if self.shown.take().is_some() {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn wish(dir: &Path, file: &Path, name: &str) -> Wish {
        Wish {
            file: file.into(),
            domain: dir.into(),
            keep_free: 0,
            name: RelativePath::parse(name).unwrap(),
            if_missing: false,
        }
    }

    fn rig() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        domain::ensure_directories(dir.path()).unwrap();
        let file = dir.path().join("vmlinuz");
        fs::write(&file, [b"kernel".as_slice(), &vec![0; 3 << 20], b"end"].concat()).unwrap();
        (dir, file)
    }

    fn put(wish: &Wish) -> Result<Imported, ImportError> {
        import(wish, &mut Bar { terminal: false, shown: None })
    }

    #[test]
    fn a_file_is_put_in_once() {
        let (dir, file) = rig();
        let mut wish = wish(dir.path(), &file, "sub/vmlinuz");
        assert!(matches!(put(&wish), Ok(Imported::New(_))));
        assert_eq!(fs::read(dir.path().join("files/sub/vmlinuz")).unwrap(), fs::read(&file).unwrap());
        assert!(matches!(put(&wish), Err(ImportError::Storage(StorageError::Exists(_)))));
        wish.if_missing = true;
        assert_eq!(put(&wish).unwrap(), Imported::Present);
        assert_eq!(fs::read_dir(dir.path().join("files/sub")).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn links_out_of_the_domain_are_refused() {
        let (dir, file) = rig();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("files/out")).unwrap();
        assert!(matches!(
            put(&wish(dir.path(), &file, "out/vmlinuz")),
            Err(ImportError::Storage(StorageError::Path(_)))
        ));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn lying_images_are_refused_and_compressed_ram_disks_are_not() {
        let (dir, _) = rig();
        let image = dir.path().join("bad.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow"])
            .arg(&image)
            .arg("8M")
            .status()
            .unwrap();
        assert!(made.success());
        let refused = put(&wish(dir.path(), &image, "bad.qcow2")).unwrap_err();
        assert!(refused.to_string().contains("/etc/shadow"), "{refused}");
        let initrd = dir.path().join("initrd.gz");
        fs::write(&initrd, [0x1f, 0x8b, 8, 0]).unwrap();
        assert!(put(&wish(dir.path(), &initrd, "initrd.gz")).is_ok());
        fs::write(dir.path().join("empty"), "").unwrap();
        assert!(put(&wish(dir.path(), &dir.path().join("empty"), "empty")).is_err());
    }

    #[test]
    fn too_little_space_is_said() {
        let (dir, file) = rig();
        let wish = Wish { keep_free: u64::MAX, ..wish(dir.path(), &file, "vmlinuz") };
        assert!(matches!(put(&wish), Err(ImportError::Storage(StorageError::NoSpace(_)))));
    }
}
