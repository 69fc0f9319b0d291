//! What goes wrong and what people do, each within its budget.

use crate::{
    act::index,
    explore::Fleet,
    state::{Budget, Daemon, Exit, Life, Machine, Sight, Spec, State, Vm},
};

/// A fault or an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    Off(u8),
    On(u8),
    DaemonDies(u8),
    Cut(u8),
    Heal(u8),
    GuestCrashes(u8, u8),
    GuestPowersOff(u8, u8),
    /// libvirt loses sight of a process.
    Disown(u8, u8),
    /// The ledger is lost in the middle of a boot.
    LedgerLost(u8),
    Backup,
    /// The backup comes back; every connection breaks.
    Restore,
    /// Somebody confirms, truly, the end of the stored grant.
    ConfirmVm(u8),
    /// Somebody confirms, truly, the end of a host's life.
    ConfirmHost(u8),
    /// Somebody confirms the end of a host that plainly lives.
    Lie(u8),
    /// Somebody confirms the end of a grant whose guest runs on, on a host that plainly lives in another incarnation.
    LieVm(u8),
    Halt(u8),
    Unhalt(u8),
    Delete(u8),
    Recreate(u8),
    /// The Disk is edited into this VM's spec.
    Attach(u8),
}

fn at(index: u8) -> usize {
    usize::from(index)
}

/// Faults that may come now.
pub fn faults(_: &Fleet, s: &State, all: &mut Vec<Fault>) {
    let b = s.left;
    for h in 0..index(s.machines.len()) {
        let machine = &s.machines[at(h)];
        if !machine.powered {
            all.push(Fault::On(h));
        }
        if machine.cut {
            all.push(Fault::Heal(h));
        }
        if b.any == 0 {
            continue;
        }
        if machine.powered && b.power > 0 {
            all.push(Fault::Off(h));
        }
        if s.works(h) && b.daemon > 0 {
            all.push(Fault::DaemonDies(h));
        }
        if machine.powered && !machine.cut && b.cut > 0 && s.ghost.lie != Some(h) {
            all.push(Fault::Cut(h));
        }
        if s.works(h) && b.ledger > 0 {
            all.push(Fault::LedgerLost(h));
        }
        for local in machine.vms.iter().filter(|l| l.process.is_some()) {
            if b.guest > 0 {
                all.extend([Fault::GuestCrashes(h, local.uid), Fault::GuestPowersOff(h, local.uid)]);
            }
            if b.disown > 0 {
                all.push(Fault::Disown(h, local.uid));
            }
        }
        if b.confirm > 0 {
            all.push(Fault::ConfirmHost(h));
        }
        if b.lie > 0 && s.works(h) && !machine.cut {
            all.push(Fault::Lie(h));
        }
    }
    if b.any == 0 {
        return;
    }
    if b.backup > 0 {
        all.push(Fault::Backup);
    }
    if b.restore > 0 {
        all.push(Fault::Restore);
    }
    for (slot, vm) in s.store.vms.iter().enumerate() {
        let slot = index(slot);
        let Some(vm) = vm else {
            if b.recreate > 0 {
                all.push(Fault::Recreate(slot));
            }
            continue;
        };
        if b.confirm > 0 && vm.placement.is_some() {
            all.push(Fault::ConfirmVm(slot));
        }
        if b.lie > 0 && vm.placement.is_some() {
            all.push(Fault::LieVm(slot));
        }
        if b.edit > 0 && !vm.deleting {
            all.push(if vm.spec.halted { Fault::Unhalt(slot) } else { Fault::Halt(slot) });
        }
        if b.delete > 0 && !vm.deleting {
            all.push(Fault::Delete(slot));
        }
        if b.attach > 0 && !vm.spec.disk && !vm.deleting {
            all.push(Fault::Attach(slot));
        }
    }
}

