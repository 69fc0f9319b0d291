//! Controller and node daemons die, or stand still, before and after each thing they do to the world, and are started
//! again: every VM gets where it was sent, guests that nobody stopped keep their process, nothing is left of what is
//! deleted, and then nobody writes anything. The parts are the programs that ship; hosts are in memory.

mod failpoints;
mod live;
mod parts;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use failpoints::{Life, Machine, Moment};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret, rbac::v1::Role};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use live::{Fleet, LIMIT, run, show};
use node_daemon::{host::memory::MemoryConfig, step_names::STEP_NAMES};
use node_plan::xml::{DiskSource, FieldDiff, InterfaceSource};
use parts::{Supervised, kubeconfig, program};
use serde_json::{Value, json};
use system_tests::{
    apiserver::{ApiServer, User, shared, start_with_chart},
    wait::until,
};
use vireo_crds::{
    meta::HOSTS_NAMESPACE,
    v1alpha1::{AffinityGroup, Host, HostSpec, Network, StorageDomain},
};

/// Hosts, each with a daemon that dies at some of the points. More of them and each dies less often.
const HOSTS: usize = 20;
/// Seconds a part stands still, where it does: longer than the leader's Lease.
const HANG: u32 = 4;
const SILENCE: Duration = Duration::from_secs(2);

/// Writes of the daemon to the API server on a host in memory.
const DAEMON_WRITES: [&str; 6] = [
    "api:APPLY disks/status",
    "api:APPLY hosts/status",
    "api:APPLY virtualmachineactions/status",
    "api:APPLY virtualmachines/status",
    "api:PATCH leases",
    "api:POST events",
];
/// A write that comes only when the same Event happens twice in the life of one process, and no life is bound to have that.
const DAEMON_MAY_WRITE: [&str; 1] = ["api:PATCH events"];
/// Its durable files there.
const DAEMON_FILES: [&str; 6] = [
    "file:rename to incarnation.json",
    "file:rename to ledger/*.json",
    "file:rename to ledger/incarnation.json",
    "file:write incarnation.json",
    "file:write ledger/*.json",
    "file:write ledger/incarnation.json",
];
/// Points at which a daemon stands still instead.
const DAEMON_HANGS: [&str; 4] = [
    "step:StartDomain:before",
    "step:StartDomain:after",
    "file:write ledger/*.json:after",
    "api:APPLY virtualmachines/status:before",
];

/// Writes of the controller to the API server.
const CONTROLLER_WRITES: [&str; 19] = [
    "api:APPLY affinitygroups/status",
    "api:APPLY disks/status",
    "api:APPLY hostclusters/status",
    "api:APPLY hosts/status",
    "api:APPLY networks/status",
    "api:APPLY rolebindings",
    "api:APPLY roles",
    "api:APPLY serviceaccounts",
    "api:APPLY storagedomains/status",
    "api:APPLY virtualmachineactions/status",
    "api:APPLY virtualmachines/status",
    "api:DELETE rolebindings",
    "api:DELETE roles",
    "api:DELETE virtualmachineactions",
    "api:PATCH disks",
    "api:PATCH hosts",
    "api:PATCH virtualmachines",
    "api:POST disks",
    "api:POST events",
];
/// The same, of Leases.
const CONTROLLER_LEASES: [&str; 3] = ["api:APPLY leases", "api:POST leases", "api:PUT leases"];
/// Points at which the controller stands still instead, until its Lease has run out.
const CONTROLLER_HANGS: [&str; 2] = ["step:SetPlacement:before", "step:SetPlacement:after"];

fn both(names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    names
        .into_iter()
        .flat_map(|name| ["before", "after"].map(|moment| format!("{}:{moment}", name.as_ref())))
        .collect()
}

fn of_steps(names: &[&str]) -> Vec<String> {
    both(names.iter().map(|name| format!("step:{name}")))
}

