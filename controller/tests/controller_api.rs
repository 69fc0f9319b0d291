//! The controller against a real API server, with hosts that only pretend: what it writes, and when.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, ensure};
use controller::{
    lease::Timing,
    run::{Running, Settings, WATCH_SECONDS, start},
};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
        coordination::v1::Lease,
        core::v1::Secret,
    },
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use system_tests::{
    apiserver::{ApiServer, User, shared},
    fake_host::{FakeHost, placement},
    wait::until,
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use vireo_crds::{
    condition,
    meta::{FINALIZER, LEADER_LEASE, SESSION_LEASE, SYSTEM_NAMESPACE},
    v1alpha1::{
        ActPhase, Disk, EvidenceKind, Host, HostCluster, StorageDomain, VirtualMachine, VirtualMachineAction,
    },
};

const LIMIT: Duration = Duration::from_secs(30);
/// Shorter than in production, so that a hand-over takes seconds.
const TIMING: Timing = Timing {
    duration: Duration::from_secs(4),
    renew_deadline: Duration::from_secs(3),
    retry_period: Duration::from_millis(500),
};

/// One controller leads at a time, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A controller in this process. Dropped without [`Controller::stop`], it ends as if killed.
struct Controller {
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: CancellationToken,
    running: Option<Running>,
}

impl Controller {
    async fn start(server: &ApiServer, identity: &str) -> Result<Self> {
        Self::start_at(server, identity, None).await
    }

    /// The same, reaching the API server at another address.
    async fn start_at(
        server: &ApiServer,
        identity: &str,
        address: Option<std::net::SocketAddr>,
    ) -> Result<Self> {
        let mut config = Config::from_custom_kubeconfig(
            Kubeconfig::read_from(server.kubeconfig())?,
            &KubeConfigOptions::default(),
        )
        .await?;
        config.auth_info.impersonate = Some("system:serviceaccount:vireo-system:vireo-controller".into());
        config.auth_info.impersonate_groups = Some(
            ["system:serviceaccounts", "system:serviceaccounts:vireo-system", "system:authenticated"]
                .map(String::from)
                .to_vec(),
        );
        if let Some(address) = address {
            config.cluster_url = format!("https://{address}/").parse()?;
        }
        if let Ok(filter) = std::env::var("VIREO_LOG") {
            // The second controller of a test logs with the first.
            let _ = controller::telemetry::start(&filter, controller::args::LogFormat::Text);
        }
        let identity = format!("{identity}-{}", jiff::Timestamp::now().as_nanosecond());
        let settings = Settings {
            http: ([127, 0, 0, 1], 0).into(),
            timing: TIMING,
            workers: 8,
            identity,
            watch_seconds: WATCH_SECONDS,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let shutdown = CancellationToken::new();
        let running = runtime.spawn(start(config, settings, shutdown.clone())).await??;
        Ok(Self { runtime: Some(runtime), shutdown, running: Some(running) })
    }

    /// As SIGTERM does. A write the API server refused as wrong is a mistake whatever the test was about.
    async fn stop(mut self) -> Result<()> {
        let metrics = self.page("/metrics").await?;
        let mistakes: Vec<&str> = metrics.lines().filter(|line| line.contains("result=\"bug\"")).collect();
        ensure!(mistakes.is_empty(), "{mistakes:?}");
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            running.stopped().await?;
        }
        Ok(())
    }

    /// A page of its HTTP server: status line and body.
    async fn page(&self, path: &str) -> Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.running.as_ref().context("it runs")?.http;
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What one test has to itself: a cluster and a namespace named after it.
struct Site {
    server: &'static ApiServer,
    admin: Client,
    name: String,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Site {
    async fn new(name: &str) -> Result<Self> {
        let alone = ALONE.lock().await;
        let server = shared()?;
        server.admin(["create", "namespace", name])?;
        let admin = server.client(User::Admin).await?;
        let cluster = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "HostCluster", "metadata": {"name": name}, "spec": {}});
        Api::<HostCluster>::all(admin.clone())
            .create(&PostParams::default(), &serde_json::from_value(cluster)?)
            .await?;
        Ok(Self { server, admin, name: name.into(), _alone: alone })
    }

    fn vms(&self) -> Api<VirtualMachine> {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    fn acts(&self) -> Api<VirtualMachineAction> {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    async fn host(&self, number: usize) -> Result<FakeHost> {
        FakeHost::join(self.server, &format!("{}-{number}", self.name), &self.name).await
    }

    async fn create_vm(&self, name: &str, more: Value) -> Result<VirtualMachine> {
        let mut spec = json!({"cluster": self.name, "memory": {"size": "64Mi"}});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        let vm = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name}, "spec": spec});
        Ok(self.vms().create(&PostParams::default(), &serde_json::from_value(vm)?).await?)
    }

    async fn create_act(&self, name: &str, vm: &str, act: &str) -> Result<VirtualMachineAction> {
        let body = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachineAction", "metadata": {"name": name},
            "spec": {"vm": vm, act: {}},
        });
        Ok(self.acts().create(&PostParams::default(), &serde_json::from_value(body)?).await?)
    }

    /// The VM, once `holds` says so; else what it last looked like.
    async fn vm(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&VirtualMachine) -> bool,
    ) -> Result<VirtualMachine> {
        let api = self.vms();
        until(&format!("VM {name}: {what}"), LIMIT, || async {
            let vm = api.get(name).await?;
            ensure!(
                holds(&vm),
                "{}",
                serde_json::to_string(&json!({"metadata": vm.metadata.finalizers, "status": vm.status}))?
            );
            Ok(vm)
        })
        .await
    }

    async fn placed(&self, name: &str) -> Result<VirtualMachine> {
        self.vm(name, "has a placement", |vm| placement(vm).is_ok()).await
    }

    async fn act_ended(&self, name: &str) -> Result<VirtualMachineAction> {
        let api = self.acts();
        until(&format!("act {name} ends"), LIMIT, || async {
            let act = api.get(name).await?;
            let ended = act.status.as_ref().and_then(|s| s.phase).is_some_and(ActPhase::is_final);
            ensure!(ended, "{}", serde_json::to_string(&act.status)?);
            Ok(act)
        })
        .await
    }

    async fn nonce(&self) -> Result<String> {
        let api: Api<Lease> = Api::namespaced(self.admin.clone(), SYSTEM_NAMESPACE);
        api.get(SESSION_LEASE).await?.spec.and_then(|s| s.holder_identity).context("no nonce")
    }

    /// Successful writes so far, by `verb resource/subresource`, as the API server counts them.
    fn writes(&self, resource: &str) -> Result<u64> {
        let text = self.server.admin(["get", "--raw", "/metrics"])?;
        let mut count = 0.0;
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let is = |name: &str, value: &str| line.contains(&format!("{name}=\"{value}\""));
            let mutates = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].iter().any(|verb| is("verb", verb));
            if mutates && is("group", "vireo.dev") && is("resource", resource) {
                count += line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        Ok(count as u64)
    }
}

