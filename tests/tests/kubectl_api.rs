//! kubectl, kustomize, helm and kstatus on VMs that a real controller and real daemons run: as with built-in kinds.

mod live;

use std::{
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use live::Fleet;
use serde_json::{Value, json};
use system_tests::root;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vireo_crds::v1alpha1::VirtualMachine;

/// The fleet of this binary, and a namespace of the test's own in it.
struct Site {
    fleet: &'static Fleet,
    runtime: &'static Runtime,
    namespace: &'static str,
    dir: TempDir,
}

/// None: the tools are missing on this machine, and it has been said.
fn site(test: &str, namespace: &'static str) -> Result<Option<Site>> {
    static FLEET: OnceLock<Result<(Runtime, Fleet), String>> = OnceLock::new();
    if !live::available(test)? {
        return Ok(None);
    }
    let made = FLEET.get_or_init(|| {
        let made = live::runtime()
            .and_then(|runtime| runtime.block_on(Fleet::start(2)).map(|fleet| (runtime, fleet)));
        made.map_err(|error| format!("{error:#}"))
    });
    let (runtime, fleet) = made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let site = Site { fleet, runtime, namespace, dir: tempfile::tempdir()? };
    site.kubectl(&["create", "namespace", namespace])?;
    Ok(Some(site))
}

impl Site {
    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(root().join("target/tools").join(tool));
        command.env("KUBECONFIG", self.fleet.server.kubeconfig());
        // helm writes to none of the person's own folders.
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.dir.path().join("helm"));
        }
        command
    }

    fn tool(&self, tool: &str, args: &[&str]) -> Result<Output> {
        self.command(tool).args(args).output().with_context(|| format!("cannot run {tool}"))
    }

    /// Standard output of a kubectl that succeeds.
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.tool("kubectl", args)?;
        ensure!(
            output.status.success(),
            "kubectl {args:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }

    /// The same, in the test's namespace.
    fn here(&self, args: &[&str]) -> Result<String> {
        self.kubectl(&[&["-n", self.namespace], args].concat())
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.dir.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.here(&[args, &["-o", "json"]].concat())?)?)
    }

    /// Generation and resourceVersion.
    fn version(&self, name: &str) -> Result<(i64, String)> {
        let vm = self.json(&["get", "vvm", name])?;
        let metadata = &vm["metadata"];
        Ok((
            metadata["generation"].as_i64().unwrap_or_default(),
            metadata["resourceVersion"].as_str().unwrap_or_default().to_owned(),
        ))
    }

    fn read(&self, name: &str) -> Result<VirtualMachine> {
        Ok(serde_json::from_value(self.json(&["get", "vvm", name])?)?)
    }

    /// Nobody writes to the object any more.
    fn settled(&self, name: &str) -> Result<(i64, String)> {
        self.runtime.block_on(self.fleet.ready(self.namespace, name))?;
        self.runtime.block_on(self.fleet.silent_about(self.namespace, name, Duration::from_secs(2)))?;
        self.version(name)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn words(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect()
}

fn vm(name: &str, more: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}}}
spec:
  memory: {{size: 256Mi}}
  gracePeriodSeconds: 30
  disks:
  - name: root
    template: {{storageDomain: shared, size: 1Gi}}
  interfaces:
  - {{name: eth0, network: nat}}
{more}"
    )
}

