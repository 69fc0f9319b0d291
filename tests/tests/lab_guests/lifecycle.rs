//! A guest's life on real hosts: start, stop, crash, reboot, acts, edits, adoption, drift.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use system_tests::lab::{Lab, alone, condition, shared, tiny_vm};

fn set(lab: &Lab, vm: &str, spec: &Value) -> Result<()> {
    lab.kubectl(["patch", "vvm", vm, "--type=merge", "-p", &json!({"spec": spec}).to_string()])?;
    Ok(())
}

/// Makes an act and waits for its end; phase and message.
fn act(lab: &Lab, vm: &str, act: &str) -> Result<(String, String)> {
    let name = format!(
        "{vm}-{act}-{}",
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis()
    );
    lab.apply(&format!("apiVersion: vireo.dev/v1alpha1\nkind: VirtualMachineAction\nmetadata: {{name: {name}, namespace: default}}\nspec: {{vm: {vm}, {act}: {{}}}}\n"))?;
    lab.until(&format!("{act} of {vm} ends"), Duration::from_secs(120), || {
        let object = lab.get("vact", &name)?;
        let phase = object["status"]["phase"].as_str().unwrap_or_default().to_owned();
        ensure!(phase == "Succeeded" || phase == "Failed", "{}", object["status"]);
        Ok((phase, object["status"]["message"].as_str().unwrap_or_default().to_owned()))
    })
}

fn up(lab: &Lab, name: &str, spec: &str) -> Result<Value> {
    lab.delete_vm(name)?;
    lab.apply(&tiny_vm(name, spec))?;
    let vm = lab.until_running(name)?;
    lab.until_serial(name, "login: boot 1")?;
    Ok(vm)
}

fn boots(lab: &Lab, name: &str, count: u32) -> Result<()> {
    lab.until_serial(name, &format!("login: boot {count}"))?;
    Ok(())
}

/// Sends a line to the guest's serial shell.
fn type_line(lab: &Lab, name: &str, line: &str) -> Result<()> {
    let host = lab.host_of(name)?;
    let node = system_tests::lab::binary("vireo-node");
    lab.exec(
        &host,
        ["sh", "-c", &format!("printf '\\n{line}\\n' | {} console default/{name} --send", node.display())],
    )?;
    Ok(())
}

/// Whether a VM says that this path differs from its spec, in these words.
fn explained(lab: &Lab, name: &str, path: &str, words: &str) -> Result<()> {
    let vm = lab.get("vvm", name)?;
    let pending = vm["status"]["runtime"]["pendingChanges"].as_array().cloned().unwrap_or_default();
    let found = pending.iter().any(|change| {
        change["path"] == path && change["running"].as_str().is_some_and(|running| running.contains(words))
    });
    ensure!(found, "{pending:?}");
    ensure!(
        condition(&vm, "RestartRequired")
            .is_some_and(|c| c["message"].as_str().unwrap_or_default().contains(path)),
        "{}",
        vm["status"]
    );
    Ok(())
}

#[test]
fn lab_a_first_vm_runs_with_an_address() -> Result<()> {
    let lab = &*shared()?;
    let vm = up(lab, "first", "")?;
    let vm_address = lab.until("an address", Duration::from_secs(60), || {
        let vm = lab.get("vvm", "first")?;
        vm["status"]["summary"]["ip"].as_str().map(str::to_owned).with_context(|| vm["status"].to_string())
    })?;
    ensure!(vm_address.starts_with("10.88.0."), "{vm_address}");
    ensure!(lab.serial("first")?.contains(&vm_address), "the guest says another address");
    ensure!(condition(&vm, "Running").is_some_and(|c| c["status"] == "True"), "{}", vm["status"]);
    lab.qemu_pid("first")?;
    let disk = lab.get("vdisk", "first-root")?;
    ensure!(condition(&disk, "Ready").is_some_and(|c| c["status"] == "True"), "{}", disk["status"]);
    // Nothing remains of a deleted VM but its volume in the trash.
    let host = lab.host_of("first")?;
    let uid = vm["metadata"]["uid"].as_str().unwrap_or_default();
    lab.delete_vm("first")?;
    ensure!(
        !lab.virsh(&host, ["list", "--all", "--name"])?.contains("default.first"),
        "the domain is still there"
    );
    ensure!(
        lab.exec(&host, ["ls", "/srv/vireo/shared/vms"])?.lines().all(|line| line != uid),
        "its files are still there"
    );
    lab.until("the Disk is gone", Duration::from_secs(60), || match lab.get("vdisk", "first-root") {
        Ok(disk) => anyhow::bail!("{}", disk["status"]),
        Err(error) if format!("{error:#}").contains("NotFound") => Ok(()),
        Err(error) => Err(error),
    })
}

