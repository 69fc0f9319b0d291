//! What a daemon does: its incarnation, its watches, one step for one VM, its reports.

use crate::{
    act::{at, index},
    check,
    explore::Fleet,
    host,
    state::{Exit, Grant, HeldState, HostObject, Local, Process, Sight, State, Vm},
};

fn placed_on(vm: &Vm) -> Option<u8> {
    vm.placement.map(|p| p.grant.host)
}

pub fn open(s: &mut State, h: u8) {
    let inc = s.next_inc;
    s.next_inc += 1;
    let machine = &mut s.machines[at(h)];
    machine.inc = inc;
    for local in &mut machine.vms {
        // The census: what runs keeps its entry, the rest belonged to a life that is over.
        if local.process.is_none_or(|p| p.disowned) {
            local.entry = None;
        }
    }
}

pub fn list(fleet: &Fleet, s: &mut State, h: u8) -> Option<()> {
    let (store, nonce) = (s.store.clone(), s.nonce);
    let reaches = s.reaches(h);
    let daemon = &mut s.machines[at(h)].daemon;
    let new = nonce != 0 && daemon.nonce != nonce;
    if !reaches || (daemon.connected && !new) {
        return None;
    }
    if new && fleet.guards.attest_cached && daemon.listed {
        (daemon.nonce, daemon.connected) = (nonce, true);
        return Some(());
    }
    daemon.connected = true;
    daemon.listed = true;
    daemon.claims.clone_from(&store.claims);
    if new {
        daemon.nonce = nonce;
    }
    for local in &mut s.machines[at(h)].vms {
        let here = store.vms.iter().flatten().any(|vm| vm.uid == local.uid && placed_on(vm) == Some(h));
        if new {
            local.sight = Sight::None;
        }
        if matches!(local.sight, Sight::Here(_)) && !here {
            local.sight = Sight::Disappeared;
        }
    }
    for (slot, vm) in store.vms.iter().enumerate() {
        if let Some(vm) = vm.filter(|vm| placed_on(vm) == Some(h)) {
            s.local(h, vm.uid, index(slot)).sight = Sight::Here(vm);
        }
    }
    Some(())
}

fn stored(s: &State, uid: u8) -> Option<(u8, Vm)> {
    let slot = s.store.vms.iter().position(|vm| vm.is_some_and(|vm| vm.uid == uid))?;
    Some((index(slot), s.store.vms[slot]?))
}

pub fn watch(s: &mut State, h: u8, uid: u8) -> Option<()> {
    if !s.reaches(h) || !s.machines[at(h)].daemon.connected {
        return None;
    }
    match stored(s, uid).filter(|(_, vm)| placed_on(vm) == Some(h)) {
        Some((slot, vm)) => s.local(h, uid, slot).sight = Sight::Here(vm),
        None => {
            let local = s.machines[at(h)].vms.iter_mut().find(|l| l.uid == uid)?;
            if !matches!(local.sight, Sight::Here(_)) {
                return None;
            }
            local.sight = Sight::Disappeared;
        }
    }
    Some(())
}

pub fn get(s: &mut State, h: u8, uid: u8) -> Option<()> {
    if !s.reaches(h) || !s.machines[at(h)].daemon.listed {
        return None;
    }
    let found = stored(s, uid).map(|(_, vm)| vm);
    let local = s.machines[at(h)].vms.iter_mut().find(|l| l.uid == uid)?;
    if !matches!(local.sight, Sight::None | Sight::Disappeared) {
        return None;
    }
    local.sight = match found {
        None => Sight::Gone,
        Some(vm) => match vm.placement {
            Some(p) if p.grant.host == h => Sight::Here(vm),
            Some(p) => Sight::Elsewhere(p.grant),
            None => Sight::Disappeared,
        },
    };
    Some(())
}

pub fn work(fleet: &Fleet, s: &mut State, h: u8, uid: u8) -> Option<()> {
    let planned = host::planned(s.scene(h, uid)?, fleet.guards.stand_without());
    carry_out(s, h, uid, *planned.steps.first()?)
}

/// A worker that carries its plan through, whatever it could have seen in between.
pub fn work_through(fleet: &Fleet, s: &mut State, h: u8, uid: u8) -> Option<()> {
    let planned = host::planned(s.scene(h, uid)?, fleet.guards.stand_without());
    let (first, rest) = planned.steps.split_first().filter(|(_, rest)| !rest.is_empty())?;
    carry_out(s, h, uid, *first)?;
    for step in rest {
        if carry_out(s, h, uid, *step).is_none() {
            break;
        }
    }
    Some(())
}

