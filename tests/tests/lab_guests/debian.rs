//! A real Debian on real hosts: cloud-init, SSH, the guest agent, Secure Boot; and firmware and TPM state that follow
//! a VM from host to host.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use system_tests::lab::{Lab, Turn, binary, condition, shared, tiny_vm};

/// Two emulated Debians boot at once on two busy cores.
const DEBIAN_LIMIT: Duration = Duration::from_secs(420);

/// Puts the Debian image into the lab; builds it where it was never built.
fn debian() -> Result<Turn> {
    let lab = shared()?;
    lab.lab(["image", "debian"])?;
    let image = system_tests::root().join("target/images/debian.qcow2");
    let node = binary("vireo-node");
    let import = [
        "import".as_ref(),
        image.as_os_str(),
        "--domain".as_ref(),
        "shared".as_ref(),
        "--if-missing".as_ref(),
    ];
    lab.exec("host1", [node.as_os_str()].into_iter().chain(import))?;
    Ok(lab)
}

/// Waits until the serial console has printed a line that begins so; the line.
fn line(lab: &Lab, vm: &str, begins: &str) -> Result<String> {
    lab.until(&format!("{vm} prints {begins:?}"), DEBIAN_LIMIT, || {
        let text = lab.serial(vm)?;
        match text.lines().find_map(|line| line.find(begins).and_then(|at| line.get(at..))) {
            Some(line) => Ok(line.trim().to_owned()),
            None => {
                // It takes a minute; looking five times a second would only slow it down.
                std::thread::sleep(Duration::from_secs(2));
                bail!("{}", text.lines().last().unwrap_or_default())
            }
        }
    })
}

/// Waits for what the agent tells; the VM.
fn facts(lab: &Lab, vm: &str, hostname: &str) -> Result<Value> {
    lab.until(&format!("the agent of {vm} tells about it"), Duration::from_secs(120), || {
        let object = lab.get("vvm", vm)?;
        let (status, guest) = (&object["status"], &object["status"]["runtime"]["guest"]);
        ensure!(condition(&object, "AgentConnected").is_some_and(|c| c["status"] == "True"), "{status}");
        ensure!(guest["hostname"] == hostname, "{guest}");
        ensure!(guest["os"].as_str().is_some_and(|os| os.contains("Debian GNU/Linux")), "{guest}");
        ensure!(guest["kernel"].as_str().is_some_and(|kernel| kernel.contains("cloud-amd64")), "{guest}");
        let address = status["summary"]["ip"].as_str().with_context(|| format!("no address: {status}"))?;
        let nic = &status["runtime"]["interfaces"][0];
        ensure!(
            nic["name"] == "eth0"
                && nic["addresses"].as_array().is_some_and(|all| all.iter().any(|one| one == address)),
            "{nic}"
        );
        Ok(object)
    })
}

