//! What a host's credential can do: every (resource, subresource, verb) of the API is tried for real, by dry run, on an
//! object of the host's own and on another's, and compared with a committed list. Accounts and Roles are those the
//! real controller makes.

mod live;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http::{Method, Request, StatusCode};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::Secret,
        events::v1::Event,
        rbac::v1::{PolicyRule, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::APIResourceList,
};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    client::Body,
};
use live::{Controller, Fleet, LIMIT};
use node_daemon::host::memory::MemoryConfig;
use serde_json::{Value, json};
use system_tests::{
    apiserver::{ApiServer, Stop, User, shared, start_with_chart},
    wait::until,
};
use tokio::sync::OnceCell;
use vireo_crds::{
    meta::HOSTS_NAMESPACE,
    v1alpha1::{Host, VirtualMachine},
};

const OWN: &str = "host1";
const OTHER: &str = "host2";
const NAMESPACE: &str = "default";

fn allow_list() -> PathBuf {
    system_tests::root().join("tests/allow-list/node.txt")
}

/// One thing the API can be asked for.
struct Ask {
    /// `group/version`, or `v1`.
    group_version: String,
    /// `resource` or `resource/subresource`.
    resource: String,
    kind: String,
    namespaced: bool,
    verb: String,
}

impl Ask {
    /// Name and namespace of the object that belongs to `host`.
    fn object_of(&self, host: &str) -> (String, String) {
        let resource = self.resource.split('/').next().unwrap_or_default();
        match (self.group_version.as_str(), resource) {
            ("v1", "serviceaccounts") => (format!("host-{host}"), "vireo-hosts".to_owned()),
            ("coordination.k8s.io/v1", "leases") => (host.to_owned(), "vireo-hosts".to_owned()),
            ("vireo.dev/v1alpha1", "hosts") => (host.to_owned(), String::new()),
            _ => (format!("of-{host}"), NAMESPACE.to_owned()),
        }
    }

    fn request(&self, host: &str) -> Result<Request<Body>> {
        let (name, namespace) = self.object_of(host);
        let (resource, subresource) =
            self.resource.split_once('/').map_or((self.resource.as_str(), None), |(r, s)| (r, Some(s)));
        let root = if self.group_version == "v1" {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{}", self.group_version)
        };
        let collection = if self.namespaced {
            format!("{root}/namespaces/{namespace}/{resource}")
        } else {
            format!("{root}/{resource}")
        };
        let object = match subresource {
            Some(subresource) => format!("{collection}/{name}/{subresource}"),
            None => format!("{collection}/{name}"),
        };
        let body = self.body(&name, &namespace, host);
        let (method, path, content) = match self.verb.as_str() {
            "get" => (Method::GET, object, None),
            "list" => (Method::GET, format!("{collection}?limit=1"), None),
            "watch" => (Method::GET, format!("{collection}?watch=true&timeoutSeconds=1"), None),
            "create" if subresource.is_some() => {
                (Method::POST, format!("{object}?dryRun=All"), Some("application/json"))
            }
            "create" => (Method::POST, format!("{collection}?dryRun=All"), Some("application/json")),
            "update" => (Method::PUT, format!("{object}?dryRun=All"), Some("application/json")),
            "patch" => (Method::PATCH, format!("{object}?dryRun=All"), Some("application/merge-patch+json")),
            "delete" => (Method::DELETE, format!("{object}?dryRun=All"), None),
            "deletecollection" => (Method::DELETE, format!("{collection}?dryRun=All"), None),
            other => anyhow::bail!("unknown verb {other}"),
        };
        let mut request = Request::builder().method(method).uri(path);
        if let Some(content) = content {
            request = request.header("content-type", content);
        }
        Ok(request.body(Body::from(if content.is_some() {
            serde_json::to_vec(&body)?
        } else {
            Vec::new()
        }))?)
    }