impl Drop for Site {
    /// Leaves nothing that would make the next test's controller wait: its hosts have stopped answering.
    fn drop(&mut self) {
        let selector = |kind: &str, name: &str| {
            let _ = self.server.admin([
                "patch",
                kind,
                name,
                "--type=merge",
                "-p",
                r#"{"metadata":{"finalizers":null}}"#,
            ]);
            let _ = self.server.admin(["delete", kind, name, "--wait=false"]);
        };
        for vm in names(self.server, &["get", "vvm", "-n", &self.name, "-o", "name"]) {
            let _ = self.server.admin([
                "-n",
                &self.name,
                "patch",
                &vm,
                "--type=merge",
                "-p",
                r#"{"metadata":{"finalizers":null}}"#,
            ]);
            let _ =
                self.server.admin(["-n", &self.name, "delete", &vm, "--wait=false", "--ignore-not-found"]);
        }
        for host in names(self.server, &["get", "vhost", "-o", "name"]) {
            let host = host.rsplit('/').next().unwrap_or_default().to_owned();
            selector("vhost", &host);
        }
    }
}

fn names(server: &ApiServer, args: &[&str]) -> Vec<String> {
    let text = server.admin(args.iter().copied()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn message(vm: &VirtualMachine, type_: &str) -> String {
    let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    condition::get(conditions, type_).map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default()
}

/// Runs a test; one that cannot run here says so.
fn run(name: &str, test: impl Future<Output = Result<()>>) -> Result<()> {
    if let Err(why) = shared() {
        let why = format!("{why:#}");
        // Tools that were never built; anything else is a failure.
        ensure!(why.contains("run `make tools`"), "{why}");
        system_tests::skip(name, &why);
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test)
}

#[test]
fn a_start_costs_a_finalizer_and_a_placement() -> Result<()> {
    run("a_start_costs_a_finalizer_and_a_placement", async {
        let site = Site::new("start").await?;
        let controller = Controller::start(site.server, "only").await?;
        let host = site.host(1).await?;
        // The first VM waits for the host to become schedulable; the second finds everything settled.
        site.create_vm("first", json!({})).await?;
        site.placed("first").await?;
        let before = site.writes("virtualmachines")?;
        site.create_vm("second", json!({})).await?;
        let vm = site.placed("second").await?;
        site.create_vm("third", json!({})).await?;
        site.placed("third").await?;
        let writes = site.writes("virtualmachines")? - before;
        ensure!(writes == 2 + 2 * 2, "two VMs cost {writes} writes, the users' two included");

        let placed = placement(&vm)?;
        ensure!(placed.host == host.name && placed.incarnation == host.incarnation, "{placed:?}");
        ensure!(placed.epoch == 1 && placed.last_epoch == 1 && placed.evidence.is_empty(), "{placed:?}");
        ensure!(Some(placed.generation) == vm.metadata.generation, "{placed:?}");
        ensure!(vm.finalizers().iter().any(|f| f == FINALIZER), "{:?}", vm.finalizers());
        ensure!(
            message(&vm, condition::kind::PLACED).starts_with("Placed"),
            "{}",
            message(&vm, condition::kind::PLACED)
        );

        ensure!(controller.page("/readyz").await?.starts_with("HTTP/1.0 200"));
        let metrics = controller.page("/metrics").await?;
        for line in [
            "leader_election_master_status{name=\"vireo-controller\"} 1",
            "controller_session_open 1",
            "controller_writes_total{step=\"SetPlacement\",result=\"success\"} 3",
        ] {
            ensure!(metrics.contains(line), "{line} not in {metrics}");
        }
        controller.stop().await
    })
}

#[test]
fn a_vm_nobody_can_take_says_what_each_host_lacks() -> Result<()> {
    run("a_vm_nobody_can_take_says_what_each_host_lacks", async {
        let site = Site::new("nofit").await?;
        let controller = Controller::start(site.server, "only").await?;
        let _hosts = (site.host(1).await?, site.host(2).await?);
        site.create_vm("small", json!({})).await?;
        site.placed("small").await?;
        site.create_vm("huge", json!({"memory": {"size": "1Ti"}})).await?;
        let vm = site
            .vm("huge", "says why it waits", |vm| message(vm, "Placed").starts_with("NoHostFits"))
            .await?;
        let text = message(&vm, "Placed");
        ensure!(text.contains('2') && text.to_lowercase().contains("memory"), "{text}");
        ensure!(placement(&vm).is_err());
        controller.stop().await
    })
}

#[test]
fn a_burst_does_not_overfill_a_host() -> Result<()> {
    run("a_burst_does_not_overfill_a_host", async {
        let site = Site::new("burst").await?;
        let controller = Controller::start(site.server, "only").await?;
        let _hosts = (site.host(1).await?, site.host(2).await?);
        site.create_vm("settle", json!({"runStrategy": "Manual"})).await?;
        // Room for four of them on each host.
        let creations = (0..12).map(|n| {
            let site = &site;
            async move { site.create_vm(&format!("vm{n}"), json!({"memory": {"size": "3900Mi"}})).await }
        });
        for created in futures::future::join_all(creations).await {
            created?;
        }
        let vms = site.vms();
        let placed = until("eight are placed and four wait", LIMIT, || async {
            let all = vms.list(&Default::default()).await?.items;
            let placed: Vec<_> = all.iter().filter_map(|vm| placement(vm).ok()).map(|p| p.host).collect();
            let waiting = all.iter().filter(|vm| message(vm, "Placed").starts_with("NoHostFits")).count();
            ensure!(
                placed.len() + waiting == 12 && waiting >= 4,
                "{} placed, {waiting} waiting",
                placed.len()
            );
            Ok(placed)
        })
        .await?;
        for host in ["burst-1", "burst-2"] {
            let there = placed.iter().filter(|h| *h == host).count();
            ensure!(there == 4, "{there} on {host}");
        }
        controller.stop().await
    })
}

#[test]
fn a_vm_from_before_waits_until_the_hosts_have_said_what_they_run() -> Result<()> {
    run("a_vm_from_before_waits_until_the_hosts_have_said_what_they_run", async {
        let site = Site::new("attest").await?;
        site.create_vm("old", json!({})).await?;
        let controller = Controller::start(site.server, "only").await?;
        let mut host = FakeHost::join_unattested(site.server, "attest-1", &site.name).await?;
        let vm = site
            .vm("old", "waits for the host's word", |vm| message(vm, "Placed").contains("attest-1"))
            .await?;
        ensure!(message(&vm, "Placed").starts_with("AttestationPending"), "{}", message(&vm, "Placed"));
        ensure!(placement(&vm).is_err());
        host.attest();
        site.placed("old").await?;
        let host = Api::<Host>::all(site.admin.clone()).get("attest-1").await?;
        let attested = host.status.and_then(|s| s.attestation).context("attested")?;
        ensure!(attested.session == site.nonce().await?);
        controller.stop().await
    })
}

#[test]
fn a_deleted_vm_goes_when_its_host_has_released_it() -> Result<()> {
    run("a_deleted_vm_goes_when_its_host_has_released_it", async {
        let site = Site::new("delete").await?;
        let controller = Controller::start(site.server, "only").await?;
        let host = site.host(1).await?;
        site.create_vm("vm", json!({})).await?;
        let vm = site.placed("vm").await?;
        host.report_vm(&vm, "On", "Open", None).await?;
        site.vms().delete("vm", &DeleteParams::default()).await?;
        // A second VM placed meanwhile shows that the controller has looked.
        site.create_vm("other", json!({})).await?;
        site.placed("other").await?;
        let vm = site.vm("vm", "is still there", |_| true).await?;
        ensure!(vm.finalizers().iter().any(|f| f == FINALIZER), "its guest still runs");
        host.report_vm(&vm, "Off", "Released", Some("BySpec")).await?;
        let api = site.vms();
        until("the VM is gone", LIMIT, || async {
            ensure!(api.get_opt("vm").await?.is_none());
            Ok(())
        })
        .await?;
        controller.stop().await
    })
}

#[test]
fn acts_start_a_manual_vm_and_reach_its_host() -> Result<()> {
    run("acts_start_a_manual_vm_and_reach_its_host", async {
        let site = Site::new("acts").await?;
        let controller = Controller::start(site.server, "only").await?;
        let host = site.host(1).await?;
        site.create_vm("vm", json!({"runStrategy": "Manual"})).await?;
        site.vm("vm", "is looked at", |vm| {
            condition::is_true(&vm.status.clone().unwrap_or_default().conditions, "Accepted")
        })
        .await?;

        site.create_act("early", "vm", "reset").await?;
        let early = site.act_ended("early").await?.status.unwrap_or_default();
        ensure!(early.phase == Some(ActPhase::Failed), "{early:?}");
        ensure!(placement(&site.vms().get("vm").await?).is_err(), "nobody asked for a start yet");

        site.create_act("start", "vm", "start").await?;
        let vm = site.placed("vm").await?;
        host.report_vm(&vm, "On", "Open", None).await?;
        let started = site.act_ended("start").await?.status.unwrap_or_default();
        ensure!(started.phase == Some(ActPhase::Succeeded), "{started:?}");

        site.create_act("reset", "vm", "reset").await?;
        let api = site.acts();
        let act = until("the act names its host", LIMIT, || async {
            let act = api.get("reset").await?;
            ensure!(act.status.as_ref().and_then(|s| s.host.as_ref()).is_some(), "{:?}", act.status);
            Ok(act)
        })
        .await?;
        let order = act.status.clone().unwrap_or_default();
        ensure!(order.host.as_deref() == Some("acts-1") && order.vm_uid == vm.uid(), "{order:?}");
        ensure!(order.grant_id.as_deref() == Some(placement(&vm)?.id.as_str()), "{order:?}");
        host.report_act(&act, "Succeeded").await?;
        ensure!(site.act_ended("reset").await?.status.unwrap_or_default().phase == Some(ActPhase::Succeeded));
        controller.stop().await
    })
}

#[test]
fn another_replica_takes_over_with_a_session_of_its_own() -> Result<()> {
    run("another_replica_takes_over_with_a_session_of_its_own", async {
        let site = Site::new("handover").await?;
        let first = Controller::start(site.server, "first").await?;
        let host = site.host(1).await?;
        site.create_vm("vm", json!({})).await?;
        let before = site.placed("vm").await?;
        host.report_vm(&before, "On", "Open", None).await?;
        let nonce = site.nonce().await?;
        let second = Controller::start(site.server, "second").await?;
        until("the second stands by", LIMIT, || async {
            let page = second.page("/readyz").await?;
            ensure!(page.starts_with("HTTP/1.0 200"), "{page}");
            Ok(())
        })
        .await?;
        ensure!(site.nonce().await? == nonce, "a standby begins no session");

        // As if killed: the Lease is not given back.
        drop(first);
        until("the second leads in a session of its own", LIMIT, || async {
            ensure!(site.nonce().await? != nonce);
            Ok(())
        })
        .await?;
        site.create_vm("new", json!({})).await?;
        site.placed("new").await?;
        let after = site.vms().get("vm").await?;
        ensure!(placement(&after)? == placement(&before)?, "a running VM keeps its grant");

        second.stop().await?;
        let lease: Lease =
            Api::<Lease>::namespaced(site.admin.clone(), SYSTEM_NAMESPACE).get(LEADER_LEASE).await?;
        let holder = lease.spec.and_then(|s| s.holder_identity).unwrap_or_default();
        ensure!(holder.is_empty(), "the Lease is given back at an orderly stop: {holder}");
        Ok(())
    })
}

#[test]
fn an_undecodable_vm_does_not_stop_the_others() -> Result<()> {
    run("an_undecodable_vm_does_not_stop_the_others", async {
        let site = Site::new("broken").await?;
        let crd = "virtualmachines.vireo.dev";
        let schema: Value = serde_json::from_str(&site.server.admin(["get", "crd", crd, "-o", "json"])?)?;
        let schema = schema.pointer("/spec/versions/0/schema/openAPIV3Schema").context("a schema")?.clone();
        let replace = |schema: &Value| -> Result<String> {
            let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
            site.server.admin(["patch", "crd", crd, "--type=json", "-p", &patch.to_string()])
        };
        // What an older or newer version might have stored.
        let mut loose = schema.clone();
        loose["properties"]["spec"] = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        loose.as_object_mut().context("an object")?.remove("x-kubernetes-validations");
        replace(&loose)?;
        let broken = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "strange", "namespace": site.name},
            "spec": {"cluster": site.name, "memory": 17},
        });
        let stored = until("the strange VM is stored", LIMIT, || async {
            let ar = kube::api::ApiResource::erase::<VirtualMachine>(&());
            let api: Api<kube::api::DynamicObject> =
                Api::namespaced_with(site.admin.clone(), &site.name, &ar);
            Ok(api.create(&PostParams::default(), &serde_json::from_value(broken.clone())?).await?)
        })
        .await;
        replace(&schema)?;
        stored?;

        let controller = Controller::start(site.server, "only").await?;
        let _host = site.host(1).await?;
        site.create_vm("plain", json!({})).await?;
        site.placed("plain").await?;
        let metrics = controller.page("/metrics").await?;
        ensure!(metrics.contains("vireo_undecodable_objects{kind=\"VirtualMachine\"} 1"), "{metrics}");
        controller.stop().await
    })
}

