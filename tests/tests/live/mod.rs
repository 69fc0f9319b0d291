//! Everything of Vireo but QEMU: the real controller and real daemons on hosts in memory, each in a runtime of its own,
//! so that it can be stopped as SIGTERM does, or killed. The hosts in memory live on without their daemons.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{collections::BTreeMap, fs, future::Future, io::Write as _, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use controller::{
    lease::Timing,
    run::{Running, Settings, WATCH_SECONDS, start},
};
use http::Request;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    client::{Body, ClientBuilder},
};
use node_daemon::{
    backing::BackingConfig,
    host::memory::{MemoryConfig, MemoryDriver, MemoryHost},
    run::{Daemon, Options},
};
use serde_json::json;
pub use system_tests::requests::{Counts, since, writes};
use system_tests::{
    apiserver::{ApiServer, Stop, User, shared},
    requests::Tally,
    wait::until,
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;
use vireo_crds::{
    condition,
    meta::{HOSTS_NAMESPACE, SESSION_LEASE, SYSTEM_NAMESPACE},
    v1alpha1::{Host, HostSpec, Network, StorageDomain, VirtualMachine},
};

pub const LIMIT: Duration = Duration::from_secs(60);
/// Shorter than in production, so that a killed leader's Lease runs out in seconds.
pub const TIMING: Timing = Timing {
    duration: Duration::from_secs(3),
    renew_deadline: Duration::from_secs(2),
    retry_period: Duration::from_millis(400),
};

/// As in production: for tests that load the machine so that renewals come late.
pub const PATIENT: Timing = Timing {
    duration: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry_period: Duration::from_secs(2),
};

/// Whether the tools are there; a test that cannot run here says so.
pub fn available(test: &str) -> Result<bool> {
    if let Err(why) = shared() {
        let why = format!("{why:#}");
        // Tools that were never built; anything else is a failure.
        ensure!(why.contains("run `make tools`"), "{why}");
        system_tests::skip(test, &why);
        return Ok(false);
    }
    // More log lines than a person reads, unless asked for.
    if let Ok(filter) = std::env::var("VIREO_LOG") {
        let _ = controller::telemetry::start(&filter, controller::args::LogFormat::Text);
    }
    Ok(true)
}

/// Runs a test that has its fleet for itself.
pub fn run(name: &str, test: impl Future<Output = Result<()>>) -> Result<()> {
    if !available(name)? {
        return Ok(());
    }
    runtime()?.block_on(test)
}

/// Prints what people may want to read although the test succeeds: past the test harness, which would swallow it.
pub fn show(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A runtime's tasks end where they stand; what blocks a thread gets a moment, as a system call does.
async fn end(runtime: Runtime) -> Result<()> {
    Ok(tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(1))).await?)
}

/// A controller in this process.
pub struct Controller {
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
    running: Option<Running>,
}

impl Controller {
    pub async fn start(server: &ApiServer) -> Result<Self> {
        Self::start_with(server, TIMING).await
    }

    pub async fn start_with(server: &ApiServer, timing: Timing) -> Result<Self> {
        let identity = format!("test-{}", jiff::Timestamp::now().as_nanosecond());
        let settings = Settings {
            http: ([127, 0, 0, 1], 0).into(),
            timing,
            workers: 8,
            identity,
            watch_seconds: WATCH_SECONDS,
        };
        let config = server.config(User::Controller).await?;
        let runtime = runtime()?;
        let shutdown = CancellationToken::new();
        let running = runtime.spawn(start(config, settings, shutdown.clone())).await??;
        Ok(Self { runtime: Some(runtime), shutdown, running: Some(running) })
    }

    pub async fn stop(mut self, how: Stop) -> Result<()> {
        if let (Stop::Term, Some(running)) = (how, self.running.take()) {
            self.shutdown.cancel();
            running.stopped().await?;
        }
        end(self.runtime.take().context("it has ended")?).await
    }
}

/// What a failed test leaves.
impl Drop for Controller {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A host in memory with its daemon.
pub struct Node {
    pub name: String,
    /// The machine: lives on without the daemon.
    pub machine: Arc<MemoryHost>,
    /// Where the machine's own clockwork turns.
    clockwork: Option<Runtime>,
    dir: tempfile::TempDir,
    boot_id: String,
    daemon: Option<(Runtime, Daemon)>,
    tally: Tally,
}

impl Node {
    /// Makes the Host object and starts the daemon once it may renew its Lease.
    pub async fn join(server: &ApiServer, name: &str, machine: MemoryConfig) -> Result<Self> {
        let admin = server.client(User::Admin).await?;
        let object =
            Host::new(name, HostSpec { cluster: "default".into(), address: None, schedulable: true });
        Api::<Host>::all(admin).create(&PostParams::default(), &object).await.context("create the Host")?;
        let leases: Api<Lease> = Api::namespaced(server.client(User::Host(name)).await?, HOSTS_NAMESPACE);
        until("the host may renew its Lease", LIMIT, || async { Ok(leases.get(name).await?) }).await?;
        let clockwork = runtime()?;
        let machine = MemoryConfig { machine_uuid: format!("machine-of-{name}"), ..machine };
        let machine = MemoryHost::new(machine, clockwork.handle().clone());
        let mut node = Self {
            name: name.into(),
            machine,
            clockwork: Some(clockwork),
            dir: tempfile::tempdir()?,
            boot_id: format!("boot-of-{name}"),
            daemon: None,
            tally: Tally::default(),
        };
        node.start(server).await?;
        Ok(node)
    }

