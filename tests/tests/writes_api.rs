//! What a VM costs the API server: writes by user, verb and resource, from `kubectl apply` to a guest that runs.

mod live;

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use live::{Counts, Fleet, LIMIT, run, show, since, writes};
use node_daemon::host::memory::MemoryConfig;
use serde_json::{Value, json};
use system_tests::{apiserver::shared, requests::is_summary, wait::until};
use vireo_crds::{
    condition,
    v1alpha1::{Disk, VirtualMachine},
};

/// Nothing but Leases within it: all has been written.
const QUIET: Duration = Duration::from_secs(2);
/// Finalizer, disk claim, placement, report, Event.
const EXISTING_DISK: u64 = 5;
/// Its creation, its placement, its report.
const TEMPLATE_DISK: u64 = EXISTING_DISK + 3;
/// Role and RoleBinding.
const SECRET: u64 = EXISTING_DISK + 2;

async fn existing_disk(fleet: &Fleet, name: &str) -> Result<()> {
    let api: Api<Disk> = Api::namespaced(fleet.admin.clone(), "writes");
    let disk = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Disk", "metadata": {"name": name}, "spec": {"storageDomain": "shared", "size": "1Gi"}});
    api.create(&PostParams::default(), &serde_json::from_value(disk)?).await?;
    until("the Disk is Ready", LIMIT, || async {
        let disk = api.get(name).await?;
        let conditions = disk.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        ensure!(condition::is_true(conditions, "Ready"), "{}", serde_json::to_string(&disk.status)?);
        Ok(())
    })
    .await
}

/// Writes by user from the creation of a VM until nothing follows any more.
async fn cost(fleet: &Fleet, name: &str, more: Value) -> Result<BTreeMap<&'static str, Counts>> {
    fleet.silent(QUIET, LIMIT).await?;
    let (all, daemons) = (writes(&fleet.admin).await?, fleet.sent());
    let mut spec = json!({"memory": {"size": "256Mi"}, "interfaces": [{"name": "eth0", "network": "nat"}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    let vm = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name}, "spec": spec});
    fleet.vms("writes").create(&PostParams::default(), &serde_json::from_value(vm)?).await?;
    let vm = fleet.ready("writes", name).await?;
    ensure!(fleet.runs(&vm), "{name} is Ready and does not run");
    fleet.silent(QUIET, LIMIT).await?;

    let mut controller = since(&all, &writes(&fleet.admin).await?);
    let daemons = since(&daemons, &fleet.sent());
    let user = Counts::from([("POST virtualmachines".to_owned(), 1)]);
    for (what, count) in user.iter().chain(&daemons) {
        let left =
            controller.get_mut(what).with_context(|| format!("the API server did not count {what}"))?;
        *left = left
            .checked_sub(*count)
            .with_context(|| format!("the API server counted fewer {what} than were sent"))?;
    }
    controller.retain(|_, count| *count > 0);
    Ok(BTreeMap::from([("user", user), ("vireo-controller", controller), ("vireo-node", daemons)]))
}

fn table(title: &str, cost: &BTreeMap<&'static str, Counts>, budget: u64) -> Result<(String, u64)> {
    let mut text = format!("{title}\n  {:18} {:44} {:>6}\n", "BY", "WRITE", "COUNT");
    let mut sum = 0;
    for (user, counts) in cost {
        for (what, count) in counts {
            let note = if is_summary(what) { "  of all VMs together" } else { "" };
            writeln!(text, "  {user:18} {what:44} {count:>6}{note}")?;
            if *user != "user" && !is_summary(what) {
                sum += count;
            }
        }
    }
    writeln!(text, "  {:18} {:44} {sum:>6} of {budget}", "sum", "")?;
    Ok((text, sum))
}

#[test]
fn a_vm_costs_the_api_server_few_writes() -> Result<()> {
    run("a_vm_costs_the_api_server_few_writes", async {
        // What a guest says once it has booted comes on top: its agent and addresses are news of their own.
        let machine = MemoryConfig { boot_time: Duration::from_secs(3600), ..MemoryConfig::default() };
        let mut fleet = Fleet::start_at(shared()?, 1, &machine).await?;
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some("writes".into()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        Api::<Namespace>::all(fleet.admin.clone()).create(&PostParams::default(), &namespace).await?;
        for disk in ["warm", "one", "two"] {
            existing_disk(&fleet, disk).await?;
        }
        let secret = Secret {
            metadata: ObjectMeta { name: Some("user-data".into()), ..ObjectMeta::default() },
            string_data: Some(BTreeMap::from([("userData".into(), "#cloud-config\n".into())])),
            ..Secret::default()
        };
        Api::<Secret>::namespaced(fleet.admin.clone(), "writes")
            .create(&PostParams::default(), &secret)
            .await?;
        let on = |disk: &str| json!([{"name": "root", "disk": {"name": disk}}]);
        // The first VM finds a host that has just come.
        cost(&fleet, "warm-up", json!({"disks": on("warm")})).await?;

        let mut tables = String::new();
        let mut excess = Vec::new();
        for (title, name, spec, budget) in [
            ("A VM with an existing disk", "existing", json!({"disks": on("one")}), EXISTING_DISK),
            (
                "A VM with a disk from a template",
                "template",
                json!({"disks": [{"name": "root", "template": {"storageDomain": "shared", "size": "1Gi"}}]}),
                TEMPLATE_DISK,
            ),
            (
                "A VM with an existing disk and a Secret",
                "secret",
                json!({"disks": on("two"), "cloudInit": {"userDataSecret": {"name": "user-data"}}}),
                SECRET,
            ),
        ] {
            let (text, sum) = table(title, &cost(&fleet, name, spec).await?, budget)?;
            tables.push_str(&text);
            if sum > budget {
                excess.push(format!("{title}: {sum} writes, not {budget}"));
            }
        }
        show(&tables)?;
        ensure!(excess.is_empty(), "{}\n{tables}", excess.join("\n"));
        waits_for_a_person(&mut fleet).await
    })
}

/// A VM whose host has lost its ledger waits until a person vouches for its end: said once, and not written again.
async fn waits_for_a_person(fleet: &mut Fleet) -> Result<()> {
    let server = fleet.server;
    for node in &mut fleet.nodes {
        node.replace(server).await?;
    }
    let vms = fleet.vms("writes");
    vms.delete("existing", &DeleteParams::default()).await?;
    let is_waiting = |vm: &VirtualMachine| {
        let conditions = vm.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition::get(conditions, "Placed").is_some_and(|placed| {
            placed.reason == "WaitingForEvidence" && placed.message.contains("deletion")
        })
    };
    let vm = fleet.vm("writes", "existing", "waits for a person", is_waiting).await?;
    fleet.silent(QUIET, Duration::from_secs(30)).await.context("a VM waits, and is written")?;
    let grant = vm
        .status
        .and_then(|status| status.placement)
        .map(|placement| placement.id)
        .context("no placement")?;
    let confirm = json!({"metadata": {"annotations": {"vireo.dev/confirm-stopped": grant}}});
    vms.patch("existing", &PatchParams::default(), &Patch::Merge(confirm)).await?;
    until("the VM is gone", LIMIT, || async {
        let left = vms.get_opt("existing").await?;
        ensure!(left.is_none(), "{}", serde_json::to_string(&left)?);
        Ok(())
    })
    .await
}
