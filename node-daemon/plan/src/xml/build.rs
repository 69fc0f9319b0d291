//! Decides what domain a resolved machine becomes, and where its devices sit.

use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::{
    Accelerator, Architecture, DiskBus, DiskCache, DiskFormat, Grant, Hardware, Link, NicModel,
    WatchdogAction,
};

use super::{
    BackingFile, Balloon, Channel, Clock, Controller, ControllerKind, Cpu, CpuMode, Disk, DiskAddress,
    DiskSource, DomainConfig, DomainMetadata, DomainType, DriveAddress, Features, Firmware, Graphics,
    InputDevice, Interface, InterfaceSource, Lifecycle, Os, PciAddress, Rng, Serial, Sysinfo, Tpm, TpmModel,
    Video, VideoModel, Watchdog, WatchdogModel,
    check::faults,
    compare::fields,
    controller::MAX_ROOT_PORTS,
    disk::{Bus, Cache, DiskDevice, ErrorPolicy, ImageFormat},
    interface::{InterfaceModel, LinkState, tap_name},
    memory::whole_mib,
    watchdog::WatchdogDeed,
};
use crate::{
    hardware::{Place, Slots, WantedDevice, assign, record},
    intent::{CpuChoice, Fault, Machine, MachineDisk, MachineFirmware, MachineNic, NicAttach, VmRef, Wanted},
};

/// Name of the seed image's disk; the API keeps it free.
pub const SEED_DISK: &str = "cloud-init";
/// Root ports left empty, so that devices can be plugged into a running guest.
const SPARE_PORTS: u8 = 4;
const SCREEN: PciAddress = PciAddress::on_root(1, 0);
/// A conventional device: it sits on the root complex, out of the way of the root ports.
const WATCHDOG: PciAddress = PciAddress::on_root(0x10, 0);

/// What a domain is built from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainInput {
    /// Name of the libvirt domain.
    pub name: String,
    /// The machine.
    pub machine: Machine,
    /// Seed image, if the VM has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Directory of the TPM's state; none: this libvirt cannot be pointed to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm_dir: Option<String>,
    /// File that keeps what the guest writes to its serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_log: Option<String>,
    /// Where devices sat before; none: this VM has never run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// What the domain says of itself.
    pub metadata: DomainMetadata,
}

impl DomainInput {
    /// What `vm` is built from under `grant`.
    pub fn new(vm: &VmRef, wanted: &Wanted, grant: &Grant, hardware: Option<&Hardware>) -> Self {
        let tpm_dir = wanted
            .state
            .as_ref()
            .filter(|state| state.local_tpm.is_none())
            .map(|state| format!("{}/tpm", state.dir));
        Self {
            name: vm.domain_name(),
            machine: wanted.machine.clone(),
            seed: wanted.seed.as_ref().map(|seed| seed.path.clone()),
            tpm_dir,
            console_log: None,
            hardware: hardware.cloned(),
            metadata: DomainMetadata {
                installation_id: wanted.installation_id.clone(),
                vm_uid: vm.uid.clone(),
                namespace: vm.namespace.clone(),
                name: vm.name.clone(),
                grant: grant.clone(),
                generation: wanted.generation,
                spec_hash: wanted.spec.hash(),
                notes: serde_json::Map::new(),
            },
        }
    }
}

/// A domain, and the record of its hardware to keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltDomain {
    /// The domain.
    pub domain: DomainConfig,
    /// Where its devices sit. The machine type is replaced by the running domain's once there is one.
    pub hardware: Hardware,
}

