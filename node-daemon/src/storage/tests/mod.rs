//! The storage workers on a real directory, with qemu-img, a small web server and an API server made of a table.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, http::header, response::Redirect, routing::get};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vireo_crds::{
    condition::{self, kind},
    reasons,
    units::Size,
    v1alpha1::{
        Allocation, DirectoryDomain, Disk, DiskFormat, DiskPhase, DiskPlacement, DiskSource, DiskSpec,
        DiskStatus, FileSource, HttpSource, Imports, Marker, ReclaimPolicy, StorageDomain, StorageDomainSpec,
        StorageDomainStatus, Thresholds, Trash, VolumeSource,
    },
};

use super::{Storage, StorageConfig, StorageInput, files, layout::Layout};
use crate::disk_report::{DiskReportError, DiskReports};

const DEADLINE: Duration = Duration::from_secs(60);
const HOST: &str = "host1";

/// Disks as an API server would keep them: conditional writes, a new version for each.
#[derive(Clone)]
struct Table(Arc<Mutex<HashMap<String, Disk>>>, watch::Sender<u64>);

impl DiskReports for Table {
    fn write<'a>(
        &'a self,
        disk: &'a Disk,
        report: DiskStatus,
    ) -> BoxFuture<'a, Result<Arc<Disk>, DiskReportError>> {
        let mut disks = self.0.lock().unwrap();
        let uid = disk.metadata.uid.clone().unwrap();
        let Some(stored) = disks.get_mut(&uid) else { return async { Err(DiskReportError::Gone) }.boxed() };
        if stored.metadata.resource_version != disk.metadata.resource_version {
            return async { Err(DiskReportError::Conflict) }.boxed();
        }
        let old = stored.status.clone().unwrap_or_default();
        stored.status = Some(DiskStatus {
            placement: old.placement,
            attachments: old.attachments,
            remove: old.remove,
            ..report
        });
        bump(stored);
        let written = Arc::new(stored.clone());
        drop(disks);
        self.1.send_modify(|version| *version += 1);
        async move { Ok(written) }.boxed()
    }
}

fn bump(disk: &mut Disk) {
    let version: u64 = disk.metadata.resource_version.as_deref().unwrap_or("0").parse().unwrap();
    disk.metadata.resource_version = Some((version + 1).to_string());
}

