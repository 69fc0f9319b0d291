//! Measures what VMs cost and how fast they come, with hosts in memory and everything else real: API server, controller
//! and fleet of daemons, each a process of its own. Writes table, JSON and plot to `docs/performance`.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use system_tests::{
    fleet::{
        figures::{Figures, Run, Spread},
        load::{Load, Observer, Pace},
        plot,
        site::Site,
    },
    requests::{Counts, is_summary, since, writes},
    root,
};

const LIMIT: Duration = Duration::from_secs(300);
/// Nothing but Leases within it: all has been written.
const QUIET: Duration = Duration::from_secs(3);
/// Columns that sum up VMs are written at most every ten seconds: so late the last of them comes.
const LAST_SUMMARIES: Duration = Duration::from_secs(11);
/// What stands between the lines of `docs/performance/scale.md` that this writes.
const BEGIN: &str = "<!-- begin: written by make bench-scale -->";
const END: &str = "<!-- end -->";

#[derive(Parser)]
struct Arguments {
    /// Hosts of the runs without a pace.
    #[arg(long, default_value_t = 100)]
    hosts: usize,
    /// Hosts of the paced runs.
    #[arg(long, default_value_t = 10)]
    paced_hosts: usize,
    /// How often the 200 VMs at 20 a second are run.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Numbers of VMs of the runs without a pace.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000])]
    sizes: Vec<usize>,
    /// Seconds at rest in which writes are counted.
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Leaves `docs/performance` as it is and only prints.
    #[arg(long)]
    dry_run: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut figures = Figures { cpus: std::thread::available_parallelism()?.get(), ..Figures::default() };
    if arguments.rounds > 0 {
        let mut site = site("paced", arguments.paced_hosts).await?;
        let every = |per_second: u32| Pace::Every(Duration::from_secs(1) / per_second);
        // The first VMs find caches cold, processes just started.
        run(&mut site, "warm-up", 20, arguments.paced_hosts, every(10), 0).await?;
        let title = "100 VMs, 10 a second";
        figures.runs.push(run(&mut site, title, 100, arguments.paced_hosts, every(10), 0).await?);
        for round in 1..=arguments.rounds {
            let title = format!("200 VMs, 20 a second, round {round}");
            figures.runs.push(run(&mut site, &title, 200, arguments.paced_hosts, every(20), 0).await?);
        }
    }
    for &vms in &arguments.sizes {
        // Each size finds fresh processes: memory that an earlier one left behind would blur what a VM costs.
        let mut site = site(&format!("sized-{vms}"), arguments.hosts).await?;
        let title = format!("{vms} VMs, one after the other");
        figures
            .runs
            .push(run(&mut site, &title, vms, arguments.hosts, Pace::Sequential, arguments.rest).await?);
    }
    figures.judge();
    let tables = figures.tables()?;
    println!("{tables}");
    if !arguments.dry_run {
        publish(&figures, &tables)?;
    }
    Ok(())
}

async fn site(name: &str, hosts: usize) -> Result<Site> {
    let started = Instant::now();
    eprintln!("{name}: starting API server, controller and {hosts} hosts");
    let site = Site::start(name, hosts, u64::from(u32::MAX)).await?;
    eprintln!("{name}: all hosts are Ready after {:.1} s", started.elapsed().as_secs_f64());
    Ok(site)
}

fn machine_load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

