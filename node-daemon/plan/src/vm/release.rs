//! Decides how a grant is closed once the guest is certainly gone: first everything the next holder needs is on
//! storage, then the ledger says released, then what only this host kept is removed.

use vireo_crds::reasons;

use super::{draft::Draft, orders::Orders, start};
use crate::{
    facts::{StateDirFact, TokenFact},
    intent::Wanted,
    ledger::{HeldState, HeldVolume},
    step::VmStep,
};

/// Closes the open grant. Absence has been established.
pub(super) fn plan_release(draft: &mut Draft<'_>, orders: &Orders<'_>, deleting: bool) {
    let wanted = draft.entry.wanted.clone().or_else(|| orders.wanted.cloned());
    let ran = draft.entry.held.as_ref().is_some_and(|held| held.state == HeldState::Activated);
    if let Some(wanted) = &wanted {
        hand_over_storage(draft, wanted, ran);
        if deleting {
            remove_state(draft, wanted);
        }
    }
    draft.record(|entry| entry.release());
    if ran {
        draft.tell(reasons::RELEASED, "nothing runs here any more and nothing will under this grant");
    }
    plan_clean_up(draft, wanted.as_ref());
}

/// Removes what a VM that is being deleted kept on storage besides its disks.
pub(super) fn remove_state(draft: &mut Draft<'_>, wanted: &Wanted) {
    if let (Some(home), StateDirFact::Present) = (&wanted.state, &draft.facts.files.state_dir) {
        draft.step(VmStep::RemoveStateDir { dir: home.dir.clone() });
    }
}

fn hand_over_storage(draft: &mut Draft<'_>, wanted: &Wanted, ran: bool) {
    let cached = draft.entry.volumes.iter().filter(|volume| volume.cached);
    let paths: Vec<_> = cached.map(|volume| volume.path.clone()).collect();
    if ran && !paths.is_empty() {
        draft.step(VmStep::FlushDisks { paths });
    }
    if let Some(home) = wanted.state.as_ref().filter(|_| draft.facts.files.local_tpm)
        && let Some(local) = &home.local_tpm
    {
        draft.step(VmStep::CopyTpmOut { from: local.clone(), to: format!("{}/tpm", home.dir) });
    }
    take_back_tokens(draft, &[]);
}

/// Takes back the tokens of volumes that are not among `kept`. One that cannot be read stays: it forbids only older
/// grants and other VMs.
pub(super) fn take_back_tokens(draft: &mut Draft<'_>, kept: &[HeldVolume]) {
    let Some(ours) = draft.entry.open().map(|grant| start::token(&draft.entry.vm, grant)) else { return };
    for volume in draft.entry.volumes.clone() {
        let is_ours = draft.facts.tokens.get(&volume.token) == Some(&TokenFact::Present(ours.clone()));
        if is_ours && !kept.iter().any(|kept| kept.token == volume.token) {
            draft.step(VmStep::RemoveDiskToken { path: volume.token, token: ours.clone() });
        }
    }
}

/// Removes what this host alone keeps of a VM that is not to run here.
pub(super) fn plan_clean_up(draft: &mut Draft<'_>, wanted: Option<&Wanted>) {
    let files = &draft.facts.files;
    if let Some(wanted) = wanted.filter(|_| files.permit.is_some()) {
        draft.step(VmStep::RemovePermit { uuid: wanted.machine.uuid.clone() });
    }
    if files.seed.is_some() {
        draft.step(VmStep::RemoveSeed);
    }
    for path in &files.overlays {
        draft.step(VmStep::RemoveOverlay { path: path.clone() });
    }
}
