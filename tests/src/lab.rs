//! A lab for tests: three hosts with the product installed, brought up once per test run and left to the next binary.

mod faults;
mod guest;
mod objects;
mod turns;
pub mod web;

pub use turns::{Turn, alone, shared};

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use objects::Objects;
use serde_json::Value;

use crate::{root, wait::until_blocking};

/// How long a guest may take to boot here: emulated guests on two busy cores.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// A running lab.
pub struct Lab {
    state: PathBuf,
    objects: Objects,
}

impl Lab {
    /// Brings a lab up under this state folder, or finds it up.
    pub fn up(state: &str, hosts: u32) -> Result<Self> {
        let state = root().join(state);
        let lab = Self { objects: Objects::new(state.join("kubeconfig")), state };
        lab.lab(["up", "--hosts", &hosts.to_string()])?;
        let folder = root().join("examples");
        for file in ["infrastructure/network-nat.yaml", "quickstart/storage.yaml"] {
            lab.kubectl(["apply".as_ref(), "-f".as_ref(), folder.join(file).as_os_str()])?;
        }
        lab.kubectl([
            "wait",
            "--for=condition=Ready",
            "network/nat",
            "storagedomain/shared",
            "storagedomain/local",
            "--timeout=120s",
        ])?;
        let images = root().join("target/images");
        for image in ["tiny.qcow2", "vmlinuz", "initrd.img"] {
            let node = binary("vireo-node");
            let file = images.join(image);
            lab.exec(
                "host1",
                [
                    node.as_os_str(),
                    "import".as_ref(),
                    file.as_os_str(),
                    "--domain".as_ref(),
                    "shared".as_ref(),
                    "--if-missing".as_ref(),
                ],
            )?;
        }
        Ok(lab)
    }

    /// Where the lab keeps its state and logs.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// Runs `vireo-lab` on this lab; its standard output.
    pub fn lab<I, A>(&self, args: I) -> Result<String>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let mut command = Command::new(binary("vireo-lab"));
        command.arg("--state").arg(&self.state).args(args).current_dir(root());
        run(&mut command)
    }

    /// Runs a command on a host; its standard output.
    pub fn exec<I, A>(&self, host: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let mut command = Command::new(binary("vireo-lab"));
        command.arg("--state").arg(&self.state).args(["exec", host, "--"]).args(args).current_dir(root());
        run(&mut command)
    }

    /// Runs virsh on a host; its standard output.
    pub fn virsh<I, A>(&self, host: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let mut all = vec![OsStr::new("virsh").to_owned(), OsStr::new("-q").to_owned()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self.exec(host, all)
    }

    /// Runs kubectl as administrator; its standard output.
    pub fn kubectl<I, A>(&self, args: I) -> Result<String>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        run(&mut self.kubectl_command(args))
    }

    /// A kubectl command as administrator.
    pub fn kubectl_command<I, A>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let mut command = Command::new(root().join("target/tools/kubectl"));
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), manifest)?;
        self.kubectl(["apply".as_ref(), "-f".as_ref(), file.path().as_os_str()])
    }

    /// An object as JSON. Those of a namespace are looked for in `default`.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.objects.get(kind, name)
    }

    /// Waits until `probe` says what it saw is right, or fails with what it saw last.
    pub fn until<T>(&self, what: &str, limit: Duration, probe: impl FnMut() -> Result<T>) -> Result<T> {
        until_blocking(what, limit, probe)
    }

    /// Waits until a VM's field (a JSON pointer) has this value.
    pub fn until_vm(&self, name: &str, pointer: &str, wanted: &Value) -> Result<Value> {
        self.until(&format!("{name} {pointer} = {wanted}"), BOOT_LIMIT, || {
            let vm = self.get("vvm", name)?;
            let found = vm.pointer(pointer).cloned().unwrap_or(Value::Null);
            if found == *wanted { Ok(vm) } else { bail!("{found}; status {}", vm["status"]) }
        })
    }

    /// Waits until a VM runs and is Ready; the object.
    pub fn until_running(&self, name: &str) -> Result<Value> {
        self.until_vm(name, "/status/state", &"Running".into())?;
        self.until(&format!("{name} Ready"), BOOT_LIMIT, || {
            let vm = self.get("vvm", name)?;
            if condition(&vm, "Ready").is_some_and(|c| c["status"] == "True") {
                Ok(vm)
            } else {
                bail!("{}", vm["status"]["conditions"])
            }
        })
    }

    /// What a VM's serial console has printed since it was last started.
    pub fn serial(&self, name: &str) -> Result<String> {
        self.lab(["console", &format!("default/{name}"), "--log"])
    }

    /// Waits until the serial console has printed this; the whole text.
    pub fn until_serial(&self, name: &str, wanted: &str) -> Result<String> {
        self.until(&format!("{name} prints {wanted:?}"), BOOT_LIMIT, || {
            let text = self.serial(name)?;
            if text.contains(wanted) {
                Ok(text)
            } else {
                bail!(
                    "{}",
                    text.chars().rev().take(400).collect::<Vec<_>>().into_iter().rev().collect::<String>()
                )
            }
        })
    }

    /// The QEMU process of a VM, as its host numbers it.
    pub fn qemu_pid(&self, name: &str) -> Result<String> {
        let host = self.host_of(name)?;
        let pid = self.exec(&host, ["pgrep", "-f", &format!("guest=default.{name},")])?;
        let pid = pid.trim();
        if pid.is_empty() || pid.contains('\n') {
            bail!("{name}: QEMU processes on {host}: {pid:?}")
        }
        Ok(pid.to_owned())
    }

    /// The host a VM is placed on.
    pub fn host_of(&self, name: &str) -> Result<String> {
        let vm = self.get("vvm", name)?;
        vm.pointer("/status/placement/host")
            .and_then(Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("{name} has no host: {}", vm["status"]))
    }

    /// Deletes a VM and waits until it is gone.
    pub fn delete_vm(&self, name: &str) -> Result<()> {
        self.kubectl(["delete", "vvm", name, "--ignore-not-found", "--timeout=120s"])?;
        Ok(())
    }
}

/// A condition of an object, by type.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

/// A VM that boots the tiny guest from its own disk on the shared domain, with these lines added to its spec.
pub fn tiny_vm(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}, namespace: default}}
spec:
  memory: {{size: 256Mi}}
  gracePeriodSeconds: 30
  disks:
  - name: root
    template: {{storageDomain: shared, size: 512Mi, source: {{file: {{path: tiny.qcow2}}}}}}
  interfaces:
  - {{name: eth0, network: nat}}
{spec}"
    )
}

/// A VM without disks, whose kernel is booted directly: up in a few seconds.
pub fn kernel_vm(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}, namespace: default}}
spec:
  memory: {{size: 128Mi}}
  gracePeriodSeconds: 5
  guestAgent: false
  directKernelBoot: {{storageDomain: shared, kernel: vmlinuz, initrd: initrd.img, cmdline: \"console=ttyS0 quiet\"}}
{spec}"
    )
}

/// A binary of this build, beside the test's own.
pub fn binary(name: &str) -> PathBuf {
    std::env::var_os("VIREO_BIN_DIR").map_or_else(|| root().join("target/release"), PathBuf::from).join(name)
}

fn run(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!(
            "{command:?}: {status}: {}{}",
            String::from_utf8_lossy(&stderr),
            String::from_utf8_lossy(&stdout)
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
