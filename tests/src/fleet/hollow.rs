//! The hosts: each a shipped daemon on a host in memory, all in this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderValue, Request, header::USER_AGENT};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, PostParams},
    client::{Body, ClientBuilder},
};
use node_daemon::{
    backing::BackingConfig,
    host::memory::{MemoryConfig, MemoryDriver, MemoryHost},
    run::{Daemon, Options},
    watch::WATCH_SECONDS,
};
use tokio::runtime::Handle;
use tower::util::MapRequestLayer;
use vireo_crds::{
    condition,
    meta::HOSTS_NAMESPACE,
    v1alpha1::{Host, HostSpec},
};

use crate::{
    apiserver::{User, speak_as},
    client::client,
    requests::{Counts, Tally},
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(120);
/// Requests under way at once while hosts are made.
const AT_ONCE: usize = 8;

/// One host.
pub struct HollowHost {
    /// Its name.
    pub name: String,
    /// The machine: lives on without the daemon.
    pub machine: Arc<MemoryHost>,
    dir: tempfile::TempDir,
    daemon: Option<Daemon>,
}

/// Makes the client of the daemon of a host.
pub type ClientOf = Arc<dyn Fn(&str) -> Result<Client> + Send + Sync>;

/// What the fleet is made of.
#[derive(Clone)]
pub struct HollowConfig {
    /// How the administrator reaches the API server.
    pub admin: Config,
    /// Makes the client of each daemon, which speaks as its host.
    pub client: ClientOf,
    /// Where clients count what they write, if they do.
    pub tally: Tally,
    /// What each machine looks like.
    pub machine: MemoryConfig,
    /// Seconds after which daemons reopen their watches.
    pub watch_seconds: u32,
}

impl HollowConfig {
    /// Large machines whose guests take `boot_time` until their agent speaks.
    pub fn new(admin: Config, boot_time: Duration) -> Self {
        let machine = MemoryConfig { cpus: 512, memory: 2 << 40, boot_time, ..MemoryConfig::default() };
        let tally = Tally::default();
        let client = direct(admin.clone(), tally.clone());
        Self { admin, client, tally, machine, watch_seconds: WATCH_SECONDS }
    }
}

/// Straight to the API server, each write counted.
fn direct(admin: Config, tally: Tally) -> ClientOf {
    Arc::new(move |host| {
        let mut config = speak_as(admin.clone(), User::Host(host));
        config.connect_timeout = Some(Duration::from_secs(5));
        config.headers.push((USER_AGENT, HeaderValue::from_static("vireo-node")));
        let tally = tally.clone();
        let count = MapRequestLayer::new(move |request: Request<Body>| {
            tally.count(&request);
            request
        });
        Ok(ClientBuilder::try_from(config)?.with_layer(&count).build())
    })
}

/// Each real host syncs its ledger to a disk of its own; fifty of them on the one disk of this machine would wait for
/// each other, so what they write stays in memory where that can be had.
fn own_dir() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// All hosts of this process.
pub struct HollowFleet {
    config: HollowConfig,
    admin: Client,
    /// The hosts.
    pub hosts: Vec<HollowHost>,
}

impl HollowFleet {
    /// A fleet without hosts.
    pub fn new(config: HollowConfig) -> Result<Self> {
        let admin = client(&config.admin)?;
        Ok(Self { config, admin, hosts: Vec::new() })
    }

    /// Makes Host objects until there are `count`, starts their daemons, and waits until all are Ready.
    pub async fn grow(&mut self, count: usize) -> Result<()> {
        let names: Vec<String> =
            (self.hosts.len()..count).map(|number| format!("host-{number:03}")).collect();
        let hosts: Api<Host> = Api::all(self.admin.clone());
        futures::stream::iter(&names)
            .map(|name| {
                let hosts = hosts.clone();
                async move {
                    let spec = HostSpec { cluster: "default".into(), address: None, schedulable: true };
                    hosts.create(&PostParams::default(), &Host::new(name, spec)).await.map(drop)
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
            .context("create the Hosts")?;
        let leases: Api<Lease> = Api::namespaced(self.admin.clone(), HOSTS_NAMESPACE);
        until("every host may renew its Lease", LIMIT, || async {
            let there: BTreeSet<String> =
                leases.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
            let missing = names.iter().filter(|name| !there.contains(*name)).count();
            ensure!(missing == 0, "{missing} Leases are missing");
            Ok(())
        })
        .await?;
        for name in names {
            let machine =
                MemoryConfig { machine_uuid: format!("machine-of-{name}"), ..self.config.machine.clone() };
            let machine = MemoryHost::new(machine, Handle::current());
            self.hosts.push(HollowHost { name, machine, dir: own_dir()?, daemon: None });
            self.start(self.hosts.len() - 1)?;
        }
        self.ready().await
    }

    /// Waits until every Host is Ready.
    pub async fn ready(&self) -> Result<()> {
        let hosts: Api<Host> = Api::all(self.admin.clone());
        until("every Host is Ready", LIMIT, || async {
            let all = hosts.list(&ListParams::default()).await?;
            let ready = |host: &&Host| {
                let conditions = host.status.as_ref().map(|status| status.conditions.as_slice());
                condition::is_true(conditions.unwrap_or_default(), "Ready")
            };
            let count = all.iter().filter(ready).count();
            ensure!(count == self.hosts.len(), "{count} of {}", self.hosts.len());
            Ok(())
        })
        .await
    }

    /// Starts the daemon of a host.
    pub fn start(&mut self, index: usize) -> Result<()> {
        let host = self.hosts.get_mut(index).context("there is no such host")?;
        ensure!(host.daemon.is_none(), "its daemon runs");
        let dir = host.dir.path();
        host.daemon = Some(Daemon::start(Options {
            host: host.name.clone(),
            client: (self.config.client)(&host.name)?,
            driver: Arc::new(MemoryDriver(Arc::clone(&host.machine))),
            backing: BackingConfig::Memory,
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            libvirt_tpm_dir: dir.join("swtpm"),
            boot_id: Some(format!("boot-of-{}", host.name)),
            public_key_sha256: "0".repeat(64),
            http: None,
            watch_seconds: self.config.watch_seconds,
        })?);
        Ok(())
    }

    /// Ends the daemon of a host; its guests go on.
    pub async fn stop(&mut self, index: usize) -> Result<()> {
        let host = self.hosts.get_mut(index).context("there is no such host")?;
        host.daemon.take().context("its daemon does not run")?.stop().await;
        Ok(())
    }

    /// Processes of guests by domain UUID: host and pid of each.
    pub fn guests(&self) -> BTreeMap<String, Vec<(String, u32)>> {
        let mut guests = BTreeMap::<String, Vec<(String, u32)>>::new();
        for host in &self.hosts {
            for (uuid, pid) in host.machine.pids() {
                guests.entry(uuid).or_default().push((host.name.clone(), pid));
            }
        }
        guests
    }

    /// Writes of all daemons so far, Leases aside.
    pub fn sent(&self) -> Counts {
        self.config.tally.counts()
    }

    /// Files the daemons keep of VMs: open ledger entries, seed images, sockets. What a closed entry remembers stays
    /// until the host starts anew: which numbers are used up.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for host in &self.hosts {
            collect_files(&host.dir.path().join("state"), &mut found)?;
        }
        found.retain(|path| !is_kept(path));
        Ok(found)
    }
}

/// Whether a file outlives the VMs: which life of the ledger this is, and its entries of grants that are closed.
fn is_kept(path: &Path) -> bool {
    if path.parent().and_then(Path::file_name) != Some(OsStr::new("ledger")) {
        return false;
    }
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let Some(uid) = name.strip_suffix(".json") else { return false };
    let entry = || node_plan::ledger::decode(&std::fs::read_to_string(path).ok()?, uid).ok();
    uid == "incarnation" || entry().is_some_and(|entry| entry.open().is_none())
}

fn collect_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}
