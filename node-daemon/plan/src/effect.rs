//! The reference effect of every step on the facts: its postcondition, as a function. Tests, the fake host and the
//! simulator judge planner and executor by it.

use jiff::Timestamp;
use vireo_crds::v1alpha1::{Hardware, HardwareDevice};

use crate::{
    facts::{
        AgentState, DomainFact, DomainMetadata, DomainState, Exit, ExitKind, Facts, LiveDisk, LiveDomain,
        LiveNic, OnReboot, PausedReason, ProcessFact, ShutdownAsked, StateDirFact, TokenFact,
    },
    intent::{Machine, MachineFirmware},
    ledger::LedgerFact,
    step::VmStep,
    vm::diff::SEED_DISK,
    xml::DiskSource,
};

/// Changes `facts` as a successful `step` does.
pub fn apply(step: &VmStep, facts: &mut Facts, now: Timestamp) {
    let files = &mut facts.files;
    match step {
        VmStep::WriteLedger { transitions: _, entry, events: _ } => {
            facts.ledger = LedgerFact::Entry(entry.clone())
        }
        VmStep::WritePermit { uuid: _, grant } => files.permit = Some(grant.id.clone()),
        VmStep::RemovePermit { uuid: _ } => files.permit = None,
        VmStep::WriteDiskToken { path, token, replaces: _ } => {
            facts.tokens.insert(path.clone(), TokenFact::Present(token.clone()));
        }
        VmStep::RemoveDiskToken { path, token } => {
            if facts.tokens.get(path) == Some(&TokenFact::Present(token.clone())) {
                facts.tokens.insert(path.clone(), TokenFact::None);
            }
        }
        VmStep::MakeSeed { seed } => files.seed = Some(seed.digest.clone()),
        VmStep::RemoveSeed => files.seed = None,
        VmStep::MakeOverlay { path, base: _, base_format: _ } => {
            if !files.overlays.contains(path) {
                files.overlays.push(path.clone());
            }
        }
        VmStep::RemoveOverlay { path } => files.overlays.retain(|other| other != path),
        VmStep::EnsureStateDir { dir: _ } => files.state_dir = StateDirFact::Present,
        VmStep::CopyTpmIn { from: _, to: _ } => files.local_tpm = true,
        VmStep::CopyTpmOut { from: _, to: _ } => files.local_tpm = false,
        VmStep::KeepHardware { dir: _, hardware } => {
            files.state_dir = StateDirFact::Present;
            files.kept_hardware = Some(hardware.clone());
        }
        VmStep::RemoveStateDir { dir: _ } => {
            files.state_dir = StateDirFact::Absent;
            files.kept_hardware = None;
        }
        VmStep::StartDomain { metadata, machine, hardware, seed, tpm_dir: _ } => {
            if !matches!(facts.domain, DomainFact::Present(_)) {
                facts.domain = DomainFact::Present(Box::new(started(
                    metadata,
                    machine,
                    hardware.as_ref(),
                    seed.is_some(),
                )));
                facts.process = ProcessFact::Present { pids: vec![4242] };
                facts.start_failure = None;
                facts.exit = None;
                facts.shutdown_asked = None;
                facts.resume_attempts = None;
            }
        }
        VmStep::RequestShutdown { via } => facts.shutdown_asked = Some(ShutdownAsked { at: now, via: *via }),
        VmStep::Destroy { grant: _ } => end(facts, ExitKind::Destroyed, now),
        VmStep::Reset | VmStep::InjectNmi | VmStep::FlushDisks { paths: _ } => {}
        VmStep::Pause => live(facts, |live| live.state = DomainState::Paused(PausedReason::User)),
        VmStep::Resume => live(facts, |live| live.state = DomainState::Running),
        VmStep::SetLink { nic: _, mac, link } => live(facts, |live| {
            for nic in live.nics.iter_mut().filter(|nic| nic.mac == *mac) {
                nic.link = *link;
            }
        }),
        VmStep::SetMedia { disk, source } => live(facts, |live| {
            for found in live.disks.iter_mut().filter(|found| found.name == *disk) {
                found.path = match source {
                    DiskSource::File { path, .. } => Some(path.clone()),
                    DiskSource::Empty | DiskSource::Other(_) => None,
                };
                found.started_with = None;
            }
            forget_drift(live, &format!("disks[{disk}].source"));
        }),
        VmStep::SetNetwork { nic, mac: _, source: _ } => live(facts, |live| {
            for found in live.nics.iter_mut().filter(|found| found.name == *nic) {
                found.started_in = None;
            }
            forget_drift(live, &format!("interfaces[{nic}].source"));
        }),
        VmStep::EndWithGuest => live(facts, |live| {
            forget_drift(live, "lifecycle.onPoweroff");
            forget_drift(live, "lifecycle.onCrash");
        }),
        VmStep::SetOnReboot { action } => live(facts, |live| live.on_reboot = *action),
        VmStep::WriteMetadata { metadata } => {
            live(facts, |live| live.metadata = Some(metadata.as_ref().clone()))
        }
        VmStep::Undefine { name: _ } => match &mut facts.domain {
            DomainFact::Absent { defined } => *defined = false,
            DomainFact::Present(live) => live.persistent = false,
            DomainFact::Unknown { .. } => {}
        },
    }
}