/// Arms points, those of `hangs` to stand still.
fn arm(points: &[String], hangs: &[&str]) -> Vec<String> {
    let end = |point: &str| if hangs.contains(&point) { format!("hang:{HANG}") } else { "abort".into() };
    points.iter().map(|point| format!("{point}={}", end(point))).collect()
}

/// What was reached and is in no list, what is in a list and was not reached.
fn compare(listed: &[String], reached: &BTreeSet<String>) -> Result<()> {
    let listed: BTreeSet<String> = listed.iter().cloned().collect();
    let unknown: Vec<_> = reached.difference(&listed).collect();
    let missed: Vec<_> = listed.difference(reached).collect();
    ensure!(
        unknown.is_empty() && missed.is_empty(),
        "reached and not listed: {unknown:?}; listed and not reached: {missed:?}"
    );
    Ok(())
}

/// A host in memory whose daemon is a process.
struct Node {
    name: String,
    dir: tempfile::TempDir,
    daemon: Mutex<Supervised>,
    command: Arc<dyn Fn() -> Command + Send + Sync>,
}

impl Node {
    /// The Host object, and files that its daemon will find.
    async fn join(server: &ApiServer, admin: &Client, name: &str, points: &[String]) -> Result<Self> {
        let object =
            Host::new(name, HostSpec { cluster: "default".into(), address: None, schedulable: true });
        Api::<Host>::all(admin.clone())
            .create(&PostParams::default(), &object)
            .await
            .context("create the Host")?;
        let leases: Api<Lease> = Api::namespaced(server.client(User::Host(name)).await?, HOSTS_NAMESPACE);
        until("the host may renew its Lease", LIMIT, || async { Ok(leases.get(name).await?) }).await?;
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("kubeconfig");
        kubeconfig(server, User::Host(name), &config).await?;
        std::fs::create_dir(dir.path().join("run"))?;
        // Then TPM states are copied in and out.
        std::fs::write(Self::file(dir.path()), r#"{"withoutTpmSource": true}"#)?;
        let (node, host, root) = (program("vireo-node")?, name.to_owned(), dir.path().to_owned());
        let command: Arc<dyn Fn() -> Command + Send + Sync> = Arc::new(move || {
            let mut command = Command::new(&node);
            command.args(["run", "--host-driver", "memory", "--host", &host, "--kubeconfig"]).arg(&config);
            command.arg("--state-dir").arg(root.join("state")).arg("--run-dir").arg(root.join("run"));
            command.env("VIREO_LOG", "info");
            command
        });
        let daemon = Mutex::new(Self::start(&command, dir.path(), points));
        Ok(Self { name: name.into(), dir, daemon, command })
    }

    fn start(command: &Arc<dyn Fn() -> Command + Send + Sync>, dir: &Path, points: &[String]) -> Supervised {
        let command = Arc::clone(command);
        Supervised::start(move || command(), points, dir, "node")
    }

    fn file(dir: &Path) -> PathBuf {
        dir.join("run/memory-host.json")
    }

    fn machine(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(Self::file(self.dir.path()))?)?)
    }

    fn daemon<T>(&self, use_it: impl FnOnce(&mut Supervised) -> T) -> T {
        use_it(&mut self.daemon.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody changes the machine by hand while no daemon looks.
    fn by_hand(&self, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
        let left = self.daemon(|daemon| daemon.left());
        self.daemon(Supervised::stop)?;
        let mut machine = self.machine()?;
        change(&mut machine)?;
        std::fs::write(Self::file(self.dir.path()), machine.to_string())?;
        self.daemon(|daemon| *daemon = Self::start(&self.command, self.dir.path(), &left));
        Ok(())
    }

    /// A domain of the VM's name is defined while the VM is down.
    fn define(&self, uid: &str) -> Result<()> {
        self.by_hand(|machine| {
            let domain = machine.pointer_mut(&format!("/guests/{uid}/facts/domain/absent/defined"));
            *domain.with_context(|| format!("no absent domain of {uid}"))? = Value::Bool(true);
            Ok(())
        })
    }

    /// Of the running guest's domain somebody changes the medium in the drive, the network of the NIC, what libvirt does
    /// when the guest powers off, and removes what ties it to its VM.
    fn change(&self, uid: &str) -> Result<()> {
        self.by_hand(|machine| {
            for (list, name, field, value) in [
                ("disks", "drive", "startedWith", serde_json::to_value(DiskSource::Empty)?),
                ("nics", "eth0", "startedIn", serde_json::to_value(InterfaceSource::Bridge("br0".into()))?),
            ] {
                let devices = machine.pointer_mut(&format!("/guests/{uid}/facts/domain/present/{list}"));
                let devices = devices.and_then(Value::as_array_mut).into_iter().flatten();
                let device = devices.filter_map(Value::as_object_mut).find(|device| device["name"] == name);
                device.with_context(|| format!("{uid} has no {name}"))?.insert(field.into(), value);
            }
            let drift = FieldDiff {
                path: "lifecycle.onPoweroff".into(),
                wanted: Some("destroy".into()),
                live: Some("preserve".into()),
            };
            let present = machine.pointer_mut(&format!("/guests/{uid}/facts/domain/present"));
            let present = present.and_then(Value::as_object_mut).context("no domain")?;
            present.insert("drift".into(), json!([drift]));
            present.insert("metadata".into(), Value::Null);
            Ok(())
        })
    }

    /// Whether the running guest's domain is as it was started.
    fn unchanged(&self, uid: &str) -> Result<()> {
        let machine = self.machine()?;
        let domain = machine.pointer(&format!("/guests/{uid}/facts/domain/present")).context("no domain")?;
        ensure!(domain.get("metadata").is_some_and(Value::is_object), "nothing ties it to its VM: {domain}");
        let text = domain.to_string();
        let changes = ["startedWith", "startedIn", "lifecycle.onPoweroff"];
        ensure!(!changes.iter().any(|change| text.contains(change)), "{text}");
        Ok(())
    }
}

impl Machine for Node {
    fn guest(&self, uid: &str) -> Result<Option<(u32, u32)>> {
        let machine = self.machine()?;
        let Some(guest) = machine.pointer(&format!("/guests/{uid}")) else { return Ok(None) };
        let number = |name: &str| guest.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let runs = guest.pointer("/facts/domain/present").is_some();
        Ok(number("pid").zip(number("starts")).filter(|_| runs))
    }

    fn left(&self, uid: &str) -> Result<Vec<String>> {
        let machine = self.machine()?;
        let mut left = Vec::new();
        if let Some(guest) = machine.pointer(&format!("/guests/{uid}/facts")) {
            if guest.pointer("/domain/absent/defined") != Some(&Value::Bool(false)) {
                left.push(format!("domain {}", guest.get("domain").unwrap_or(&Value::Null)));
            }
            let fresh = serde_json::to_value(node_plan::facts::HostFiles::default())?;
            if guest.get("files") != Some(&fresh) {
                left.push(format!("files {}", guest.get("files").unwrap_or(&Value::Null)));
            }
        }
        if let Some(tokens) = machine.get("tokens").and_then(Value::as_object).filter(|map| !map.is_empty()) {
            left.push(format!("tokens {tokens:?}"));
        }
        let ledger = self.dir.path().join("state/ledger").join(format!("{uid}.json"));
        let entry = node_plan::ledger::decode(&std::fs::read_to_string(&ledger)?, uid)?;
        if entry.open().is_some() {
            left.push("an open grant in the ledger".into());
        }
        for folder in ["state/ledger", "run", "run/permits", "state/seeds"] {
            for file in std::fs::read_dir(self.dir.path().join(folder))? {
                let name = file?.file_name().to_string_lossy().into_owned();
                if name.ends_with(".new") {
                    left.push(format!("file {folder}/{name}"));
                }
            }
        }
        Ok(left)
    }

    fn healthy(&self) -> Result<()> {
        self.daemon(|daemon| daemon.check())
    }
}

/// Roles that VMs' Secrets were read with.
async fn no_roles(client: &Client) -> Result<()> {
    let roles: Api<Role> = Api::namespaced(client.clone(), failpoints::NAMESPACE);
    until("no Role of a VM is left", LIMIT, || async {
        let names: Vec<String> =
            roles.list(&Default::default()).await?.iter().map(ResourceExt::name_any).collect();
        ensure!(names.iter().all(|name| !name.starts_with("vireo-vm-")), "{names:?}");
        Ok(())
    })
    .await
}

async fn secret(client: &Client) -> Result<()> {
    let secret = Secret {
        metadata: ObjectMeta { name: Some("user-data".into()), ..ObjectMeta::default() },
        string_data: Some(BTreeMap::from([("userData".into(), "#cloud-config\n".into())])),
        ..Secret::default()
    };
    Api::namespaced(client.clone(), failpoints::NAMESPACE).create(&PostParams::default(), &secret).await?;
    Ok(())
}

/// Whether the programs are there; a test that cannot run says so.
fn built(test: &str) -> bool {
    for name in ["vireo-node", "vireo-controller"] {
        if let Err(why) = program(name) {
            system_tests::skip(test, &format!("{why:#}"));
            return false;
        }
    }
    true
}

#[test]
fn daemons_die_at_every_point() -> Result<()> {
    if !built("daemons_die_at_every_point") {
        return Ok(());
    }
    run("daemons_die_at_every_point", async {
        let began = Instant::now();
        let fleet = Fleet::start_at(shared()?, 0, &MemoryConfig::default()).await?;
        secret(&fleet.admin).await?;
        let listed: Vec<String> = [of_steps(STEP_NAMES), both(DAEMON_WRITES), both(DAEMON_FILES)].concat();
        let armed = arm(&listed, &DAEMON_HANGS);
        // All hosts first: while one joins, the figures of the others' networks and storage change as well.
        let joins = (0..HOSTS).map(|number| {
            // Neighbours in the list go to different hosts: before and after the same thing above all.
            let points: Vec<String> = armed.iter().skip(number).step_by(HOSTS).cloned().collect();
            join(&fleet, number, points)
        });
        let nodes = try_join_all(joins).await?;
        let walks =
            nodes.iter().enumerate().map(|(number, (node, points))| walk(&fleet, number, node, points));
        let (mut reached, mut failed) = (BTreeSet::new(), Vec::new());
        for walked in join_all(walks).await {
            match walked {
                Ok(points) => reached.extend(points),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        for point in both(DAEMON_MAY_WRITE) {
            reached.remove(&point);
        }
        compare(&listed, &reached)?;
        no_roles(&fleet.admin).await?;
        show(&format!("{} points of the daemon on {HOSTS} hosts in {:.1?}", listed.len(), began.elapsed()))
    })
}

/// One host with its daemon, Ready although the daemon may have died on the way.
async fn join(fleet: &Fleet, number: usize, points: Vec<String>) -> Result<(Node, Vec<String>)> {
    let name = format!("host{number}");
    let node = Node::join(fleet.server, &fleet.admin, &name, &points).await?;
    fleet.host_ready(&name).await.with_context(|| format!("{name} dies at {points:?}"))?;
    Ok((node, points))
}

/// The life of a VM on this host. Gives the points that were reached.
async fn walk(fleet: &Fleet, number: usize, node: &Node, points: &[String]) -> Result<Vec<String>> {
    let name = node.name.clone();
    let life = Life { client: &fleet.admin, name: format!("vm{number}"), host: name.clone(), machine: node };
    let dies_at = |step: &str| points.iter().any(|point| point.contains(step));
    let undefines = dies_at("Undefine");
    let changes = ["SetMedia", "SetNetwork", "EndWithGuest", "WriteMetadata"].into_iter().any(dies_at);
    let meddle = async |uid: &str, when: Moment| match when {
        Moment::Running if changes => {
            node.change(uid)?;
            until("the domain is as it was started", LIMIT, || async { node.unchanged(uid) }).await
        }
        Moment::Stopped if undefines => node.define(uid),
        Moment::Running | Moment::Stopped => Ok(()),
    };
    let lived = life.live(meddle).await.with_context(|| {
        format!("{name}, dies at {points:?}, left {:?}", node.daemon(|daemon| daemon.left()))
    });
    if let Err(error) = lived {
        let kept = system_tests::root().join("target/test-logs").join(format!("failpoints-{name}.log"));
        let _ = std::fs::create_dir_all(system_tests::root().join("target/test-logs"));
        let _ = std::fs::copy(node.dir.path().join("node.log"), &kept);
        return Err(error.context(format!("its log is {}", kept.display())));
    }
    // Whatever was still to be written has been, and then nobody writes.
    quiet(fleet, node).await?;
    let left: Vec<String> =
        node.daemon(|daemon| daemon.left()).into_iter().filter(|point| !point.contains("=hang")).collect();
    ensure!(left.is_empty(), "{name}: never died at {left:?}");
    node.daemon(|daemon| daemon.check())?;
    let reached = node.daemon(|daemon| daemon.reached())?;
    Ok(reached.into_iter().collect())
}

/// Until nobody has written to the Host for a while, heartbeats apart: those are Leases.
async fn quiet(fleet: &Fleet, node: &Node) -> Result<()> {
    let api: Api<Host> = Api::all(fleet.admin.clone());
    let deadline = Instant::now() + LIMIT;
    let mut before = api.get(&node.name).await?.resource_version();
    loop {
        tokio::time::sleep(SILENCE).await;
        let host = api.get(&node.name).await?;
        if host.resource_version() == before {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("Host {} is written again and again: {}", node.name, serde_json::to_string(&host.status)?);
        }
        before = host.resource_version();
    }
}

/// A host of a fleet in this process, for a controller that is a process.
struct Hosts<'a> {
    fleet: &'a Fleet,
    controller: &'a Mutex<Supervised>,
}

impl Machine for Hosts<'_> {
    fn guest(&self, uid: &str) -> Result<Option<(u32, u32)>> {
        Ok(self.fleet.guests().get(uid).copied())
    }

    fn left(&self, uid: &str) -> Result<Vec<String>> {
        Ok(self.guest(uid)?.map(|guest| format!("process {guest:?}")).into_iter().collect())
    }

    fn healthy(&self) -> Result<()> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner).check()
    }
}