    /// A body good enough to get past decoding, so that admission is asked too.
    fn body(&self, name: &str, namespace: &str, host: &str) -> Value {
        let mut body =
            json!({"apiVersion": self.group_version, "kind": self.kind, "metadata": {"name": name}});
        if self.namespaced {
            body["metadata"]["namespace"] = namespace.into();
        }
        match self.resource.as_str() {
            "serviceaccounts/token" => {
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}})
            }
            "leases" => {
                body["spec"] =
                    json!({"holderIdentity": format!("incarnation-of-{host}"), "leaseDurationSeconds": 40});
                body
            }
            "virtualmachines/status" => json!({"status": {"runtime": {
                "vmUid": "00000000-0000-0000-0000-000000000000",
                "grant": {"incarnation": "i", "epoch": 1, "id": format!("grant-{host}")},
                "holding": "Open", "power": "On", "since": "2026-01-01T00:00:00Z",
            }}}),
            "virtualmachineactions/status" => json!({"status": {"phase": "Running"}}),
            "disks/status" => json!({"status": {"phase": "Ready"}}),
            "hosts/status" => json!({"status": {"daemonVersion": "1.0"}}),
            "events" => {
                body["metadata"]["name"] = format!("of-{host}").into();
                body["eventTime"] = "2026-01-01T00:00:00.000000Z".into();
                body["reportingController"] = "vireo-node".into();
                body["reportingInstance"] = host.into();
                body["action"] = "Start".into();
                body["reason"] = "Started".into();
                body["type"] = "Normal".into();
                body["regarding"] = json!({"kind": "VirtualMachine", "namespace": namespace, "name": name});
                body
            }
            "certificatesigningrequests" => {
                body["spec"] =
                    json!({"request": "", "signerName": "vireo.dev/host", "usages": ["client auth"]});
                body
            }
            _ => body,
        }
    }
}

/// Everything discovery offers.
async fn asks(client: &Client) -> Result<Vec<Ask>> {
    let mut lists = vec![("v1".to_owned(), client.list_core_api_resources("v1").await?)];
    for group in client.list_api_groups().await?.groups {
        for version in group.versions {
            let list: APIResourceList = client.list_api_group_resources(&version.group_version).await?;
            lists.push((version.group_version, list));
        }
    }
    let asks = lists.into_iter().flat_map(|(group_version, list)| {
        list.resources.into_iter().flat_map(move |resource| {
            let group_version = group_version.clone();
            resource.verbs.clone().into_iter().map(move |verb| Ask {
                group_version: group_version.clone(),
                resource: resource.name.clone(),
                kind: resource.kind.clone(),
                namespaced: resource.namespaced,
                verb,
            })
        })
    });
    Ok(asks.collect())
}

/// Whether neither RBAC nor an admission policy forbids it; other refusals (not found, invalid) come after both.
async fn allowed(client: &Client, request: Request<Body>) -> Result<bool> {
    Ok(client.send(request).await?.status() != StatusCode::FORBIDDEN)
}

/// The server with the objects of both hosts, made once.
async fn prepared() -> Result<&'static ApiServer> {
    static PREPARED: OnceCell<Result<(), String>> = OnceCell::const_new();
    let server = shared()?;
    let made =
        PREPARED.get_or_init(|| async { prepare(server).await.map_err(|error| format!("{error:#}")) }).await;
    made.clone().map_err(anyhow::Error::msg)?;
    Ok(server)
}

fn apply(server: &ApiServer, manifest: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), manifest)?;
    server.admin(["apply".into(), "-f".into(), file.path().as_os_str().to_owned()])?;
    Ok(())
}

