//! Decides where each device of a guest sits, once and for all: what a guest has found at an address stays there on
//! every later start and on every other host.
//!
//! A virtio device sits alone below a PCI Express root port, and the port's number is the bus number. A disk on a
//! controller has a target name; `sda` to `sdf` are the ports of the board's SATA controller, later ones are SCSI
//! targets. A device that goes leaves its place free; a new one takes the lowest free place.

use std::collections::{BTreeMap, BTreeSet};

use vireo_crds::v1alpha1::{Hardware, HardwareDevice};

use crate::{intent::Fault, xml::PciAddress};

/// Where a kind of device can sit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Below a root port.
    Pci,
    /// On the SCSI controller.
    Scsi,
    /// On the board's SATA controller.
    Sata,
}

/// SATA ports of a q35 board.
const SATA_PORTS: u8 = 6;
/// SCSI targets that are given out.
const SCSI_TARGETS: u8 = 64;
/// Root ports that are given out.
const PCI_PORTS: u8 = 60;

impl Place {
    fn numbers(self) -> std::ops::Range<u8> {
        match self {
            Self::Pci => 1..PCI_PORTS + 1,
            Self::Sata => 0..SATA_PORTS,
            Self::Scsi => SATA_PORTS..SATA_PORTS + SCSI_TARGETS,
        }
    }

    fn full(self) -> String {
        match self {
            Self::Pci => format!(
                "has no free PCI slot; a VM has {PCI_PORTS}: remove a device, or put disks on the scsi bus"
            ),
            Self::Sata => {
                format!("does not fit; the sata bus has {SATA_PORTS} ports: put it on the scsi bus")
            }
            Self::Scsi => {
                format!("does not fit; the scsi bus takes {SCSI_TARGETS} disks: put it on the virtio bus")
            }
        }
    }
}

/// A device that needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedDevice {
    /// Name in the spec, or of a device we add.
    pub name: String,
    /// libvirt's device family.
    pub kind: &'static str,
    /// Where it can sit.
    pub place: Place,
    /// MAC of an interface.
    pub mac: Option<String>,
}

