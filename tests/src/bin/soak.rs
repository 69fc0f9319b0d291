//! Half an hour of churn on many hosts in memory: VMs are created, edited, crash and are deleted; daemons and the
//! controller are ended and started again, at random. In rounds, each of which ends with nothing left: what grows from
//! round to round leaks.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use system_tests::{
    fleet::{
        load::{Load, Observer},
        process::Order,
        site::{Site, Usages},
    },
    requests::watches,
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(180);
const QUIET: Duration = Duration::from_secs(3);
const NAMESPACE: &str = "soak";
/// Memory of a part at the end of a round, as a multiple of what it was after the second; the first fill caches.
const GROWTH: f64 = 1.25;
/// And this much is noise, in KiB.
const NOISE_KIB: f64 = 16.0 * 1024.0;
/// Bytes logged by controller and daemons per act of churn.
const LOG_PER_ACT: u64 = 20_000;

#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Hosts.
    #[arg(long, default_value_t = 30)]
    hosts: usize,
    /// VMs there may be at once.
    #[arg(long, default_value_t = 300)]
    vms: usize,
    /// Rounds.
    #[arg(long, default_value_t = 6)]
    rounds: u32,
    /// Where chance begins; left out, anywhere.
    #[arg(long)]
    seed: Option<u64>,
}

/// What a round leaves.
#[derive(Debug, Clone, Copy)]
struct Left {
    usage: Usages,
    tasks: usize,
    watches: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    soak(&arguments, seed).await.with_context(|| format!("--seed {seed}"))
}

async fn soak(arguments: &Arguments, seed: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut site = Site::start("soak", arguments.hosts, 200).await?;
    let load = Load::prepare(&site.admin, NAMESPACE).await?;
    let observer = Observer::start(&site.admin, NAMESPACE);
    let names: Vec<String> = (0..arguments.vms).map(|number| format!("vm-{number:04}")).collect();
    let round = Duration::from_secs_f64(arguments.minutes * 60.0 / f64::from(arguments.rounds.max(1)));
    let mut left = Vec::<Left>::new();
    for number in 1..=arguments.rounds {
        load.create_disks(&names).await?;
        observer.disks(names.len(), LIMIT).await?;
        let logged = site.logged()?;
        let acts = churn(&mut site, &load, &names, arguments, &mut random, round, number == 1).await?;
        load.delete_vms().await?;
        observer.gone(LIMIT).await?;
        load.delete_disks().await?;
        let standing = emptied(&mut site).await?;
        site.silent(QUIET, LIMIT).await?;
        let now = Left { usage: site.usage()?, tasks: standing, watches: watches(&site.admin).await? };
        let log_per_act = (site.logged()? - logged) / acts.max(1);
        println!(
            "round {number}: {acts} acts; controller {} KiB, daemons {} KiB, API server {} KiB, {} tasks, {} watches, {log_per_act} bytes logged per act",
            now.usage.controller.rss_kib,
            now.usage.daemons.rss_kib,
            now.usage.api_server.rss_kib,
            now.tasks,
            now.watches,
        );
        ensure!(log_per_act <= LOG_PER_ACT, "{log_per_act} bytes logged per act of churn");
        left.push(now);
    }
    judge(&left)
}

/// One round; how much was done in it.
async fn churn(
    site: &mut Site,
    load: &Load,
    names: &[String],
    arguments: &Arguments,
    random: &mut fastrand::Rng,
    round: Duration,
    // The controller is replaced in the first round only: afterwards one of them must not grow.
    first: bool,
) -> Result<u64> {
    let api = load.vms();
    let mut there = BTreeSet::new();
    let mut stopped = BTreeSet::new();
    let (began, mut acts) = (Instant::now(), 0);
    let mut turns = tokio::time::interval(Duration::from_millis(40));
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while began.elapsed() < round {
        turns.tick().await;
        acts += 1;
        let name = random.choice(names).context("no VM")?;
        let host = random.usize(0..arguments.hosts);
        match random.u32(0..1000) {
            0..450 if !there.contains(name) => {
                // One that is still being deleted comes another time.
                let created = api.create(&PostParams::default(), &Load::vm(name)?).await.is_ok();
                if created {
                    there.insert(name.clone());
                }
            }
            450..650 if there.contains(name) => {
                api.delete(name, &DeleteParams::default()).await?;
                there.remove(name);
            }
            650..800 if there.contains(name) => {
                let edit = json!({"spec": {"gracePeriodSeconds": random.u32(1..60)}});
                api.patch(name, &PatchParams::default(), &Patch::Merge(edit)).await?;
            }
            800..950 => {
                site.fleet.order(&Order::Crash { host, pick: random.usize(..) }).await?;
            }
            950..975 if !stopped.contains(&host) => {
                site.fleet.order(&Order::Stop { host }).await?;
                stopped.insert(host);
            }
            975..998 => {
                if let Some(host) = stopped.pop_first() {
                    site.fleet.order(&Order::Start { host }).await?;
                }
            }
            998.. if first => site.replace_controller()?,
            _ => {}
        }
        let standing = site.fleet.tell().await?;
        ensure!(standing.doubled.is_empty(), "two processes of one VM: {:?}", standing.doubled);
    }
    for host in stopped {
        site.fleet.order(&Order::Start { host }).await?;
    }
    Ok(acts)
}

/// Waits until the hosts have neither guests nor files; tasks of the fleet then.
async fn emptied(site: &mut Site) -> Result<usize> {
    let site = tokio::sync::Mutex::new(site);
    until("the hosts are empty", LIMIT, || async {
        let standing = site.lock().await.fleet.order(&Order::Inspect).await?;
        ensure!(
            standing.guests == 0 && standing.files == Some(0),
            "{} guests, {:?} files",
            standing.guests,
            standing.files
        );
        Ok(standing.tasks)
    })
    .await
}

fn judge(left: &[Left]) -> Result<()> {
    let (Some(early), Some(late)) = (left.get(1), left.last()) else { return Ok(()) };
    let part = |what: &str, of: fn(&Left) -> f64, noise: f64| {
        let (before, after) = (of(early), of(late));
        ensure!(
            after <= before * GROWTH + noise,
            "{what} grew from {before:.0} after the second round to {after:.0} after the last"
        );
        Ok(())
    };
    part("memory of the controller (KiB)", |left| left.usage.controller.rss_kib as f64, NOISE_KIB)?;
    part("memory of the daemons (KiB)", |left| left.usage.daemons.rss_kib as f64, NOISE_KIB)?;
    part("the number of the daemons' tasks", |left| left.tasks as f64, 50.0)?;
    part("the number of watches", |left| left.watches as f64, 10.0)
}
