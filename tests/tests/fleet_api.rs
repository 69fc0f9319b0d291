//! Fifty hosts and three hundred VMs on the real API server: what each VM costs in writes, that nobody writes at rest,
//! and that a deletion leaves nothing behind. How fast it is, `make bench-scale` measures: a busy machine fails no test.

mod live;

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::{Api, api::ListParams};
use live::{Controller, PATIENT, run, show};
use system_tests::{
    apiserver::{User, shared},
    fleet::{
        hollow::{HollowConfig, HollowFleet},
        load::{Load, Observer, Pace},
        site::silent,
    },
    requests::{is_summary, since, watches, writes},
    wait::until,
};
use vireo_crds::v1alpha1::{Host, VirtualMachine};

const HOSTS: usize = 50;
const VMS: usize = 300;
/// Finalizer, disk claim, placement, report, Event.
const WRITES_PER_VM: f64 = 5.0;
const QUIET: Duration = Duration::from_secs(2);
/// Columns that sum up VMs are written at most every ten seconds: so late the last of them comes.
const LAST_SUMMARIES: Duration = Duration::from_secs(11);
/// At rest: longer than every pause after which somebody looks again by himself, but for the watches' own.
const REST: Duration = Duration::from_secs(12);
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn three_hundred_vms_on_fifty_hosts() -> Result<()> {
    run("three_hundred_vms_on_fifty_hosts", async {
        let server = shared()?;
        let admin = server.client(User::Admin).await?;
        let controller = Controller::start_with(server, PATIENT).await?;
        // What a guest says once it has booted is news of its own, and no cost of its start.
        let config = HollowConfig::new(server.config(User::Admin).await?, Duration::from_secs(3600));
        let mut fleet = HollowFleet::new(config)?;
        fleet.grow(HOSTS).await?;
        let load = Load::prepare(&admin, "fleet").await?;
        let observer = Observer::start(&admin, "fleet");
        let names: Vec<String> = (0..VMS).map(|number| format!("vm-{number:03}")).collect();
        load.create_disks(&names).await?;
        observer.disks(VMS, LIMIT).await?;
        silent(&admin, QUIET, LIMIT).await?;

        let before = writes(&admin).await?;
        load.create_vms(&names, Pace::Sequential).await?;
        observer.running(VMS, LIMIT).await?;
        silent(&admin, QUIET, LIMIT).await?;
        let cost = since(&before, &writes(&admin).await?);
        let sum: u64 = cost.iter().filter(|(what, _)| !is_summary(what)).map(|(_, count)| count).sum();
        let per_vm = (sum - VMS as u64) as f64 / VMS as f64;
        show(&format!(
            "{VMS} VMs on {HOSTS} hosts: {per_vm:.2} writes per VM by Vireo's parts\n  {cost:?}\n"
        ))?;
        ensure!(per_vm <= WRITES_PER_VM, "{per_vm:.2} writes per VM, not {WRITES_PER_VM}: {cost:?}");
        let guests = fleet.guests();
        ensure!(guests.len() == VMS, "{} guests run, not {VMS}", guests.len());
        let doubled: Vec<_> = guests.iter().filter(|(_, at)| at.len() > 1).collect();
        ensure!(doubled.is_empty(), "these run more than once: {doubled:?}");
        spread_evenly(&admin).await?;

        silent(&admin, LAST_SUMMARIES, LIMIT).await?;
        let before = writes(&admin).await?;
        tokio::time::sleep(REST).await;
        let at_rest = since(&before, &writes(&admin).await?);
        ensure!(at_rest.is_empty(), "written at rest: {at_rest:?}");

        let watched = watches(&admin).await?;
        load.delete_vms().await?;
        observer.gone(LIMIT).await?;
        load.delete_disks().await?;
        silent(&admin, QUIET, LIMIT).await?;
        ensure!(fleet.guests().is_empty(), "still running: {:?}", fleet.guests());
        until("daemons have forgotten the VMs", LIMIT, || async {
            let files = fleet.files()?;
            ensure!(files.is_empty(), "{} files are left, among them {:?}", files.len(), files.first());
            let now = watches(&admin).await?;
            ensure!(now <= watched, "{now} watches, {watched} while the VMs ran");
            Ok(())
        })
        .await?;
        let left = load.vms().list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} VMs are left");
        controller.stop(system_tests::apiserver::Stop::Term).await
    })
}

/// No host has more than twice its share: room promised to VMs on their way counts.
async fn spread_evenly(admin: &kube::Client) -> Result<()> {
    let vms: Api<VirtualMachine> = Api::namespaced(admin.clone(), "fleet");
    let hosts: Api<Host> = Api::all(admin.clone());
    let count = hosts.list(&ListParams::default()).await?.items.len();
    let mut load = std::collections::BTreeMap::<String, usize>::new();
    for vm in vms.list(&ListParams::default()).await? {
        let host = vm.status.and_then(|status| status.placement).map(|placement| placement.host);
        *load.entry(host.unwrap_or_default()).or_default() += 1;
    }
    let most = load.values().max().copied().unwrap_or_default();
    ensure!(most <= 2 * VMS.div_ceil(count), "one host has {most} VMs of {VMS}: {load:?}");
    Ok(())
}