/// The domain `input` describes, or everything that is wrong with it.
pub fn build_domain(input: &DomainInput) -> Result<BuiltDomain, Vec<Fault>> {
    let faults = faults(input);
    if !faults.is_empty() {
        return Err(faults);
    }
    let wanted = wanted_devices(input);
    let slots = assign(input.hardware.as_ref(), &wanted)?;
    let domain = domain(input, &slots);
    let faults: Vec<_> = fields(&domain)
        .into_iter()
        // Notes are JSON, which escapes such characters by itself.
        .filter(|(path, _)| !path.starts_with("metadata.notes"))
        .filter(|(_, text)| text.chars().any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')))
        .map(|(path, _)| Fault::new(path, "holds a control character; remove it"))
        .collect();
    if !faults.is_empty() {
        return Err(faults);
    }
    let firmware = match input.machine.firmware {
        MachineFirmware::Bios => "bios",
        MachineFirmware::Uefi { .. } => "uefi",
    };
    Ok(BuiltDomain { domain, hardware: record(&input.machine.machine_type, firmware, &wanted, &slots) })
}

/// Every device that needs a place. For a VM that has never run the order decides who gets the low numbers.
fn wanted_devices(input: &DomainInput) -> Vec<WantedDevice> {
    let machine = &input.machine;
    let device = |kind, name: &str, place| WantedDevice { name: name.into(), kind, place, mac: None };
    let mut wanted: Vec<_> = machine
        .nics
        .iter()
        .map(|nic| WantedDevice {
            mac: Some(nic.mac.to_string()),
            ..device("interface", &nic.name, Place::Pci)
        })
        .collect();
    wanted.extend(machine.disks.iter().map(|disk| {
        let place = match disk.bus {
            DiskBus::Virtio | DiskBus::Unknown => Place::Pci,
            DiskBus::Scsi => Place::Scsi,
            DiskBus::Sata => Place::Sata,
        };
        device("disk", &disk.name, place)
    }));
    wanted.extend(input.seed.as_ref().map(|_| device("disk", SEED_DISK, Place::Pci)));
    wanted.extend(controllers(machine).iter().map(|kind| device("controller", kind.as_str(), Place::Pci)));
    wanted.push(device("memballoon", "balloon", Place::Pci));
    wanted.extend(machine.rng.then(|| device("rng", "rng", Place::Pci)));
    wanted
}

fn controllers(machine: &Machine) -> Vec<ControllerKind> {
    let scsi = machine.disks.iter().any(|disk| disk.bus == DiskBus::Scsi);
    let kinds = [
        (scsi, ControllerKind::Scsi),
        (machine.guest_agent, ControllerKind::VirtioSerial),
        // For the pointer of the display.
        (machine.vnc_socket.is_some(), ControllerKind::Usb),
    ];
    kinds.into_iter().filter(|(wanted, _)| *wanted).map(|(_, kind)| kind).collect()
}

fn domain(input: &DomainInput, slots: &Slots) -> DomainConfig {
    let machine = &input.machine;
    let pc = machine.architecture == Architecture::x86_64;
    let boot = BootOrder::of(machine, slots);
    let mut disks: Vec<_> = machine.disks.iter().map(|wanted| disk(wanted, &boot, slots)).collect();
    disks.extend(input.seed.as_ref().map(|path| seed(path, slots)));
    let vnc = machine.vnc_socket.as_ref();
    let video = match (vnc.is_some(), pc) {
        (false, _) => Video { model: VideoModel::None, address: None },
        (true, true) => Video { model: VideoModel::Vga, address: Some(SCREEN) },
        (true, false) => Video { model: VideoModel::Virtio, address: Some(SCREEN) },
    };
    // A PC has a keyboard of its own; a pointer that is where the viewer's is takes a tablet.
    let inputs: &[&str] = match (vnc.is_some(), pc) {
        (false, _) => &[],
        (true, true) => &["tablet"],
        (true, false) => &["tablet", "keyboard"],
    };
    DomainConfig {
        kind: if machine.accelerator == Accelerator::Kvm { DomainType::Kvm } else { DomainType::Qemu },
        name: input.name.clone(),
        uuid: machine.uuid.clone(),
        metadata: Some(input.metadata.clone()),
        memory: whole_mib(machine.memory),
        cpu: cpu(machine),
        os: os(machine),
        sysinfo: Some(Sysinfo {
            serial: machine.serial.clone().filter(|serial| !serial.is_empty()),
            hostname: Some(machine.hostname.clone()),
        }),
        features: Features {
            acpi: true,
            apic: pc,
            smm: matches!(machine.firmware, MachineFirmware::Uefi { secure_boot: true, .. }),
        },
        clock: machine.timezone.clone().map_or(Clock::Utc, Clock::Timezone),
        lifecycle: Lifecycle::default(),
        root_ports: slots.highest_port().saturating_add(SPARE_PORTS).min(MAX_ROOT_PORTS),
        controllers: controllers(machine)
            .into_iter()
            .map(|kind| Controller { address: slots.pci("controller", kind.as_str()), kind })
            .collect(),
        disks,
        interfaces: machine.nics.iter().map(|nic| interface(nic, &input.metadata.vm_uid, slots)).collect(),
        serial: machine.serial_console.then(|| Serial::pty(input.console_log.clone())),
        channels: if machine.guest_agent { vec![Channel::agent()] } else { Vec::new() },
        inputs: inputs.iter().map(|kind| InputDevice::usb(kind)).collect(),
        tpm: machine.tpm.then(|| Tpm {
            model: if pc { TpmModel::Crb } else { TpmModel::Tis },
            state_dir: input.tpm_dir.clone(),
        }),
        graphics: vnc.map(Graphics::vnc).into_iter().collect(),
        video,
        watchdog: machine.watchdog.map(watchdog),
        balloon: Some(Balloon { address: slots.pci("memballoon", "balloon") }),
        rng: slots.pci("rng", "rng").map(Rng::at),
        foreign_devices: Vec::new(),
    }
}

fn cpu(machine: &Machine) -> Cpu {
    let count = |n: i32| u32::try_from(n).unwrap_or(1).max(1);
    let translated = machine.accelerator != Accelerator::Kvm;
    Cpu {
        sockets: count(machine.sockets),
        cores: count(machine.cores),
        threads: count(machine.threads),
        online: None,
        mode: match &machine.cpu {
            CpuChoice::HostModel | CpuChoice::HostPassthrough if translated => CpuMode::Maximum,
            CpuChoice::HostModel => CpuMode::HostModel,
            CpuChoice::HostPassthrough => CpuMode::HostPassthrough,
            CpuChoice::Maximum => CpuMode::Maximum,
            CpuChoice::Named(name) => CpuMode::Named(name.clone()),
        },
    }
}

fn os(machine: &Machine) -> Os {
    let arch = match machine.architecture {
        Architecture::x86_64 | Architecture::Unknown => "x86_64",
        Architecture::aarch64 => "aarch64",
    };
    let kernel = machine.kernel.as_ref();
    Os {
        arch: arch.into(),
        machine: machine.machine_type.clone(),
        firmware: match &machine.firmware {
            MachineFirmware::Bios => Firmware::Bios,
            MachineFirmware::Uefi { secure_boot, nvram } => {
                Firmware::Uefi { secure_boot: *secure_boot, nvram: nvram.clone() }
            }
        },
        kernel: kernel.map(|boot| boot.kernel.clone()),
        initrd: kernel.and_then(|boot| boot.initrd.clone()),
        cmdline: kernel.and_then(|boot| boot.cmdline.clone()).filter(|line| !line.is_empty()),
    }
}

/// Boot order of disks: the spec's, or if it names none, disks before CD drives, each by its place.
struct BootOrder(Vec<(String, u32)>);

impl BootOrder {
    fn of(machine: &Machine, slots: &Slots) -> Self {
        let given = |order: i32| u32::try_from(order).ok();
        let anything = machine.disks.iter().any(|disk| disk.boot_order.is_some())
            || machine.nics.iter().any(|nic| nic.boot_order.is_some());
        if anything {
            let orders = machine
                .disks
                .iter()
                .filter_map(|disk| Some((disk.name.clone(), disk.boot_order.and_then(given)?)));
            return Self(orders.collect());
        }
        if machine.kernel.is_some() {
            return Self(Vec::new());
        }
        let mut disks: Vec<_> = machine
            .disks
            .iter()
            .map(|disk| {
                let target = slots.disk(&disk.name).map(|(target, _)| target).unwrap_or_default();
                // `vdz` before `vdaa`; virtio before controllers.
                (disk.cdrom, disk.bus != DiskBus::Virtio, target.len(), target, disk.name.clone())
            })
            .collect();
        disks.sort();
        Self(disks.into_iter().map(|(.., name)| name).zip(1..).collect())
    }

    fn of_disk(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|(disk, _)| disk == name).map(|(_, order)| *order)
    }
}