#[test]
fn a_host_gets_a_certificate_for_its_own_name() -> Result<()> {
    run("a_host_gets_a_certificate_for_its_own_name", async {
        let site = Site::new("certs").await?;
        let controller = Controller::start(site.server, "only").await?;
        let host = site.host(1).await?;
        let as_host = site.server.client(User::Host(&host.name)).await?;
        let requests: Api<CertificateSigningRequest> = Api::all(as_host);
        let ask = |name: &str, common_name: &str| -> Result<CertificateSigningRequest> {
            let key = rcgen::KeyPair::generate()?;
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
            Ok(CertificateSigningRequest {
                metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
                spec: CertificateSigningRequestSpec {
                    request: ByteString(params.serialize_request(&key)?.pem()?.into_bytes()),
                    signer_name: "vireo.dev/host".into(),
                    usages: Some(vec![
                        "digital signature".into(),
                        "client auth".into(),
                        "server auth".into(),
                    ]),
                    ..CertificateSigningRequestSpec::default()
                },
                status: None,
            })
        };
        requests.create(&PostParams::default(), &ask("mine", "certs-1")?).await?;
        requests.create(&PostParams::default(), &ask("theirs", "certs-2")?).await?;
        let signed = until("the request is signed", LIMIT, || async {
            requests.get("mine").await?.status.and_then(|s| s.certificate).context("no certificate yet")
        })
        .await?;
        ensure!(String::from_utf8(signed.0)?.matches("BEGIN CERTIFICATE").count() == 2);
        until("the other is denied", LIMIT, || async {
            let conditions =
                requests.get("theirs").await?.status.and_then(|s| s.conditions).unwrap_or_default();
            ensure!(conditions.iter().any(|c| c.type_ == "Denied"), "{conditions:?}");
            Ok(())
        })
        .await?;
        controller.stop().await
    })
}