#[test]
fn lab_halting_asks_the_guest_and_starting_again_boots_it() -> Result<()> {
    let lab = &*shared()?;
    for (name, spec) in [("halt-agent", ""), ("halt-acpi", "  guestAgent: false\n")] {
        up(lab, name, spec)?;
        set(lab, name, &json!({"runStrategy": "Halted"}))?;
        let vm = lab.until_vm(name, "/status/state", &"Stopped".into())?;
        ensure!(
            vm["status"]["runtime"]["holding"] == "Released"
                && vm["status"]["runtime"]["stopCause"] == "BySpec",
            "{}",
            vm["status"]
        );
        lab.until_vm(name, "/status/runtime/power", &"Off".into())?;
        ensure!(
            lab.serial(name)?.contains("power down") || lab.serial(name)?.contains("shutting down"),
            "{name} was not asked: {}",
            lab.serial(name)?
        );
        let vm = lab.get("vvm", name)?;
        ensure!(
            condition(&vm, "Ready").is_some_and(|c| c["status"] == "True"),
            "a VM stopped on purpose is Ready: {}",
            vm["status"]
        );
        set(lab, name, &json!({"runStrategy": "Always"}))?;
        lab.until_running(name)?;
        boots(lab, name, 2)?;
        lab.delete_vm(name)?;
    }
    Ok(())
}