/// Accounts, Leases and Roles of both hosts as the controller makes them; then, without it, VMs, Disks and acts that
/// nobody moves any more.
async fn prepare(server: &ApiServer) -> Result<()> {
    let controller = Controller::start(server).await?;
    for host in [OWN, OTHER] {
        apply(
            server,
            &format!("apiVersion: vireo.dev/v1alpha1\nkind: Host\nmetadata: {{name: {host}}}\nspec: {{}}\n"),
        )?;
    }
    let bindings: Api<RoleBinding> = Api::namespaced(server.client(User::Admin).await?, "vireo-hosts");
    for host in [OWN, OTHER] {
        until("the controller gives the host its rights", LIMIT, || async {
            Ok(bindings.get(&format!("host-{host}")).await?)
        })
        .await?;
    }
    controller.stop(Stop::Term).await?;
    for host in [OWN, OTHER] {
        let manifest = format!(
            "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: of-{host}, namespace: {NAMESPACE}}}
spec: {{memory: {{size: 128Mi}}}}
---
apiVersion: vireo.dev/v1alpha1
kind: Disk
metadata: {{name: of-{host}, namespace: {NAMESPACE}}}
spec: {{storageDomain: s, size: 1Gi}}
---
apiVersion: vireo.dev/v1alpha1
kind: VirtualMachineAction
metadata: {{name: of-{host}, namespace: {NAMESPACE}}}
spec: {{vm: of-{host}, stop: {{}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: of-{host}, namespace: {NAMESPACE}}}
---
apiVersion: events.k8s.io/v1
kind: Event
metadata: {{name: of-{host}, namespace: {NAMESPACE}}}
eventTime: 2026-01-01T00:00:00.000000Z
reportingController: vireo-node
reportingInstance: {host}
action: Start
reason: Started
type: Normal
regarding: {{kind: VirtualMachine, namespace: {NAMESPACE}, name: of-{host}}}
"
        );
        apply(server, &manifest)?;
    }
    Ok(())
}

async fn place(server: &ApiServer) -> Result<()> {
    let controller = server.client(User::Controller).await?;
    for host in [OWN, OTHER] {
        let grant = json!({"host": host, "incarnation": "i", "epoch": 1, "id": format!("grant-{host}"), "generation": 1, "lastEpoch": 1});
        let writes = [
            ("virtualmachines", json!({"status": {"placement": grant}})),
            ("disks", json!({"status": {"placement": {"host": host, "epoch": 1}}})),
            ("virtualmachineactions", json!({"status": {"host": host, "grantId": format!("grant-{host}")}})),
        ];
        for (resource, body) in writes {
            let path = format!("/apis/vireo.dev/v1alpha1/namespaces/{NAMESPACE}/{resource}/of-{host}/status");
            let request = Request::patch(path)
                .header("content-type", "application/merge-patch+json")
                .body(Body::from(serde_json::to_vec(&body)?))?;
            let response = controller.send(request).await?;
            ensure!(response.status().is_success(), "{resource}: {}", response.status());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_host_can_do_exactly_what_the_list_says() -> Result<()> {
    let server = prepared().await?;
    place(server).await?;
    let host = server.client(User::Host(OWN)).await?;
    let mut found: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    for ask in asks(&server.client(User::Admin).await?).await? {
        let own = allowed(&host, ask.request(OWN)?).await?;
        let other = allowed(&host, ask.request(OTHER)?).await?;
        if own || other {
            found.insert(format!("{} {} {}", ask.group_version, ask.resource, ask.verb), (own, other));
        }
    }
    let mut text = String::from(
        "# What a host may do: group/version resource verb, on its own object / on another's.\n",
    );
    for (ask, (own, other)) in &found {
        writeln!(text, "{ask}: {} / {}", if *own { "yes" } else { "no" }, if *other { "yes" } else { "no" })?;
    }
    if std::env::var_os("VIREO_BLESS").is_some() {
        std::fs::write(allow_list(), &text)?;
    }
    let committed = std::fs::read_to_string(allow_list()).context("no allow-list")?;
    ensure!(committed == text, "the rights of a host differ from {}:\n{text}", allow_list().display());
    Ok(())
}

#[tokio::test]
async fn a_hosts_token_lives_at_most_seven_days() -> Result<()> {
    let server = prepared().await?;
    let host = server.client(User::Host(OWN)).await?;
    let ask = |seconds: i64| -> Result<Request<Body>> {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds}});
        let path = format!("/api/v1/namespaces/vireo-hosts/serviceaccounts/host-{OWN}/token?dryRun=All");
        Ok(Request::post(path)
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&body)?))?)
    };
    ensure!(allowed(&host, ask(7 * 86_400)?).await?, "seven days are refused");
    ensure!(!allowed(&host, ask(7 * 86_400 + 1)?).await?, "more than seven days are allowed");
    ensure!(
        !allowed(&server.client(User::Admin).await?, ask(10 * 365 * 86_400)?).await?,
        "ten years are allowed"
    );
    Ok(())
}

