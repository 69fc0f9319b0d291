//! Controller, daemons, hypervisors and API server stop, by SIGTERM or at once, and start in every order while guests
//! run on hosts in memory: the guests notice nothing, everybody catches up, and then nobody writes anything.

mod live;

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams, PostParams};
use live::{Controller, Fleet, LIMIT, is_ready, run, show, since, writes};
use node_daemon::host::memory::MemoryConfig;
use serde_json::{Value, json};
use system_tests::{
    apiserver::{ApiServer, Stop, shared, start_with_chart},
    wait::until,
};
use vireo_crds::v1alpha1::VirtualMachine;

const NAMESPACE: &str = "default";
const RUNNING: [&str; 4] = ["first", "second", "third", "fourth"];
const STOPPED: &str = "stopped";
/// No write but Leases within it, after every order.
const SHORT_SILENCE: Duration = Duration::from_secs(1);
/// The same, once.
const LONG_SILENCE: Duration = Duration::from_secs(60);

/// How many orders the first of two fleets takes, so that both are done at about the same time.
const SPLIT: usize = 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Controller,
    Daemons,
    Hypervisors,
    ApiServer,
}

const PARTS: [Part; 4] = [Part::Controller, Part::Daemons, Part::Hypervisors, Part::ApiServer];

/// Every order of the four.
fn orders() -> Vec<[Part; 4]> {
    let mut orders = Vec::new();
    for a in PARTS {
        for b in PARTS {
            for c in PARTS {
                for d in PARTS {
                    let order = [a, b, c, d];
                    if PARTS.iter().all(|part| order.contains(part)) {
                        orders.push(order);
                    }
                }
            }
        }
    }
    orders
}

async fn stop(fleet: &mut Fleet, part: Part, how: Stop) -> Result<()> {
    match part {
        Part::Controller => fleet.controller.take().context("no controller")?.stop(how).await,
        Part::Daemons => {
            for node in &mut fleet.nodes {
                node.stop(how).await?;
            }
            Ok(())
        }
        Part::Hypervisors => {
            fleet.nodes.iter().for_each(|node| node.machine.set_down(true));
            Ok(())
        }
        Part::ApiServer => {
            let server = fleet.server;
            tokio::task::spawn_blocking(move || server.stop(how)).await?
        }
    }
}

async fn start(fleet: &mut Fleet, part: Part) -> Result<()> {
    let server = fleet.server;
    match part {
        // A process that finds no API server ends and is started again: by Kubernetes, or by systemd.
        Part::Controller => {
            fleet.controller = Some(Controller::start(server).await?);
            Ok(())
        }
        Part::Daemons => {
            for node in &mut fleet.nodes {
                node.start(server).await?;
            }
            Ok(())
        }
        Part::Hypervisors => {
            fleet.nodes.iter().for_each(|node| node.machine.set_down(false));
            Ok(())
        }
        Part::ApiServer => tokio::task::spawn_blocking(move || server.start_again()).await?,
    }
}

async fn create(fleet: &Fleet, name: &str, run_strategy: &str) -> Result<()> {
    let vm: Value = json!({
        "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name},
        "spec": {
            "runStrategy": run_strategy, "memory": {"size": "256Mi"},
            "disks": [{"name": "root", "template": {"storageDomain": "shared", "size": "1Gi"}}],
            "interfaces": [{"name": "eth0", "network": "nat"}],
        },
    });
    fleet.vms(NAMESPACE).create(&PostParams::default(), &serde_json::from_value(vm)?).await?;
    Ok(())
}

/// An edit that a running guest takes over at once.
async fn edit(fleet: &Fleet, grace: usize) -> Result<()> {
    let body = json!({"spec": {"gracePeriodSeconds": grace}});
    for name in RUNNING.into_iter().chain([STOPPED]) {
        // The first requests after a restart of the server may meet a connection that is dead.
        until("the edit is taken", LIMIT, || async {
            Ok(fleet.vms(NAMESPACE).patch(name, &PatchParams::default(), &Patch::Merge(&body)).await?)
        })
        .await?;
    }
    Ok(())
}

fn grants(vms: &[VirtualMachine]) -> Vec<Option<String>> {
    vms.iter()
        .map(|vm| vm.status.as_ref()?.placement.as_ref().map(|placement| placement.id.clone()))
        .collect()
}