#[test]
fn the_controller_dies_at_every_point() -> Result<()> {
    if !built("the_controller_dies_at_every_point") {
        return Ok(());
    }
    run("the_controller_dies_at_every_point", async {
        let began = Instant::now();
        let server: &'static ApiServer = Box::leak(Box::new(start_with_chart()?));
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("kubeconfig");
        kubeconfig(server, User::Controller, &config).await?;
        let program = program("vireo-controller")?;
        let command = move || {
            let mut command = Command::new(&program);
            command.args(["run", "--http", "127.0.0.1:0", "--kubeconfig"]).arg(&config);
            command.args([
                "--lease-duration",
                "1.5",
                "--lease-renew-deadline",
                "1",
                "--lease-retry-period",
                "0.2",
            ]);
            command
        };
        let listed: Vec<String> =
            [of_steps(controller_plan::step::Step::NAMES), both(CONTROLLER_WRITES), both(CONTROLLER_LEASES)]
                .concat();
        let armed = arm(&listed, &CONTROLLER_HANGS);
        let controller = Mutex::new(Supervised::start(command, &armed, dir.path(), "controller"));
        let walked = walk_controller(server, &controller).await;
        let (left, reached, starts) = {
            let controller = controller.lock().unwrap_or_else(PoisonError::into_inner);
            (controller.left(), controller.reached()?, controller.starts())
        };
        if let Err(error) = walked {
            let kept = system_tests::root().join("target/test-logs/failpoints-controller.log");
            let _ = std::fs::create_dir_all(system_tests::root().join("target/test-logs"));
            let _ = std::fs::copy(dir.path().join("controller.log"), &kept);
            return Err(error.context(format!("its log is {}; not died at {left:?}", kept.display())));
        }
        compare(&listed, &reached)?;
        let left: Vec<_> = left.iter().filter(|point| !point.contains("=hang")).collect();
        ensure!(left.is_empty(), "never died at {left:?}");
        controller.lock().unwrap_or_else(PoisonError::into_inner).stop()?;
        show(&format!(
            "{} points of the controller, started {starts} times, in {:.1?}",
            listed.len(),
            began.elapsed()
        ))
    })
}