#[test]
fn lab_a_guest_that_does_not_listen_is_stopped_after_its_grace_period() -> Result<()> {
    let lab = &*shared()?;
    let kernel = "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {name: deaf, namespace: default}
spec:
  memory: {size: 128Mi}
  gracePeriodSeconds: 5
  guestAgent: false
  directKernelBoot: {storageDomain: shared, kernel: vmlinuz, initrd: initrd.img, cmdline: \"console=ttyS0 quiet acpi=off\"}
";
    lab.delete_vm("deaf")?;
    lab.apply(kernel)?;
    lab.until_running("deaf")?;
    let asked = std::time::Instant::now();
    set(lab, "deaf", &json!({"runStrategy": "Halted"}))?;
    lab.until_vm("deaf", "/status/runtime/power", &"Off".into())?;
    ensure!(asked.elapsed() >= Duration::from_secs(4), "its power was cut after {:?}", asked.elapsed());
    lab.delete_vm("deaf")
}

#[test]
fn lab_a_killed_guest_is_restarted_and_a_crash_loop_is_shown() -> Result<()> {
    let lab = &*shared()?;
    up(lab, "crashing", "")?;
    let host = lab.host_of("crashing")?;
    let first = lab.qemu_pid("crashing")?;
    lab.exec(&host, ["kill", "-9", &first])?;
    lab.until("another QEMU", Duration::from_secs(60), || {
        let pid = lab.qemu_pid("crashing")?;
        ensure!(pid != first, "still {pid}");
        Ok(())
    })?;
    boots(lab, "crashing", 2)?;
    lab.until_vm("crashing", "/status/runtime/crashes", &1.into())?;
    for _ in 0..2 {
        let pid = lab.until("a QEMU to kill", Duration::from_secs(90), || lab.qemu_pid("crashing"))?;
        lab.exec(&host, ["kill", "-9", &pid])?;
        lab.until("it is noticed", Duration::from_secs(30), || {
            let now = lab.qemu_pid("crashing").unwrap_or_default();
            ensure!(now != pid, "still {pid}");
            Ok(())
        })?;
    }
    lab.until_vm("crashing", "/status/state", &"CrashLoop".into())?;
    lab.delete_vm("crashing")
}

#[test]
fn lab_a_guests_reboot_keeps_its_process() -> Result<()> {
    let lab = &*shared()?;
    up(lab, "rebooting", "")?;
    let pid = lab.qemu_pid("rebooting")?;
    type_line(lab, "rebooting", "reboot")?;
    boots(lab, "rebooting", 2)?;
    ensure!(lab.qemu_pid("rebooting")? == pid, "a reboot from inside started another QEMU");
    lab.delete_vm("rebooting")
}

#[test]
fn lab_a_guests_shutdown_follows_the_run_strategy() -> Result<()> {
    let lab = &*shared()?;
    up(lab, "off-always", "  runStrategy: Always\n")?;
    type_line(lab, "off-always", "poweroff")?;
    boots(lab, "off-always", 2)?;
    lab.delete_vm("off-always")?;

    up(lab, "off-rerun", "  runStrategy: RerunOnFailure\n")?;
    type_line(lab, "off-rerun", "poweroff")?;
    let vm = lab.until_vm("off-rerun", "/status/runtime/power", &"Off".into())?;
    ensure!(vm["status"]["runtime"]["stopCause"] == "ByGuest", "{}", vm["status"]);
    ensure!(act(lab, "off-rerun", "start")?.0 == "Succeeded");
    boots(lab, "off-rerun", 2)?;
    lab.delete_vm("off-rerun")?;

    lab.delete_vm("off-manual")?;
    lab.apply(&tiny_vm("off-manual", "  runStrategy: Manual\n"))?;
    lab.until_vm("off-manual", "/status/state", &"Stopped".into())?;
    ensure!(act(lab, "off-manual", "start")?.0 == "Succeeded");
    boots(lab, "off-manual", 1)?;
    let pid = lab.qemu_pid("off-manual")?;
    let host = lab.host_of("off-manual")?;
    lab.exec(&host, ["kill", "-9", &pid])?;
    let vm = lab.until_vm("off-manual", "/status/runtime/power", &"Off".into())?;
    ensure!(vm["status"]["runtime"]["stopCause"] == "Crashed", "{}", vm["status"]);
    lab.delete_vm("off-manual")
}

#[test]
fn lab_acts_are_carried_out_once() -> Result<()> {
    let lab = &*shared()?;
    up(lab, "acted", "  runStrategy: RerunOnFailure\n")?;
    let pid = lab.qemu_pid("acted")?;
    ensure!(act(lab, "acted", "pause")?.0 == "Succeeded");
    lab.until_vm("acted", "/status/state", &"Paused".into())?;
    ensure!(act(lab, "acted", "resume")?.0 == "Succeeded");
    lab.until_vm("acted", "/status/state", &"Running".into())?;
    ensure!(act(lab, "acted", "nmi")?.0 == "Succeeded");
    ensure!(act(lab, "acted", "reset")?.0 == "Succeeded");
    boots(lab, "acted", 2)?;
    ensure!(lab.qemu_pid("acted")? == pid, "a reset started another QEMU");
    ensure!(act(lab, "acted", "restart")?.0 == "Succeeded");
    boots(lab, "acted", 3)?;
    ensure!(lab.qemu_pid("acted")? != pid, "a restart kept the QEMU");
    ensure!(act(lab, "acted", "stop")?.0 == "Succeeded");
    lab.until_vm("acted", "/status/state", &"Stopped".into())?;
    let (phase, message) = act(lab, "acted", "reset")?;
    ensure!(phase == "Failed" && message.contains("not running"), "{phase} {message}");
    lab.delete_vm("acted")
}

#[test]
fn lab_edits_apply_live_or_at_the_next_boot() -> Result<()> {
    let lab = &*shared()?;
    up(lab, "edited", "")?;
    let host = lab.host_of("edited")?;
    let pid = lab.qemu_pid("edited")?;
    // Live: the link.
    set(lab, "edited", &json!({"interfaces": [{"name": "eth0", "network": "nat", "link": "Down"}]}))?;
    lab.until("the link is down", Duration::from_secs(30), || {
        let xml = lab.virsh(&host, ["dumpxml", "default.edited"])?;
        ensure!(xml.contains("<link state='down'/>"), "{xml}");
        Ok(())
    })?;
    set(lab, "edited", &json!({"interfaces": [{"name": "eth0", "network": "nat", "link": "Up"}]}))?;
    // At the next boot: memory.
    set(lab, "edited", &json!({"memory": {"size": "320Mi"}}))?;
    let vm = lab.until("the change waits", Duration::from_secs(30), || {
        let vm = lab.get("vvm", "edited")?;
        ensure!(
            vm["status"]["runtime"]["pendingChanges"][0]["path"] == "spec.memory.size",
            "{}",
            vm["status"]["runtime"]
        );
        Ok(vm)
    })?;
    ensure!(vm["status"]["runtime"]["pendingChanges"][0]["applies"] == "NextBoot", "{}", vm["status"]);
    ensure!(
        condition(&vm, "RestartRequired").is_some_and(|c| c["status"] == "True"
            && c["message"].as_str().unwrap_or_default().contains("spec.memory.size")),
        "{}",
        vm["status"]
    );
    ensure!(lab.qemu_pid("edited")? == pid, "an edit restarted the guest");
    type_line(lab, "edited", "reboot")?;
    boots(lab, "edited", 2)?;
    let xml = lab.virsh(&host, ["dumpxml", "default.edited"])?;
    ensure!(xml.contains("327680</memory>"), "the reboot did not apply the new memory: {xml}");
    lab.until("nothing waits", Duration::from_secs(30), || {
        let vm = lab.get("vvm", "edited")?;
        ensure!(vm["status"]["runtime"].get("pendingChanges").is_none(), "{}", vm["status"]["runtime"]);
        Ok(())
    })?;
    lab.delete_vm("edited")
}

/// What a running guest can bear to have put right: a CD's medium, an interface's network, what its end does.
fn put_right_at_once(lab: &Lab, host: &str) -> Result<()> {
    let domain = "default.drifting";
    let before = lab.virsh(host, ["dumpxml", domain])?;
    let drives = lab.virsh(host, ["domblklist", domain, "--details"])?;
    let drive = drives.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let drive = drive.filter(|words| words.get(1) == Some(&"cdrom")).find_map(|words| words.get(2).copied());
    let drive = drive.with_context(|| format!("no CD drive: {drives}"))?;
    lab.virsh(host, ["change-media", domain, drive, "/tmp/foreign.img", "--insert", "--live"])?;
    lab.exec(host, ["sh", "-ec", "ip link delete handmade 2>/dev/null || true; ip link add handmade type bridge && ip link set handmade up"])?;
    lab.exec(
        host,
        [
            "sh",
            "-ec",
            "virsh -q dumpxml default.drifting | sed -n '/<interface/,/<.interface>/p' \
             | sed -e \"s/type='network'/type='bridge'/\" -e \"s/<source .*/<source bridge='handmade'\\/>/\" > /tmp/nic.xml
             virsh -q update-device default.drifting /tmp/nic.xml --live",
        ],
    )?;
    lab.virsh(host, ["set-lifecycle-action", domain, "poweroff", "restart", "--live"])?;
    lab.until("medium, network and end are put right", Duration::from_secs(60), || {
        let xml = lab.virsh(host, ["dumpxml", domain])?;
        ensure!(!xml.contains("/tmp/foreign.img"), "the medium is still there: {xml}");
        ensure!(!xml.contains("bridge='handmade'"), "the interface is plugged in elsewhere: {xml}");
        ensure!(xml.contains("<on_poweroff>destroy</on_poweroff>"), "a power-off starts it again: {xml}");
        let network = |xml: &str| {
            xml.split("<source network='").nth(1).map(|rest| rest.split('\'').next().map(str::to_owned))
        };
        ensure!(network(&xml) == network(&before), "{xml}");
        Ok(())
    })?;
    lab.exec(host, ["ip", "link", "delete", "handmade"])?;
    let vm = lab.get("vvm", "drifting")?;
    ensure!(vm["status"]["runtime"].get("pendingChanges").is_none(), "{}", vm["status"]["runtime"]);
    Ok(())
}

/// Somebody starts a copy of a VM by hand: libvirt asks for the permit, and there is none.
fn not_started_without_a_permit(lab: &Lab, host: &str) -> Result<()> {
    let uuid = lab.virsh(host, ["domuuid", "default.drifting"])?;
    let copy = format!(
        "virsh -q dumpxml default.drifting | sed -e 's/{}/aaaaaaaa-0000-4000-8000-000000000001/' -e 's,<name>.*</name>,<name>by-hand</name>,' > /tmp/copy.xml; virsh -q create /tmp/copy.xml",
        uuid.trim()
    );
    let refused = lab.exec(host, ["sh", "-c", &copy]).err().context("a copy was started without a permit")?;
    ensure!(format!("{refused:#}").contains("may not be started by hand"), "{refused:#}");
    Ok(())
}

#[test]
fn lab_drift_is_put_right_or_explained_and_foreign_domains_are_left_alone() -> Result<()> {
    let lab = &*shared()?;
    lab.delete_vm("drifting")?;
    lab.apply(&tiny_vm("drifting", "").replace("  interfaces:", "  - {name: cd, cdrom: {}}\n  interfaces:"))?;
    let vm = lab.until_running("drifting")?;
    boots(lab, "drifting", 1)?;
    ensure!(vm["status"]["runtime"].get("pendingChanges").is_none(), "{}", vm["status"]["runtime"]);
    let host = lab.host_of("drifting")?;
    let foreign = "<domain type='qemu'><name>foreign</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>";
    lab.exec(
        &host,
        [
            "sh",
            "-c",
            &format!("printf %s \"{foreign}\" > /tmp/foreign.xml && virsh -q define /tmp/foreign.xml"),
        ],
    )?;
    lab.until("the foreign domain is listed", Duration::from_secs(60), || {
        let object = lab.get("vhost", &host)?;
        ensure!(
            object["status"]["foreignDomains"]
                .as_array()
                .is_some_and(|names| names.iter().any(|name| name == "foreign")),
            "{}",
            object["status"]["foreignDomains"]
        );
        Ok(())
    })?;
    lab.virsh(&host, ["suspend", "default.drifting"])?;
    let vm = lab.until_vm("drifting", "/status/state", &"Paused".into())?;
    ensure!(vm["status"]["runtime"]["pauseCause"] == "Outside", "{}", vm["status"]);
    lab.virsh(&host, ["resume", "default.drifting"])?;
    let vm = lab.until_running("drifting")?;
    // A link set by hand is put right.
    let mac =
        vm["status"]["runtime"]["interfaces"][0]["mac"].as_str().context("a hardware address")?.to_owned();
    lab.virsh(&host, ["domif-setlink", "default.drifting", &mac, "down"])?;
    lab.until("the link is up again", Duration::from_secs(60), || {
        let xml = lab.virsh(&host, ["dumpxml", "default.drifting"])?;
        ensure!(!xml.contains("<link state='down'/>"), "{xml}");
        Ok(())
    })?;
    lab.exec(&host, ["truncate", "-s", "1M", "/tmp/foreign.img"])?;
    put_right_at_once(lab, &host)?;
    not_started_without_a_permit(lab, &host)?;
    // Devices attached and detached by hand are explained, field by field, and put right by the next start.
    let rng = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>";
    lab.exec(&host, ["sh", "-c", &format!("printf %s \"{rng}\" > /tmp/rng.xml")])?;
    lab.virsh(&host, ["attach-device", "default.drifting", "/tmp/rng.xml", "--live"])?;
    lab.until("the foreign entropy device is explained", Duration::from_secs(60), || {
        explained(lab, "drifting", "spec.rng", "added by hand")
    })?;
    lab.virsh(&host, ["attach-disk", "default.drifting", "/tmp/foreign.img", "vdz", "--live"])?;
    lab.until("the foreign disk is explained", Duration::from_secs(60), || {
        explained(lab, "drifting", "spec.disks[target:vdz]", "by hand")
    })?;
    lab.virsh(&host, ["detach-interface", "default.drifting", "network", "--mac", &mac, "--live"])?;
    lab.until("the missing interface is explained", Duration::from_secs(60), || {
        explained(lab, "drifting", "spec.interfaces[eth0]", "by hand")
    })?;
    // A definition made by hand is removed, lest the guest starts by itself.
    lab.exec(
        &host,
        [
            "sh",
            "-c",
            "virsh -q dumpxml default.drifting > /tmp/drifting.xml && virsh -q define /tmp/drifting.xml",
        ],
    )?;
    lab.until("it is transient again", Duration::from_secs(60), || {
        let info = lab.virsh(&host, ["dominfo", "default.drifting"])?;
        ensure!(info.lines().any(|line| line.starts_with("Persistent:") && line.ends_with("no")), "{info}");
        Ok(())
    })?;
    lab.virsh(&host, ["destroy", "default.drifting"])?;
    boots(lab, "drifting", 2)?;
    let xml = lab.virsh(&host, ["dumpxml", "default.drifting"])?;
    ensure!(
        !xml.contains("/tmp/foreign.img") && !xml.contains("/dev/urandom") && xml.contains(&mac),
        "the start did not put it right: {xml}"
    );
    ensure!(
        lab.virsh(&host, ["list", "--all", "--name"])?.contains("foreign"),
        "the foreign domain was touched"
    );
    lab.virsh(&host, ["undefine", "foreign"])?;
    lab.delete_vm("drifting")
}

#[test]
fn lab_hardware_is_the_same_after_starting_on_another_host() -> Result<()> {
    let lab = &*shared()?;
    up(lab, "moving", "  scheduling: {hostName: host1}\n")?;
    let before = lab.get("vvm", "moving")?["status"]["hardware"].clone();
    ensure!(before["devices"].as_array().is_some_and(|devices| !devices.is_empty()), "{before}");
    set(lab, "moving", &json!({"runStrategy": "Halted"}))?;
    lab.until_vm("moving", "/status/state", &"Stopped".into())?;
    set(lab, "moving", &json!({"runStrategy": "Always", "scheduling": {"hostName": "host2"}}))?;
    lab.until_vm("moving", "/status/placement/host", &"host2".into())?;
    lab.until_running("moving")?;
    boots(lab, "moving", 2)?;
    let after = lab.get("vvm", "moving")?["status"]["hardware"].clone();
    ensure!(before == after, "hardware changed: {before} to {after}");
    lab.delete_vm("moving")
}

#[test]
fn lab_an_edit_that_is_refused_says_so_and_one_waiting_is_applied_by_a_reboot_without_the_daemon()
-> Result<()> {
    let lab = &*alone()?;
    up(lab, "waiting", "")?;
    let host = lab.host_of("waiting")?;
    let pid = lab.qemu_pid("waiting")?;
    set(lab, "waiting", &json!({"machine": "pc", "memory": {"size": "320Mi"}}))?;
    lab.until("both are told", Duration::from_secs(30), || {
        let vm = lab.get("vvm", "waiting")?;
        let required = condition(&vm, "RestartRequired").cloned().unwrap_or_default();
        let message = required["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("spec.memory.size")
                && message.contains("refused")
                && message.contains("spec.machine"),
            "{required}"
        );
        Ok(())
    })?;
    set(lab, "waiting", &json!({"machine": null}))?;
    lab.until("a reset ends the domain", Duration::from_secs(30), || {
        let xml = lab.virsh(&host, ["dumpxml", "default.waiting"])?;
        ensure!(xml.contains("<on_reboot>destroy</on_reboot>"), "{xml}");
        Ok(())
    })?;
    lab.lab(["daemon", "stop", &host])?;
    let rebooted = type_line(lab, "waiting", "reboot").and_then(|()| {
        lab.until("the guest has ended", Duration::from_secs(60), || {
            ensure!(lab.exec(&host, ["kill", "-0", &pid]).is_err(), "{pid} is still there");
            Ok(())
        })
    });
    lab.lab(["daemon", "start", &host])?;
    rebooted?;
    boots(lab, "waiting", 2)?;
    let xml = lab.virsh(&host, ["dumpxml", "default.waiting"])?;
    ensure!(xml.contains("327680</memory>") && xml.contains("<on_reboot>restart</on_reboot>"), "{xml}");
    // With nothing waiting, a reboot comes back although the daemon is down.
    let pid = lab.qemu_pid("waiting")?;
    lab.until_running("waiting")?;
    lab.lab(["daemon", "kill", &host])?;
    let rebooted = type_line(lab, "waiting", "reboot").and_then(|()| {
        lab.until("boot 3", Duration::from_secs(120), || {
            let node = system_tests::lab::binary("vireo-node");
            let text = lab.exec(
                &host,
                [node.as_os_str(), "console".as_ref(), "default/waiting".as_ref(), "--log".as_ref()],
            )?;
            ensure!(text.contains("login: boot 3"), "not yet");
            Ok(())
        })
    });
    lab.lab(["daemon", "start", &host])?;
    rebooted?;
    lab.until_running("waiting")?;
    ensure!(lab.qemu_pid("waiting")? == pid, "another QEMU after the daemon was killed");
    lab.delete_vm("waiting")
}

#[test]
fn lab_a_full_disk_pauses_the_guest_and_room_resumes_it() -> Result<()> {
    let lab = &*shared()?;
    let host = "host3";
    lab.delete_vm("full")?;
    lab.kubectl(["delete", "storagedomain", "small", "--ignore-not-found", "--timeout=60s"])?;
    lab.exec(host, ["sh", "-c", "umount /srv/vireo/small 2>/dev/null; mkdir -p /srv/vireo/small && mount -t tmpfs -o size=48m small /srv/vireo/small"])?;
    lab.apply(
        "apiVersion: vireo.dev/v1alpha1
kind: StorageDomain
metadata: {name: small}
spec:
  directory: {path: /srv/vireo/small}
  thresholds: {blockFreeBytes: 1Mi}
",
    )?;
    lab.until("the small domain is there", Duration::from_secs(60), || {
        let object = lab.get("vhost", host)?;
        let domains = object["status"]["storageDomains"].as_array().cloned().unwrap_or_default();
        ensure!(
            domains.iter().any(|domain| domain["name"] == "small" && domain["ready"] == true),
            "{domains:?}"
        );
        Ok(())
    })?;
    let root = "  - name: root\n    template: {storageDomain: shared, size: 512Mi, source: {file: {path: tiny.qcow2}}}\n";
    let manifest = tiny_vm("full", "  scheduling: {hostName: host3}\n").replace(
        root,
        &format!("{root}  - name: data\n    template: {{storageDomain: small, size: 40Mi}}\n"),
    );
    lab.apply(&manifest)?;
    lab.until_running("full")?;
    boots(lab, "full", 1)?;
    let pid = lab.qemu_pid("full")?;
    // Somebody else fills the directory; the guest writes into the hole.
    lab.exec(
        host,
        ["dd", "if=/dev/zero", "of=/srv/vireo/small/ballast", "bs=1M", "count=38", "status=none"],
    )?;
    type_line(lab, "full", "dd if=/dev/urandom of=/dev/vdb bs=1M count=24 && sync && echo written-$((1+1))")?;
    let vm = lab.until_vm("full", "/status/state", &"Paused".into())?;
    ensure!(vm["status"]["runtime"]["pauseCause"] == "IoError", "{}", vm["status"]);
    ensure!(condition(&vm, "Running").is_some_and(|c| c["reason"] == "PausedIoError"), "{}", vm["status"]);
    lab.exec(host, ["rm", "/srv/vireo/small/ballast"])?;
    lab.until_running("full")?;
    lab.until_serial("full", "written-2")?;
    ensure!(lab.qemu_pid("full")? == pid, "another QEMU");
    lab.delete_vm("full")?;
    lab.kubectl(["delete", "storagedomain", "small", "--timeout=60s"])?;
    lab.exec(host, ["umount", "/srv/vireo/small"])?;
    Ok(())
}

#[test]
fn lab_a_vm_deleted_while_starting_is_gone_and_its_name_is_free() -> Result<()> {
    let lab = &*shared()?;
    lab.delete_vm("brief")?;
    lab.apply(&tiny_vm("brief", ""))?;
    let first = lab.get("vvm", "brief")?;
    lab.delete_vm("brief")?;
    let vm = up(lab, "brief", "")?;
    ensure!(vm["metadata"]["uid"] != first["metadata"]["uid"], "the same object");
    let running: usize = ["host1", "host2", "host3"]
        .into_iter()
        .map(|host| {
            Ok(lab
                .virsh(host, ["list", "--all", "--name"])?
                .lines()
                .filter(|line| *line == "default.brief")
                .count())
        })
        .sum::<Result<usize>>()?;
    ensure!(running == 1, "{running} domains of that name");
    lab.delete_vm("brief")
}
