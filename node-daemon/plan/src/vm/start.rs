//! Decides whether a guest that is down may be started, and in which order what a start needs is made: ledger, disk
//! tokens, state, seed, layers, permit, domain.

use vireo_crds::{
    reasons,
    v1alpha1::{Grant, Hardware},
};

use super::{diff::named_model, draft::Draft, orders::Orders, release};
use crate::{
    facts::{Built, DiskToken, DomainMetadata, StateDirFact, TokenFact},
    guard::{Guard, stands},
    intent::{MachineDisk, MachineFirmware, VmRef, Wanted},
    ledger::{HeldState, HeldVolume, Transition},
    step::VmStep,
};

/// The metadata of a guest built from `wanted` under `grant`.
pub fn metadata(vm: &VmRef, grant: &Grant, wanted: &Wanted) -> DomainMetadata {
    DomainMetadata {
        installation_id: wanted.installation_id.clone(),
        vm: vm.clone(),
        grant: grant.clone(),
        built: Built {
            generation: wanted.generation,
            spec_hash: wanted.spec.hash(),
            spec: wanted.spec.clone(),
            cpu_model: named_model(&wanted.machine.cpu),
        },
    }
}

/// Plans a start under `grant`, which the ledger permits.
pub(super) fn plan_start(
    draft: &mut Draft<'_>,
    orders: &Orders<'_>,
    grant: &Grant,
    hardware: Option<&Hardware>,
) {
    // Accepted as soon as it is seen, whatever the start still waits for: a new session is told what the ledger holds.
    if draft.entry.held.as_ref().map(|held| &held.grant) != Some(grant) {
        let now = draft.now;
        draft.record(|entry| entry.accept(grant, now));
    }
    draft.plan.waits.extend_from_slice(orders.waits);
    draft.plan.refusals.extend_from_slice(orders.faults);
    let Some(wanted) = orders.wanted else {
        if orders.waits.is_empty() && orders.faults.is_empty() {
            draft.wait(
                reasons::NOT_ACCEPTED,
                "no spec of this VM has been accepted yet; the controller has to check it first",
            );
        }
        return;
    };
    if !orders.waits.is_empty() || !orders.faults.is_empty() || !tokens_permit(draft, wanted, grant) {
        return;
    }
    if !state_stays(draft, wanted) {
        return;
    }
    if uses_state(wanted) && draft.facts.files.state_dir == StateDirFact::Unknown {
        draft.wait(
            reasons::DOMAIN_NOT_READY,
            "the directory with the VM's firmware variables and TPM state cannot be read",
        );
        return;
    }
    remember(draft, wanted);
    write_tokens(draft, wanted, grant);
    prepare_files(draft, wanted);
    let uuid = wanted.machine.uuid.clone();
    if draft.facts.files.permit.as_deref() != Some(grant.id.as_str()) {
        draft.step(VmStep::WritePermit { uuid, grant: grant.clone() });
    }
    let step = VmStep::StartDomain {
        metadata: Box::new(metadata(&draft.entry.vm, grant, wanted)),
        machine: Box::new(wanted.machine.clone()),
        hardware: hardware.or(draft.facts.files.kept_hardware.as_ref()).cloned(),
        seed: wanted.seed.as_ref().map(|seed| seed.path.clone()),
        tpm_dir: tpm_dir(wanted),
    };
    draft.step(step);
}

/// Keeps what is wanted in the ledger, for restarts without the API server.
pub(super) fn remember(draft: &mut Draft<'_>, wanted: &Wanted) {
    if draft.entry.wanted.as_ref() != Some(wanted) {
        draft.record(|entry| {
            entry.wanted = Some(wanted.clone());
            Transition::WantedChanged { generation: wanted.generation }
        });
    }
}

/// Whether the VM keeps state beside its disks.
pub(super) fn uses_state(wanted: &Wanted) -> bool {
    wanted.state.is_some()
        && (wanted.machine.tpm || matches!(wanted.machine.firmware, MachineFirmware::Uefi { .. }))
}

/// State is never left behind: a guest that has firmware variables or a TPM starts where they are, or not at all.
fn state_stays(draft: &mut Draft<'_>, wanted: &Wanted) -> bool {
    let Some(home) = wanted.state.as_ref().filter(|_| uses_state(wanted)) else { return true };
    match draft.entry.state_dir.clone() {
        Some(old) if old != home.dir => {
            let message = format!(
                "the VM's firmware variables and TPM state are in {old}, not in {}; moving them is not supported: set it back",
                home.dir
            );
            draft.refuse("spec.state", message);
            false
        }
        Some(_) => true,
        None => {
            draft.record(|entry| {
                entry.state_dir = Some(home.dir.clone());
                Transition::StateUsed { dir: home.dir.clone() }
            });
            true
        }
    }
}

/// The token a guest of this grant leaves on its volumes.
pub(super) fn token(vm: &VmRef, grant: &Grant) -> DiskToken {
    DiskToken { vm_uid: vm.uid.clone(), epoch: grant.epoch, id: grant.id.clone() }
}

