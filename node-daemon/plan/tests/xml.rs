//! Every golden of a libvirt document: what it is built into, that it reads back, and that libvirt's own schema
//! accepts it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod golden;

use std::{path::Path, process::Command};

use node_plan::{
    hardware,
    intent::Fault,
    xml::{
        self,
        build::{BuiltDomain, DomainInput, build_domain},
        network::{NatNetworkXml, parse_nat, render_nat},
    },
};

fn built(case: &Path) -> (DomainInput, BuiltDomain) {
    let input: DomainInput = golden::yaml(case, "input.yaml");
    let built = build_domain(&input).unwrap_or_else(|faults| panic!("{}: {faults:?}", case.display()));
    (input, built)
}

#[test]
fn domains_are_built_as_recorded() {
    for case in golden::cases("xml") {
        let (_, built) = built(&case);
        golden::check(&case, "domain.xml", &xml::render(&built.domain));
        golden::check(&case, "hardware.yaml", &serde_saphyr::to_string(&built.hardware).unwrap());
    }
}

#[test]
fn a_domain_reads_back_as_it_was_built() {
    for case in golden::cases("xml") {
        let (_, built) = built(&case);
        let read = xml::parse(&xml::render(&built.domain)).unwrap();
        assert_eq!(read, built.domain, "{}", golden::name(&case));
        assert_eq!(xml::compare(&built.domain, &read), [], "{}", golden::name(&case));
    }
}

#[test]
fn building_again_with_the_record_changes_nothing() {
    for case in golden::cases("xml") {
        let (mut input, first) = built(&case);
        input.hardware = Some(first.hardware.clone());
        input.machine.disks.reverse();
        input.machine.nics.reverse();
        let second = build_domain(&input).unwrap();
        assert_eq!(second.hardware, first.hardware, "{}", golden::name(&case));
        assert_eq!(xml::compare(&first.domain, &second.domain), [], "{}", golden::name(&case));
    }
}

#[test]
fn no_place_is_taken_twice() {
    for case in golden::cases("xml") {
        let (_, built) = built(&case);
        let text = xml::render(&built.domain);
        let document = roxmltree::Document::parse(&text).unwrap();
        let mut places: Vec<String> = document
            .descendants()
            .filter(|node| node.has_tag_name("address"))
            .map(|node| {
                let mut parts: Vec<_> =
                    node.attributes().map(|part| format!("{}={}", part.name(), part.value())).collect();
                parts.retain(|part| !part.starts_with("multifunction"));
                // Units of SCSI and SATA controllers are apart.
                let bus = node
                    .parent()
                    .and_then(|device| device.children().find(|child| child.has_tag_name("target")));
                parts.push(
                    bus.and_then(|target| target.attribute("bus"))
                        .filter(|_| node.attribute("type") == Some("drive"))
                        .unwrap_or_default()
                        .into(),
                );
                parts.join(" ")
            })
            .collect();
        let all = places.len();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), all, "{}", golden::name(&case));
    }
}

#[test]
fn networks_are_rendered_as_recorded() {
    for case in golden::cases("network-xml") {
        let network: NatNetworkXml = golden::yaml(&case, "input.yaml");
        let text = render_nat(&network);
        golden::check(&case, "network.xml", &text);
        assert_eq!(parse_nat(&text).unwrap(), network, "{}", golden::name(&case));
    }
}

const SCHEMAS: &str = "/usr/share/libvirt/schemas";

