//! A lab of hosts that have a libvirtd and nothing else, from `up` to
//! `down`, with a real guest on one of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Lab {
    dir: tempfile::TempDir,
    images: PathBuf,
}

impl Lab {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vireo-lab"));
        command.arg("--state").arg(self.state()).args(args).env("VIREO_IMAGES_DIR", &self.images);
        command
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("lab")
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "vireo-lab {}: {out}{err}", args.join(" "));
        out.into_owned()
    }

    fn exec(&self, host: &str, command: &[&str]) -> String {
        self.run(&[&["exec", host, "--"], command].concat())
    }

    fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "vireo-lab {} should fail", args.join(" "));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["status", "-o", "json"])).unwrap()
    }

    fn host(&self, number: usize) -> serde_json::Value {
        self.status()["hosts"][number - 1].clone()
    }

    fn pings(&self, from: &str, to: &str) -> bool {
        self.output(&["exec", from, "--", "ping", "-c", "1", "-W", "2", to]).status.success()
    }

    fn wait(&self, what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(seconds), "{what}: not within {seconds} s");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Processes whose command line names this lab's directory.
    fn processes(&self) -> Vec<String> {
        let needle = self.state().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            if cmdline.contains(&needle) && entry.file_name() != std::process::id().to_string().as_str() {
                found.push(cmdline);
            }
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.output(&["down"]);
    }
}

/// None, with the reason told, where a lab cannot be made.
fn lab(test: &str) -> Option<Lab> {
    let root = fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    let why = if !root {
        "not root"
    } else if !Path::new("/usr/sbin/libvirtd").exists() {
        "libvirt is not installed (tools/install-deps.sh)"
    } else {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images");
        return Some(Lab { dir: tempfile::tempdir().unwrap(), images });
    };
    eprintln!("SKIPPED {test}: {why}");
    if let Some(path) = std::env::var_os("VIREO_SKIP_LOG") {
        let mut log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(log, "lab {test}: {why}").unwrap();
    }
    None
}