fn disk(wanted: &MachineDisk, boot: &BootOrder, slots: &Slots) -> Disk {
    let (target, number) = slots.disk(&wanted.name).unwrap_or_default();
    let read_only = wanted.read_only || wanted.cdrom;
    let drive = |target, unit| Some(DiskAddress::Drive(DriveAddress { controller: 0, target, unit }));
    let (bus, address) = match wanted.bus {
        DiskBus::Virtio | DiskBus::Unknown => {
            (Bus::Virtio, slots.pci("disk", &wanted.name).map(DiskAddress::Pci))
        }
        DiskBus::Scsi => (Bus::Scsi, drive(number, 0)),
        DiskBus::Sata => (Bus::Sata, drive(0, number)),
    };
    Disk {
        name: wanted.name.clone(),
        device: if wanted.cdrom { DiskDevice::Cdrom } else { DiskDevice::Disk },
        target,
        bus,
        source: source(wanted),
        cache: match wanted.cache {
            DiskCache::None | DiskCache::Unknown => Cache::None,
            DiskCache::Writethrough => Cache::Writethrough,
            DiskCache::Writeback => Cache::Writeback,
        },
        error_policy: ErrorPolicy::Stop,
        discard: !read_only,
        read_only,
        serial: Some(wanted.serial.clone()).filter(|serial| !serial.is_empty()),
        boot_order: boot.of_disk(&wanted.name),
        address,
    }
}