    /// Boots another machine from a copy of this one's disk: it has the name, the key and the ledger, and no guests.
    pub async fn copy(&self, server: &ApiServer, machine_uuid: &str) -> Result<Self> {
        let clockwork = runtime()?;
        let machine = MemoryConfig { machine_uuid: machine_uuid.into(), ..MemoryConfig::default() };
        let dir = tempfile::tempdir()?;
        copy_dir(&self.state_dir(), &dir.path().join("state"))?;
        let mut node = Self {
            name: self.name.clone(),
            machine: MemoryHost::new(machine, clockwork.handle().clone()),
            clockwork: Some(clockwork),
            dir,
            boot_id: format!("boot-of-{machine_uuid}"),
            daemon: None,
            tally: Tally::default(),
        };
        node.start(server).await?;
        Ok(node)
    }

    pub async fn start(&mut self, server: &ApiServer) -> Result<()> {
        let runtime = runtime()?;
        let mut config = server.config(User::Host(&self.name)).await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        let tally = self.tally.clone();
        let count = MapRequestLayer::new(move |request: Request<Body>| {
            tally.count(&request);
            request
        });
        let options = {
            let _inside = runtime.enter();
            Options {
                host: self.name.clone(),
                client: ClientBuilder::try_from(config)?.with_layer(&count).build(),
                driver: Arc::new(MemoryDriver(Arc::clone(&self.machine))),
                backing: BackingConfig::Memory,
                state_dir: self.dir.path().join("state"),
                run_dir: self.dir.path().join("run"),
                libvirt_tpm_dir: self.dir.path().join("swtpm"),
                boot_id: Some(self.boot_id.clone()),
                public_key_sha256: "0".repeat(64),
                http: None,
                watch_seconds: node_daemon::watch::WATCH_SECONDS,
            }
        };
        let daemon = runtime.spawn(async move { Daemon::start(options) }).await??;
        self.daemon = Some((runtime, daemon));
        Ok(())
    }

    pub async fn stop(&mut self, how: Stop) -> Result<()> {
        let (runtime, daemon) = self.daemon.take().context("its daemon does not run")?;
        match how {
            Stop::Term => {
                runtime.spawn(daemon.stop()).await?;
                end(runtime).await
            }
            Stop::Kill => {
                end(runtime).await?;
                drop(daemon);
                Ok(())
            }
        }
    }

    /// Where its daemon keeps what survives a boot.
    pub fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    /// The machine breaks and is set up anew under its name: no guest, no ledger, nothing known of before.
    pub async fn replace(&mut self, server: &ApiServer) -> Result<()> {
        self.stop(Stop::Kill).await?;
        self.machine.cut_power();
        self.dir = tempfile::tempdir()?;
        self.start(server).await
    }