fn interfaces() -> String {
    let output = Command::new("ip").args(["-o", "-br", "addr"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn lab_mounts(lab: &Lab) -> usize {
    let needle = lab.state().display().to_string();
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&needle)).count()
}

#[test]
fn up_power_network_and_down() {
    let Some(lab) = lab("up_power_network_and_down") else { return };
    let before = interfaces();
    lab.run(&["up", "--bare", "--hosts", "2"]);

    // Two hosts that nothing takes for one.
    let (one, two) = (lab.host(1), lab.host(2));
    for key in ["uuid", "machineId", "bootId", "address"] {
        assert_ne!(one[key], two[key], "{key}");
    }
    assert_eq!(lab.exec("host1", &["hostname"]).trim(), "host1");
    assert!(lab.exec("host1", &["virsh", "capabilities"]).contains(one["uuid"].as_str().unwrap()));
    assert_eq!(lab.exec("host2", &["cat", "/etc/machine-id"]).trim(), two["machineId"]);

    // Again: nothing is restarted, and a host can be added.
    lab.run(&["up", "--bare", "--hosts", "3"]);
    assert_eq!((lab.host(1), lab.host(2)), (one.clone(), two));
    assert_eq!(lab.host(3)["libvirtd"]["running"], true);

    // What a host writes stays inside, what is shared is shared.
    let mark = format!("/etc/vireo-lab-test-{}", std::process::id());
    lab.exec(
        "host1",
        &["touch", &mark, "/srv/vireo/shared/mark", "/srv/vireo/local/mark", "/var/lib/vireo/mark"],
    );
    assert!(!Path::new(&mark).exists());
    lab.exec("host2", &["test", "-e", "/srv/vireo/shared/mark"]);
    lab.exec("host2", &["test", "!", "-e", "/srv/vireo/local/mark"]);

    // A cut between two parts just these two.
    assert!(lab.pings("host1", "host2") && lab.pings("host1", "api"));
    lab.run(&["network", "cut", "host1", "--from", "host2"]);
    assert!(!lab.pings("host1", "host2") && !lab.pings("host2", "host1"));
    assert!(lab.pings("host1", "api") && lab.pings("host1", "host3"));
    lab.run(&["network", "heal", "host2", "--from", "host1"]);
    lab.wait("healed", 10, || lab.pings("host1", "host2"));
    lab.run(&["network", "cut", "host1", "--from", "api"]);
    assert!(!lab.pings("host1", "api") && lab.pings("host1", "host2"));
    lab.run(&["network", "cut", "host1"]);
    assert!(!lab.pings("host1", "host2"));
    lab.run(&["network", "heal", "host1"]);
    lab.wait("healed", 10, || lab.pings("host1", "host2") && lab.pings("host1", "api"));
    assert!(lab.fails(&["network", "cut", "host9"]).contains("no host"));

    // Power: a new boot, the volatile gone, the kept there, the network as before.
    lab.run(&["power", "cycle", "host1"]);
    let again = lab.host(1);
    assert_ne!(again["bootId"], one["bootId"]);
    assert_eq!(again["uuid"], one["uuid"]);
    assert_eq!(again["libvirtd"]["running"], true);
    lab.exec("host1", &["test", "!", "-e", &mark]);
    lab.exec("host1", &["test", "-e", "/var/lib/vireo/mark"]);
    lab.wait("reachable after a power cycle", 10, || lab.pings("host2", "host1"));
    // Cables of the boot before go away in their own time; they must not be taken for this boot's.
    for _ in 0..5 {
        lab.run(&["power", "cycle", "host1"]);
        assert!(
            lab.exec("host1", &["ip", "-br", "addr", "show", "eth0"])
                .contains(one["address"].as_str().unwrap())
        );
    }
    lab.run(&["power", "off", "host2"]);
    assert!(lab.fails(&["exec", "host2", "--", "true"]).contains("powered off"));
    assert_eq!(lab.host(2)["libvirtd"]["running"], false);

    // Each libvirtd by itself.
    lab.run(&["libvirtd", "kill", "host1"]);
    assert_eq!(lab.host(1)["libvirtd"]["running"], false);
    lab.run(&["libvirtd", "start", "host1"]);
    lab.exec("host1", &["virsh", "list"]);

    // A command that is killed half-way leaves no orphan inside.
    let state = lab.state();
    lab.run(&["down"]);
    lab.wait("all processes gone", 10, || lab.processes().is_empty());
    assert_eq!(lab_mounts(&lab), 0);
    assert_eq!(interfaces(), before);
    assert!(!state.join("hosts").exists() && !state.join("state.json").exists());
    lab.run(&["down"]);
}

#[test]
fn down_finds_what_no_record_names() {
    let Some(lab) = lab("down_finds_what_no_record_names") else { return };
    lab.run(&["up", "--bare", "--hosts", "1"]);
    // As if `up` had been killed before it could write.
    fs::remove_file(lab.state().join("state.json")).unwrap();
    lab.run(&["down"]);
    lab.wait("all processes gone", 10, || lab.processes().is_empty());
    // And unreadable records do not protect a lab either.
    lab.run(&["up", "--bare", "--hosts", "1"]);
    fs::write(lab.state().join("state.json"), "{").unwrap();
    lab.run(&["down"]);
    lab.wait("all processes gone", 10, || lab.processes().is_empty());
}

#[test]
fn up_killed_anywhere_leaves_nothing_that_down_or_another_up_does_not_mend() {
    let test = "up_killed_anywhere_leaves_nothing_that_down_or_another_up_does_not_mend";
    let Some(lab) = lab(test) else { return };
    for most in 2..10 {
        let mut up = lab.command(&["up", "--bare", "--hosts", "2"]).stderr(Stdio::null()).spawn().unwrap();
        lab.wait("far enough, or done", 60, || {
            lab.processes().len() >= most || up.try_wait().unwrap().is_some()
        });
        up.kill().unwrap();
        up.wait().unwrap();
        if most % 2 == 0 {
            // Nothing is there twice, and what was begun is finished.
            lab.run(&["up", "--bare", "--hosts", "2"]);
            let inits = lab.processes().iter().filter(|line| line.starts_with("unshare")).count();
            assert_eq!(inits, 3, "{:#?}", lab.processes());
            lab.exec("host2", &["virsh", "list"]);
        }
        lab.run(&["down"]);
        lab.wait("all processes gone", 10, || lab.processes().is_empty());
    }
}

#[test]
fn two_labs_side_by_side() {
    let (Some(a), Some(b)) = (lab("two_labs_side_by_side"), lab("two_labs_side_by_side")) else { return };
    a.run(&["up", "--bare", "--hosts", "1"]);
    b.run(&["up", "--bare", "--hosts", "1"]);
    assert_ne!(a.host(1)["uuid"], b.host(1)["uuid"]);
    a.run(&["down"]);
    assert_eq!(b.host(1)["libvirtd"]["running"], true);
    b.exec("host1", &["virsh", "list"]);
}

fn domain(lab: &Lab, name: &str, boot: &str, disk: &str) -> String {
    let images = lab.images.canonicalize().unwrap();
    let boot = boot.replace("IMAGES", &images.display().to_string());
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>\
         <os>{boot}</os><features><acpi/></features><on_reboot>restart</on_reboot><devices>\
         <emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>\
         <target dev='vda' bus='virtio'/></disk><controller type='usb' model='none'/>\
         <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <serial type='file'><source path='/srv/vireo/local/{name}.log'/><target port='0'/></serial>\
         </devices></domain>"
    )
}