/// One host with one storage domain.
struct Rig {
    dir: tempfile::TempDir,
    storage: Storage,
    table: Table,
    domain: StorageDomain,
    stop: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut StorageDomain)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut domain = StorageDomain::new(
            "local",
            StorageDomainSpec {
                directory: DirectoryDomain { path: dir.path().display().to_string(), shared: false },
                host_selector: Default::default(),
                imports: Imports { allowed_urls: vec!["http://127.0.0.1/".into()] },
                thresholds: Thresholds { warn_free_percent: 0, block_free_bytes: Size("1Mi".into()) },
                trash: Trash { retention: "24h".into() },
            },
        );
        domain.metadata.uid = Some("domain-uid".into());
        let marker = Marker { installation_id: "installation".into(), domain_uid: "domain-uid".into() };
        domain.status = Some(StorageDomainStatus {
            marker: Some(marker),
            initialize: vec![HOST.into()],
            ..Default::default()
        });
        change(&mut domain);
        let table = Table(Arc::default(), watch::channel(0).0);
        let stop = CancellationToken::new();
        let config = StorageConfig { host: HOST.into(), qemu_img: "qemu-img".into() };
        let storage = Storage::start(config, Arc::new(table.clone()), stop.clone());
        let rig = Self { dir, storage, table, domain, stop };
        rig.update();
        rig
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn layout(&self) -> Layout {
        Layout::new(self.path())
    }

    /// What a watch would bring.
    fn update(&self) {
        let disks = self.table.0.lock().unwrap().values().cloned().map(Arc::new).collect();
        self.storage.update(StorageInput {
            installation_id: Some("installation".into()),
            host_labels: BTreeMap::new(),
            domains: vec![Arc::new(self.domain.clone())],
            disks,
        });
    }

    fn put(&self, uid: &str, spec: DiskSpec) {
        let mut disk = Disk::new(&format!("disk-{uid}"), spec);
        disk.metadata = ObjectMeta {
            uid: Some(uid.into()),
            namespace: Some("default".into()),
            generation: Some(1),
            resource_version: Some("1".into()),
            ..disk.metadata
        };
        disk.status = Some(DiskStatus {
            placement: Some(DiskPlacement { host: HOST.into(), epoch: 1 }),
            ..Default::default()
        });
        self.table.0.lock().unwrap().insert(uid.into(), disk);
        self.update();
    }

    fn edit(&self, uid: &str, change: impl FnOnce(&mut Disk)) {
        let mut disks = self.table.0.lock().unwrap();
        let disk = disks.get_mut(uid).unwrap();
        change(disk);
        bump(disk);
        drop(disks);
        self.update();
    }

    fn status(&self, uid: &str) -> DiskStatus {
        self.table.0.lock().unwrap()[uid].status.clone().unwrap()
    }

    /// Waits until the status of a Disk is as told; echoes every write as a watch would.
    async fn until(&self, uid: &str, what: &str, holds: impl Fn(&DiskStatus) -> bool) -> DiskStatus {
        let mut writes = self.table.1.subscribe();
        let wait = async {
            loop {
                self.update();
                let status = self.status(uid);
                if holds(&status) {
                    return status;
                }
                writes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(status) => status,
            Err(_) => panic!("{uid} was not {what} in time: {:#?}", self.status(uid)),
        }
    }

    async fn ready(&self, uid: &str) -> DiskStatus {
        self.until(uid, "ready", |s| {
            s.phase == Some(DiskPhase::Ready) && condition::is_true(&s.conditions, kind::READY)
        })
        .await
    }

    /// Waits for a reason of Ready and returns its message.
    async fn reason(&self, uid: &str, reason: &str) -> String {
        let status = self
            .until(uid, reason, |s| {
                condition::get(&s.conditions, kind::READY).is_some_and(|c| c.reason == reason)
            })
            .await;
        condition::get(&status.conditions, kind::READY).unwrap().message.clone()
    }

    async fn removed(&self, uid: &str) {
        self.edit(uid, |disk| disk.status.as_mut().unwrap().remove = Some(true));
        self.until(uid, "removed", |s| s.phase == Some(DiskPhase::Removed)).await;
    }
}

fn spec(source: DiskSource) -> DiskSpec {
    DiskSpec {
        storage_domain: "local".into(),
        size: Size("16Mi".into()),
        format: DiskFormat::Qcow2,
        allocation: Allocation::Thin,
        source,
        reclaim_policy: ReclaimPolicy::Delete,
        wipe_after_delete: false,
    }
}

fn http(url: String, checksum: Option<String>) -> DiskSpec {
    spec(DiskSource::Http(HttpSource { url, checksum, ca_bundle: None }))
}

