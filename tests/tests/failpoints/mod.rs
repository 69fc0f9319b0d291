//! The life of a VM from its creation to its end, with everything the walk over the fail points demands on the way.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use vireo_crds::{
    condition,
    v1alpha1::{ActPhase, Disk, VirtualMachine, VirtualMachineAction, VmState},
};

pub const NAMESPACE: &str = "default";
/// A part that died is back, and what was wanted is so.
const LIMIT: Duration = Duration::from_secs(60);
/// Many lives go on at once: each asks now and then.
const PAUSE: Duration = Duration::from_millis(150);
/// How often one act is cut off at most: a part may die at several points within it.
const ATTEMPTS: u32 = 6;

/// How guests and what is left of them look on the host. The process id and how often it was started.
pub trait Machine {
    /// The guest's process, if it runs.
    fn guest(&self, uid: &str) -> Result<Option<(u32, u32)>>;
    /// What is left of a VM that is gone, in words; nothing is best.
    fn left(&self, uid: &str) -> Result<Vec<String>>;
    /// Fails if a part has ended in a way nobody asked for.
    fn healthy(&self) -> Result<()>;
}

/// Where in a VM's life its machine may be changed by hand.
#[derive(Clone, Copy)]
pub enum Moment {
    Running,
    Stopped,
}

/// One VM's life.
pub struct Life<'a> {
    pub client: &'a Client,
    pub name: String,
    pub host: String,
    pub machine: &'a dyn Machine,
}