/// The state after this fault; none if it cannot be.
pub fn after(_: &Fleet, s: &State, fault: Fault) -> Option<State> {
    let mut n = s.clone();
    let charge = |n: &mut State, of: fn(&mut Budget) -> &mut u8| {
        n.left.any -= 1;
        *of(&mut n.left) -= 1;
    };
    match fault {
        Fault::Off(h) => {
            charge(&mut n, |b| &mut b.power);
            let machine = &mut n.machines[at(h)];
            machine.powered = false;
            machine.past.iter_mut().for_each(|past| past.1 = false);
            if machine.inc > 0 {
                machine.past.push((machine.inc, false));
            }
            machine.inc = 0;
            machine.daemon = Daemon::default();
            for local in &mut machine.vms {
                (local.process, local.exit, local.sight) = (None, None, Sight::None);
            }
        }
        Fault::On(h) => n.machines[at(h)].powered = true,
        Fault::DaemonDies(h) => {
            charge(&mut n, |b| &mut b.daemon);
            let machine = &mut n.machines[at(h)];
            machine.daemon = Daemon::default();
            machine.vms.iter_mut().for_each(|l| l.sight = Sight::None);
        }
        Fault::Cut(h) => {
            charge(&mut n, |b| &mut b.cut);
            n.machines[at(h)].cut = true;
        }
        Fault::Heal(h) => n.machines[at(h)].cut = false,
        Fault::GuestCrashes(h, uid) | Fault::GuestPowersOff(h, uid) => {
            charge(&mut n, |b| &mut b.guest);
            let how = if matches!(fault, Fault::GuestCrashes(..)) { Exit::Crashed } else { Exit::PoweredOff };
            let local = n.machines[at(h)].vms.iter_mut().find(|l| l.uid == uid)?;
            (local.process, local.exit) = (None, Some(how));
        }
        Fault::Disown(h, uid) => {
            charge(&mut n, |b| &mut b.disown);
            let local = n.machines[at(h)].vms.iter_mut().find(|l| l.uid == uid)?;
            local.process.as_mut()?.disowned = true;
        }
        Fault::LedgerLost(h) => {
            charge(&mut n, |b| &mut b.ledger);
            let machine = &mut n.machines[at(h)];
            (machine.inc, machine.daemon) = (0, Daemon::default());
            machine.past.clear();
            machine.vms.iter_mut().for_each(|l| (l.entry, l.sight) = (None, Sight::None));
        }
        Fault::Backup => {
            charge(&mut n, |b| &mut b.backup);
            n.backup = (n.store.clone(), n.nonce);
        }
        Fault::Restore => {
            charge(&mut n, |b| &mut b.restore);
            (n.store, n.nonce) = n.backup.clone();
            n.flight = None;
            n.sessions.iter_mut().for_each(|session| *session = None);
            n.machines.iter_mut().for_each(|m| m.daemon.connected = false);
        }
        Fault::ConfirmVm(slot) => {
            charge(&mut n, |b| &mut b.confirm);
            let vm = n.store.vms[at(slot)].as_mut()?;
            let grant = vm.placement?.grant;
            // True is that nothing runs under the grant and nothing will: that its incarnation is over is not enough,
            // for a lost ledger leaves the guest running.
            if n.machines[at(grant.host)].inc == grant.inc || runs(&n.machines[at(grant.host)], grant.id) {
                return None;
            }
            vm.confirm = Some(grant.id);
        }
        Fault::ConfirmHost(h) => {
            charge(&mut n, |b| &mut b.confirm);
            let inc = n.store.hosts[at(h)].inc;
            if inc == 0
                || n.machines[at(h)].inc == inc
                || n.machines[at(h)].vms.iter().any(|l| l.process.is_some())
            {
                return None;
            }
            n.store.hosts[at(h)].confirm = Some(inc);
        }
        Fault::Lie(h) => {
            charge(&mut n, |b| &mut b.lie);
            let inc = n.store.hosts[at(h)].inc;
            let heard =
                n.sessions.iter().flatten().all(|session| !matches!(session.lives[at(h)], Life::Silent(_)));
            if inc == 0 || !heard || n.machines[at(h)].inc != inc {
                return None;
            }
            n.store.hosts[at(h)].confirm = Some(inc);
            n.ghost.lie = Some(h);
        }
        Fault::LieVm(slot) => {
            charge(&mut n, |b| &mut b.lie);
            let vm = n.store.vms[at(slot)].as_mut()?;
            let grant = vm.placement?.grant;
            let machine = &n.machines[at(grant.host)];
            let silent = |life: &Life| matches!(life, Life::Silent(_));
            let heard = n.sessions.iter().flatten().all(|session| !silent(&session.lives[at(grant.host)]));
            let lives_on = machine.powered && machine.inc > 0 && machine.inc != grant.inc && !machine.cut;
            if !lives_on || !heard || !runs(machine, grant.id) {
                return None;
            }
            vm.confirm = Some(grant.id);
            n.ghost.lie = Some(grant.host);
        }
        Fault::Halt(slot) | Fault::Unhalt(slot) => {
            charge(&mut n, |b| &mut b.edit);
            let vm = n.store.vms[at(slot)].as_mut()?;
            vm.spec.halted = !vm.spec.halted;
            vm.generation += 1;
            let uid = vm.uid;
            may_stop(&mut n, uid);
        }
        Fault::Delete(slot) => {
            charge(&mut n, |b| &mut b.delete);
            let vm = n.store.vms[at(slot)].as_mut()?;
            let uid = vm.uid;
            if vm.finalizer {
                vm.deleting = true;
                vm.generation += 1;
            } else {
                n.store.vms[at(slot)] = None;
            }
            may_stop(&mut n, uid);
        }
        Fault::Recreate(slot) => {
            charge(&mut n, |b| &mut b.recreate);
            n.store.vms[at(slot)] = Some(new_vm(n.next_uid, Spec { halted: false, disk: false }));
            n.next_uid += 1;
        }
        Fault::Attach(slot) => {
            charge(&mut n, |b| &mut b.attach);
            let vm = n.store.vms[at(slot)].as_mut()?;
            vm.spec.disk = true;
            vm.generation += 1;
        }
    }
    Some(n)
}

/// Whether a guest runs under this grant.
fn runs(machine: &Machine, grant: u8) -> bool {
    machine.vms.iter().any(|l| l.process.is_some_and(|p| p.grant.id == grant))
}

fn may_stop(s: &mut State, uid: u8) {
    if !s.ghost.may_stop.contains(&uid) {
        s.ghost.may_stop.push(uid);
        s.ghost.may_stop.sort_unstable();
    }
}

/// A VM as somebody has just made it.
pub fn new_vm(uid: u8, spec: Spec) -> Vm {
    Vm {
        uid,
        spec,
        generation: 1,
        deleting: false,
        finalizer: false,
        placement: None,
        runtime: None,
        confirm: None,
    }
}