async fn caught_up(fleet: &Fleet, grace: usize) -> Result<Vec<VirtualMachine>> {
    fleet.attested().await?;
    let mut vms = Vec::new();
    for name in RUNNING.into_iter().chain([STOPPED]) {
        let wanted = u32::try_from(grace)?;
        vms.push(
            fleet
                .vm(NAMESPACE, name, "has caught up", |vm| {
                    is_ready(vm) && vm.spec.grace_period_seconds == i64::from(wanted)
                })
                .await?,
        );
    }
    Ok(vms)
}

/// A fleet with guests, taken through some of the orders. It is left as it was found.
async fn go_through(server: &'static ApiServer, numbers: Range<usize>) -> Result<Fleet> {
    let mut fleet = Fleet::start_at(server, 2, &MemoryConfig::default()).await?;
    for name in RUNNING {
        create(&fleet, name, "Always").await?;
    }
    create(&fleet, STOPPED, "Halted").await?;
    let granted = grants(&caught_up(&fleet, 120).await?);
    let guests = fleet.guests();
    ensure!(guests.len() == RUNNING.len(), "{guests:?}");
    fleet.silent(SHORT_SILENCE, LIMIT).await?;

    for (number, order) in orders().into_iter().enumerate().filter(|(number, _)| numbers.contains(number)) {
        let began = Instant::now();
        // Every part is stopped in both ways in the course of the orders, in ever new mixtures.
        let how = |index: usize| if (number >> index) & 1 == 0 { Stop::Term } else { Stop::Kill };
        let (before, after) = (200 + number, 300 + number);
        for (index, part) in order.into_iter().enumerate() {
            if part == Part::ApiServer {
                edit(&fleet, before).await?;
            }
            stop(&mut fleet, part, how(index)).await.with_context(|| format!("{order:?}: stop {part:?}"))?;
        }
        let down = began.elapsed();
        ensure!(
            fleet.guests() == guests,
            "{order:?}: all is down, and guests changed: {guests:?}, now {:?}",
            fleet.guests()
        );
        for part in order {
            start(&mut fleet, part).await.with_context(|| format!("{order:?}: start {part:?}"))?;
            if part == Part::ApiServer {
                edit(&fleet, after).await?;
            }
        }
        let up = began.elapsed();
        let vms = caught_up(&fleet, after).await.with_context(|| format!("{order:?}"))?;
        let caught = began.elapsed();
        ensure!(fleet.guests() == guests, "{order:?}: guests were {guests:?}, are {:?}", fleet.guests());
        ensure!(grants(&vms) == granted, "{order:?}: grants were {granted:?}, are {:?}", grants(&vms));
        let late = fleet
            .silent(SHORT_SILENCE, Duration::from_secs(20))
            .await
            .with_context(|| format!("{order:?}"))?;
        let stopped: Vec<_> =
            order.iter().enumerate().map(|(index, part)| format!("{part:?} {:?}", how(index))).collect();
        show(&format!(
            "{}: down after {down:.1?}, up after {up:.1?}, caught up after {caught:.1?}, silent after {:.1?} {late:?}",
            stopped.join(", "),
            began.elapsed()
        ))?;
    }
    Ok(fleet)
}

#[test]
fn guests_notice_no_restart_in_any_order_first_part() -> Result<()> {
    run("guests_notice_no_restart_in_any_order_first_part", async {
        go_through(shared()?, 0..SPLIT).await.map(drop)
    })
}

#[test]
fn guests_notice_no_restart_in_any_order_second_part_then_silence() -> Result<()> {
    run("guests_notice_no_restart_in_any_order_second_part_then_silence", async {
        let fleet = go_through(Box::leak(Box::new(start_with_chart()?)), SPLIT..orders().len()).await?;
        let guests = fleet.guests();
        let before = writes(&fleet.admin).await?;
        tokio::time::sleep(LONG_SILENCE).await;
        let more = since(&before, &writes(&fleet.admin).await?);
        ensure!(more.is_empty(), "written within {LONG_SILENCE:?} in which nothing happened: {more:?}");
        ensure!(fleet.guests() == guests, "guests were {guests:?}, are {:?}", fleet.guests());
        Ok(())
    })
}