/// Passes connections on to the API server until it is told to cut them.
struct Relay {
    address: std::net::SocketAddr,
    open: std::sync::Arc<std::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Relay {
    async fn start(server: &ApiServer) -> Result<Self> {
        let config = Config::from_custom_kubeconfig(
            Kubeconfig::read_from(server.kubeconfig())?,
            &KubeConfigOptions::default(),
        )
        .await?;
        let upstream = config.cluster_url.authority().context("an address")?.to_string();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let open = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = open.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let upstream = upstream.clone();
                let passing = tokio::spawn(async move {
                    if let Ok(mut far) = tokio::net::TcpStream::connect(upstream).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(passing);
            }
        });
        Ok(Self { address, open, _task: tokio_util::task::AbortOnDropHandle::new(task) })
    }

    fn cut(&self) {
        self.open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .drain(..)
            .for_each(|passing| passing.abort());
    }
}

#[test]
fn a_broken_connection_ends_the_session_and_stops_no_vm() -> Result<()> {
    run("a_broken_connection_ends_the_session_and_stops_no_vm", async {
        let site = Site::new("cut").await?;
        let relay = Relay::start(site.server).await?;
        let controller = Controller::start_at(site.server, "only", Some(relay.address)).await?;
        let host = site.host(1).await?;
        site.create_vm("vm", json!({})).await?;
        let vm = site.placed("vm").await?;
        host.report_vm(&vm, "On", "Open", None).await?;
        let nonce = site.nonce().await?;
        relay.cut();
        until("a new session", LIMIT, || async {
            ensure!(site.nonce().await? != nonce);
            Ok(())
        })
        .await?;
        site.create_vm("new", json!({})).await?;
        site.placed("new").await?;
        ensure!(placement(&site.vms().get("vm").await?)? == placement(&vm)?, "a running VM keeps its grant");
        controller.stop().await
    })
}