#[test]
fn kubectl_treats_a_vm_as_it_treats_a_pod() -> Result<()> {
    let Some(site) = site("kubectl_treats_a_vm_as_it_treats_a_pod", "cli")? else { return Ok(()) };
    let file = site.file("web.yaml", &vm("web", ""))?;
    ensure!(site.here(&["apply", "-f", &file])?.trim() == "virtualmachine.vireo.dev/web created");
    site.here(&["wait", "--for=condition=Ready", "vvm/web", "--timeout=60s"])?;
    ensure!(site.fleet.runs(&site.read("web")?), "Ready, but no guest runs");
    let (generation, version) = site.settled("web")?;
    ensure!(generation == 1, "the API server or Vireo has edited the spec: generation {generation}");

    // Applying the same is nothing.
    ensure!(site.here(&["apply", "-f", &file])?.trim() == "virtualmachine.vireo.dev/web unchanged");
    site.here(&["diff", "-f", &file]).context("a diff where there is none")?;
    ensure!(site.version("web")? == (generation, version), "applying the same was a write");

    let listed = site.here(&["get", "vvm", "web"])?;
    let row = words(listed.lines().nth(1).unwrap_or_default()).join(" ");
    ensure!(
        row.starts_with("web Always Running host")
            && row.contains(" 1 256Mi 10.0.")
            && row.contains(" True "),
        "{listed}"
    );

    let described = site.here(&["describe", "vvm", "web"])?;
    let events = described.split_once("Events:").map(|(_, events)| events).unwrap_or_default();
    for reason in ["Started", "vireo-node"] {
        ensure!(events.contains(reason), "no {reason} in the events of:\n{described}");
    }

    // An edit shows in the diff, and is taken over by the guest that runs.
    let edited =
        site.file("edited.yaml", &vm("web", "").replace("gracePeriodSeconds: 30", "gracePeriodSeconds: 31"))?;
    let diff = site.tool("kubectl", &["-n", "cli", "diff", "-f", &edited])?;
    ensure!(diff.status.code() == Some(1), "diff ended with {}", diff.status);
    ensure!(text(&diff.stdout).contains("+  gracePeriodSeconds: 31"), "{}", text(&diff.stdout));
    ensure!(site.here(&["apply", "-f", &edited])?.trim() == "virtualmachine.vireo.dev/web configured");
    site.here(&["wait", "--for=jsonpath={.status.observedGeneration}=2", "vvm/web", "--timeout=60s"])?;

    let editor =
        site.file("editor", "#!/bin/sh\nsed -i 's/gracePeriodSeconds: 31/gracePeriodSeconds: 32/' \"$1\"\n")?;
    let output = site
        .command("kubectl")
        .args(["-n", "cli", "edit", "vvm", "web"])
        .env("KUBE_EDITOR", format!("sh {editor}"))
        .output()?;
    ensure!(
        output.status.success() && text(&output.stdout).contains("virtualmachine.vireo.dev/web edited"),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    site.here(&["wait", "--for=jsonpath={.status.observedGeneration}=3", "vvm/web", "--timeout=60s"])?;
    ensure!(site.read("web")?.spec.grace_period_seconds == 32);
    ensure!(site.fleet.runs(&site.read("web")?), "the edit has stopped the guest");

    // Delete waits for the finalizer; afterwards nothing is left, the Disk of the template neither.
    let uid = site.read("web")?.metadata.uid.unwrap_or_default();
    ensure!(site.here(&["delete", "vvm", "web", "--timeout=60s"])?.contains("\"web\" deleted"));
    ensure!(!site.fleet.guests().contains_key(&uid), "the VM is gone, and its guest runs");
    site.here(&["wait", "--for=delete", "vdisk/web-root", "--timeout=60s"])?;
    ensure!(site.here(&["get", "vvm,vdisk", "--ignore-not-found"])?.is_empty());
    Ok(())
}

#[test]
fn every_kind_is_explained() -> Result<()> {
    let Some(site) = site("every_kind_is_explained", "explain")? else { return Ok(()) };
    for path in [
        "vvm.spec.memory.size",
        "vvm.spec.cloudInit.userDataSecret",
        "vvm.status.placement",
        "vdisk.spec.source.http",
        "vhost.status",
        "vhc.spec.cpu.baseline",
        "vnet.spec.bridge.create",
        "vsd.spec.trash.retention",
        "vact.spec",
    ] {
        let told = site.kubectl(&["explain", path])?;
        let description = told.split_once("DESCRIPTION:").map(|(_, rest)| rest.trim()).unwrap_or_default();
        ensure!(
            description.len() > 10 && !description.starts_with("<empty>"),
            "kubectl explain {path}:\n{told}"
        );
    }
    Ok(())
}

#[test]
fn two_managers_share_a_vm_by_server_side_apply() -> Result<()> {
    let Some(site) = site("two_managers_share_a_vm_by_server_side_apply", "managers")? else { return Ok(()) };
    let base = site.file("base.yaml", &vm("shared", "").replace("  gracePeriodSeconds: 30\n", ""))?;
    let head = "apiVersion: vireo.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {name: shared, labels: {team: b}}\nspec:\n";
    let grace =
        site.file("grace.yaml", &format!("{head}  gracePeriodSeconds: 45\n  memory: {{size: 256Mi}}\n"))?;
    let clash =
        site.file("clash.yaml", &format!("{head}  gracePeriodSeconds: 45\n  memory: {{size: 512Mi}}\n"))?;
    let by = |manager: &'static str, file: &str| {
        site.tool(
            "kubectl",
            &["-n", "managers", "apply", "--server-side", "--field-manager", manager, "-f", file],
        )
    };
    for (manager, file) in [("team-a", &base), ("team-b", &grace)] {
        let output = by(manager, file)?;
        ensure!(output.status.success(), "{manager}: {}", text(&output.stderr));
    }
    let settled = site.settled("shared")?;
    // Each applies its own again: no conflict with each other, none with controller and daemon, no write.
    for (manager, file) in [("team-a", &base), ("team-b", &grace), ("team-a", &base)] {
        let output = by(manager, file)?;
        ensure!(output.status.success(), "{manager} again: {}", text(&output.stderr));
    }
    ensure!(site.version("shared")? == settled, "applying the same was a write");
    let vm = site.read("shared")?;
    ensure!(vm.spec.grace_period_seconds == 45 && vm.spec.disks.len() == 1, "{:?}", vm.spec);
    let output = by("team-b", &clash)?;
    ensure!(
        !output.status.success()
            && text(&output.stderr).contains("conflict with \"team-a\"")
            && text(&output.stderr).contains(".spec.memory.size"),
        "{}",
        text(&output.stderr)
    );
    site.here(&["delete", "vvm", "shared", "--timeout=60s"])?;
    Ok(())
}