/// Ends the guest, as if it had gone down in the way `how` says.
pub fn end(facts: &mut Facts, how: ExitKind, now: Timestamp) {
    if matches!(facts.domain, DomainFact::Present(_)) {
        facts.domain = DomainFact::Absent { defined: false };
        facts.process = ProcessFact::None;
        facts.exit = Some(Exit { at: now, how, detail: None });
        facts.guest = None;
        facts.addresses.clear();
    }
}

fn live(facts: &mut Facts, change: impl FnOnce(&mut LiveDomain)) {
    if let DomainFact::Present(live) = &mut facts.domain {
        change(live);
    }
}

fn forget_drift(live: &mut LiveDomain, field: &str) {
    live.drift.retain(|found| !found.path.starts_with(field));
}

fn started(
    metadata: &DomainMetadata,
    machine: &Machine,
    hardware: Option<&Hardware>,
    seeded: bool,
) -> LiveDomain {
    let disk = |name: &str, path: Option<&String>| LiveDisk {
        name: name.into(),
        path: path.cloned(),
        started_with: None,
    };
    let mut disks: Vec<_> = machine
        .disks
        .iter()
        .map(|source| {
            disk(&source.name, source.overlay.as_ref().or(source.volume.as_ref().map(|volume| &volume.path)))
        })
        .collect();
    if seeded {
        disks.push(disk(SEED_DISK, None));
    }
    let nic = |nic: &crate::intent::MachineNic| LiveNic {
        name: nic.name.clone(),
        mac: nic.mac.to_string(),
        link: nic.link,
        started_in: None,
    };
    LiveDomain {
        name: metadata.vm.domain_name(),
        uuid: machine.uuid.clone(),
        state: DomainState::Running,
        metadata: Some(metadata.clone()),
        persistent: false,
        on_reboot: OnReboot::Restart,
        vcpus: i64::from(machine.sockets) * i64::from(machine.cores) * i64::from(machine.threads),
        memory: machine.memory,
        disks,
        nics: machine.nics.iter().map(nic).collect(),
        agent: if machine.guest_agent { AgentState::Disconnected } else { AgentState::None },
        serial: machine.serial_console,
        vnc: machine.vnc_socket.is_some(),
        hardware: Some(hardware.cloned().unwrap_or_else(|| chosen(machine))),
        drift: Vec::new(),
    }
}

fn chosen(machine: &Machine) -> Hardware {
    let firmware = match machine.firmware {
        MachineFirmware::Bios => "bios",
        MachineFirmware::Uefi { .. } => "uefi",
    };
    let device = |(slot, name): (usize, &String)| HardwareDevice {
        name: name.clone(),
        kind: "disk".into(),
        address: format!("0000:01:{slot:02x}.0"),
        mac: None,
    };
    Hardware {
        machine_type: format!("{}-10.0", machine.machine_type),
        firmware: firmware.into(),
        devices: machine.disks.iter().map(|disk| &disk.name).enumerate().map(device).collect(),
    }
}