#[test]
fn libvirts_schemas_accept_every_document() {
    for (kind, file, schema) in
        [("xml", "domain.xml", "domain.rng"), ("network-xml", "network.xml", "network.rng")]
    {
        let schema = Path::new(SCHEMAS).join(schema);
        if !golden::has("xmllint") || !schema.exists() {
            golden::skip(
                "libvirts_schemas_accept_every_document",
                "needs xmllint and libvirt's schemas (packages libxml2-utils, libvirt-common)",
            );
            return;
        }
        let files: Vec<_> = golden::cases(kind).into_iter().map(|case| case.join(file)).collect();
        let output = Command::new("xmllint")
            .arg("--noout")
            .arg("--relaxng")
            .arg(&schema)
            .args(&files)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn case(name: &str) -> DomainInput {
    golden::yaml(
        &golden::cases("xml").into_iter().find(|case| golden::name(case) == name).unwrap(),
        "input.yaml",
    )
}

fn paths(result: Result<BuiltDomain, Vec<Fault>>) -> Vec<String> {
    result.unwrap_err().into_iter().map(|fault| fault.path).collect()
}

#[test]
fn what_cannot_be_built_is_named() {
    let mut input = case("everything");
    input.machine.machine_type = "pc".into();
    input.machine.disks[2].bus = vireo_crds::v1alpha1::DiskBus::Virtio;
    input.machine.disks[3].bus = vireo_crds::v1alpha1::DiskBus::Sata;
    input.machine.disks[4].name = "a/b".into();
    input.machine.nics[0].boot_order = Some(1);
    let wanted = [
        "spec.machine",
        "spec.disks[cd]",
        "spec.disks[shared]",
        "spec.disks[a/b]",
        "spec.interfaces[eth0].bootOrder",
    ];
    assert_eq!(paths(build_domain(&input)), wanted);

    let mut input = case("direct-kernel");
    input.machine.kernel.as_mut().unwrap().cmdline = Some("a\u{0}b".into());
    input.machine.serial = Some("\u{fffe}".into());
    input.metadata.notes.insert("spec".into(), serde_json::json!({"caBundle": "-----\n-----\n\u{0}"}));
    assert_eq!(paths(build_domain(&input)), ["os.cmdline", "sysinfo.serial"]);

    let mut input = case("direct-kernel");
    input.metadata.notes.insert("spec".into(), serde_json::json!({"caBundle": "-----\n-----\n\u{0}"}));
    let domain = build_domain(&input).unwrap().domain;
    assert_eq!(xml::parse(&xml::render(&domain)), Ok(domain));
}

#[test]
fn differences_are_named_field_by_field() {
    let wanted = build_domain(&case("everything")).unwrap().domain;
    let mut live = wanted.clone();
    live.metadata = None;
    live.os.machine = "pc-q35-10.0".into();
    live.root_ports += 2;
    assert_eq!(xml::compare(&wanted, &live), []);

    live.memory *= 2;
    live.interfaces[0].link = node_plan::xml::interface::LinkState::Down;
    live.lifecycle.on_reboot = xml::LifecycleAction::Destroy;
    live.disks.retain(|disk| disk.name != "data");
    live.foreign_devices.push("hostdev".into());
    live.rng = None;
    let mut extra = live.disks[0].clone();
    extra.name = "target:vdz".into();
    live.disks.push(extra);
    let differences = xml::compare(&wanted, &live);
    let paths: Vec<_> = differences.iter().map(|difference| difference.path.as_str()).collect();
    let named = [
        "disks[data]",
        "disks[target:vdz]",
        "foreignDevices[hostdev]",
        "interfaces[eth0].link",
        "lifecycle.onReboot",
        "memory",
        "rng",
    ];
    assert_eq!(paths, named);
    assert_eq!((differences[0].wanted.as_deref(), differences[0].live.as_deref()), (Some("present"), None));
    assert_eq!(
        (differences[3].wanted.as_deref(), differences[3].live.as_deref()),
        (Some("up"), Some("down"))
    );
}

#[test]
fn metadata_is_read_apart_from_the_rest() {
    let built = build_domain(&case("everything")).unwrap();
    let text = xml::render(&built.domain);
    let metadata = built.domain.metadata.unwrap();
    assert_eq!(xml::metadata::read(&text), Ok(Some(metadata.clone())));
    assert_eq!(xml::metadata::parse_element(&xml::metadata::element_for_set(&metadata)), Ok(metadata));
    assert_eq!(xml::metadata::read("<domain type='xen'><name>x</name></domain>"), Ok(None));
    assert!(xml::metadata::read(&text.replace("epoch=\"3\"", "epoch=\"three\"")).is_err());
    assert!(xml::metadata::read(&text.replace("vireo:grant", "vireo:gr")).is_err());
}

#[test]
fn a_spare_place_is_left_for_hot_plug() {
    let input = case("first-vm");
    let built = build_domain(&input).unwrap();
    let slots = hardware::assign(Some(&built.hardware), &[]).unwrap();
    assert_eq!(slots.highest_port(), 0);
    let used = built.hardware.devices.iter().filter(|device| device.address.ends_with(":00.0")).count();
    assert!(usize::from(built.domain.root_ports) >= used + 4);
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    fn everything() -> String {
        xml::render(&build_domain(&case("everything")).unwrap().domain)
    }

    fn read_all(text: &str) {
        let _ = xml::parse(text);
        let _ = xml::metadata::read(text);
        let _ = xml::metadata::parse_element(text);
        let _ = xml::observe::observe(text);
        let _ = parse_nat(text);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            read_all(&text);
        }

        #[test]
        fn mutated_documents_never_panic(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..40, "[0-9a-zA-Z<>/'\"= \u{0}ä-]{0,8}"), 1..6),
        ) {
            let mut text: Vec<char> = everything().chars().collect();
            for (at, length, new) in edits {
                let start = at.index(text.len().max(1)).min(text.len());
                let end = (start + length).min(text.len());
                text.splice(start..end, new.chars());
            }
            read_all(&text.into_iter().collect::<String>());
        }

        #[test]
        fn values_of_attributes_never_panic(at in any::<prop::sample::Index>(), value in "(0x)?[0-9a-f-]{0,24}|.{0,10}") {
            let text = everything();
            let values: Vec<_> = text.match_indices("=\"").map(|(place, _)| place + 2).collect();
            let start = values[at.index(values.len())];
            let end = start + text[start..].find('"').unwrap();
            let value = value.replace(['"', '<', '&'], "");
            read_all(&format!("{}{value}{}", &text[..start], &text[end..]));
        }

        #[test]
        fn any_text_in_a_field_makes_a_valid_document(serial in any::<String>(), cmdline in any::<String>(), path in "\\PC{1,40}|.{1,20}") {
            let mut input = case("everything");
            input.machine.serial = Some(serial);
            input.machine.kernel = Some(node_plan::intent::KernelBoot { kernel: path.clone(), initrd: None, cmdline: Some(cmdline) });
            input.machine.disks[0].volume.as_mut().unwrap().path = path;
            if let Ok(built) = build_domain(&input) {
                prop_assert_eq!(xml::parse(&xml::render(&built.domain)), Ok(built.domain));
            }
            let mut domain = build_domain(&case("everything")).unwrap().domain;
            domain.name = input.machine.serial.unwrap();
            prop_assert!(xml::parse(&xml::render(&domain)).is_ok());
        }
    }
}