#[test]
fn a_rebooted_host_gets_its_vm_again_under_a_new_grant() -> Result<()> {
    run("a_rebooted_host_gets_its_vm_again_under_a_new_grant", async {
        let site = Site::new("reboot").await?;
        let controller = Controller::start(site.server, "only").await?;
        let mut host = site.host(1).await?;
        site.create_vm("vm", json!({})).await?;
        let before = site.placed("vm").await?;
        host.report_vm(&before, "On", "Open", None).await?;
        host.reboot().await?;
        let old = placement(&before)?;
        let api = site.vms();
        // The old incarnation has to have been silent for 25 seconds.
        let new = until("a new grant", LIMIT * 3, || async {
            let vm = api.get("vm").await?;
            let new = placement(&vm)?;
            ensure!(new.id != old.id, "{} / {}", message(&vm, "Placed"), message(&vm, "Ready"));
            Ok(new)
        })
        .await?;
        ensure!(
            new.incarnation == host.incarnation && new.epoch == old.epoch + 1 && new.last_epoch == new.epoch,
            "{new:?}"
        );
        let evidence = new.evidence.first().context("evidence")?;
        ensure!(evidence.grant_id == old.id && evidence.kind == EvidenceKind::Rebooted, "{evidence:?}");
        ensure!(evidence.session == site.nonce().await?, "{evidence:?}");
        controller.stop().await
    })
}

