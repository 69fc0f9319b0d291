//! The lab's Kubernetes API, Vireo's chart in it, its controller, and the
//! joining of hosts: what an administrator of a real installation does by
//! hand, with the same programs and the same chart.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::layout::{API_PORT, HostLayout, Layout};
use crate::process::Identity;
use crate::service::{self, Place, Service};
use crate::state::State;
use crate::{fabric, host, progress, relay};

pub const API: &str = "api";
pub const CONTROLLER: &str = "controller";

const SYSTEM_NAMESPACE: &str = "vireo-system";
const HOSTS_NAMESPACE: &str = "vireo-hosts";

fn standalone(layout: &Layout) -> Result<PathBuf> {
    layout.tool("vireo-standalone").or_else(|e| layout.program("vireo-standalone").map_err(|_| e))
}

/// Whether everything a whole lab runs has been built.
pub fn check_programs(layout: &Layout) -> Result<()> {
    standalone(layout)?;
    for name in ["vireo-controller", "vireo-node"] {
        layout.program(name)?;
    }
    for name in ["kubectl", "helm"] {
        layout.tool(name)?;
    }
    chart_dir(layout).map(drop)
}

pub fn api_service(layout: &Layout) -> Result<Service> {
    let address = layout.api_address().to_string();
    let mut argv = vec![standalone(layout)?.into_os_string()];
    argv.extend(["--data-dir".into(), layout.api_data().into_os_string()]);
    argv.extend(["serve", "--bind-address", &address, "--port", &API_PORT.to_string()].map(OsString::from));
    for name in ["127.0.0.1", "localhost", "api"] {
        argv.extend(["--advertise-name", name].map(OsString::from));
    }
    Ok(Service { name: API, log: layout.logs().join("api.log"), argv })
}

pub fn controller_service(layout: &Layout) -> Result<Service> {
    let argv = vec![
        layout.program("vireo-controller")?.into_os_string(),
        "run".into(),
        "--kubeconfig".into(),
        layout.controller_kubeconfig().into_os_string(),
    ];
    Ok(Service { name: CONTROLLER, log: layout.logs().join("controller.log"), argv })
}

