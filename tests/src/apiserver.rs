//! A real API server for tests: one `vireo-standalone` per test binary, with the chart users install.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use kube::{Client, Config, config::Kubeconfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    client::{client, config},
    root,
    wait::until_blocking,
};

const START_LIMIT: Duration = Duration::from_secs(90);

/// A running API server.
pub struct ApiServer {
    data: PathBuf,
    /// None: stopped by [`ApiServer::stop`].
    process: Mutex<Option<Process>>,
}

struct Process {
    pid: i32,
    ended: Receiver<()>,
}

/// How something is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is asked to, as by SIGTERM.
    Term,
    /// It is gone at once, as by SIGKILL.
    Kill,
}

/// Whom a client speaks as.
#[derive(Debug, Clone, Copy)]
pub enum User<'a> {
    /// The administrator.
    Admin,
    /// A person by this name.
    Person(&'a str),
    /// The daemon of this host.
    Host(&'a str),
    /// The controller.
    Controller,
}

/// The server of this test binary, started at first use with the chart installed.
pub fn shared() -> Result<&'static ApiServer> {
    static SERVER: OnceLock<Result<ApiServer, String>> = OnceLock::new();
    SERVER
        .get_or_init(|| start_with_chart().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// A server with the chart installed for one test alone: for tests that leave it in no state for others.
pub fn start_with_chart() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_chart()?;
    Ok(server)
}

/// A folder under `target` of this test binary's own, emptied: statics are never dropped, so it is cleaned at the next run.
fn fresh_folder() -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let binary = std::env::current_exe()?;
    let name = binary.file_stem().context("this binary has no name")?.to_string_lossy().into_owned();
    let folder =
        root().join("target/test-api").join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

impl ApiServer {
    /// Starts a server with nothing installed. It ends with this process.
    pub fn start() -> Result<Self> {
        let binary = standalone();
        if !binary.exists() {
            bail!("{} is missing: run `make tools`", binary.display());
        }
        let server = Self { data: fresh_folder()?, process: Mutex::default() };
        server.run(0)?;
        Ok(server)
    }

    fn run(&self, port: u16) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.data.join("log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(standalone());
        command.args(["serve", "--port", &port.to_string(), "--data-dir"]).arg(self.data.join("api"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The death signal follows the thread that started the child, so that thread must not end before the tests.
        let (sender, receiver) = channel();
        let (end, ended) = channel();
        std::thread::spawn(move || {
            let mut child = command.spawn();
            let _ = sender.send(child.as_ref().map(std::process::Child::id).map_err(ToString::to_string));
            if let Ok(child) = &mut child {
                let _ = child.wait();
            }
            drop(end);
        });
        let pid = receiver.recv()?.map_err(anyhow::Error::msg).context("cannot start vireo-standalone")?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Process { pid: i32::try_from(pid)?, ended });
        self.wait_ready()
    }

    /// Stops the server and waits until it is gone; its data stay.
    pub fn stop(&self, how: Stop) -> Result<()> {
        let process = self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .context("it is stopped already")?;
        let signal = if how == Stop::Kill { Signal::KILL } else { Signal::TERM };
        kill_process(Pid::from_raw(process.pid).context("no pid")?, signal)?;
        // The sender is dropped when the process has ended; nothing is ever sent.
        let _ = process.ended.recv_timeout(START_LIMIT);
        Ok(())
    }

    /// Starts a stopped server again, on its data and at its address.
    pub fn start_again(&self) -> Result<()> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let server = kubeconfig
            .clusters
            .first()
            .and_then(|named| named.cluster.as_ref()?.server.clone())
            .context("no server in the kubeconfig")?;
        let port = server.rsplit(':').next().unwrap_or_default().trim_end_matches('/').parse()?;
        self.run(port)
    }

    fn wait_ready(&self) -> Result<()> {
        until_blocking("vireo-standalone is ready", START_LIMIT, || {
            let log = || std::fs::read_to_string(self.data.join("log")).unwrap_or_default();
            ensure!(self.kubeconfig().exists(), "no kubeconfig:\n{}", log());
            let ready = self.kubectl(User::Admin, ["get", "--raw", "/readyz"])?;
            ensure!(ready.status.success(), "not ready:\n{}", log());
            Ok(())
        })
    }

    fn install_chart(&self) -> Result<()> {
        let helm = root().join("target/tools/helm");
        let output = Command::new(&helm)
            .args(["upgrade", "--install", "vireo"])
            .arg(root().join("charts/vireo"))
            .args([
                "--namespace",
                "vireo-system",
                "--create-namespace",
                "--set",
                "controller.enabled=false",
                "--wait",
            ])
            .env("KUBECONFIG", self.kubeconfig())
            .output()
            .with_context(|| format!("cannot run {}: run `make tools`", helm.display()))?;
        if !output.status.success() {
            bail!("helm: {}", String::from_utf8_lossy(&output.stderr));
        }
        let init =
            Command::new(standalone()).arg("init").arg("--data-dir").arg(self.data.join("api")).output()?;
        if !init.status.success() {
            bail!("vireo-standalone init: {}", String::from_utf8_lossy(&init.stderr));
        }
        Ok(())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("api/admin.kubeconfig")
    }

    /// Runs kubectl as `user`.
    pub fn kubectl<I>(&self, user: User<'_>, args: I) -> Result<Output>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut command = Command::new(standalone());
        command.arg("kubectl").args(args.into_iter().map(Into::into)).env("KUBECONFIG", self.kubeconfig());
        if let Some((name, groups)) = user.impersonated() {
            command.arg("--as").arg(name);
            for group in groups {
                command.arg("--as-group").arg(group);
            }
        }
        command.output().context("cannot run kubectl")
    }

    /// Runs kubectl as administrator; its standard output, or its error.
    pub fn admin<I>(&self, args: I) -> Result<String>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let output = self.kubectl(User::Admin, args)?;
        if !output.status.success() {
            bail!("kubectl: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What a client needs that speaks as `user`.
    pub async fn config(&self, user: User<'_>) -> Result<Config> {
        Ok(speak_as(config(&self.kubeconfig()).await?, user))
    }

    /// Process id; none while it is stopped.
    pub fn pid(&self) -> Option<i32> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|process| process.pid)
    }

    /// A client that speaks as `user`.
    pub async fn client(&self, user: User<'_>) -> Result<Client> {
        client(&self.config(user).await?)
    }
}

/// The administrator's configuration, speaking as `user`.
pub fn speak_as(mut config: Config, user: User<'_>) -> Config {
    if let Some((name, groups)) = user.impersonated() {
        config.auth_info.impersonate = Some(name);
        config.auth_info.impersonate_groups = Some(groups);
    }
    config
}

impl User<'_> {
    /// Name and groups to speak under; none for the administrator.
    pub fn impersonated(self) -> Option<(String, Vec<String>)> {
        let group = |namespace: &str| {
            [
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ]
            .to_vec()
        };
        match self {
            Self::Admin => None,
            Self::Person(name) => Some((name.to_owned(), vec!["system:authenticated".to_owned()])),
            Self::Host(host) => Some((vireo_crds::meta::host_user_name(host), group("vireo-hosts"))),
            Self::Controller => Some((
                "system:serviceaccount:vireo-system:vireo-controller".to_owned(),
                group("vireo-system"),
            )),
        }
    }
}

fn standalone() -> PathBuf {
    std::env::var_os("VIREO_STANDALONE_BIN")
        .map_or_else(|| Path::new(&root()).join("target/tools/vireo-standalone"), PathBuf::from)
}