    /// Writes its daemons have sent so far.
    pub fn sent(&self) -> Counts {
        self.tally.counts()
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// What a failed test leaves.
impl Drop for Node {
    fn drop(&mut self) {
        self.daemon.take().into_iter().for_each(|(runtime, _)| runtime.shutdown_background());
        self.clockwork.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A controller, hosts, a network `nat` and a storage domain `shared`.
pub struct Fleet {
    pub server: &'static ApiServer,
    pub admin: Client,
    pub controller: Option<Controller>,
    pub nodes: Vec<Node>,
}

impl Fleet {
    pub async fn start(hosts: usize) -> Result<Self> {
        Self::start_at(shared()?, hosts, &MemoryConfig::default()).await
    }

    pub async fn start_at(server: &'static ApiServer, hosts: usize, machine: &MemoryConfig) -> Result<Self> {
        let controller = Some(Controller::start(server).await?);
        Self::join(server, controller, hosts, machine).await
    }

    /// With a controller that somebody else runs.
    pub async fn without_controller(server: &'static ApiServer, hosts: usize) -> Result<Self> {
        Self::join(server, None, hosts, &MemoryConfig::default()).await
    }

    async fn join(
        server: &'static ApiServer,
        controller: Option<Controller>,
        hosts: usize,
        machine: &MemoryConfig,
    ) -> Result<Self> {
        let admin = server.client(User::Admin).await?;
        let domain = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "StorageDomain", "metadata": {"name": "shared"}, "spec": {"directory": {"path": "/srv/vireo/shared", "shared": true}}});
        Api::<StorageDomain>::all(admin.clone())
            .create(&PostParams::default(), &serde_json::from_value(domain)?)
            .await?;
        let network = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Network", "metadata": {"name": "nat"}, "spec": {"nat": {"cidr": "10.88.0.0/24", "dhcp": {}}}});
        Api::<Network>::all(admin.clone())
            .create(&PostParams::default(), &serde_json::from_value(network)?)
            .await?;
        let mut fleet = Self { server, admin, controller, nodes: Vec::new() };
        for number in 1..=hosts {
            fleet.nodes.push(Node::join(server, &format!("host{number}"), machine.clone()).await?);
        }
        for node in &fleet.nodes {
            fleet.host_ready(&node.name).await?;
        }
        Ok(fleet)
    }

    pub async fn host_ready(&self, name: &str) -> Result<()> {
        let api: Api<Host> = Api::all(self.admin.clone());
        until(&format!("Host {name} is Ready"), LIMIT, || async {
            let host = api.get(name).await?;
            let conditions =
                host.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            ensure!(condition::is_true(conditions, "Ready"), "{}", serde_json::to_string(conditions)?);
            Ok(())
        })
        .await
    }

    pub fn vms(&self, namespace: &str) -> Api<VirtualMachine> {
        Api::namespaced(self.admin.clone(), namespace)
    }

    /// The VM, once `holds` says so; else what it last looked like.
    pub async fn vm(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        holds: impl Fn(&VirtualMachine) -> bool,
    ) -> Result<VirtualMachine> {
        let api = self.vms(namespace);
        until(&format!("VM {namespace}/{name}: {what}"), LIMIT, || async {
            let vm = api.get(name).await?;
            ensure!(
                holds(&vm),
                "generation {:?}, {}",
                vm.metadata.generation,
                serde_json::to_string(&vm.status)?
            );
            Ok(vm)
        })
        .await
    }

    pub async fn ready(&self, namespace: &str, name: &str) -> Result<VirtualMachine> {
        self.vm(namespace, name, "is Ready", is_ready).await
    }

    /// Until every host has answered the session of the controller that leads now.
    pub async fn attested(&self) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.admin.clone(), SYSTEM_NAMESPACE);
        let hosts: Api<Host> = Api::all(self.admin.clone());
        until("every host answers the session", LIMIT, || async {
            let nonce = leases
                .get(SESSION_LEASE)
                .await?
                .spec
                .and_then(|spec| spec.holder_identity)
                .context("no session")?;
            for node in &self.nodes {
                let host = hosts.get(&node.name).await?;
                let answered =
                    host.status.and_then(|status| status.attestation).map(|attestation| attestation.session);
                ensure!(
                    answered.as_deref() == Some(&nonce),
                    "{} answered {answered:?}, not {nonce}",
                    node.name
                );
            }
            Ok(())
        })
        .await
    }

    /// Processes of all guests, by domain UUID.
    pub fn guests(&self) -> BTreeMap<String, (u32, u32)> {
        let of = |node: &Node| {
            node.machine
                .pids()
                .into_iter()
                .map(|(uuid, pid)| {
                    let starts = node.machine.starts(&uuid);
                    (uuid, (pid, starts))
                })
                .collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    /// Whether the guest of this VM has a process.
    pub fn runs(&self, vm: &VirtualMachine) -> bool {
        self.guests().contains_key(&vm.uid().unwrap_or_default())
    }

    /// Writes all daemons have sent so far.
    pub fn sent(&self) -> Counts {
        let mut sum = Counts::new();
        for (what, count) in self.nodes.iter().flat_map(Node::sent) {
            *sum.entry(what).or_default() += count;
        }
        sum
    }

    /// Waits until nobody has written to this VM for `quiet`.
    pub async fn silent_about(&self, namespace: &str, name: &str, quiet: Duration) -> Result<()> {
        let api = self.vms(namespace);
        let deadline = tokio::time::Instant::now() + LIMIT;
        let mut before = api.get(name).await?.resource_version();
        loop {
            tokio::time::sleep(quiet).await;
            let vm = api.get(name).await?;
            if vm.resource_version() == before {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "VM {namespace}/{name} is written again and again: {}",
                serde_json::to_string(&vm.status)?
            );
            before = vm.resource_version();
        }
    }

    /// Waits until nothing but Leases has been written for `quiet`; what was written while it waited.
    pub async fn silent(&self, quiet: Duration, limit: Duration) -> Result<Counts> {
        let deadline = tokio::time::Instant::now() + limit;
        let first = writes(&self.admin).await?;
        let mut before = first.clone();
        loop {
            tokio::time::sleep(quiet).await;
            let after = writes(&self.admin).await?;
            let more = since(&before, &after);
            if more.is_empty() {
                return Ok(since(&first, &after));
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "no silence of {quiet:?} within {limit:?}; last written: {more:?}"
            );
            before = after;
        }
    }
}

/// Ready, and of the generation it has.
pub fn is_ready(vm: &VirtualMachine) -> bool {
    let Some(status) = &vm.status else { return false };
    status.observed_generation == vm.metadata.generation && condition::is_true(&status.conditions, "Ready")
}