/// A Host that is made and deleted again before it joins: while it is there, no VM is placed.
async fn comes_and_goes(client: &Client, name: &str) -> Result<()> {
    let hosts: Api<Host> = Api::all(client.clone());
    let spec = HostSpec { cluster: "default".into(), address: None, schedulable: true };
    hosts.create(&PostParams::default(), &Host::new(name, spec)).await.context("create a Host")?;
    until("the Host has its finalizer", LIMIT, || async {
        ensure!(!hosts.get(name).await?.finalizers().is_empty(), "it has none");
        Ok(())
    })
    .await?;
    hosts.delete(name, &DeleteParams::default()).await?;
    until("the Host is gone", LIMIT, || async {
        ensure!(hosts.get_opt(name).await?.is_none(), "it is there");
        Ok(())
    })
    .await
}

/// A Host, a network, a storage domain and an affinity group of their own for each life: they are written when they are
/// new, and hardly ever again.
async fn surroundings(client: &Client, number: usize) -> Result<()> {
    comes_and_goes(client, &format!("spare{number}")).await?;
    let network: Network = serde_json::from_value(json!({
        "apiVersion": "vireo.dev/v1alpha1", "kind": "Network", "metadata": {"name": format!("nat{number}")},
        "spec": {"nat": {"cidr": format!("10.89.{number}.0/24"), "dhcp": {}}},
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &network).await.context("create a Network")?;
    let domain: StorageDomain = serde_json::from_value(json!({
        "apiVersion": "vireo.dev/v1alpha1", "kind": "StorageDomain", "metadata": {"name": format!("shared{number}")},
        "spec": {"directory": {"path": format!("/srv/vireo/shared{number}"), "shared": true}},
    }))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &domain)
        .await
        .context("create a StorageDomain")?;
    let group: AffinityGroup = serde_json::from_value(json!({
        "apiVersion": "vireo.dev/v1alpha1", "kind": "AffinityGroup", "metadata": {"name": format!("apart{number}")},
        "spec": {"virtualMachines": {"matchLabels": {"app": "web"}}, "vmRule": {"polarity": "Negative"}},
    }))?;
    Api::namespaced(client.clone(), failpoints::NAMESPACE)
        .create(&PostParams::default(), &group)
        .await
        .context("create an AffinityGroup")?;
    Ok(())
}

async fn walk_controller(server: &'static ApiServer, controller: &Mutex<Supervised>) -> Result<()> {
    let fleet = Fleet::without_controller(server, 2).await?;
    secret(&fleet.admin).await?;
    let hosts = Hosts { fleet: &fleet, controller };
    // As many lives as it takes: each death leaves less to die at.
    for number in 1..=8 {
        surroundings(&fleet.admin, number).await?;
        let name = format!("vm{number}");
        let life = Life { client: &fleet.admin, name, host: "host1".into(), machine: &hosts };
        life.live(async |_: &str, _: Moment| Ok(())).await?;
        let left = controller.lock().unwrap_or_else(PoisonError::into_inner).left();
        if left.iter().all(|point| point.contains("=hang")) {
            break;
        }
    }
    no_roles(&fleet.admin).await?;
    fleet.silent(SILENCE, LIMIT).await.map(drop)
}