#[test]
fn lab_debian_is_what_cloud_init_says_and_boots_securely() -> Result<()> {
    let lab = &*debian()?;
    for name in ["debian-secure", "debian-plain"] {
        lab.delete_vm(name)?;
    }
    // In the lab's folder, which its hosts see at the same path.
    let key = lab.state_dir().join("ssh-key");
    for file in [key.clone(), key.with_extension("pub")] {
        let _ = std::fs::remove_file(file);
    }
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status()?;
    ensure!(made.success(), "ssh-keygen: {made}");
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    let user_data = |say: &str| {
        json!({
            "users": [{"name": "ops", "shell": "/bin/bash", "ssh_authorized_keys": [public.trim()]}],
            "runcmd": [["sh", "-c", format!("echo \"marker-{say} $(hostname) $(od -An -t u1 -j 4 /sys/firmware/efi/efivars/SecureBoot-* 2>&1)\" > /dev/ttyS0")]],
        })
    };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "debian-secure", "namespace": "default"},
        "stringData": {"userData": format!("#cloud-config\n{}", user_data("secret"))},
    });
    let vm = |name: &str, host: &str, more: Value| {
        let mut vm = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "memory": {"size": "640Mi"}, "rng": {}, "scheduling": {"hostName": host},
                "disks": [{"name": "root", "template": {"storageDomain": "shared", "size": "2Gi", "source": {"file": {"path": "debian.qcow2"}}}}],
                "interfaces": [{"name": "eth0", "network": "nat"}],
            },
        });
        if let (Some(spec), Some(more)) = (vm["spec"].as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        vm.to_string()
    };
    lab.apply(&secret.to_string())?;
    lab.apply(&vm(
        "debian-secure",
        "host1",
        json!({"firmware": {"uefi": {"secureBoot": true}}, "tpm": {}, "cloudInit": {"userDataSecret": {"name": "debian-secure"}}}),
    ))?;
    lab.apply(&vm(
        "debian-plain",
        "host2",
        json!({"hostname": "by-inline-data", "cloudInit": {"userData": format!("#cloud-config\n{}", user_data("inline"))}}),
    ))?;

    let said = line(lab, "debian-plain", "marker-inline")?;
    ensure!(said.starts_with("marker-inline by-inline-data ") && said.contains("No such file"), "{said}");
    let said = line(lab, "debian-secure", "marker-secret")?;
    ensure!(
        said.split_whitespace().eq(["marker-secret", "debian-secure", "1"]),
        "Secure Boot is off, or cloud-init did not run: {said}"
    );
    facts(lab, "debian-plain", "by-inline-data")?;
    let secure = facts(lab, "debian-secure", "debian-secure")?;
    let kernel = lab.in_guest("debian-secure", "dmesg | grep -i 'secure boot enabled' && ls /dev/tpm0")?;
    ensure!(kernel.contains("/dev/tpm0"), "{kernel}");

    let address = secure["status"]["summary"]["ip"].as_str().unwrap_or_default();
    let login = format!(
        "ssh -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 -o BatchMode=yes ops@{address} hostname",
        key.display()
    );
    let name =
        lab.until("a login by SSH", Duration::from_secs(60), || lab.exec("host1", ["sh", "-c", &login]))?;
    ensure!(name.trim() == "debian-secure", "{name}");
    // The Secret is nobody's to read but the host's that runs the VM.
    let other = lab.kubectl([
        "auth",
        "can-i",
        "get",
        "secret/debian-secure",
        "--as=system:serviceaccount:vireo-hosts:host-host2",
    ]);
    ensure!(other.is_err(), "host2 may read the Secret of a VM on host1: {other:?}");

    // A graceful stop, told by the agent, of a guest with a real init.
    let asked = Instant::now();
    lab.kubectl([
        "patch",
        "vvm",
        "debian-plain",
        "--type=merge",
        "-p",
        "{\"spec\":{\"runStrategy\":\"Halted\"}}",
    ])?;
    lab.until_vm("debian-plain", "/status/state", &"Stopped".into())?;
    ensure!(
        asked.elapsed() < Duration::from_secs(115),
        "it was not asked, its power was cut after {:?}",
        asked.elapsed()
    );
    for name in ["debian-secure", "debian-plain"] {
        lab.kubectl(["patch", "vvm", name, "--type=merge", "-p", "{\"spec\":{\"gracePeriodSeconds\":1}}"])?;
        lab.delete_vm(name)?;
    }
    lab.nothing_panicked()
}

/// Bytes as the guest's printf takes them.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

/// Sends a command to the guest's TPM as its owner, who has no password; the answer in hexadecimal digits.
fn tpm(lab: &Lab, vm: &str, command: u32, handles: &[u32], rest: &[u8]) -> Result<String> {
    let mut body: Vec<u8> = command.to_be_bytes().to_vec();
    handles.iter().for_each(|handle| body.extend(handle.to_be_bytes()));
    // One authorization, of 9 bytes: the empty password (TPM_RS_PW).
    body.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    body.extend(rest);
    let length = u32::try_from(body.len() + 6)?;
    let whole = [&[0x80, 0x02][..], &length.to_be_bytes(), &body].concat();
    // A device of commands: each is one write, and its answer one read.
    let script = format!(
        "printf '{}' > /tmp/command; exec 3<>/dev/tpmrm0; busybox cat /tmp/command >&3; busybox dd bs=4096 count=1 <&3 2>/dev/null | busybox od -An -v -t x1 | busybox tr -d ' \\n'",
        escaped(&whole)
    );
    let answer = lab.in_guest(vm, &script)?;
    ensure!(answer.get(12..20) == Some("00000000"), "TPM command {command:#x} was answered {answer}");
    Ok(answer)
}