#[tokio::test]
async fn no_role_has_a_wildcard() -> Result<()> {
    let server = prepared().await?;
    let mut seen = 0;
    let of_chart = ["-A", "-l", "app.kubernetes.io/name=vireo"];
    for (kind, scope) in
        [("clusterroles", &of_chart[1..]), ("roles", &of_chart[..]), ("roles", &["-n", "vireo-hosts"][..])]
    {
        let args = [&["get", kind, "-o", "json"], scope].concat();
        let roles: Value = serde_json::from_str(&server.admin(args)?)?;
        for role in roles["items"].as_array().into_iter().flatten() {
            let rules: Vec<PolicyRule> = serde_json::from_value(role["rules"].clone())?;
            seen += 1;
            for rule in rules {
                let lists = [Some(rule.verbs), rule.resources, rule.api_groups, rule.non_resource_urls];
                let is_wild = lists.iter().flatten().flatten().any(|word| word.contains('*'));
                ensure!(!is_wild, "{}: a wildcard", role["metadata"]["name"]);
            }
        }
    }
    ensure!(seen >= 8, "only {seen} roles were found");
    Ok(())
}

/// What `host` may read of Secrets, by name.
async fn readable(server: &ApiServer, host: &str) -> Result<Vec<String>> {
    let client = server.client(User::Host(host)).await?;
    let mut readable = Vec::new();
    for name in ["of-one", "of-two", "of-nobody"] {
        match Api::<Secret>::namespaced(client.clone(), "vault").get(name).await {
            Ok(secret) => readable.push(secret.name_any()),
            Err(Error::Api(status)) if status.code == 403 => {}
            Err(error) => return Err(error.into()),
        }
    }
    for namespace in ["vault", "vireo-system", "vireo-hosts", "kube-system"] {
        let listed = Api::<Secret>::namespaced(client.clone(), namespace).list(&ListParams::default()).await;
        ensure!(
            matches!(&listed, Err(Error::Api(status)) if status.code == 403),
            "{host} lists the Secrets of {namespace}"
        );
    }
    let key = Api::<Secret>::namespaced(client, "vireo-system").get("vireo-host-ca").await;
    ensure!(
        matches!(&key, Err(Error::Api(status)) if status.code == 403),
        "{host} reads the key that signs hosts' certificates"
    );
    Ok(readable)
}

async fn until_readable(server: &ApiServer, host: &str, wanted: &[&str]) -> Result<()> {
    until(&format!("{host} may read {wanted:?}"), LIMIT, || async {
        let readable = readable(server, host).await?;
        ensure!(readable == wanted, "{readable:?}");
        Ok(())
    })
    .await
}

#[test]
fn a_host_reads_the_secrets_of_its_vms_and_no_longer() -> Result<()> {
    live::run("a_host_reads_the_secrets_of_its_vms_and_no_longer", async {
        // The other tests leave hosts behind that answer no session.
        let server: &'static ApiServer = Box::leak(Box::new(start_with_chart()?));
        let fleet = Fleet::start_at(server, 2, &MemoryConfig::default()).await?;
        server.admin(["create", "namespace", "vault"])?;
        for name in ["of-one", "of-two", "of-nobody"] {
            server.admin([
                "-n",
                "vault",
                "create",
                "secret",
                "generic",
                name,
                "--from-literal=userData=#cloud-config",
            ])?;
        }
        ensure!(readable(server, "host1").await?.is_empty(), "host1 reads Secrets before it runs anything");
        for (name, host) in [("one", "host1"), ("two", "host2")] {
            apply(
                server,
                &format!(
                    "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}, namespace: vault}}
spec:
  memory: {{size: 128Mi}}
  disks: [{{name: root, template: {{storageDomain: shared, size: 1Gi}}}}]
  cloudInit: {{userDataSecret: {{name: of-{name}}}}}
  scheduling: {{hostName: {host}}}
"
                ),
            )?;
            fleet.ready("vault", name).await?;
        }
        until_readable(server, "host1", &["of-one"]).await?;
        until_readable(server, "host2", &["of-two"]).await?;

        // Released, and started elsewhere.
        let vms: Api<VirtualMachine> = fleet.vms("vault");
        let edit = async |spec: Value| -> Result<()> {
            let body = Patch::Merge(json!({"spec": spec}));
            vms.patch("one", &PatchParams::default(), &body).await?;
            Ok(())
        };
        edit(json!({"runStrategy": "Halted"})).await?;
        until_readable(server, "host1", &[]).await?;
        until_readable(server, "host2", &["of-two"]).await?;
        edit(json!({"runStrategy": "Always", "scheduling": {"hostName": "host2"}})).await?;
        until_readable(server, "host2", &["of-one", "of-two"]).await?;
        until_readable(server, "host1", &[]).await?;
        fleet.ready("vault", "one").await?;

        server.admin(["-n", "vault", "delete", "vvm", "--all", "--timeout=60s"])?;
        until_readable(server, "host2", &[]).await
    })
}