#[test]
fn a_folder_for_git_is_applied_and_deleted_as_one() -> Result<()> {
    let Some(site) = site("a_folder_for_git_is_applied_and_deleted_as_one", "unused")? else { return Ok(()) };
    let folder = root().join("examples/gitops").display().to_string();
    ensure!(site.kubectl(&["kustomize", &folder])?.contains("namespace: shop"));
    site.kubectl(&["apply", "-k", &folder])?;
    site.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "vvm", "--all", "--timeout=60s"])?;
    let again = site.kubectl(&["apply", "-k", &folder])?;
    ensure!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");
    site.kubectl(&["diff", "-k", &folder])?;
    site.kubectl(&["delete", "-k", &folder, "--timeout=90s"])?;
    ensure!(site.kubectl(&["get", "namespace", "shop", "--ignore-not-found"])?.is_empty());
    Ok(())
}

#[test]
fn helm_waits_until_the_vm_runs() -> Result<()> {
    let Some(site) = site("helm_waits_until_the_vm_runs", "charts")? else { return Ok(()) };
    site.file("chart/Chart.yaml", "apiVersion: v2\nname: guest\nversion: 0.1.0\n")?;
    site.file("chart/values.yaml", "grace: 30\nscheduling: {}\n")?;
    let template = vm("{{ .Release.Name }}", "  scheduling: {{ .Values.scheduling | toJson }}\n");
    site.file(
        "chart/templates/vm.yaml",
        &template.replace("gracePeriodSeconds: 30", "gracePeriodSeconds: {{ .Values.grace }}"),
    )?;
    let chart = site.dir.path().join("chart").display().to_string();
    let helm = |args: &[&str]| site.tool("helm", &[&["-n", "charts"], args].concat());
    let succeeds = |args: &[&str]| -> Result<()> {
        let output = helm(args)?;
        ensure!(output.status.success(), "helm {args:?}: {}", text(&output.stderr));
        Ok(())
    };

    succeeds(&["upgrade", "--install", "app", &chart, "--wait", "--timeout", "60s"])?;
    ensure!(site.fleet.runs(&site.read("app")?), "helm returned before the guest ran");
    succeeds(&["upgrade", "--install", "app", &chart, "--wait", "--timeout", "60s", "--set", "grace=31"])?;
    let app = site.read("app")?;
    ensure!(
        live::is_ready(&app) && app.metadata.generation == Some(2),
        "helm returned before the edit was taken over: {:?}",
        app.status
    );

    // One that no host can take: helm waits as long as it may.
    let began = Instant::now();
    let nowhere = r#"scheduling={"hostSelector":{"matchLabels":{"rack":"none"}}}"#;
    let output = helm(&[
        "upgrade",
        "--install",
        "nowhere",
        &chart,
        "--wait",
        "--timeout",
        "6s",
        "--set-json",
        nowhere,
    ])?;
    ensure!(
        !output.status.success() && began.elapsed() >= Duration::from_secs(5),
        "helm did not wait: {}",
        text(&output.stdout)
    );
    ensure!(
        text(&output.stderr).contains("InProgress") || text(&output.stderr).contains("deadline exceeded"),
        "{}",
        text(&output.stderr)
    );
    let placed = site.here(&[
        "get",
        "vvm",
        "nowhere",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Placed\")].reason}",
    ])?;
    ensure!(placed == "NoHostFits", "{placed}");

    for release in ["app", "nowhere"] {
        succeeds(&["uninstall", release, "--wait", "--timeout", "60s"])?;
    }
    ensure!(
        site.here(&["get", "vvm", "--ignore-not-found"])?.is_empty(),
        "helm uninstall --wait returned too early"
    );
    Ok(())
}