impl Life<'_> {
    fn vms(&self) -> Api<VirtualMachine> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn until<T, F, Fut>(&self, what: &str, mut probe: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.machine.healthy().with_context(|| format!("{}: {what}", self.name))?;
            match probe().await {
                Ok(value) => return Ok(value),
                Err(seen) if Instant::now() > deadline => {
                    return Err(seen.context(format!("{}: {what}: not within {LIMIT:?}", self.name)));
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn vm(&self, what: &str, holds: impl Fn(&VirtualMachine) -> bool) -> Result<VirtualMachine> {
        let api = self.vms();
        self.until(what, || async {
            let vm = api.get(&self.name).await?;
            ensure!(
                holds(&vm),
                "generation {:?}, {}",
                vm.metadata.generation,
                serde_json::to_string(&vm.status)?
            );
            Ok(vm)
        })
        .await
    }

    async fn settled(&self, what: &str, state: VmState) -> Result<VirtualMachine> {
        self.vm(what, |vm| {
            let Some(status) = &vm.status else { return false };
            status.observed_generation == vm.metadata.generation
                && status.state == Some(state)
                && condition::is_true(&status.conditions, "Ready")
        })
        .await
    }

    async fn edit(&self, spec: Value) -> Result<()> {
        let body = Patch::Merge(json!({"spec": spec}));
        self.until("the edit is taken", || async {
            Ok(self.vms().patch(&self.name, &PatchParams::default(), &body).await?)
        })
        .await
        .map(drop)
    }

    /// An act is carried out at most once: one whose carrying out was cut off may say that it failed. Then a person
    /// looks, and asks again.
    async fn act(&self, act: &str) -> Result<()> {
        let api: Api<VirtualMachineAction> = Api::namespaced(self.client.clone(), NAMESPACE);
        for attempt in 1..=ATTEMPTS {
            let name = format!("{}-{act}-{attempt}", self.name);
            let body: VirtualMachineAction = serde_json::from_value(json!({
                "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachineAction", "metadata": {"name": name},
                "spec": {"vm": self.name, act: {}, "ttlSecondsAfterFinished": 3},
            }))?;
            api.create(&PostParams::default(), &body).await?;
            let failed = self
                .until(&format!("act {act}"), || async {
                    // It is deleted a moment after its end.
                    let Some(found) = api.get_opt(&name).await? else { return Ok(None) };
                    let status = found.status.unwrap_or_default();
                    match status.phase {
                        Some(ActPhase::Succeeded) => Ok(None),
                        Some(ActPhase::Failed) => Ok(Some(status.message.unwrap_or_default())),
                        _ => bail!("{}", serde_json::to_string(&status)?),
                    }
                })
                .await?;
            let Some(why) = failed else { return Ok(()) };
            ensure!(why.contains("interrupted"), "{}: act {act} failed: {why}", self.name);
        }
        bail!("{}: act {act} was interrupted {ATTEMPTS} times", self.name)
    }

    async fn guest(&self, vm: &VirtualMachine, what: &str) -> Result<(u32, u32)> {
        let uid = vm.uid().context("no uid")?;
        self.until(what, || async { self.machine.guest(&uid)?.context("it does not run") }).await
    }

    fn same(&self, vm: &VirtualMachine, guest: (u32, u32), after: &str) -> Result<()> {
        let now = self.machine.guest(&vm.uid().unwrap_or_default())?;
        ensure!(now == Some(guest), "{}: after {after} the guest is {now:?}, was {guest:?}", self.name);
        Ok(())
    }

    /// Made, edited, acted on, stopped, started, deleted; nothing is left. `meddle` may change the machine by hand.
    pub async fn live(&self, meddle: impl AsyncFn(&str, Moment) -> Result<()>) -> Result<()> {
        let disks: Api<Disk> = Api::namespaced(self.client.clone(), NAMESPACE);
        let base = format!("{}-base", self.name);
        let disk = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Disk", "metadata": {"name": base},
            "spec": {"storageDomain": "shared", "size": "1Gi"}});
        disks.create(&PostParams::default(), &serde_json::from_value(disk)?).await?;
        let spec = json!({
            "runStrategy": "Always", "memory": {"size": "256Mi"}, "gracePeriodSeconds": 30,
            "firmware": {"uefi": {}}, "tpm": {},
            "scheduling": {"hostName": self.host},
            "cloudInit": {"userDataSecret": {"name": "user-data"}},
            "disks": [
                {"name": "root", "cache": "writeback", "template": {"storageDomain": "shared", "size": "1Gi"}},
                {"name": "scratch", "ephemeral": {"disk": base}},
                {"name": "drive", "cdrom": {}},
            ],
            "interfaces": [{"name": "eth0", "network": "nat"}],
        });
        let vm = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": self.name}, "spec": spec});
        self.vms().create(&PostParams::default(), &serde_json::from_value(vm)?).await?;
        let vm = self.settled("runs for the first time", VmState::Running).await?;
        let uid = vm.uid().context("no uid")?;
        let guest = self.guest(&vm, "has a process").await?;
        ensure!(guest.1 == 1, "{}: it was started {} times", self.name, guest.1);

        self.edit(json!({"gracePeriodSeconds": 31, "interfaces": [{"name": "eth0", "network": "nat", "link": "Down"}]})).await?;
        self.settled("has taken a live edit", VmState::Running).await?;
        self.same(&vm, guest, "a live edit")?;
        self.act("pause").await?;
        self.act("resume").await?;
        self.act("nmi").await?;
        self.act("reset").await?;
        self.settled("runs after acts", VmState::Running).await?;
        self.same(&vm, guest, "acts")?;
        meddle(&uid, Moment::Running).await?;
        self.same(&vm, guest, "changes by hand")?;
        self.edit(json!({"memory": {"size": "512Mi"}})).await?;
        self.vm("says that it has to restart", |vm| {
            let status = vm.status.as_ref();
            let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
            status.and_then(|status| status.observed_generation) == vm.metadata.generation
                && condition::is_true(conditions, "RestartRequired")
        })
        .await?;
        self.same(&vm, guest, "an edit that waits")?;

        self.edit(json!({"runStrategy": "Halted"})).await?;
        self.settled("is down", VmState::Stopped).await?;
        ensure!(self.machine.guest(&uid)?.is_none(), "{}: it is down and has a process", self.name);
        meddle(&uid, Moment::Stopped).await?;
        self.edit(json!({"runStrategy": "Always", "gracePeriodSeconds": 0})).await?;
        self.settled("runs again", VmState::Running).await?;
        let again = self.guest(&vm, "has a process again").await?;
        ensure!(again.1 == guest.1 + 1, "{}: it was started {} times", self.name, again.1);

        self.vms().delete(&self.name, &DeleteParams::default()).await?;
        self.until("is gone", || async {
            let left = self.vms().get_opt(&self.name).await?;
            ensure!(left.is_none(), "{}", serde_json::to_string(&left)?);
            Ok(())
        })
        .await?;
        disks.delete(&base, &DeleteParams::default()).await?;
        self.until("leaves nothing behind", || async {
            let of_disks = disks.list(&Default::default()).await?.items;
            let mut left: Vec<String> = of_disks
                .iter()
                .filter(|disk| disk.name_any().starts_with(&format!("{}-", self.name)))
                .map(|disk| format!("Disk {}", disk.name_any()))
                .collect();
            left.extend(self.machine.left(&uid)?);
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    }
}