fn source(wanted: &MachineDisk) -> DiskSource {
    let Some(volume) = &wanted.volume else { return DiskSource::Empty };
    let format = match volume.format {
        DiskFormat::Qcow2 => ImageFormat::Qcow2,
        DiskFormat::Raw | DiskFormat::Unknown => ImageFormat::Raw,
    };
    match &wanted.overlay {
        None => DiskSource::File { path: volume.path.clone(), format, backing: Vec::new() },
        Some(overlay) => DiskSource::File {
            path: overlay.clone(),
            format: ImageFormat::Qcow2,
            backing: vec![BackingFile { path: volume.path.clone(), format }],
        },
    }
}

/// A read-only virtio disk: cloud kernels often have neither AHCI nor SCSI drivers. It is a small file of this host,
/// so the page cache may have it.
fn seed(path: &str, slots: &Slots) -> Disk {
    Disk {
        name: SEED_DISK.into(),
        device: DiskDevice::Disk,
        target: slots.disk(SEED_DISK).unwrap_or_default().0,
        bus: Bus::Virtio,
        source: DiskSource::File { path: path.into(), format: ImageFormat::Raw, backing: Vec::new() },
        cache: Cache::Writeback,
        error_policy: ErrorPolicy::Report,
        discard: false,
        read_only: true,
        serial: Some(SEED_DISK.into()),
        boot_order: None,
        address: slots.pci("disk", SEED_DISK).map(DiskAddress::Pci),
    }
}

fn interface(wanted: &MachineNic, vm_uid: &str, slots: &Slots) -> Interface {
    Interface {
        name: wanted.name.clone(),
        mac: wanted.mac.to_string(),
        source: match &wanted.attach {
            NicAttach::Bridge(name) => InterfaceSource::Bridge(name.clone()),
            NicAttach::LibvirtNetwork(name) => InterfaceSource::Network(name.clone()),
        },
        model: match wanted.model {
            NicModel::Virtio | NicModel::Unknown => InterfaceModel::Virtio,
            NicModel::E1000e => InterfaceModel::E1000e,
            NicModel::Rtl8139 => InterfaceModel::Rtl8139,
        },
        link: match wanted.link {
            Link::Up | Link::Unknown => LinkState::Up,
            Link::Down => LinkState::Down,
        },
        device: Some(tap_name(vm_uid, &wanted.name)),
        mtu: wanted.mtu.and_then(|mtu| u32::try_from(mtu).ok()),
        boot_order: wanted.boot_order.and_then(|order| u32::try_from(order).ok()),
        address: slots.pci("interface", &wanted.name),
    }
}

fn watchdog(action: WatchdogAction) -> Watchdog {
    let action = match action {
        WatchdogAction::Reset | WatchdogAction::Unknown => WatchdogDeed::Reset,
        WatchdogAction::Poweroff => WatchdogDeed::Poweroff,
        WatchdogAction::Pause => WatchdogDeed::Pause,
        WatchdogAction::None => WatchdogDeed::None,
    };
    Watchdog { model: WatchdogModel::I6300esb, action, address: Some(WATCHDOG) }
}
