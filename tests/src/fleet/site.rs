//! API server, controller and fleet, each a process of its own, and what each has used.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kube::{Client, config::Kubeconfig};
use serde::{Deserialize, Serialize};

use super::process::{FleetProcess, Order};
use crate::{
    apiserver::{ApiServer, User, start_with_chart},
    requests::{Counts, since, writes},
    root,
};

/// Ticks of process times per second: the kernel's interface on every machine Vireo runs on.
const TICKS: f64 = 100.0;

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Seconds on a processor.
    pub cpu_seconds: f64,
    /// KiB of memory in use.
    pub rss_kib: u64,
}

impl Usage {
    /// Of the process with this id, now.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in brackets may hold anything; fields are counted behind it.
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = rss.and_then(|rss| rss.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
        Ok(Self { cpu_seconds: (ticks(11) + ticks(12)) / TICKS, rss_kib })
    }

    /// Processor time since `before`; memory as it is now.
    pub fn since(self, before: Self) -> Self {
        Self { cpu_seconds: self.cpu_seconds - before.cpu_seconds, ..self }
    }
}

/// What each part has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usages {
    /// The controller.
    pub controller: Usage,
    /// API server and etcd, one process.
    pub api_server: Usage,
    /// All daemons, one process.
    pub daemons: Usage,
}

impl Usages {
    /// Processor time since `before`; memory as it is now.
    pub fn since(self, before: Self) -> Self {
        Self {
            controller: self.controller.since(before.controller),
            api_server: self.api_server.since(before.api_server),
            daemons: self.daemons.since(before.daemons),
        }
    }
}

/// The processes.
pub struct Site {
    server: ApiServer,
    controller: Child,
    kubeconfig: PathBuf,
    logs: PathBuf,
    /// The fleet.
    pub fleet: FleetProcess,
    /// The administrator.
    pub admin: Client,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.controller.kill();
        let _ = self.controller.wait();
        // One that does not end by itself ends with this process.
        let _ = self.server.stop(crate::apiserver::Stop::Term);
    }
}

impl Site {
    /// Starts everything, with so many hosts.
    pub async fn start(name: &str, hosts: usize, boot_ms: u64) -> Result<Self> {
        let logs = root().join("target/fleet").join(name);
        std::fs::create_dir_all(&logs)?;
        let server = tokio::task::spawn_blocking(start_with_chart).await??;
        let kubeconfig = logs.join("controller.kubeconfig");
        as_controller(&server.kubeconfig(), &kubeconfig)?;
        let controller = controller(&kubeconfig, &logs)?;
        let admin = server.client(User::Admin).await?;
        let binary = beside("hollow-fleet")?;
        let log = File::create(logs.join("fleet.log"))?;
        let fleet = FleetProcess::start(&binary, &server.kubeconfig(), boot_ms, log).await?;
        let mut site = Self { server, controller, kubeconfig, logs, fleet, admin };
        site.fleet.order(&Order::Grow { hosts }).await?;
        Ok(site)
    }

    /// What each part has used so far.
    pub fn usage(&self) -> Result<Usages> {
        let server = self.server.pid().context("the API server is stopped")?;
        Ok(Usages {
            controller: Usage::of(self.controller.id())?,
            api_server: Usage::of(u32::try_from(server)?)?,
            daemons: Usage::of(self.fleet.pid().context("the fleet has ended")?)?,
        })
    }

    /// Ends the controller at once and starts another.
    pub fn replace_controller(&mut self) -> Result<()> {
        self.controller.kill()?;
        self.controller.wait()?;
        self.controller = controller(&self.kubeconfig, &self.logs)?;
        Ok(())
    }

    /// Bytes logged by controller and fleet.
    pub fn logged(&self) -> Result<u64> {
        let mut sum = 0;
        for name in ["controller.log", "fleet.log"] {
            sum += std::fs::metadata(self.logs.join(name))?.len();
        }
        Ok(sum)
    }

    /// Waits until nothing but Leases has been written for `quiet`.
    pub async fn silent(&self, quiet: Duration, limit: Duration) -> Result<()> {
        silent(&self.admin, quiet, limit).await
    }
}

/// Waits until nothing but Leases has been written for `quiet`.
pub async fn silent(admin: &Client, quiet: Duration, limit: Duration) -> Result<()> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut before = writes(admin).await?;
    loop {
        tokio::time::sleep(quiet).await;
        let after = writes(admin).await?;
        let more: Counts = since(&before, &after);
        if more.is_empty() {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "no silence of {quiet:?} within {limit:?}; last written: {more:?}"
        );
        before = after;
    }
}

/// A binary of this workspace, beside the one that runs.
fn beside(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.parent().context("this binary is nowhere")?.join(name);
    ensure!(path.exists(), "{} is missing: build it first, as `make bench-scale` does", path.display());
    Ok(path)
}

/// A copy of the administrator's kubeconfig that speaks as the controller, so that its rights are the chart's.
fn as_controller(admin: &Path, copy: &Path) -> Result<()> {
    let mut kubeconfig = Kubeconfig::read_from(admin)?;
    let (name, groups) = User::Controller.impersonated().context("the controller has a name")?;
    for user in &mut kubeconfig.auth_infos {
        if let Some(info) = &mut user.auth_info {
            info.impersonate = Some(name.clone());
            info.impersonate_groups = Some(groups.clone());
        }
    }
    std::fs::write(copy, serde_json::to_string(&kubeconfig)?)?;
    Ok(())
}

fn controller(kubeconfig: &Path, logs: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(logs.join("controller.log"))?;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Command::new(beside("vireo-controller")?)
        .args(["run", "--http", &address.to_string(), "--kubeconfig"])
        .arg(kubeconfig)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot run vireo-controller")
}
