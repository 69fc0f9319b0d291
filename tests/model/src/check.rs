//! The invariants, numbered as in the protocol: what is judged when something is written, and what must hold in every
//! state.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    act::{holds, index},
    state::{Entry, Grant, HeldState, Placement, State, Vm},
};

/// A promise is broken; the first one counts.
pub fn broken(s: &mut State, invariant: u8, what: &'static str) {
    s.ghost.broken.get_or_insert((invariant, what));
}

fn insert(list: &mut Vec<u8>, item: u8) {
    if !list.contains(&item) {
        list.push(item);
        list.sort_unstable();
    }
}

/// A placement is written.
pub fn granted(s: &mut State, before: &Vm, new: &Placement, evidence: &[(u8, bool)]) {
    let Some(old) = before.placement else { return };
    if new.last < old.last {
        broken(s, 5, "lastEpoch falls");
    }
    if new.grant.id == old.grant.id {
        if new.grant != old.grant {
            broken(s, 5, "a grant changes in place");
        }
        return;
    }
    if new.grant.epoch <= old.last {
        broken(s, 5, "a new grant takes an old number");
    }
    match evidence.iter().find(|(id, _)| *id == old.grant.id) {
        None => broken(s, 7, "a grant is replaced without evidence"),
        Some((id, true)) if !s.ghost.released.contains(id) => {
            broken(s, 7, "a grant that was never released is replaced as released")
        }
        Some((_, true)) => {}
        Some((id, false)) => insert(&mut s.ghost.ended, *id),
    }
}

/// The last finalizer of a VM goes.
pub fn farewell(s: &mut State, vm: &Vm) {
    let runs = s.machines.iter().flat_map(|m| &m.vms).any(|l| l.uid == vm.uid && l.process.is_some());
    if runs {
        broken(s, 8, "a VM goes while its guest runs");
    }
}

/// A ledger entry is written.
pub fn ledger(s: &mut State, h: u8, uid: u8, entry: &Entry) {
    let before = s.machines[usize::from(h)].vms.iter().find(|l| l.uid == uid).and_then(|l| l.entry);
    if before.is_some_and(|before| before.highest > entry.highest) {
        broken(s, 5, "the highest number seen falls");
    }
    let Some(held) = entry.held else { return };
    if held.state == HeldState::Released {
        insert(&mut s.ghost.released, held.grant.id);
    } else if s.ghost.released.contains(&held.grant.id) {
        broken(s, 6, "a released grant opens again");
    }
}

/// A guest is started.
pub fn started(s: &mut State, h: u8, uid: u8, grant: Grant) {
    let machine = &s.machines[usize::from(h)];
    if grant.host != h || grant.inc != machine.inc {
        broken(s, 3, "a guest is started under a grant for another life");
    } else if machine.vms.iter().any(|l| l.uid == uid && l.process.is_some()) {
        broken(s, 1, "a guest is started beside its own process");
    }
}

/// A guest is stopped by its daemon.
pub fn stopping(s: &mut State, uid: u8) {
    if !s.ghost.may_stop.contains(&uid) {
        broken(s, 8, "a guest is stopped although nobody ever asked");
    }
}

/// A guest is paused by its daemon.
pub fn pausing(s: &mut State, h: u8, uid: u8) {
    let runs = s.machines[usize::from(h)].vms.iter().find(|l| l.uid == uid).and_then(|l| l.process);
    let newer = s.store.vms.iter().flatten().any(|vm| {
        vm.uid == uid && vm.placement.zip(runs).is_some_and(|(p, r)| p.grant.epoch > r.grant.epoch)
    });
    if !newer {
        broken(s, 8, "a guest is paused although nothing newer is there");
    }
}

/// What must hold in every state.
pub fn judge(s: &mut State) {
    let mut runs: BTreeMap<u8, u8> = BTreeMap::new();
    let mut writers = BTreeSet::new();
    let mut open: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
    let mut found = None;
    for machine in &s.machines {
        for local in &machine.vms {
            if let Some(process) = local.process {
                if !process.paused {
                    *runs.entry(local.uid).or_default() += 1;
                    if process.spec.disk {
                        writers.insert(local.uid);
                    }
                }
                if s.ghost.released.contains(&process.grant.id) {
                    found = Some((3, "a guest runs under a released grant"));
                }
                if s.ghost.ended.contains(&process.grant.id) {
                    found = Some((6, "a guest runs under a grant recorded as ended"));
                }
            }
            if let Some(held) =
                local.entry.filter(|e| machine.powered && holds(e, machine.inc)).and_then(|e| e.held)
            {
                open.entry(local.uid).or_default().insert(held.grant.id);
            }
        }
    }
    for vm in s.store.vms.iter().flatten() {
        let Some(p) = vm.placement else { continue };
        let lives = s
            .machines
            .get(usize::from(p.grant.host))
            .is_some_and(|m| m.powered && m.inc == p.grant.inc && m.inc > 0);
        if lives && !s.ghost.released.contains(&p.grant.id) && !s.ghost.ended.contains(&p.grant.id) {
            open.entry(vm.uid).or_default().insert(p.grant.id);
        }
    }
    if open.values().any(|ids| ids.len() > 1) {
        found = Some((4, "two grants of one VM are open"));
    }
    if writers.len() > 1 {
        found = Some((2, "two VMs write to one volume"));
    }
    if runs.values().any(|copies| *copies > 1) {
        found = Some((1, "two copies run"));
    }
    if let Some((invariant, what)) = found {
        broken(s, invariant, what);
    }
}

/// VMs that are not as their spec has them, by name.
pub fn not_as_wanted(s: &State) -> Vec<u8> {
    let copies = |uid: u8| {
        s.machines
            .iter()
            .flat_map(|m| &m.vms)
            .filter(|l| l.uid == uid && l.process.is_some_and(|p| !p.paused))
            .count()
    };
    let wrong = |(_, vm): &(usize, &Option<Vm>)| {
        vm.is_some_and(|vm| vm.deleting || copies(vm.uid) != usize::from(!vm.spec.halted))
    };
    s.store.vms.iter().enumerate().filter(wrong).map(|(slot, _)| index(slot)).collect()
}
