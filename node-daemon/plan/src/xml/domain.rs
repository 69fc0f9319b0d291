//! A whole domain: the fields Vireo owns, written and read back.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    balloon::Balloon,
    channel::Channel,
    clock::Clock,
    controller::{self, Controller, ControllerKind},
    cpu::Cpu,
    disk::Disk,
    element::Element,
    features::Features,
    graphics::{Graphics, InputDevice},
    interface::Interface,
    lifecycle::Lifecycle,
    memory,
    metadata::{self, DomainMetadata},
    os::Os,
    read::{NodeExt, XmlError, with_document},
    rng::Rng,
    serial::Serial,
    sysinfo::Sysinfo,
    token::tokens,
    tpm::Tpm,
    video::Video,
    watchdog::Watchdog,
};

tokens! {
    /// What carries the guest out.
    pub enum DomainType {
        /// The processor.
        Kvm = "kvm",
        /// QEMU, instruction by instruction.
        Qemu = "qemu",
    }
}

/// A libvirt domain, as far as Vireo owns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainConfig {
    /// KVM or QEMU alone.
    #[serde(rename = "type")]
    pub kind: DomainType,
    /// `<namespace>.<name>`.
    pub name: String,
    /// UUID, also in SMBIOS.
    pub uuid: String,
    /// Whose it is. None: not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<DomainMetadata>,
    /// Bytes, in whole MiB.
    pub memory: u64,
    /// Virtual processors.
    pub cpu: Cpu,
    /// What boots on what.
    pub os: Os,
    /// What the guest reads about its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysinfo: Option<Sysinfo>,
    /// Features of the platform.
    pub features: Features,
    /// Hardware clock.
    pub clock: Clock,
    /// What libvirt does by itself.
    pub lifecycle: Lifecycle,
    /// How many PCI Express root ports there are.
    pub root_ports: u8,
    /// Controllers beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<Controller>,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Channels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Channel>,
    /// Pointers and keyboards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputDevice>,
    /// TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<Tpm>,
    /// Displays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub graphics: Vec<Graphics>,
    /// Graphics card.
    pub video: Video,
    /// Watchdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watchdog>,
    /// Balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// Entropy device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng: Option<Rng>,
    /// Families of devices that Vireo never makes and somebody attached, such as `hostdev`. Read, never written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_devices: Vec<String>,
}

/// Families that only somebody else can have attached.
const FOREIGN: [&str; 11] = [
    "crypto",
    "filesystem",
    "hostdev",
    "hub",
    "iommu",
    "lease",
    "memory",
    "nvram",
    "panic",
    "redirdev",
    "shmem",
];

/// The domain as the document that `virDomainCreateXML` takes.
pub fn render(domain: &DomainConfig) -> String {
    let [memory, current] = memory::elements(domain.memory);
    let pc = domain.os.is_pc();
    Element::new("domain")
        .attr("type", &domain.kind)
        .child(Element::text("name", &domain.name))
        .child(Element::text("uuid", &domain.uuid))
        .children(domain.metadata.as_ref().map(DomainMetadata::element))
        .child(memory)
        .child(current)
        .child(domain.cpu.vcpu_element())
        .children(domain.sysinfo.as_ref().map(Sysinfo::element))
        .child(domain.os.element(domain.sysinfo.is_some()))
        .child(domain.features.element())
        .child(domain.cpu.element())
        .child(domain.clock.element(pc))
        .children(domain.lifecycle.elements())
        .children(pc.then(no_sleep))
        .child(devices(domain, pc))
        .render()
}

/// A guest that sleeps looks dead to everybody but itself; a board without these states never does.
fn no_sleep() -> Element {
    let off = |name| Element::new(name).attr("enabled", "no");
    Element::new("pm").child(off("suspend-to-mem")).child(off("suspend-to-disk"))
}

fn devices(domain: &DomainConfig, pc: bool) -> Element {
    let usb = domain.controllers.iter().any(|controller| controller.kind == ControllerKind::Usb);
    Element::new("devices")
        .children(domain.disks.iter().map(Disk::element))
        .child(Element::new("controller").attr("type", "pci").attr("index", 0).attr("model", "pcie-root"))
        .children((1..=domain.root_ports).map(controller::root_port))
        .children((!usb).then(Controller::no_usb))
        .children(domain.controllers.iter().map(Controller::element))
        .children(domain.interfaces.iter().map(Interface::element))
        .children(domain.serial.iter().map(|serial| serial.element(pc)))
        .children(domain.channels.iter().map(Channel::element))
        .children(domain.inputs.iter().map(InputDevice::element))
        .children(domain.tpm.iter().map(Tpm::element))
        .children(domain.graphics.iter().map(Graphics::element))
        .child(domain.video.element())
        .children(domain.watchdog.iter().map(Watchdog::element))
        .child(Balloon::element(domain.balloon.as_ref()))
        .children(domain.rng.iter().map(Rng::element))
}

/// Reads a domain document, ours or not, live or not.
pub fn parse(xml: &str) -> Result<DomainConfig, XmlError> {
    with_document(xml, "domain", of)
}

fn of(domain: Node<'_, '_>) -> Result<DomainConfig, XmlError> {
    let devices = domain.child("devices").ok_or(XmlError::Missing("devices"))?;
    Ok(DomainConfig {
        kind: DomainType::from(domain.required("type", "domain/@type")?),
        name: domain.child_text("name").ok_or(XmlError::Missing("name"))?.into(),
        uuid: domain.child_text("uuid").ok_or(XmlError::Missing("uuid"))?.into(),
        metadata: metadata::of_domain(domain)?,
        memory: memory::of(domain)?,
        cpu: Cpu::of(domain)?,
        os: Os::of(domain)?,
        sysinfo: Sysinfo::of(domain),
        features: Features::of(domain),
        clock: Clock::of(domain),
        lifecycle: Lifecycle::of(domain),
        root_ports: controller::root_ports(devices),
        controllers: Controller::all_of(devices)?,
        disks: devices.all("disk").map(Disk::of).collect::<Result<_, _>>()?,
        interfaces: devices.all("interface").map(Interface::of).collect::<Result<_, _>>()?,
        serial: Serial::of(devices),
        channels: Channel::all_of(devices),
        inputs: InputDevice::all_of(devices),
        tpm: Tpm::of(devices),
        graphics: Graphics::all_of(devices),
        video: Video::of(devices)?,
        watchdog: Watchdog::of(devices)?,
        balloon: Balloon::of(devices)?,
        rng: Rng::of(devices)?,
        foreign_devices: FOREIGN
            .iter()
            .filter(|family| devices.child(family).is_some())
            .map(ToString::to_string)
            .collect(),
    })
}