#[test]
fn a_template_disk_is_made_claimed_and_removed_with_its_vm() -> Result<()> {
    run("a_template_disk_is_made_claimed_and_removed_with_its_vm", async {
        let site = Site::new("disks").await?;
        let controller = Controller::start(site.server, "only").await?;
        let host = site.host(1).await?;
        let domain = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "StorageDomain", "metadata": {"name": "disks"},
            "spec": {"directory": {"path": "/srv/disks", "shared": true}},
        });
        let domains: Api<StorageDomain> = Api::all(site.admin.clone());
        let domain = domains.create(&PostParams::default(), &serde_json::from_value(domain)?).await?;
        let on_host = |marked: bool| {
            json!({"storageDomains": [{
                "name": "disks", "uid": domain.uid(), "ready": marked, "marked": marked, "capacity": 1_i64 << 40, "available": 1_i64 << 39,
            }]})
        };
        host.report(on_host(false)).await?;
        until("one host may write the marker", LIMIT, || async {
            let status = domains.get("disks").await?.status.unwrap_or_default();
            ensure!(status.initialize == ["disks-1"] && status.marker.is_some(), "{status:?}");
            Ok(())
        })
        .await?;
        host.report(on_host(true)).await?;
        until("the domain is ready", LIMIT, || async {
            let status = domains.get("disks").await?.status.unwrap_or_default();
            ensure!(
                condition::is_true(&status.conditions, "Ready") && status.initialize.is_empty(),
                "{status:?}"
            );
            Ok(())
        })
        .await?;

        let vm = site
            .create_vm(
                "vm",
                json!({"disks": [{"name": "root", "template": {"storageDomain": "disks", "size": "1Gi"}}]}),
            )
            .await?;
        let disks: Api<Disk> = Api::namespaced(site.admin.clone(), &site.name);
        let disk = until("the disk has a host to work on it", LIMIT, || async {
            let disk = disks.get("vm-root").await?;
            let status = disk.status.clone().unwrap_or_default();
            ensure!(status.placement.as_ref().is_some_and(|p| p.host == "disks-1"), "{status:?}");
            ensure!(status.attachments.iter().any(|a| Some(&a.vm_uid) == vm.uid().as_ref()), "{status:?}");
            Ok(disk)
        })
        .await?;
        ensure!(
            disk.owner_references().iter().any(|o| Some(&o.uid) == vm.uid().as_ref())
                && disk.finalizers().iter().any(|f| f == FINALIZER)
        );
        host.report_disk(&disk, "Ready").await?;
        let vm = site.placed("vm").await?;
        host.report_vm(&vm, "On", "Open", None).await?;

        site.vms().delete("vm", &DeleteParams::default()).await?;
        host.report_vm(&vm, "Off", "Released", Some("BySpec")).await?;
        let disk = until("the volume is to be removed", LIMIT, || async {
            let disk = disks.get("vm-root").await?;
            ensure!(disk.status.as_ref().and_then(|s| s.remove) == Some(true), "{:?}", disk.status);
            Ok(disk)
        })
        .await?;
        host.report_disk(&disk, "Removed").await?;
        until("VM and Disk are gone", LIMIT, || async {
            ensure!(disks.get_opt("vm-root").await?.is_none() && site.vms().get_opt("vm").await?.is_none());
            Ok(())
        })
        .await?;
        domains.delete("disks", &DeleteParams::default()).await?;
        controller.stop().await
    })
}