#[test]
fn columns_are_those_of_the_reference() -> Result<()> {
    let Some(site) = site("columns_are_those_of_the_reference", "columns")? else { return Ok(()) };
    let file = site.file("vm.yaml", &vm("one", "  runStrategy: Manual\n"))?;
    site.here(&["apply", "-f", &file])?;
    site.here(&["wait", "--for=condition=Ready", "vvm/one", "--timeout=60s"])?;
    // A VM that should not run and does not is as it should be.
    let listed = site.here(&["get", "vvm", "one"])?;
    ensure!(
        words(listed.lines().nth(1).unwrap_or_default()).starts_with(&["one", "Manual", "Stopped"]),
        "{listed}"
    );
    ensure!(!site.fleet.runs(&site.read("one")?), "a Manual VM was started by nobody");
    let act = site.file("act.yaml", "apiVersion: vireo.dev/v1alpha1\nkind: VirtualMachineAction\nmetadata: {name: start-one}\nspec: {vm: one, start: {}}\n")?;
    site.here(&["apply", "-f", &act])?;
    site.here(&["wait", "--for=condition=Ready", "vact/start-one", "--timeout=60s"])?;
    site.here(&["wait", "--for=condition=Ready", "vvm/one", "--timeout=60s"])?;
    ensure!(site.fleet.runs(&site.read("one")?), "the act has succeeded, and nothing runs");

    for (kind, columns, wide) in [
        (
            "vvm",
            "NAME WANT STATE HOST CPU MEMORY IP READY AGE",
            "GUEST OS,TARGET,EPOCH,RESTART NEEDED,MESSAGE",
        ),
        ("vdisk", "NAME DOMAIN SIZE ALLOCATED FORMAT USED BY PROGRESS READY AGE", "MESSAGE"),
        ("vhost", "NAME CLUSTER READY SCHEDULABLE VMS CPU MEMORY VERSION AGE", "ACCELERATOR,MESSAGE"),
        ("vnet", "NAME TYPE HOSTS READY AGE", "MESSAGE"),
        ("vsd", "NAME TYPE HOSTS CAPACITY FREE READY AGE", "MESSAGE"),
        ("vhc", "NAME HOSTS VMS BASELINE READY AGE", ""),
        ("vact", "NAME VM ACT PHASE MESSAGE AGE", ""),
    ] {
        let listed = site.here(&["get", kind])?;
        let header = listed.lines().next().unwrap_or_default();
        ensure!(words(header).join(" ") == columns, "kubectl get {kind}: {header}, not {columns}");
        let listed = site.here(&["get", kind, "-o", "wide"])?;
        let header = words(listed.lines().next().unwrap_or_default()).join(" ");
        let wide = [columns.to_owned(), wide.replace(',', " ")].join(" ");
        ensure!(header == wide.trim_end(), "kubectl get {kind} -o wide: {header}, not {wide}");
    }
    let listed = site.kubectl(&["get", "vireo", "-A"])?;
    ensure!(
        listed.contains("virtualmachine.vireo.dev/one") && listed.contains("disk.vireo.dev/one-root"),
        "{listed}"
    );
    // What counts VMs together follows within ten seconds.
    for (kind, name, path, wanted) in [
        ("vhc", "default", "{.status.summary.hosts}", "2"),
        ("vdisk", "one-root", "{.status.summary.usedBy}", "one"),
    ] {
        site.here(&[
            "wait",
            &format!("--for=jsonpath={path}={wanted}"),
            &format!("{kind}/{name}"),
            "--timeout=30s",
        ])
        .or_else(|error| {
            let found = site.here(&["get", kind, name, "-o", &format!("jsonpath={path}")])?;
            ensure!(found.starts_with(wanted), "{error:#}: {found:?}");
            Ok::<_, anyhow::Error>(found)
        })?;
    }
    site.here(&["delete", "vvm", "one", "--timeout=60s"])?;
    Ok(())
}

