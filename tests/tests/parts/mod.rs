//! The real programs as processes, with fail points armed: one that dies at a point is started again without it.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::{Pid, Signal, kill_process};
use system_tests::apiserver::{ApiServer, User};

/// Time a part has to end when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// systemd and Kubernetes wait as well before they start a part again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// The program, if it was built.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = system_tests::root().join("target/release").join(name);
    ensure!(path.exists(), "{} is missing: run `make build`", path.display());
    Ok(path)
}

/// A kubeconfig that speaks as `user`.
pub async fn kubeconfig(server: &ApiServer, user: User<'_>, path: &Path) -> Result<()> {
    let mut file = Kubeconfig::read_from(server.kubeconfig())?;
    let config = server.config(user).await?;
    for named in &mut file.auth_infos {
        if let Some(auth) = &mut named.auth_info {
            auth.impersonate.clone_from(&config.auth_info.impersonate);
            auth.impersonate_groups.clone_from(&config.auth_info.impersonate_groups);
        }
    }
    std::fs::write(path, serde_json::to_string(&file)?)?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(())
}

#[derive(Default)]
struct Shared {
    armed: Vec<String>,
    child: Option<u32>,
    stopping: bool,
    starts: u32,
    fault: Option<String>,
}

/// A part that is started again whenever it has died at a fail point. Any other end is a fault.
pub struct Supervised {
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Supervised {
    /// Starts it with these points armed, each `POINT=END`; `dir` gets its logs.
    pub fn start(
        command: impl Fn() -> Command + Send + 'static,
        points: &[String],
        dir: &Path,
        name: &str,
    ) -> Self {
        let shared = Arc::new(Mutex::new(Shared { armed: points.to_vec(), ..Shared::default() }));
        let log = dir.join(format!("{name}.points"));
        let output = dir.join(format!("{name}.log"));
        let (of_thread, points_log) = (Arc::clone(&shared), log.clone());
        let thread = std::thread::spawn(move || {
            if let Err(error) = supervise(&of_thread, &command, &points_log, &output) {
                lock(&of_thread).fault = Some(format!("{error:#}"));
            }
        });
        Self { shared, thread: Some(thread), log }
    }

    /// Points at which it has not died yet.
    pub fn left(&self) -> Vec<String> {
        lock(&self.shared).armed.clone()
    }

    /// Fails if it ended in any other way than at a point.
    pub fn check(&self) -> Result<()> {
        match &lock(&self.shared).fault {
            Some(fault) => bail!("{fault}"),
            None => Ok(()),
        }
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        lock(&self.shared).starts
    }

    /// All points it has passed so far.
    pub fn reached(&self) -> Result<BTreeSet<String>> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        Ok(text.lines().filter_map(|line| line.strip_prefix("reached ")).map(str::to_owned).collect())
    }

    /// Ends it, as systemd does.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let pid = {
            let mut shared = lock(&self.shared);
            shared.stopping = true;
            shared.child
        };
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            let _ = kill_process(pid, signal);
            let deadline = Instant::now() + STOP_LIMIT;
            while lock(&self.shared).child.is_some() {
                if Instant::now() > deadline {
                    let _ = kill_process(pid, Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the supervisor panicked"))?;
        }
        self.check()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.end(Signal::KILL);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn supervise(
    shared: &Mutex<Shared>,
    command: &dyn Fn() -> Command,
    points_log: &Path,
    output: &Path,
) -> Result<()> {
    loop {
        let mut child = {
            let mut shared = lock(shared);
            if shared.stopping {
                return Ok(());
            }
            // Where it has stood still once, it goes on.
            let text = std::fs::read_to_string(points_log).unwrap_or_default();
            let hung: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("hangs ")).collect();
            shared.armed.retain(|armed| !armed.split('=').next().is_some_and(|point| hung.contains(point)));
            let child = spawn(command(), &shared.armed, points_log, output)?;
            shared.child = Some(child.id());
            shared.starts += 1;
            child
        };
        let status = child.wait()?;
        let mut shared = lock(shared);
        shared.child = None;
        if shared.stopping {
            return Ok(());
        }
        let text = std::fs::read_to_string(points_log).unwrap_or_default();
        let died_at = text.lines().rev().find_map(|line| line.strip_prefix("aborted "));
        let known = died_at
            .and_then(|point| shared.armed.iter().position(|armed| armed.split('=').next() == Some(point)));
        match known {
            Some(index) => drop(shared.armed.remove(index)),
            None => {
                let log = std::fs::read_to_string(output).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "it ended by itself ({status}), not at a fail point; its last words:\n{}",
                    tail.join("\n")
                );
            }
        }
        drop(shared);
        std::thread::sleep(RESTART_PAUSE);
    }
}

fn spawn(program: Command, armed: &[String], points_log: &Path, output: &Path) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(output)?;
    // It ends with the thread that started it, which ends with the tests.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.env("VIREO_FAIL_POINTS", armed.join(";")).env("VIREO_FAIL_POINTS_LOG", points_log);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", program.get_program().display()))
}