fn tokens_permit(draft: &mut Draft<'_>, wanted: &Wanted, grant: &Grant) -> bool {
    let mut permits = true;
    for disk in &wanted.machine.disks {
        let Some(volume) = disk.written_volume() else { continue };
        let path = format!("spec.disks[{}]", disk.name);
        match draft.facts.tokens.get(&volume.token) {
            Some(TokenFact::None) => {}
            Some(TokenFact::Present(found)) => {
                if let Some(fault) = token_fault(found, &draft.entry.vm, grant) {
                    draft.refuse(
                        &path,
                        format!(
                            "the volume of Disk {} {fault}; nothing is started (token file {})",
                            volume.disk, volume.token
                        ),
                    );
                    permits = false;
                }
            }
            Some(TokenFact::Unknown { why }) => {
                let message = format!("the token of Disk {} cannot be read: {why}", volume.disk);
                draft.wait(reasons::DOMAIN_NOT_READY, message);
                permits = false;
            }
            None => {
                draft.wait(
                    reasons::DOMAIN_NOT_READY,
                    format!("the token of Disk {} has not been read yet", volume.disk),
                );
                permits = false;
            }
        }
    }
    permits
}

/// Why a token forbids a start, if it does. A lower number of the same VM is the grant this one replaced.
fn token_fault(found: &DiskToken, vm: &VmRef, grant: &Grant) -> Option<String> {
    if !stands(Guard::DiskToken) {
        return None;
    }
    if found.vm_uid != vm.uid {
        return Some(format!(
            "was last written by another VM (uid {}), which has not let it go",
            found.vm_uid
        ));
    }
    if found.epoch > grant.epoch {
        return Some(format!(
            "was written under a newer grant (number {}, ours is {}): the API may have been restored from a backup",
            found.epoch, grant.epoch
        ));
    }
    (found.epoch == grant.epoch && found.id != grant.id)
        .then(|| format!("was written under another grant of the same number {}", found.epoch))
}

fn write_tokens(draft: &mut Draft<'_>, wanted: &Wanted, grant: &Grant) {
    let volumes = held_volumes(wanted);
    if draft.entry.volumes != volumes {
        release::take_back_tokens(draft, &volumes);
        draft.record(|entry| {
            entry.volumes.clone_from(&volumes);
            Transition::VolumesHeld { count: volumes.len() }
        });
    }
    let ours = token(&draft.entry.vm, grant);
    for volume in &volumes {
        let replaces = match draft.facts.tokens.get(&volume.token) {
            Some(TokenFact::Present(found)) if *found == ours => continue,
            Some(TokenFact::Present(found)) => Some(found.clone()),
            Some(TokenFact::None | TokenFact::Unknown { .. }) | None => None,
        };
        draft.step(VmStep::WriteDiskToken { path: volume.token.clone(), token: ours.clone(), replaces });
    }
}

fn held_volumes(wanted: &Wanted) -> Vec<HeldVolume> {
    let held = |disk: &MachineDisk| {
        let volume = disk.written_volume()?;
        Some(HeldVolume { path: volume.path.clone(), token: volume.token.clone(), cached: disk.is_cached() })
    };
    wanted.machine.disks.iter().filter_map(held).collect()
}

fn prepare_files(draft: &mut Draft<'_>, wanted: &Wanted) {
    // libvirt's copy of the TPM state is the newest one unless another host has run the VM since.
    let ran_last =
        draft.entry.held.as_ref().is_some_and(|held| held.follows || held.state == HeldState::Activated);
    let files = &draft.facts.files;
    if let Some(home) = wanted.state.as_ref().filter(|_| uses_state(wanted)) {
        if files.state_dir == StateDirFact::Absent {
            draft.step(VmStep::EnsureStateDir { dir: home.dir.clone() });
        }
        if let Some(local) =
            home.local_tpm.as_ref().filter(|_| wanted.machine.tpm && !(files.local_tpm && ran_last))
        {
            draft.step(VmStep::CopyTpmIn { from: format!("{}/tpm", home.dir), to: local.clone() });
        }
    }
    match &wanted.seed {
        Some(seed) if files.seed.as_ref() != Some(&seed.digest) => {
            draft.step(VmStep::MakeSeed { seed: seed.clone() })
        }
        None if files.seed.is_some() => draft.step(VmStep::RemoveSeed),
        Some(_) | None => {}
    }
    for disk in &wanted.machine.disks {
        if let (Some(path), Some(volume)) = (&disk.overlay, &disk.volume) {
            draft.step(VmStep::MakeOverlay {
                path: path.clone(),
                base: volume.path.clone(),
                base_format: volume.format,
            });
        }
    }
}

fn tpm_dir(wanted: &Wanted) -> Option<String> {
    let home = wanted.state.as_ref().filter(|_| wanted.machine.tpm)?;
    Some(home.local_tpm.clone().unwrap_or_else(|| format!("{}/tpm", home.dir)))
}
