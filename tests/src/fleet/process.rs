//! The fleet as a process of its own, so that its costs can be told from those of whoever measures: it takes orders,
//! one JSON document a line, and answers each with how it stands.

use std::{io::Write as _, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::hollow::HollowFleet;
use crate::requests::Counts;

/// What the fleet is told to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase")]
pub enum Order {
    /// Be so many hosts.
    Grow {
        /// How many.
        hosts: usize,
    },
    /// Say how it stands.
    Tell,
    /// The same, with the files counted, each of which has to be read.
    Inspect,
    /// End a daemon.
    Stop {
        /// Of which host.
        host: usize,
    },
    /// Start it again.
    Start {
        /// Of which host.
        host: usize,
    },
    /// One guest of this host crashes, if it has any.
    Crash {
        /// Of which host.
        host: usize,
        /// Which of them: the remainder counts.
        pick: usize,
    },
}

/// How the fleet stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Why the last order was not carried out.
    pub error: Option<String>,
    /// Hosts.
    pub hosts: usize,
    /// Guests with a process.
    pub guests: usize,
    /// Guests with more than one.
    pub doubled: Vec<String>,
    /// Files kept of VMs, if they were counted.
    pub files: Option<usize>,
    /// Tasks of the process.
    pub tasks: usize,
    /// Writes sent so far, Leases aside.
    pub sent: Counts,
}

/// Carries out orders from standard input until it ends.
pub async fn serve(mut fleet: HollowFleet) -> Result<()> {
    let (sender, mut orders) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = orders.recv().await {
        let order: Order = serde_json::from_str(&line)?;
        let files = if matches!(order, Order::Inspect) { Some(fleet.files()?.len()) } else { None };
        let outcome = carry_out(&mut fleet, order).await;
        let guests = fleet.guests();
        let standing = Standing {
            error: outcome.err().map(|error| format!("{error:#}")),
            hosts: fleet.hosts.len(),
            guests: guests.len(),
            doubled: guests.into_iter().filter(|(_, at)| at.len() > 1).map(|(uuid, _)| uuid).collect(),
            files,
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            sent: fleet.sent(),
        };
        let mut answers = std::io::stdout().lock();
        writeln!(answers, "{}", serde_json::to_string(&standing)?)?;
        answers.flush()?;
    }
    Ok(())
}

async fn carry_out(fleet: &mut HollowFleet, order: Order) -> Result<()> {
    match order {
        Order::Grow { hosts } => fleet.grow(hosts).await,
        Order::Tell | Order::Inspect => Ok(()),
        Order::Stop { host } => fleet.stop(host).await,
        Order::Start { host } => fleet.start(host),
        Order::Crash { host, pick } => {
            let host = fleet.hosts.get(host).context("there is no such host")?;
            let guests: Vec<String> = host.machine.pids().into_keys().collect();
            if let Some(uuid) = pick.checked_rem(guests.len()).and_then(|index| guests.get(index)) {
                host.machine.end(uuid, node_plan::facts::ExitKind::Crashed);
            }
            Ok(())
        }
    }
}

/// The process, seen from whoever gives the orders.
pub struct FleetProcess {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl FleetProcess {
    /// Starts `target/release/hollow-fleet`.
    pub async fn start(binary: &Path, kubeconfig: &Path, boot_ms: u64, log: std::fs::File) -> Result<Self> {
        let mut child = Command::new(binary)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--boot-ms", &boot_ms.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let orders = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { child, orders, answers })
    }

    /// Gives an order and waits until it was carried out.
    pub async fn order(&mut self, order: &Order) -> Result<Standing> {
        self.orders.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).await?;
        let line = self.answers.next_line().await?.context("the fleet has ended; see its log")?;
        let standing: Standing = serde_json::from_str(&line)?;
        match &standing.error {
            None => Ok(standing),
            Some(error) => bail!("the fleet: {order:?}: {error}"),
        }
    }

    /// How it stands.
    pub async fn tell(&mut self) -> Result<Standing> {
        self.order(&Order::Tell).await
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}