fn file(path: &str) -> DiskSpec {
    spec(DiskSource::File(FileSource { path: path.into() }))
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn info(path: &Path, format: &str) -> serde_json::Value {
    serde_json::from_str(&qemu_img(&["info", "-f", format, "--output=json", path.to_str().unwrap()])).unwrap()
}

/// A raw image with something in it.
fn raw_image(path: &Path, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[..4].copy_from_slice(b"boot");
    bytes[size - 3..].copy_from_slice(b"end");
    fs::write(path, &bytes).unwrap();
    bytes
}

/// Serves the files of a directory below `/`, and redirects below `/to`.
async fn serve(files: PathBuf) -> String {
    let app = Router::new()
        .route("/to/private", get(|| async { Redirect::temporary("http://127.0.0.1:1/outside") }))
        .route("/to/image", get(|| async { Redirect::temporary("/image.qcow2") }))
        .route("/to/loop", get(|| async { Redirect::temporary("/to/loop") }))
        .route(
            "/{name}",
            get(move |axum::extract::Path(name): axum::extract::Path<String>| async move {
                match fs::read(files.join(name)) {
                    Ok(bytes) => Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes)),
                    Err(_) => Err(axum::http::StatusCode::NOT_FOUND),
                }
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

/// A rig whose domain lists the test's own server.
async fn rig_with_server() -> (Rig, tempfile::TempDir, String) {
    let files = tempfile::tempdir().unwrap();
    let url = serve(files.path().into()).await;
    let listed = format!("{url}/");
    (Rig::with(|domain| domain.spec.imports.allowed_urls = vec![listed]), files, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn blank_disks_are_made_grow_and_go_to_the_trash() {
    let rig = Rig::new();
    rig.put("a", spec(DiskSource::default()));
    let status = rig.ready("a").await;
    assert_eq!(
        (status.capacity, status.volume.as_deref(), status.local_host.as_deref()),
        (Some(16 << 20), Some("a.qcow2"), Some(HOST))
    );
    let volume = rig.layout().volume("a", DiskFormat::Qcow2);
    assert_eq!(info(&volume, "qcow2")["virtual-size"], 16 << 20);
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&volume).unwrap().permissions()) & 0o777,
        0o600
    );
    rig.edit("a", |disk| {
        disk.spec.size = Size("32Mi".into());
        disk.metadata.generation = Some(2);
    });
    rig.until("a", "grown", |s| s.capacity == Some(32 << 20) && s.observed_generation == Some(2)).await;
    assert_eq!(info(&volume, "qcow2")["virtual-size"], 32 << 20);
    rig.removed("a").await;
    assert!(!volume.exists() && rig.layout().trashed_volume("a", DiskFormat::Qcow2).exists());
    let sidecar: serde_json::Value = files::read_json(&rig.layout().trashed_sidecar("a")).unwrap().unwrap();
    assert!(sidecar["deletedAt"].is_string() && sidecar["name"] == "disk-a");
}

/// The daemon dies between two writes of a removal: after the volume has its name in the trash.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_the_trash_that_was_cut_off_leaves_nothing_beside_the_volumes() {
    let rig = Rig::new();
    rig.put("a", spec(DiskSource::default()));
    rig.ready("a").await;
    let layout = rig.layout();
    let token = node_plan::facts::DiskToken { vm_uid: "vm".into(), epoch: 1, id: "grant".into() };
    super::token::write(&layout.token("a"), &token).unwrap();
    fs::copy(layout.sidecar("a"), layout.trashed_sidecar("a")).unwrap();
    fs::rename(layout.volume("a", DiskFormat::Qcow2), layout.trashed_volume("a", DiskFormat::Qcow2)).unwrap();
    rig.removed("a").await;
    let left: Vec<_> =
        fs::read_dir(rig.path().join("volumes")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(layout.trashed_volume("a", DiskFormat::Qcow2).exists() && layout.trashed_sidecar("a").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_and_preallocated_disks_take_their_space() {
    let rig = Rig::new();
    rig.put(
        "thick",
        DiskSpec {
            format: DiskFormat::Raw,
            allocation: Allocation::Preallocated,
            ..spec(DiskSource::default())
        },
    );
    rig.put("thick2", DiskSpec { allocation: Allocation::Preallocated, ..spec(DiskSource::default()) });
    rig.put("thin", DiskSpec { format: DiskFormat::Raw, ..spec(DiskSource::default()) });
    assert!(rig.ready("thick").await.allocated >= Some(16 << 20));
    assert!(rig.ready("thick2").await.allocated >= Some(16 << 20));
    assert!(rig.ready("thin").await.allocated < Some(1 << 20));
    assert_eq!(fs::metadata(rig.layout().volume("thin", DiskFormat::Raw)).unwrap().len(), 16 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_when_nothing_changed() {
    let rig = Rig::new();
    rig.put("a", spec(DiskSource::default()));
    rig.ready("a").await;
    let writes = *rig.table.1.borrow();
    rig.edit("a", |disk| disk.metadata.labels = Some([("x".into(), "y".into())].into()));
    rig.put("b", spec(DiskSource::default()));
    rig.ready("b").await;
    let stored = rig.table.0.lock().unwrap()["a"].metadata.resource_version.clone();
    rig.edit("b", |disk| disk.metadata.labels = None);
    assert!(*rig.table.1.borrow() > writes);
    assert_eq!(rig.table.0.lock().unwrap()["a"].metadata.resource_version, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_fetched_checked_and_rewritten() {
    let (rig, served, url) = rig_with_server().await;
    let raw = served.path().join("image.raw");
    let bytes = raw_image(&raw, 8 << 20);
    let qcow2 = served.path().join("image.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()]);
    let digest: String =
        Sha256::digest(fs::read(&qcow2).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    let digest = format!("sha256:{digest}");
    rig.put("q", http(format!("{url}/to/image"), Some(digest.clone())));
    rig.put("r", DiskSpec { format: DiskFormat::Raw, ..http(format!("{url}/image.qcow2"), None) });
    rig.put("rr", DiskSpec { format: DiskFormat::Raw, ..http(format!("{url}/image.raw"), None) });
    assert_eq!(rig.ready("q").await.content_digest, Some(digest));
    for uid in ["r", "rr"] {
        rig.ready(uid).await;
        let volume = fs::read(rig.layout().volume(uid, DiskFormat::Raw)).unwrap();
        assert!(volume.len() == 16 << 20 && volume.starts_with(&bytes), "{uid}");
    }
    assert_eq!(info(&rig.layout().volume("q", DiskFormat::Qcow2), "qcow2")["virtual-size"], 16 << 20);
    assert_eq!(rig.layout().partials("q").unwrap(), Vec::<PathBuf>::new());
    // The raw image was mostly zeros, and still is.
    assert!(rig.status("rr").allocated < Some(1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_differs_is_refused_and_nothing_is_left() {
    let (rig, served, url) = rig_with_server().await;
    raw_image(&served.path().join("image.raw"), 1 << 20);
    let wrong = format!("sha256:{}", "0".repeat(64));
    rig.put("a", http(format!("{url}/image.raw"), Some(wrong.clone())));
    let message = rig.reason("a", reasons::DIGEST_MISMATCH).await;
    assert!(message.contains(&wrong) && message.contains("spec.source.http.checksum"), "{message}");
    assert_eq!(rig.status("a").phase, Some(DiskPhase::Failed));
    assert_eq!(rig.layout().partials("a").unwrap(), Vec::<PathBuf>::new());
    assert!(!rig.layout().volume("a", DiskFormat::Qcow2).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_outside_the_list_are_refused_also_behind_a_redirect() {
    let (rig, _served, url) = rig_with_server().await;
    rig.put("redirect", http(format!("{url}/to/private"), None));
    rig.put("direct", http("http://127.0.0.1:1/x".into(), None));
    rig.put("loop", http(format!("{url}/to/loop"), None));
    rig.put("absent", http(format!("{url}/nothing-here"), None));
    assert!(rig.reason("redirect", reasons::URL_REFUSED).await.contains("127.0.0.1:1/outside"));
    assert!(rig.reason("direct", reasons::URL_REFUSED).await.contains("allowedUrls"));
    assert!(rig.reason("loop", reasons::URL_REFUSED).await.contains("redirects"));
    assert!(rig.reason("absent", reasons::IMPORT_FAILED).await.contains("404"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_list_private_addresses_are_refused_also_behind_a_name() {
    let rig = Rig::with(|domain| domain.spec.imports.allowed_urls = vec![]);
    rig.put("address", http("https://169.254.169.254/latest/meta-data".into(), None));
    rig.put("name", http("https://localhost/image.qcow2".into(), None));
    rig.put("plain", http("http://example.invalid/image.qcow2".into(), None));
    assert!(rig.reason("address", reasons::URL_REFUSED).await.contains("link-local"));
    assert!(rig.reason("name", reasons::URL_REFUSED).await.contains("the host itself"));
    assert!(rig.reason("plain", reasons::URL_REFUSED).await.contains("only https"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_becomes_allowed_is_fetched_then() {
    let (mut rig, served, url) = rig_with_server().await;
    raw_image(&served.path().join("image.raw"), 1 << 20);
    let listed = std::mem::take(&mut rig.domain.spec.imports.allowed_urls);
    rig.update();
    rig.put("a", http(format!("{url}/image.raw"), None));
    rig.reason("a", reasons::URL_REFUSED).await;
    rig.domain.spec.imports.allowed_urls = listed;
    rig.ready("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_lie_or_refer_elsewhere_are_refused() {
    let (rig, served, url) = rig_with_server().await;
    rig_ready(&rig).await;
    let files = rig.path().join("files");
    let at = |name: &str| files.join(name).display().to_string();
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/etc/shadow",
        &at("backed.qcow2"),
        "8M",
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={}", at("data.raw")),
        &at("external.qcow2"),
        "8M",
    ]);
    qemu_img(&["create", "-q", "-f", "qcow2", &at("big.qcow2"), "17M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", &at("lying.qcow2"), "8M"]);
    let mut lying = fs::read(files.join("lying.qcow2")).unwrap();
    lying[24..32].copy_from_slice(&(1u64 << 40).to_be_bytes());
    fs::write(files.join("lying.qcow2"), lying).unwrap();
    qemu_img(&["create", "-q", "-f", "vmdk", &at("other.vmdk"), "8M"]);
    raw_image(&files.join("big.raw"), 17 << 20);
    fs::copy(files.join("backed.qcow2"), served.path().join("backed.qcow2")).unwrap();
    rig.put("backed", file("backed.qcow2"));
    rig.put("served", http(format!("{url}/backed.qcow2"), None));
    rig.put("external", file("external.qcow2"));
    rig.put("lying", file("lying.qcow2"));
    rig.put("vmdk", file("other.vmdk"));
    rig.put("big", file("big.qcow2"));
    rig.put("bigraw", DiskSpec { format: DiskFormat::Raw, ..file("big.raw") });
    for uid in ["backed", "served"] {
        assert!(rig.reason(uid, reasons::IMAGE_REFUSED).await.contains("/etc/shadow"), "{uid}");
    }
    assert!(rig.reason("external", reasons::IMAGE_REFUSED).await.contains("data.raw"));
    assert!(rig.reason("lying", reasons::IMAGE_REFUSED).await.contains("tables for"));
    assert!(rig.reason("vmdk", reasons::IMAGE_REFUSED).await.contains("VMDK"));
    let message = rig.reason("big", reasons::IMAGE_TOO_LARGE).await;
    assert!(message.contains("17Mi") && message.contains("spec.size is 16Mi"), "{message}");
    rig.reason("bigraw", reasons::IMAGE_TOO_LARGE).await;
    for uid in ["backed", "served", "external", "lying", "vmdk", "big", "bigraw"] {
        assert_eq!(rig.layout().partials(uid).unwrap(), Vec::<PathBuf>::new(), "{uid}");
    }
}

/// Waits until the domain can be used.
async fn rig_ready(rig: &Rig) {
    let mut readiness = rig.storage.readiness();
    let wait = readiness.wait_for(|domains| domains.iter().any(|d| d.ready));
    tokio::time::timeout(DEADLINE, wait).await.expect("the domain was not ready in time").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_from_inside_the_domain_only() {
    let rig = Rig::new();
    rig_ready(&rig).await;
    std::os::unix::fs::symlink("/etc/passwd", rig.path().join("files/link")).unwrap();
    rig.put("link", file("link"));
    rig.put("up", file("../volumes/x.raw"));
    rig.put("absolute", file("/etc/shadow"));
    rig.put("later", file("later.raw"));
    assert!(rig.reason("link", reasons::PATH_REFUSED).await.contains("leaves"));
    assert!(rig.reason("up", reasons::PATH_REFUSED).await.contains("spec.source.file.path"));
    assert!(rig.reason("absolute", reasons::PATH_REFUSED).await.contains("absolute"));
    assert!(rig.reason("later", reasons::PATH_REFUSED).await.contains("vireo-node import"));
    raw_image(&rig.path().join("files/later.raw"), 1 << 20);
    rig.edit("later", |disk| disk.metadata.generation = Some(2));
    rig.ready("later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cd_keeps_its_own_size() {
    let rig = Rig::new();
    rig_ready(&rig).await;
    fs::write(rig.path().join("hello"), "hello").unwrap();
    let iso = rig.path().join("files/cd.iso");
    let made = Command::new("genisoimage")
        .args(["-quiet", "-o"])
        .arg(&iso)
        .arg(rig.path().join("hello"))
        .status()
        .unwrap();
    assert!(made.success());
    rig.put("cd", DiskSpec { format: DiskFormat::Raw, ..file("cd.iso") });
    let length = i64::try_from(fs::metadata(&iso).unwrap().len()).unwrap();
    assert_eq!(rig.ready("cd").await.capacity, Some(length));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_directory_and_anothers_are_left_alone() {
    let unmounted = Rig::with(|domain| domain.status.as_mut().unwrap().initialize = vec![]);
    unmounted.put("a", spec(DiskSource::default()));
    assert!(unmounted.reason("a", reasons::DOMAIN_NOT_READY).await.contains("looks unmounted"));
    assert_eq!(fs::read_dir(unmounted.path()).unwrap().count(), 0, "nothing is made in it");
    let foreign = tempfile::tempdir().unwrap();
    let other = Marker { installation_id: "another".into(), domain_uid: "domain-uid".into() };
    super::domain::write_marker(foreign.path(), &other).unwrap();
    let path = foreign.path().display().to_string();
    let rig = Rig::with(|domain| domain.spec.directory.path = path);
    rig.put("a", spec(DiskSource::default()));
    assert!(rig.reason("a", reasons::DOMAIN_NOT_READY).await.contains("another installation (another)"));
    assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1, "nothing is made in it");
    let mut readiness = rig.storage.readiness();
    let said = readiness.wait_for(|domains| {
        domains
            .iter()
            .any(|d| !d.ready && d.message.as_deref().unwrap_or("").contains("another installation"))
    });
    tokio::time::timeout(DEADLINE, said).await.expect("not reported in time").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_space_is_waited_for() {
    let mut rig = Rig::with(|domain| domain.spec.thresholds.block_free_bytes = Size("4000Ti".into()));
    rig.put("a", spec(DiskSource::default()));
    assert!(rig.reason("a", reasons::NO_SPACE).await.contains("blockFreeBytes"));
    rig.domain.spec.thresholds.block_free_bytes = Size("1Mi".into());
    rig.ready("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_volume_is_never_replaced() {
    let rig = Rig::new();
    rig.put("a", spec(DiskSource::default()));
    rig.ready("a").await;
    fs::rename(rig.layout().volume("a", DiskFormat::Qcow2), rig.path().join("elsewhere")).unwrap();
    rig.edit("a", |disk| disk.metadata.generation = Some(2));
    assert!(rig.reason("a", reasons::VOLUME_MISSING).await.contains("volumes/a.qcow2"));
    assert!(!rig.layout().volume("a", DiskFormat::Qcow2).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_come_back_from_the_trash_and_from_retain() {
    let rig = Rig::new();
    rig.put("old", DiskSpec { format: DiskFormat::Raw, ..spec(DiskSource::default()) });
    rig.put(
        "kept",
        DiskSpec {
            format: DiskFormat::Raw,
            reclaim_policy: ReclaimPolicy::Retain,
            ..spec(DiskSource::default())
        },
    );
    for uid in ["old", "kept"] {
        rig.ready(uid).await;
        let volume = rig.layout().volume(uid, DiskFormat::Raw);
        fs::write(&volume, [uid.as_bytes(), &vec![0; 16 << 20]].concat()).unwrap();
        rig.removed(uid).await;
    }
    assert!(rig.layout().volume("kept", DiskFormat::Raw).exists());
    for (uid, origin) in [("new1", "old"), ("new2", "kept")] {
        let source = DiskSource::Volume(VolumeSource { uid: origin.into() });
        rig.put(uid, DiskSpec { format: DiskFormat::Raw, ..spec(source) });
        rig.ready(uid).await;
        assert!(fs::read(rig.layout().volume(uid, DiskFormat::Raw)).unwrap().starts_with(origin.as_bytes()));
    }
    assert!(!rig.layout().trashed_sidecar("old").exists() && !rig.layout().sidecar("kept").exists());
    rig.put("none", spec(DiskSource::Volume(VolumeSource { uid: "never".into() })));
    rig.reason("none", reasons::NOT_IN_TRASH).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_use_is_neither_removed_nor_grown() {
    let rig = Rig::new();
    rig.put("a", DiskSpec { format: DiskFormat::Raw, ..spec(DiskSource::default()) });
    rig.ready("a").await;
    let volume = rig.layout().volume("a", DiskFormat::Raw);
    // Another process that holds QEMU's kind of lock.
    let mut holder = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "sleep 600000"])
        .arg(&volume)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("qemu-io comes with qemu-utils");
    // Seen from outside: a try of our own could take the lock away from under it.
    let inode = format!(":{} ", std::os::unix::fs::MetadataExt::ino(&fs::metadata(&volume).unwrap()));
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !fs::read_to_string("/proc/locks").unwrap().contains(&inode) {
        assert!(tokio::time::Instant::now() < deadline, "qemu-io took no lock");
        tokio::task::yield_now().await;
    }
    rig.edit("a", |disk| {
        disk.spec.size = Size("32Mi".into());
        disk.metadata.generation = Some(2);
    });
    let status =
        rig.until("a", "waiting to grow", |s| condition::is_true(&s.conditions, kind::RECONCILING)).await;
    assert!(condition::is_true(&status.conditions, kind::READY) && status.capacity == Some(16 << 20));
    rig.edit("a", |disk| disk.status.as_mut().unwrap().remove = Some(true));
    assert!(rig.reason("a", reasons::IN_USE).await.contains("a.raw"));
    assert!(volume.exists());
    holder.kill().unwrap();
    holder.wait().unwrap();
    rig.edit("a", |disk| disk.metadata.generation = Some(3));
    rig.until("a", "removed", |s| s.phase == Some(DiskPhase::Removed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_empties_itself_after_the_retention_time() {
    let mut rig = Rig::new();
    rig.put("a", DiskSpec { wipe_after_delete: true, ..spec(DiskSource::default()) });
    rig.ready("a").await;
    rig.removed("a").await;
    let trashed = rig.layout().trashed_volume("a", DiskFormat::Qcow2);
    fs::write(rig.path().join("trash/unexplained.qcow2"), "kept").unwrap();
    assert!(trashed.exists());
    rig.domain.spec.trash.retention = "0s".into();
    rig.domain.spec.thresholds.warn_free_percent = 1;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    // The volume goes first, what explains it after that.
    let sidecar = rig.layout().trashed_sidecar("a");
    while trashed.exists() || sidecar.exists() {
        assert!(tokio::time::Instant::now() < deadline, "not purged in time");
        rig.update();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(rig.path().join("trash/unexplained.qcow2").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_ends_an_import() {
    let (rig, _served, _) = rig_with_server().await;
    // A server that takes a connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let mut rig = rig;
    rig.domain.spec.imports.allowed_urls = vec![url.clone()];
    rig.update();
    rig.put("a", http(format!("{url}image"), None));
    let _connection =
        tokio::time::timeout(DEADLINE, silent.accept()).await.expect("no connection in time").unwrap();
    rig.removed("a").await;
    assert_eq!(rig.layout().partials("a").unwrap(), Vec::<PathBuf>::new());
}