#[test]
fn only_the_bound_host_may_read_a_vms_secret() -> Result<()> {
    run("only_the_bound_host_may_read_a_vms_secret", async {
        let site = Site::new("secret").await?;
        let controller = Controller::start(site.server, "only").await?;
        let hosts = [site.host(1).await?, site.host(2).await?];
        site.server.admin([
            "create",
            "secret",
            "generic",
            "seed",
            "-n",
            &site.name,
            "--from-literal=userData=#cloud-config",
        ])?;
        site.create_vm(
            "vm",
            json!({"runStrategy": "Manual", "cloudInit": {"userDataSecret": {"name": "seed"}}}),
        )
        .await?;
        let secret = |host: &FakeHost| Api::<Secret>::namespaced(host.client(), &site.name);
        for host in &hosts {
            ensure!(secret(host).get("seed").await.is_err(), "nothing is bound to {}", host.name);
        }
        site.create_act("go", "vm", "start").await?;
        let vm = site.placed("vm").await?;
        let bound = placement(&vm)?.host;
        for host in &hosts {
            let read = secret(host).get("seed").await;
            ensure!(read.is_ok() == (host.name == bound), "{}: {read:?}", host.name);
        }
        let host = hosts.iter().find(|h| h.name == bound).context("one of the two")?;
        host.report_vm(&vm, "Off", "Released", Some("ByGuest")).await?;
        until("the Secret is closed again", LIMIT, || async {
            ensure!(secret(host).get("seed").await.is_err());
            Ok(())
        })
        .await?;
        controller.stop().await
    })
}

