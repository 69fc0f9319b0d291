//! The figures of a benchmark: what is written to JSON, as a table for people, and held against the goals.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::site::Usages;
use crate::requests::Counts;

/// Middle, 95th percentile and largest of some times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// Half take at most this.
    pub p50: f64,
    /// 95 of 100 take at most this.
    pub p95: f64,
    /// None takes more.
    pub max: f64,
}

impl Spread {
    /// Of these milliseconds.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (times.len() as f64 * share).ceil() as usize;
            times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// One run: some VMs created, looked at in silence, and deleted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// What it is called in the table.
    pub title: String,
    /// VMs.
    pub vms: usize,
    /// Hosts.
    pub hosts: usize,
    /// VMs per second that the pace asks for; none: one create after the other.
    pub pace: Option<f64>,
    /// From sending a create until the client's watch shows the VM as Running.
    pub create_to_running_ms: Spread,
    /// Every time, in the order of creation.
    pub times_ms: Vec<f64>,
    /// From the first create until all run.
    pub all_running_seconds: f64,
    /// VMs by that time.
    pub vms_per_second: f64,
    /// Writes of the controller per VM, by verb and resource.
    pub controller_writes: std::collections::BTreeMap<String, f64>,
    /// Writes of the daemons per VM, by verb and resource.
    pub daemon_writes: std::collections::BTreeMap<String, f64>,
    /// Writes of both per VM, without the columns that sum up many VMs.
    pub writes_per_vm: f64,
    /// Seconds without a VM starting in which writes at rest were counted.
    pub rest_seconds: u64,
    /// Writes at rest, Leases aside.
    pub writes_at_rest: Counts,
    /// Processor time while all were started, memory at rest with all running.
    pub usage: Usages,
    /// Processor time in the seconds at rest.
    pub usage_at_rest: Usages,
    /// From asking for the deletion of all until the watch shows none.
    pub delete_all_seconds: f64,
    /// Processor time of the deletion.
    pub usage_of_deletion: Usages,
    /// Load average of the machine before and after, over one minute.
    pub machine_load: (f64, f64),
}

/// Everything measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Processors of the machine.
    pub cpus: usize,
    /// The runs.
    pub runs: Vec<Run>,
    /// KiB of the controller per VM, between the two largest runs.
    pub controller_kib_per_vm: f64,
    /// Goals and whether they are met.
    pub goals: Vec<Goal>,
}

/// A goal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// What is asked for.
    pub goal: String,
    /// What was measured.
    pub measured: String,
    /// Whether that is enough.
    pub met: bool,
}

impl Figures {
    /// Holds the runs against the goals.
    pub fn judge(&mut self) {
        let sized = |vms: usize| self.runs.iter().find(|run| run.pace.is_none() && run.vms == vms);
        let mut goals = Vec::new();
        let mut goal = |goal: &str, measured: String, met: bool| {
            goals.push(Goal { goal: goal.into(), measured, met });
        };
        let mut paced: Vec<f64> = self
            .runs
            .iter()
            .filter(|run| run.vms == 200 && run.pace.is_some())
            .map(|run| run.create_to_running_ms.p95)
            .collect();
        paced.sort_by(f64::total_cmp);
        if let Some(middle) = paced.get(paced.len() / 2) {
            let all: Vec<String> = paced.iter().map(|p95| format!("{p95:.0}")).collect();
            goal(
                "p95 create→Running at 20 VM/s, 200 VMs: at most 200 ms (middle of the rounds)",
                format!("{middle:.0} ms of {}", all.join(", ")),
                *middle <= 200.0,
            );
        }
        if let Some(run) = sized(1000) {
            goal(
                "VMs per second, sustained to 1,000: at least 50",
                format!("{:.1}", run.vms_per_second),
                run.vms_per_second >= 50.0,
            );
            goal(
                "delete of 1,000 VMs: within 15 s",
                format!("{:.1} s", run.delete_all_seconds),
                run.delete_all_seconds <= 15.0,
            );
        }
        let writes = self.runs.iter().map(|run| run.writes_per_vm).fold(0.0, f64::max);
        goal(
            "writes per VM with one existing disk, by Vireo's parts: at most 5",
            format!("{writes:.2} at most"),
            writes <= 5.0,
        );
        let rest: u64 = self.runs.iter().flat_map(|run| run.writes_at_rest.values()).sum();
        goal("writes at rest besides Leases: none", format!("{rest}"), rest == 0);
        if let (Some(small), Some(large)) = (sized(1000), sized(5000)) {
            let kib = |run: &Run| run.usage.controller.rss_kib as f64;
            self.controller_kib_per_vm = (kib(large) - kib(small)) / (large.vms - small.vms) as f64;
            goal(
                "controller memory per VM between 1,000 and 5,000: at most 20 KB",
                format!("{:.1} KiB", self.controller_kib_per_vm),
                self.controller_kib_per_vm * 1.024 <= 20.0,
            );
        }
        self.goals = goals;
    }