/// Which device, of which family.
type Key = (&'static str, String);

/// Where every device sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots(BTreeMap<Key, (Place, u8)>);

impl Slots {
    /// Number of a device within its place.
    fn number(&self, kind: &'static str, name: &str) -> Option<(Place, u8)> {
        self.0.get(&(kind, name.to_owned())).copied()
    }

    /// PCI address of a device that has one.
    pub fn pci(&self, kind: &'static str, name: &str) -> Option<PciAddress> {
        match self.number(kind, name)? {
            (Place::Pci, port) => Some(PciAddress::below_port(port)),
            (Place::Scsi | Place::Sata, _) => None,
        }
    }

    /// Target of a disk, and its number on its controller.
    pub fn disk(&self, name: &str) -> Option<(String, u32)> {
        let (place, number) = self.number("disk", name)?;
        Some(match place {
            Place::Pci => (target("vd", number.saturating_sub(1)), 0),
            Place::Sata => (target("sd", number), number.into()),
            Place::Scsi => (target("sd", number), number.saturating_sub(SATA_PORTS).into()),
        })
    }

    /// Highest root port in use.
    pub fn highest_port(&self) -> u8 {
        self.0.values().filter(|(place, _)| *place == Place::Pci).map(|(_, port)| *port).max().unwrap_or(0)
    }
}

/// Gives every wanted device its place: the one `previous` records, else the lowest free one. What `previous` says
/// wrongly (somebody else may have written it) is as if it said nothing.
pub fn assign(previous: Option<&Hardware>, wanted: &[WantedDevice]) -> Result<Slots, Vec<Fault>> {
    let recorded = previous.map_or(&[][..], |hardware| &hardware.devices);
    let mut slots = BTreeMap::new();
    let mut taken: BTreeSet<(Place, u8)> = BTreeSet::new();
    for device in wanted {
        let kept = recorded
            .iter()
            .find(|record| record.kind == device.kind && record.name == device.name)
            .and_then(|record| read(device.place, &record.address))
            .filter(|number| taken.insert((device.place, *number)));
        if let Some(number) = kept {
            slots.insert((device.kind, device.name.clone()), (device.place, number));
        }
    }
    let mut faults = Vec::new();
    for device in wanted {
        let key = (device.kind, device.name.clone());
        if slots.contains_key(&key) {
            continue;
        }
        match device.place.numbers().find(|number| taken.insert((device.place, *number))) {
            Some(number) => drop(slots.insert(key, (device.place, number))),
            None => faults
                .push(Fault::new(format!("spec.{}s[{}]", device.kind, device.name), device.place.full())),
        }
    }
    if faults.is_empty() { Ok(Slots(slots)) } else { Err(faults) }
}

/// The record to keep in status and beside the volumes.
pub fn record(machine_type: &str, firmware: &str, wanted: &[WantedDevice], slots: &Slots) -> Hardware {
    let device = |device: &WantedDevice| {
        let (place, number) = slots.number(device.kind, &device.name)?;
        Some(HardwareDevice {
            name: device.name.clone(),
            kind: device.kind.into(),
            address: write(place, number),
            mac: device.mac.clone(),
        })
    };
    let mut devices: Vec<_> = wanted.iter().filter_map(device).collect();
    // The order in which a spec lists devices means nothing, so it must not change the record.
    devices.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    Hardware { machine_type: machine_type.into(), firmware: firmware.into(), devices }
}

fn write(place: Place, number: u8) -> String {
    match place {
        Place::Pci => PciAddress::below_port(number).to_string(),
        Place::Scsi | Place::Sata => format!("target={}", target("sd", number)),
    }
}

fn read(place: Place, address: &str) -> Option<u8> {
    place.numbers().find(|number| write(place, *number) == address)
}

/// `sda` to `sdz`, then `sdaa`, as the kernel names disks.
fn target(prefix: &str, number: u8) -> String {
    let letter = |n: u8| char::from(b'a' + n % 26);
    match number.checked_sub(26) {
        None => format!("{prefix}{}", letter(number)),
        Some(rest) => format!("{prefix}{}{}", letter(rest / 26), letter(rest)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn device((kind, name): (u8, u8)) -> WantedDevice {
        let (kind, place) = match kind % 4 {
            0 => ("interface", Place::Pci),
            1 => ("disk", Place::Pci),
            2 => ("disk", Place::Scsi),
            _ => ("controller", Place::Pci),
        };
        WantedDevice { name: format!("d{kind}{place:?}{name}"), kind, place, mac: None }
    }

    fn devices(max: usize) -> impl Strategy<Value = Vec<WantedDevice>> {
        btree_set((0u8..4, 0u8..12), 0..max)
            .prop_map(|set| set.into_iter().map(device).collect::<Vec<_>>())
            .prop_shuffle()
    }

    fn record_of(previous: Option<&Hardware>, wanted: &[WantedDevice]) -> Hardware {
        let slots = assign(previous, wanted).unwrap();
        record("pc-q35-10.0", "bios", wanted, &slots)
    }

    proptest! {
        #[test]
        fn what_stays_keeps_its_place_and_no_place_is_taken_twice(steps in proptest::collection::vec(devices(40), 1..6)) {
            let mut hardware: Option<Hardware> = None;
            for wanted in steps {
                let next = record_of(hardware.as_ref(), &wanted);
                let places: BTreeSet<_> = next.devices.iter().map(|device| &device.address).collect();
                prop_assert_eq!(places.len(), wanted.len());
                for old in hardware.iter().flat_map(|hardware| &hardware.devices) {
                    for new in next.devices.iter().filter(|new| new.name == old.name) {
                        prop_assert_eq!(&new.address, &old.address);
                    }
                }
                hardware = Some(next);
            }
        }

        #[test]
        fn order_means_nothing_once_there_is_a_record(wanted in devices(30)) {
            let first = record_of(None, &wanted);
            let reversed: Vec<_> = wanted.iter().rev().cloned().collect();
            prop_assert_eq!(record_of(Some(&first), &reversed), first);
        }

        #[test]
        fn a_record_by_others_is_taken_for_what_it_is_worth(
            wanted in devices(20),
            addresses in proptest::collection::vec("0000:0[0-9]:00.0|target=sd[a-z]|.{0,12}", 20),
        ) {
            let devices = wanted.iter().zip(addresses).map(|(device, address)| HardwareDevice {
                name: device.name.clone(), kind: device.kind.into(), address, mac: None,
            });
            let hostile = Hardware { devices: devices.collect(), ..Hardware::default() };
            let next = record_of(Some(&hostile), &wanted);
            let places: BTreeSet<_> = next.devices.iter().map(|device| &device.address).collect();
            prop_assert_eq!(places.len(), wanted.len());
        }
    }

    #[test]
    fn the_board_has_six_sata_ports() {
        let disks: Vec<_> = (0..7)
            .map(|n| WantedDevice { name: format!("cd{n}"), kind: "disk", place: Place::Sata, mac: None })
            .collect();
        let faults = assign(None, &disks).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].path, "spec.disks[cd6]");
        assert_eq!(assign(None, &disks[..6]).unwrap().disk("cd5"), Some(("sdf".into(), 5)));
    }

    #[test]
    fn targets_are_named_as_the_kernel_names_disks() {
        assert_eq!(
            ["sda", "sdz", "sdaa", "sdaz", "sdba"].map(str::to_owned),
            [0, 25, 26, 51, 52].map(|n| target("sd", n))
        );
    }
}