/// Starts the API server and the relay for people unless they run, and waits
/// until the API answers through it.
pub fn ensure_api(layout: &Layout, state: &mut State) -> Result<()> {
    let fabric = running_fabric(state)?;
    let place = fabric::place(layout, fabric);
    let service = api_service(layout)?;
    let fresh = service.start(&place, &layout.exe)?;
    let relay_place = relay::place(layout, fabric);
    if service::running(&relay_place, relay::NAME).is_none() {
        let port = relay::choose_port(state.relay_port, layout.preferred_port())?;
        state.relay_port = Some(port);
        state.save(&layout.dir)?;
        relay::service(layout, fabric, port).start(&relay_place, &layout.exe)?;
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    let ready = || {
        if fresh || !layout.kubeconfig().exists() {
            write_kubeconfig(layout, state)?;
        }
        kubectl(layout, &["get", "--raw", "/readyz"])
    };
    while let Err(e) = ready() {
        if service::running(&place, API).is_none() {
            bail!("the API server ended; see {}", service.log.display());
        }
        if Instant::now() > deadline {
            return Err(e.context(format!("the API server is not ready; see {}", service.log.display())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The administrator's kubeconfig for people: the same, by way of the relay.
fn write_kubeconfig(layout: &Layout, state: &State) -> Result<()> {
    let source = layout.api_data().join("admin.kubeconfig");
    let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
    let Some(port) = state.relay_port else { bail!("the relay has no port") };
    let text = text.replace(&layout.api_url(), &format!("https://127.0.0.1:{port}"));
    write_secret(&layout.kubeconfig(), &text)
}

/// Installs or upgrades the chart users install; workloads stay off, since
/// the lab runs them as processes.
pub fn install_chart(layout: &Layout) -> Result<()> {
    let chart = chart_dir(layout)?;
    let mut helm = Command::new(layout.tool("helm")?);
    helm.arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .args(["upgrade", "--install", "vireo"])
        .arg(&chart)
        .args(["--namespace", SYSTEM_NAMESPACE, "--create-namespace"])
        .args(["--set", "controller.enabled=false", "--set", "nodeDaemon.enabled=false"])
        // The hook job would need a node to run on; `init` below does its work.
        .args(["--set", "defaultUse=false"]);
    run(helm, "install the chart").map(drop)?;
    let mut init = Command::new(standalone(layout)?);
    init.arg("init").arg("--kubeconfig").arg(layout.kubeconfig());
    run(init, "make the default HostCluster").map(drop)
}

fn chart_dir(layout: &Layout) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("VIREO_CHART") {
        return Ok(PathBuf::from(dir));
    }
    let checkout = layout
        .exe
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "target"))
        .and_then(Path::parent)
        .map(Path::to_path_buf);
    let chart = checkout.unwrap_or_default().join("charts/vireo");
    if !chart.join("Chart.yaml").is_file() {
        bail!("{} is not a chart: point VIREO_CHART at Vireo's", chart.display());
    }
    Ok(chart)
}

/// Starts the controller as its own service account, so that what its role
/// forbids is forbidden here, too.
pub fn ensure_controller(layout: &Layout, state: &State) -> Result<bool> {
    let place = fabric::place(layout, running_fabric(state)?);
    if service::running(&place, CONTROLLER).is_some() {
        return Ok(false);
    }
    let service = controller_service(layout)?;
    // A controller started while the API is away keeps the last token.
    match token(layout, SYSTEM_NAMESPACE, "vireo-controller", "8760h") {
        Ok(token) => {
            let ca = ca_data(layout)?;
            write_secret(&layout.controller_kubeconfig(), &kubeconfig(layout, &ca, &token))?;
        }
        Err(e) if !layout.controller_kubeconfig().exists() => return Err(e),
        Err(_) => {}
    }
    service.start(&place, &layout.exe)
}

fn kubeconfig(layout: &Layout, ca_data: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: vireo\n\
         clusters:\n- name: vireo\n  cluster:\n    server: {}\n    certificate-authority-data: {ca_data}\n\
         users:\n- name: vireo\n  user:\n    token: {token}\n\
         contexts:\n- name: vireo\n  context: {{cluster: vireo, user: vireo}}\n",
        layout.api_url()
    )
}

/// Makes the Host object unless there is one; an edited one is left alone.
pub fn ensure_host_object(layout: &Layout, host: &HostLayout) -> Result<()> {
    if kubectl(layout, &["get", "hosts.vireo.dev", &host.name, "-o", "name"]).is_ok() {
        return Ok(());
    }
    let object = serde_json::json!({
        "apiVersion": "vireo.dev/v1alpha1",
        "kind": "Host",
        "metadata": {"name": host.name},
        "spec": {"cluster": "default", "address": host.address.to_string()},
    });
    let mut create = kubectl_command(layout)?;
    create.args(["create", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = create.spawn().context("cannot run kubectl")?;
    child.stdin.take().context("kubectl has no input")?.write_all(object.to_string().as_bytes())?;
    if !child.wait()?.success() {
        bail!("cannot make the Host object of {}", host.name);
    }
    Ok(())
}

/// Joins the host unless it has joined, and starts its daemon unless it runs.
pub fn start_daemon(layout: &Layout, host: &HostLayout, place: &Place) -> Result<bool> {
    if service::running(place, host::DAEMON).is_some() {
        return Ok(false);
    }
    if !host.dir.join("etc-vireo/node.yaml").exists() {
        join(layout, host, place).with_context(|| format!("cannot join {}", host.name))?;
        // libvirt looks for hooks only when it starts, and joining has just written the one that asks for permits.
        service::stop(place, host::LIBVIRTD)?;
        host::start_libvirtd(layout, host, place)?;
    }
    host::daemon(layout, host)?.start(place, &layout.exe)
}

fn join(layout: &Layout, host: &HostLayout, place: &Place) -> Result<()> {
    ensure_host_object(layout, host)?;
    let account = format!("host-{}", host.name);
    progress(&format!("joining {}", host.name));
    let deadline = Instant::now() + Duration::from_secs(60);
    let token = loop {
        // The controller makes the account when it sees the Host object.
        match token(layout, HOSTS_NAMESPACE, &account, "15m") {
            Ok(token) => break token,
            Err(e) if Instant::now() > deadline => {
                return Err(e.context(format!(
                    "the controller made no service account {account}; see {}",
                    layout.logs().join("controller.log").display()
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    };
    let (token_file, ca_file) = (host.run().join("bootstrap-token"), host.run().join("ca.crt"));
    write_secret(&token_file, &token)?;
    let ca = kubectl(layout, &["config", "view", "--raw", "-o", CA_TEMPLATE])?;
    fs::write(&ca_file, ca).with_context(|| ca_file.display().to_string())?;
    let mut join = place.command(&layout.program("vireo-node")?);
    join.arg("join").arg(layout.api_url()).args(["--host", &host.name]);
    join.arg("--token").arg(&token_file).arg("--ca-file").arg(&ca_file);
    join.args(["--etc-dir", "/etc/vireo", "--no-systemd"]);
    let result = run(join, "run `vireo-node join`").map(drop);
    let _ = fs::remove_file(&token_file);
    result
}

const CA_TEMPLATE: &str =
    "go-template={{index (index .clusters 0).cluster \"certificate-authority-data\" | base64decode}}";

fn ca_data(layout: &Layout) -> Result<String> {
    kubectl(
        layout,
        &["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"],
    )
}

fn token(layout: &Layout, namespace: &str, account: &str, duration: &str) -> Result<String> {
    let duration = format!("--duration={duration}");
    Ok(kubectl(layout, &["create", "token", account, "-n", namespace, &duration])?.trim().to_owned())
}

/// Waits until the controller calls all hosts Ready.
pub fn wait_hosts_ready(layout: &Layout, names: &[String]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut shown = String::new();
    loop {
        let lines = kubectl(
            layout,
            &[
                "get",
                "hosts.vireo.dev",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status} \
                 {.status.conditions[?(@.type==\"Ready\")].message}{\"\\n\"}{end}",
            ],
        )?;
        let waiting: Vec<&str> = lines
            .lines()
            .filter(|line| {
                let (name, rest) = line.split_once('=').unwrap_or((line, ""));
                names.iter().any(|wanted| wanted == name) && !rest.starts_with("True")
            })
            .collect();
        if waiting.is_empty() && names.iter().all(|name| lines.contains(&format!("{name}="))) {
            return Ok(());
        }
        let message = waiting.join("; ");
        if message != shown {
            progress(&format!("waiting for hosts to be Ready: {message}"));
            shown = message;
        }
        if Instant::now() > deadline {
            bail!("hosts are not Ready after two minutes: {shown}; see `vireo-lab logs HOST`");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The host that a VM is on.
pub fn host_of_vm(layout: &Layout, namespace: &str, name: &str) -> Result<String> {
    let host = kubectl(
        layout,
        &[
            "get",
            "virtualmachines.vireo.dev",
            "-n",
            namespace,
            name,
            "-o",
            "jsonpath={.status.placement.host}",
        ],
    )?;
    if host.trim().is_empty() {
        bail!("VM {namespace}/{name} is on no host: `kubectl describe vvm -n {namespace} {name}` says why");
    }
    Ok(host.trim().to_owned())
}

pub fn running_fabric(state: &State) -> Result<Identity> {
    state.fabric().context("the lab is not running: run `vireo-lab up`")
}

fn kubectl_command(layout: &Layout) -> Result<Command> {
    let mut command = Command::new(layout.tool("kubectl")?);
    command.arg("--kubeconfig").arg(layout.kubeconfig()).stdin(Stdio::null());
    Ok(command)
}

fn kubectl(layout: &Layout, args: &[&str]) -> Result<String> {
    let mut command = kubectl_command(layout)?;
    command.args(args).arg("--request-timeout=10s");
    run(command, &format!("kubectl {}", args.iter().take(3).copied().collect::<Vec<_>>().join(" ")))
}

/// Runs a program to its end; what it said comes with the error if it fails.
fn run(mut command: Command, what: &str) -> Result<String> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { said };
        bail!("cannot {what}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("secret-new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