/// What the copy of a host must leave alone: machine, life, attestation and holder of the Lease.
#[derive(Debug, PartialEq)]
struct Said {
    machine: Option<String>,
    incarnation: Option<String>,
    attested: Option<String>,
    holder: Option<String>,
}

async fn said(fleet: &Fleet) -> Result<Said> {
    let host = Api::<Host>::all(fleet.admin.clone()).get(OWN).await?;
    let lease = Api::<Lease>::namespaced(fleet.admin.clone(), HOSTS_NAMESPACE).get(OWN).await?;
    let status = host.status.context("no status")?;
    Ok(Said {
        machine: status.identity.map(|identity| identity.machine_uuid),
        incarnation: status.incarnation,
        attested: status.attestation.map(|attestation| attestation.incarnation),
        holder: lease.spec.and_then(|spec| spec.holder_identity),
    })
}

/// Watches for a while that everything said of the host stays the same.
async fn stays(fleet: &Fleet, before: &Said, what: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        let now = said(fleet).await?;
        ensure!(now == *before, "{what}: {before:?} became {now:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[test]
fn only_the_machine_a_host_is_tied_to_speaks_for_it() -> Result<()> {
    const COPY: &str = "machine-of-the-copy";
    live::run("only_the_machine_a_host_is_tied_to_speaks_for_it", async {
        let server: &'static ApiServer = Box::leak(Box::new(start_with_chart()?));
        let mut fleet = Fleet::start_at(server, 1, &MemoryConfig::default()).await?;
        fleet.attested().await?;
        let before = said(&fleet).await?;
        ensure!(before.incarnation.is_some() && before.holder == before.incarnation, "{before:?}");
        ensure!(before.attested == before.incarnation, "{before:?}");

        let mut copy = fleet.nodes[0].copy(server, COPY).await?;
        stays(&fleet, &before, "with a copy beside the host").await?;
        // Nobody speaks for the host now but its copy.
        fleet.nodes[0].stop(Stop::Kill).await?;
        stays(&fleet, &before, "with the copy alone").await?;
        until("an Event names the copy", LIMIT, || async {
            let events = Api::<Event>::all(fleet.admin.clone()).list(&ListParams::default()).await?;
            let names = |event: &Event| {
                event.regarding.as_ref().is_some_and(|of| of.kind.as_deref() == Some("Host"))
                    && event.note.as_ref().is_some_and(|note| note.contains(COPY))
            };
            ensure!(events.iter().any(names), "{} Events", events.items.len());
            Ok(())
        })
        .await?;

        // The original is gone for good, and the copy takes its place.
        fleet.nodes[0].machine.cut_power();
        let untie = Patch::Merge(json!({"status": {"identity": null}}));
        let hosts: Api<Host> = Api::all(fleet.admin.clone());
        hosts.patch_status(OWN, &PatchParams::default(), &untie).await?;
        until("the copy speaks for the host", LIMIT, || async {
            let now = said(&fleet).await?;
            ensure!(now.machine.as_deref() == Some(COPY), "{now:?}");
            ensure!(now.incarnation.is_some() && now.incarnation != before.incarnation, "{now:?}");
            ensure!(now.holder == now.incarnation && now.attested == now.incarnation, "{now:?}");
            Ok(())
        })
        .await?;
        copy.stop(Stop::Term).await
    })
}