    /// The tables, in Markdown.
    pub fn tables(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        writeln!(text, "| Goal | Measured | |\n|---|---|---|")?;
        for Goal { goal, measured, met } in &self.goals {
            writeln!(text, "| {goal} | {measured} | {} |", if *met { "met" } else { "**missed**" })?;
        }
        writeln!(
            text,
            "\n| Run | Hosts | create→Running p50 / p95 / max | All Running | VM/s | Writes per VM | Writes at rest | Delete all | Load of the machine |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
        for run in &self.runs {
            let Spread { p50, p95, max } = run.create_to_running_ms;
            writeln!(
                text,
                "| {} | {} | {p50:.0} / {p95:.0} / {max:.0} ms | {:.1} s | {:.1} | {:.2} | {} in {} s | {:.1} s | {:.1} to {:.1} |",
                run.title,
                run.hosts,
                run.all_running_seconds,
                run.vms_per_second,
                run.writes_per_vm,
                run.writes_at_rest.values().sum::<u64>(),
                run.rest_seconds,
                run.delete_all_seconds,
                run.machine_load.0,
                run.machine_load.1,
            )?;
        }
        writeln!(
            text,
            "\n| Run | CPU ms per VM started: controller / API server with etcd / daemons | CPU ms per VM deleted | CPU of the machine at rest: same three | Memory MiB with all running: same three |"
        )?;
        writeln!(text, "|---|---|---|---|---|")?;
        for run in &self.runs {
            let vms = run.vms as f64;
            let three = |usage: &Usages, scale: f64| {
                let [a, b, c] = [&usage.controller, &usage.api_server, &usage.daemons]
                    .map(|part| part.cpu_seconds * scale);
                format!("{a:.1} / {b:.1} / {c:.1}")
            };
            let mib = [&run.usage.controller, &run.usage.api_server, &run.usage.daemons]
                .map(|part| (part.rss_kib / 1024).to_string());
            writeln!(
                text,
                "| {} | {} | {} | {} % | {} |",
                run.title,
                three(&run.usage, 1000.0 / vms),
                three(&run.usage_of_deletion, 1000.0 / vms),
                three(&run.usage_at_rest, 100.0 / run.rest_seconds.max(1) as f64),
                mib.join(" / "),
            )?;
        }
        if let Some(run) = self.runs.iter().max_by_key(|run| run.vms) {
            writeln!(
                text,
                "\nWrites per VM of the run \"{}\":\n\n| By | Write | Per VM |\n|---|---|---|",
                run.title
            )?;
            for (who, writes) in [("controller", &run.controller_writes), ("daemons", &run.daemon_writes)] {
                for (what, count) in writes {
                    let note = if crate::requests::is_summary(what) { " (of all VMs together)" } else { "" };
                    writeln!(text, "| {who} | `{what}`{note} | {count:.3} |")?;
                }
            }
        }
        Ok(text)
    }
}