async fn run(site: &mut Site, title: &str, vms: usize, hosts: usize, pace: Pace, rest: u64) -> Result<Run> {
    let namespace = format!("scale-{}", fastrand::u32(..));
    let load = Load::prepare(&site.admin, &namespace).await?;
    let observer = Observer::start(&site.admin, &namespace);
    let names: Vec<String> = (0..vms).map(|number| format!("vm-{number:04}")).collect();
    let began = Instant::now();
    load.create_disks(&names).await?;
    observer.disks(vms, LIMIT).await?;
    site.silent(QUIET, LIMIT).await?;
    eprintln!("{title}: {vms} Disks are Ready after {:.1} s", began.elapsed().as_secs_f64());

    let load_before = machine_load();
    let (usage, all, daemons) = (site.usage()?, writes(&site.admin).await?, site.fleet.tell().await?.sent);
    let started = Instant::now();
    let sent = load.create_vms(&names, pace).await?;
    observer.running(vms, LIMIT).await?;
    let seen = observer.seen();
    let last = seen.running.values().max().copied().context("nothing runs")?;
    let usage_of_start = site.usage()?.since(usage);
    site.silent(QUIET, LIMIT).await?;
    let standing = site.fleet.tell().await?;
    let mut controller = since(&all, &writes(&site.admin).await?);
    let daemons = since(&daemons, &standing.sent);
    for (what, count) in &daemons {
        let left = controller.entry(what.clone()).or_default();
        *left = left.saturating_sub(*count);
    }
    if let Some(creates) = controller.get_mut("POST virtualmachines") {
        *creates = creates.saturating_sub(vms as u64);
    }
    controller.retain(|_, count| *count > 0);

    if rest > 0 {
        site.silent(LAST_SUMMARIES, LIMIT).await?;
    }
    let (resting, at_rest) = (site.usage()?, writes(&site.admin).await?);
    tokio::time::sleep(Duration::from_secs(rest)).await;
    let (rested, after_rest) = (site.usage()?, writes(&site.admin).await?);

    let deleting = Instant::now();
    load.delete_vms().await?;
    observer.gone(LIMIT).await?;
    let delete_all_seconds = deleting.elapsed().as_secs_f64();
    let deleted = site.usage()?;
    load.delete_disks().await?;
    site.silent(QUIET, LIMIT).await?;

    let times_ms: Vec<f64> = names
        .iter()
        .filter_map(|name| Some(seen.running.get(name)?.duration_since(*sent.get(name)?).as_secs_f64() * 1e3))
        .collect();
    let per_vm = |counts: &Counts| -> BTreeMap<String, f64> {
        counts.iter().map(|(what, count)| (what.clone(), *count as f64 / vms as f64)).collect()
    };
    let own = |counts: &Counts| -> u64 {
        counts.iter().filter(|(what, _)| !is_summary(what)).map(|(_, count)| count).sum()
    };
    let all_running_seconds = last.duration_since(started).as_secs_f64();
    let mut usage = usage_of_start;
    usage.controller.rss_kib = rested.controller.rss_kib;
    usage.api_server.rss_kib = rested.api_server.rss_kib;
    usage.daemons.rss_kib = rested.daemons.rss_kib;
    let run = Run {
        title: title.into(),
        vms,
        hosts,
        pace: match pace {
            Pace::Every(pause) => Some(1.0 / pause.as_secs_f64()),
            Pace::Sequential => None,
        },
        create_to_running_ms: Spread::of(times_ms.clone()),
        times_ms,
        all_running_seconds,
        vms_per_second: vms as f64 / all_running_seconds,
        controller_writes: per_vm(&controller),
        daemon_writes: per_vm(&daemons),
        writes_per_vm: (own(&controller) + own(&daemons)) as f64 / vms as f64,
        rest_seconds: rest,
        writes_at_rest: since(&at_rest, &after_rest),
        usage,
        usage_at_rest: rested.since(resting),
        delete_all_seconds,
        usage_of_deletion: deleted.since(rested),
        machine_load: (load_before, machine_load()),
    };
    eprintln!(
        "{title}: p50 {:.0} ms, p95 {:.0} ms, {:.1} VM/s, {:.2} writes per VM, deleted in {:.1} s",
        run.create_to_running_ms.p50,
        run.create_to_running_ms.p95,
        run.vms_per_second,
        run.writes_per_vm,
        run.delete_all_seconds
    );
    Ok(run)
}

/// Writes JSON and plot, and puts the tables into the document between its two lines.
fn publish(figures: &Figures, tables: &str) -> Result<()> {
    let folder = root().join("docs/performance");
    fs::create_dir_all(&folder)?;
    let mut short = figures.clone();
    short.runs.iter_mut().for_each(|run| run.times_ms.clear());
    fs::write(folder.join("scale.json"), serde_json::to_string_pretty(&short)? + "\n")?;
    plot::draw(figures, &folder.join("scale.svg"))?;
    let path = folder.join("scale.md");
    let document = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (head, rest) = document.split_once(BEGIN).context("scale.md has lost its first marker")?;
    let (_, tail) = rest.split_once(END).context("scale.md has lost its second marker")?;
    fs::write(
        path,
        format!("{head}{BEGIN}\n![VMs running after their creation](scale.svg)\n\n{tables}{END}{tail}"),
    )?;
    eprintln!("written: {}", Path::new("docs/performance").display());
    Ok(())
}