/// What kstatus says of an object: its rules for kinds it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Current,
    InProgress,
    Failed,
    Terminating,
}

fn kstatus(object: &Value) -> Verdict {
    let (metadata, status) = (&object["metadata"], &object["status"]);
    if !metadata["deletionTimestamp"].is_null() {
        return Verdict::Terminating;
    }
    if !status["observedGeneration"].is_null() && status["observedGeneration"] != metadata["generation"] {
        return Verdict::InProgress;
    }
    let condition = |type_: &str| {
        let all = status["conditions"].as_array().into_iter().flatten();
        all.filter(|condition| condition["type"] == type_).find_map(|condition| condition["status"].as_str())
    };
    match (condition("Reconciling"), condition("Stalled"), condition("Ready")) {
        (Some("True"), ..) => Verdict::InProgress,
        (_, Some("True"), _) => Verdict::Failed,
        (_, _, Some("False" | "Unknown")) => Verdict::InProgress,
        _ => Verdict::Current,
    }
}

/// Follows one VM through its life; after each Current the next edit is made, so that nothing runs ahead of the watch.
#[test]
fn kstatus_never_calls_a_vm_current_before_it_is() -> Result<()> {
    let Some(site) = site("kstatus_never_calls_a_vm_current_before_it_is", "kstatus")? else { return Ok(()) };
    site.runtime.block_on(async {
        let api = site.fleet.vms("kstatus");
        let start = api.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
        let mut watch = Box::pin(api.watch(&WatchParams::default().timeout(120), &start).await?);
        let body: Value = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "followed"},
            "spec": {"memory": {"size": "256Mi"}, "disks": [{"name": "root", "template": {"storageDomain": "shared", "size": "1Gi"}}]},
        });
        api.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        let edits = [
            json!({"gracePeriodSeconds": 10}),
            // Waits for the next boot of the guest, which is no reason not to be Current.
            json!({"memory": {"size": "512Mi"}}),
            json!({"runStrategy": "Halted"}),
            json!({"runStrategy": "Always"}),
        ];
        let (mut edits, mut generation) = (edits.iter(), 1);
        let mut story = Vec::new();
        while let Some(event) = watch.try_next().await? {
            let seen = match event {
                WatchEvent::Added(vm) | WatchEvent::Modified(vm) => vm,
                WatchEvent::Deleted(_) => break,
                _ => continue,
            };
            let verdict = kstatus(&serde_json::to_value(&seen)?);
            let status = seen.status.clone().unwrap_or_default();
            let halted = format!("{:?}", seen.spec.run_strategy) == "Halted";
            story.push(format!("generation {:?}: {verdict:?}, {:?}", seen.metadata.generation, status.state));
            ensure!(verdict != Verdict::Failed, "{story:#?}");
            ensure!(story.len() > 1 || verdict == Verdict::InProgress, "a new object is {verdict:?}");
            if verdict != Verdict::Current {
                continue;
            }
            // A report that was on its way when the spec was edited: it was Current then, and says so of that spec.
            if seen.metadata.generation < Some(generation) {
                continue;
            }
            ensure!(seen.metadata.generation == Some(generation), "Current for another generation than {generation}: {story:#?}");
            ensure!(site.fleet.runs(&seen) != halted, "Current, halted: {halted}, and the guest says the opposite: {story:#?}");
            let reported = status.runtime.as_ref().map(|runtime| runtime.grant.id.as_str());
            let placed = status.placement.as_ref().map(|placement| placement.id.as_str());
            ensure!(placed.is_some() && reported == placed, "Current by the report of another grant: {story:#?}");
            match edits.next() {
                Some(spec) => {
                    api.patch("followed", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
                    generation += 1;
                }
                None => {
                    api.delete("followed", &DeleteParams::default()).await?;
                }
            }
        }
        println!("{story:#?}");
        ensure!(generation == 5, "the watch ended at generation {generation}: {story:#?}");
        ensure!(story.last().is_some_and(|last| last.contains("Terminating")), "{story:#?}");
        Ok(())
    })
}
