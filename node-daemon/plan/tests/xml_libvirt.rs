//! Every golden domain on a real libvirt, embedded in a directory of its own: it is defined, and where this machine
//! can carry it out, started. What libvirt makes of it must not count as drift.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod golden;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use node_plan::{
    intent::{MachineDisk, NicAttach},
    xml::{
        self,
        build::{DomainInput, build_domain},
        network::{NatNetworkXml, parse_nat},
    },
};
use vireo_crds::v1alpha1::{Accelerator, Architecture};

/// libvirt inside this process's children, with no daemon and nothing of the machine's own.
struct Embedded {
    root: tempfile::TempDir,
}

impl Embedded {
    /// None, having said why, where there is no libvirt to embed.
    fn new(suite: &str) -> Option<Self> {
        if !golden::has("virsh") || !golden::has("qemu-system-x86_64") || !is_root() {
            golden::skip(suite, "needs root, virsh and qemu-system-x86_64");
            return None;
        }
        // Sockets below it must stay within 108 bytes.
        let root = tempfile::Builder::new().prefix("vx").tempdir_in("/tmp").unwrap();
        fs::create_dir_all(root.path().join("libvirt/etc")).unwrap();
        let settings = "user = \"root\"\ngroup = \"root\"\nswtpm_user = \"root\"\nswtpm_group = \"root\"\n\
            security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\nremember_owner = 0\n\
            dynamic_ownership = 0\nstdio_handler = \"file\"\n";
        fs::write(root.path().join("libvirt/etc/qemu.conf"), settings).unwrap();
        Some(Self { root })
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    /// Runs commands of virsh one after the other, in a network namespace that has the bridge `br-lan`.
    fn virsh(&self, commands: &str) -> Output {
        let script = "ip link set lo up && ip link add br-lan type bridge && exec virsh -q -c \"qemu:///embed?root=$0\" \"$1\"";
        Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .arg(self.path("libvirt"))
            .arg(commands)
            .output()
            .unwrap()
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// Why this machine cannot carry out a domain at all.
fn hindrance(input: &DomainInput) -> Option<&'static str> {
    if input.machine.accelerator == Accelerator::Kvm {
        return Some("needs KVM, which only the lab's probe guest can vouch for");
    }
    if input.machine.architecture == Architecture::aarch64 && !golden::has("qemu-system-aarch64") {
        return Some("needs qemu-system-aarch64");
    }
    None
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn libvirt_defines_every_domain() {
    let Some(libvirt) = Embedded::new("libvirt_defines_every_domain") else { return };
    for case in golden::cases("xml") {
        let input: DomainInput = golden::yaml(&case, "input.yaml");
        let hindrance = match input.machine.accelerator {
            Accelerator::Kvm if fs::File::open("/dev/kvm").is_err() => Some("needs /dev/kvm"),
            Accelerator::Kvm => None,
            Accelerator::Tcg | Accelerator::Unknown => hindrance(&input),
        };
        if let Some(why) = hindrance {
            golden::skip(&format!("libvirt_defines_every_domain/{}", golden::name(&case)), why);
            continue;
        }
        let file = case.join("domain.xml");
        let output = libvirt.virsh(&format!(
            "define --validate {0}; dumpxml --inactive {1}; undefine --nvram --tpm {1}",
            file.display(),
            input.name
        ));
        let kept = String::from_utf8_lossy(&output.stdout).into_owned();
        let start =
            kept.find("<domain").unwrap_or_else(|| panic!("{}: {}", golden::name(&case), stderr(&output)));
        let wanted = build_domain(&input).unwrap().domain;
        assert_eq!(
            xml::compare(&wanted, &xml::parse(document(&kept[start..])).unwrap()),
            [],
            "{}",
            golden::name(&case)
        );
    }
}

fn document(text: &str) -> &str {
    let end = text.find("</domain>\n").unwrap() + "</domain>".len();
    &text[..end]
}

#[test]
fn what_runs_is_what_was_wanted() {
    let Some(libvirt) = Embedded::new("what_runs_is_what_was_wanted") else { return };
    if !golden::has("qemu-img") || !golden::has("swtpm") {
        golden::skip("what_runs_is_what_was_wanted", "needs qemu-img and swtpm");
        return;
    }
    for case in golden::cases("xml") {
        let name = golden::name(&case);
        let input = relocated(&case, libvirt.root.path());
        let no_kernel =
            input.machine.kernel.is_some().then_some("its kernel is no kernel; the lab boots one");
        if let Some(why) = hindrance(&input).or(no_kernel) {
            golden::skip(&format!("what_runs_is_what_was_wanted/{name}"), why);
            continue;
        }
        make_files(&input);
        let wanted = build_domain(&input).unwrap().domain;
        let file = libvirt.path("domain.xml");
        fs::write(&file, xml::render(&wanted)).unwrap();
        let output = libvirt.virsh(&format!(
            "create --validate {0}; dumpxml {1}; destroy {1}",
            file.display(),
            input.name
        ));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let start = text.find("<domain").unwrap_or_else(|| panic!("{name}: {}", stderr(&output)));
        let live = document(&text[start..]);
        assert_eq!(xml::compare(&wanted, &xml::parse(live).unwrap()), [], "{name}\n{live}");
        assert_eq!(xml::metadata::read(live), Ok(wanted.metadata), "{name}");

        let observed = xml::observe::observe(live).unwrap();
        assert!(
            observed.machine_type.is_some_and(|machine| xml::machine_is(&wanted.os.machine, &machine)),
            "{name}"
        );
        assert_eq!(observed.console_tty.is_some(), wanted.serial.is_some(), "{name}");
        assert_eq!(observed.vnc_socket, input.machine.vnc_socket, "{name}");
        assert!(output.status.success(), "{name}: {}", stderr(&output));
    }
}

#[test]
fn libvirt_gives_metadata_back_as_it_was_set() {
    let Some(libvirt) = Embedded::new("libvirt_gives_metadata_back_as_it_was_set") else { return };
    let case = golden::cases("xml").into_iter().find(|case| golden::name(case) == "minimal").unwrap();
    let input = relocated(&case, libvirt.root.path());
    let mut metadata = input.metadata.clone();
    metadata.grant.epoch += 1;
    metadata.notes.insert("text".into(), serde_json::json!({"a": ["<&>", "\n", 1, null]}));
    let file = libvirt.path("domain.xml");
    fs::write(&file, xml::render(&build_domain(&input).unwrap().domain)).unwrap();
    let uri = vireo_crds::meta::LIBVIRT_METADATA_NS;
    let set = format!(
        "metadata {0} --uri {uri} --live --key {1} --set '{2}'",
        input.name,
        xml::metadata::METADATA_KEY,
        xml::metadata::element_for_set(&metadata).replace('\n', ""),
    );
    let get = format!("metadata {} --uri {uri} --live", input.name);
    let output = libvirt.virsh(&format!(
        "create {}; {set}; {get}; dumpxml {1}; destroy {1}",
        file.display(),
        input.name
    ));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", stderr(&output));
    let (element, rest) = text.split_once("</domain>").unwrap();
    let element = format!("{}</domain>", &element[element.find("<domain").unwrap()..]);
    assert_eq!(xml::metadata::parse_element(&element), Ok(metadata.clone()), "{text}");
    let live = document(&rest[rest.find("<domain").unwrap()..]);
    assert_eq!(xml::metadata::read(live), Ok(Some(metadata)), "{text}");
}

#[test]
fn libvirt_defines_every_network() {
    if !golden::has("virsh") {
        golden::skip("libvirt_defines_every_network", "needs virsh");
        return;
    }
    for case in golden::cases("network-xml") {
        let network: NatNetworkXml = golden::yaml(&case, "input.yaml");
        let commands = format!(
            "net-define --validate {}; net-dumpxml {}",
            case.join("network.xml").display(),
            network.name
        );
        // libvirt's in-memory driver: what it takes, the real one takes.
        let output = Command::new("virsh").args(["-q", "-c", "test:///default", &commands]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let start =
            text.find("<network").unwrap_or_else(|| panic!("{}: {}", golden::name(&case), stderr(&output)));
        assert_eq!(parse_nat(&text[start..]), Ok(network), "{}", golden::name(&case));
    }
}

/// The input of a case with everything below `root`, and NAT networks as a bridge: they take a daemon of their own.
fn relocated(case: &Path, root: &Path) -> DomainInput {
    let text = fs::read_to_string(case.join("input.yaml")).unwrap();
    let text = ["/srv/vireo/", "/var/lib/vireo/", "/run/vireo/"]
        .iter()
        .fold(text, |text, prefix| text.replace(prefix, &format!("{}{prefix}", root.display())));
    let mut input: DomainInput = serde_saphyr::from_str(&text).unwrap();
    for nic in &mut input.machine.nics {
        nic.attach = NicAttach::Bridge("br-lan".into());
    }
    input
}

fn make_files(input: &DomainInput) {
    for path in [&input.seed, &input.console_log].into_iter().flatten() {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, [0; 4096]).unwrap();
    }
    for path in [&input.machine.vnc_socket].into_iter().flatten() {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    }
    if let node_plan::intent::MachineFirmware::Uefi { nvram, .. } = &input.machine.firmware {
        fs::create_dir_all(Path::new(nvram).parent().unwrap()).unwrap();
    }
    if let Some(dir) = &input.tpm_dir {
        fs::create_dir_all(dir).unwrap();
    }
    input.machine.disks.iter().for_each(make_disk);
}

fn make_disk(disk: &MachineDisk) {
    let Some(volume) = &disk.volume else { return };
    fs::create_dir_all(Path::new(&volume.path).parent().unwrap()).unwrap();
    let format = if volume.path.ends_with(".raw") { "raw" } else { "qcow2" };
    qemu_img(&["create", "-q", "-f", format, &volume.path, "16M"]);
    if let Some(overlay) = &disk.overlay {
        fs::create_dir_all(Path::new(overlay).parent().unwrap()).unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", &volume.path, "-F", format, overlay]);
    }
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", stderr(&output));
}