impl Lab {
    fn create_guest(&self, host: &str, name: &str, boot: &str, disk: &str) {
        // The uplink that bridge networks use, with the fabric's DHCP behind it.
        let bridge = "ip link show br0 || { ip link add br0 type bridge && ip link set eth1 master br0 up; }; ip link set br0 up";
        self.exec(host, &["sh", "-c", bridge]);
        let xml = self.state().join(format!("{name}.xml"));
        fs::write(&xml, domain(self, name, boot, disk)).unwrap();
        self.exec(host, &["virsh", "create", xml.to_str().unwrap()]);
    }

    fn wait_console(&self, host: &str, name: &str, line: &str) {
        let log = self.state().join("hosts").join(host).join("local").join(format!("{name}.log"));
        let mut text = String::new();
        let start = Instant::now();
        while !text.contains(line) {
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "{name} never printed {line:?}; it printed:\n{text}"
            );
            std::thread::sleep(Duration::from_millis(50));
            text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        }
    }

    fn wait_no_guest(&self, host: &str) {
        self.wait("guest is gone", 60, || self.exec(host, &["virsh", "list", "--name"]).trim().is_empty());
    }
}

const DIRECT: &str = "<type arch='x86_64' machine='q35'>hvm</type><kernel>IMAGES/vmlinuz</kernel>\
                      <initrd>IMAGES/initrd.img</initrd><cmdline>console=ttyS0 quiet</cmdline>";

#[test]
fn the_tiny_guest_counts_boots_and_obeys_button_agent_and_power_cut() {
    let test = "the_tiny_guest_counts_boots_and_obeys_button_agent_and_power_cut";
    let Some(lab) = lab(test) else { return };
    lab.run(&["image", "tiny"]);
    lab.run(&["up", "--bare", "--hosts", "1"]);
    let disk = "/srv/vireo/local/disk.qcow2";
    lab.exec("host1", &["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"]);

    lab.create_guest("host1", "tiny", DIRECT, disk);
    lab.wait_console("host1", "tiny", "vireo-guest login: boot 1");
    lab.wait_console("host1", "tiny", "vireo-guest address: eth0 10.78.");
    let ping = r#"{"execute":"guest-get-osinfo"}"#;
    lab.wait("agent answers", 60, || {
        lab.output(&["exec", "host1", "--", "virsh", "qemu-agent-command", "tiny", ping]).status.success()
    });
    lab.exec("host1", &["virsh", "reboot", "tiny", "--mode", "agent"]);
    lab.wait_console("host1", "tiny", "vireo-guest login: boot 2");
    // The button has a driver only after the banner, so pressed until heard.
    lab.wait("button obeyed", 60, || {
        let _ = lab.output(&["exec", "host1", "--", "virsh", "shutdown", "tiny", "--mode", "acpi"]);
        lab.exec("host1", &["virsh", "list", "--name"]).trim().is_empty()
    });

    lab.create_guest("host1", "tiny", DIRECT, disk);
    lab.wait_console("host1", "tiny", "vireo-guest login: boot 3");
    let qemu = lab.exec("host1", &["pidof", "qemu-system-x86_64"]);
    assert_eq!(qemu.split_whitespace().count(), 1);
    lab.run(&["power", "cycle", "host1"]);
    assert!(!lab.output(&["exec", "host1", "--", "pidof", "qemu-system-x86_64"]).status.success());
    lab.wait_no_guest("host1");
    lab.create_guest("host1", "tiny", DIRECT, disk);
    lab.wait_console("host1", "tiny", "vireo-guest login: boot 4");
}

#[test]
fn the_tiny_disk_boots_by_bios_and_by_uefi() {
    let Some(lab) = lab("the_tiny_disk_boots_by_bios_and_by_uefi") else { return };
    lab.run(&["image", "tiny"]);
    lab.run(&["up", "--bare", "--hosts", "1"]);
    let disk = "/srv/vireo/local/tiny.qcow2";
    let image = lab.images.canonicalize().unwrap().join("tiny.qcow2");
    lab.exec("host1", &["cp", image.to_str().unwrap(), disk]);
    lab.create_guest("host1", "bios", "<type arch='x86_64' machine='q35'>hvm</type>", disk);
    lab.wait_console("host1", "bios", "vireo-guest login: boot 1");
    lab.exec("host1", &["virsh", "destroy", "bios"]);
    let uefi = "<type arch='x86_64' machine='q35'>hvm</type>\
                <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>\
                <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'/>";
    lab.create_guest("host1", "uefi", uefi, disk);
    lab.wait_console("host1", "uefi", "vireo-guest login: boot 2");
}