#[test]
fn a_definition_being_deleted_orders_no_deletion() -> Result<()> {
    run("a_definition_being_deleted_orders_no_deletion", async {
        let _alone = ALONE.lock().await;
        let server = system_tests::apiserver::start_with_chart()?;
        let admin = server.client(User::Admin).await?;
        let disk = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "Disk", "metadata": {"name": "precious", "namespace": "default"},
            "spec": {"storageDomain": "none", "size": "1Gi"},
        });
        let disks: Api<Disk> = Api::namespaced(admin.clone(), "default");
        disks.create(&PostParams::default(), &serde_json::from_value(disk)?).await?;
        let controller = Controller::start(&server, "only").await?;
        let finalized = |disk: &Disk| disk.finalizers().iter().any(|f| f == FINALIZER);
        until("the disk is looked at", LIMIT, || async {
            let disk = disks.get("precious").await?;
            ensure!(
                finalized(&disk) && disk.status.as_ref().is_some_and(|s| !s.conditions.is_empty()),
                "{disk:?}"
            );
            Ok(())
        })
        .await?;
        server.admin([
            "annotate",
            "crd",
            "disks.vireo.dev",
            "vireo.dev/confirm-deletion-of-all-objects=yes",
        ])?;
        server.admin(["delete", "crd", "disks.vireo.dev", "--wait=false"])?;
        until("the API server deletes the disk", LIMIT, || async {
            let disk = disks.get("precious").await?;
            ensure!(disk.metadata.deletion_timestamp.is_some(), "{disk:?}");
            Ok(())
        })
        .await?;
        // A Host made now and looked at shows that the controller has had its turn.
        FakeHost::join_unattested(&server, "witness", "default").await?;
        let disk = disks.get("precious").await?;
        ensure!(finalized(&disk) && disk.status.as_ref().and_then(|s| s.remove) != Some(true), "{disk:?}");
        controller.stop().await
    })
}