const OWNER: u32 = 0x4000_0001;
const INDEX: u32 = 0x0150_0001;
const VARIABLE: &str = "/sys/firmware/efi/efivars/VireoTest-12345678-1234-1234-1234-123456789abc";

#[test]
fn lab_firmware_variables_and_tpm_state_follow_a_vm_to_another_host() -> Result<()> {
    let lab = &*shared()?;
    for name in ["keeper", "unsigned"] {
        lab.delete_vm(name)?;
    }
    // Firmware that enforces Secure Boot does not start what nobody signed; it is looked at in the end.
    lab.apply(
        &tiny_vm("unsigned", "  firmware: {uefi: {secureBoot: true}}\n  guestAgent: false\n")
            .replace("gracePeriodSeconds: 30", "gracePeriodSeconds: 1"),
    )?;
    lab.apply(&tiny_vm("keeper", "  firmware: {uefi: {}}\n  tpm: {}\n  scheduling: {hostName: host1}\n"))?;
    lab.until_running("keeper")?;
    lab.until_serial("keeper", "login: boot 1")?;
    let mount = "busybox insmod /modules/efivarfs.ko 2>/dev/null; busybox mount -t efivarfs efivarfs /sys/firmware/efi/efivars";
    let secure_boot = lab.in_guest(
        "keeper",
        &format!(
            "{mount} && busybox tail -c 1 /sys/firmware/efi/efivars/SecureBoot-* | busybox od -An -t u1"
        ),
    )?;
    ensure!(secure_boot.trim() == "0", "Secure Boot: {secure_boot}");
    // The first four bytes are the variable's attributes: kept, for the boot loader and the system.
    lab.in_guest("keeper", &format!("printf '\\007\\000\\000\\000kept by firmware' > /tmp/v && busybox dd if=/tmp/v of={VARIABLE} bs=64 2>/dev/null"))?;
    // NV_DefineSpace: 8 bytes which the owner reads and writes; NV_Write.
    let public = [&INDEX.to_be_bytes()[..], &[0, 0x0b, 0x02, 0x06, 0x00, 0x06, 0, 0, 0, 8]].concat();
    tpm(lab, "keeper", 0x12a, &[OWNER], &[&[0, 0, 0, 14][..], &public].concat())?;
    tpm(lab, "keeper", 0x137, &[OWNER, INDEX], &[&[0, 8][..], b"kept tpm", &[0, 0]].concat())?;

    lab.kubectl(["patch", "vvm", "keeper", "--type=merge", "-p", "{\"spec\":{\"runStrategy\":\"Halted\"}}"])?;
    lab.until_vm("keeper", "/status/state", &"Stopped".into())?;
    lab.kubectl([
        "patch",
        "vvm",
        "keeper",
        "--type=merge",
        "-p",
        "{\"spec\":{\"runStrategy\":\"Always\",\"scheduling\":{\"hostName\":\"host2\"}}}",
    ])?;
    lab.until_vm("keeper", "/status/placement/host", &"host2".into())?;
    lab.until_running("keeper")?;
    lab.until_serial("keeper", "login: boot 2")?;
    let variable = lab.in_guest("keeper", &format!("{mount}; busybox cat {VARIABLE}"))?;
    ensure!(variable.ends_with("kept by firmware"), "the firmware variable is {variable:?}");
    // NV_Read of all 8 bytes.
    let answer = tpm(lab, "keeper", 0x14e, &[OWNER, INDEX], &[0, 8, 0, 0])?;
    let kept: String = b"kept tpm".iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(answer.contains(&kept), "the TPM answers {answer}");
    let left = lab.exec(
        "host1",
        [
            "sh",
            "-c",
            "ls -R /var/lib/libvirt/swtpm /var/lib/libvirt/qemu/nvram 2>/dev/null | grep -v : || true",
        ],
    )?;
    ensure!(left.trim().is_empty(), "state stayed on the host it left: {left}");

    lab.until("the unsigned guest is refused", Duration::from_secs(60), || {
        let text = lab.serial("unsigned")?;
        ensure!(text.contains("Access Denied"), "{text}");
        Ok(())
    })?;
    ensure!(!lab.serial("unsigned")?.contains("vireo-guest login"), "an unsigned guest was booted");
    for name in ["keeper", "unsigned"] {
        lab.delete_vm(name)?;
    }
    lab.nothing_panicked()
}