fn carry_out(s: &mut State, h: u8, uid: u8, step: host::Step) -> Option<()> {
    let slot = s.machines[at(h)].vms.iter().find(|l| l.uid == uid)?.slot;
    match step {
        host::Step::Ledger(entry) => {
            check::ledger(s, h, uid, &entry);
            let local = s.local(h, uid, slot);
            if host::settles(local.entry.as_ref(), &entry) {
                local.exit = None;
            }
            local.entry = Some(entry);
            if entry.held.is_some_and(|held| held.state == HeldState::Released) {
                local.exit = None;
            }
        }
        host::Step::Start(grant, generation, spec) => {
            check::started(s, h, uid, grant);
            let local = s.local(h, uid, slot);
            local.process = Some(Process { grant, generation, spec, paused: false, disowned: false });
            local.exit = None;
        }
        host::Step::Destroy => {
            check::stopping(s, uid);
            let local = s.local(h, uid, slot);
            (local.process, local.exit) = (None, Some(Exit::Destroyed));
        }
        host::Step::Shutdown => {
            check::stopping(s, uid);
            let local = s.local(h, uid, slot);
            (local.process, local.exit) = (None, Some(Exit::PoweredOff));
        }
        host::Step::Pause => {
            check::pausing(s, h, uid);
            s.local(h, uid, slot).process.as_mut()?.paused = true;
        }
        host::Step::Resume => s.local(h, uid, slot).process.as_mut()?.paused = false,
        host::Step::WriteToken(grant, replaces) => {
            let same = |found: (u8, Grant), wanted: (u8, Grant)| {
                (found.0, found.1.epoch, found.1.id) == (wanted.0, wanted.1.epoch, wanted.1.id)
            };
            let free = s.token.is_none_or(|t| same(t, (uid, grant)) || replaces.is_some_and(|r| same(t, r)));
            if !free {
                return None;
            }
            s.token = Some((uid, grant));
        }
        host::Step::RemoveToken(grant) => {
            s.token.filter(|t| (t.0, t.1.epoch, t.1.id) == (uid, grant.epoch, grant.id))?;
            s.token = None;
        }
    }
    Some(())
}

pub fn report(fleet: &Fleet, s: &mut State, h: u8, uid: u8) -> Option<()> {
    if !s.reaches(h) || !s.machines[at(h)].daemon.connected {
        return None;
    }
    let scene = s.scene(h, uid)?;
    let Sight::Here(seen) = scene.local.sight else { return None };
    let report = host::planned(scene, fleet.guards.stand_without()).report?;
    let (slot, vm) = stored(s, uid)?;
    if vm != seen || vm.runtime == Some(report) {
        return None;
    }
    let vm = Vm { runtime: Some(report), ..vm };
    s.store.vms[at(slot)] = Some(vm);
    s.local(h, uid, slot).sight = Sight::Here(vm);
    Some(())
}

pub fn answer(s: &mut State, h: u8) -> Option<()> {
    let machine = &s.machines[at(h)];
    if !s.reaches(h) || !machine.daemon.listed || machine.daemon.nonce == 0 || !machine.daemon.connected {
        return None;
    }
    let said = machine.daemon.attestation.as_ref();
    let current = said.is_some_and(|a| a.session == machine.daemon.nonce && a.inc == machine.inc);
    // An answer is kept current only while it says anything.
    if current && said.is_some_and(|a| a.claims.is_empty()) {
        return None;
    }
    let knows = |local: &Local| match local.sight {
        Sight::Here(vm) => Some(vm),
        _ => stored(s, local.uid).map(|(_, vm)| vm),
    };
    let answer = host::answer(machine.daemon.nonce, h, machine.inc, &machine.vms, knows);
    s.machines[at(h)].daemon.attestation = Some(answer);
    Some(())
}

pub fn report_host(fleet: &Fleet, s: &mut State, h: u8) -> Option<()> {
    if !s.reaches(h) || !s.machines[at(h)].daemon.connected {
        return None;
    }
    let unexplained = |local: &&Local| {
        fleet.disk
            && local.process.is_some()
            && s.scene(h, local.uid)
                .is_some_and(|scene| host::planned(scene, fleet.guards.stand_without()).unexplained)
    };
    let machine = &s.machines[at(h)];
    let orphans = machine.vms.iter().filter(unexplained).map(|l| l.uid).collect();
    let wanted = HostObject {
        inc: machine.inc,
        past: machine.past.clone(),
        attestation: machine.daemon.attestation.clone(),
        confirm: s.store.hosts[at(h)].confirm,
        orphans,
    };
    s.store.hosts[at(h)] = wanted;
    Some(())
}
