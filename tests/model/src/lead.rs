//! What a controller does: sessions, what it sees, and its conditional writes.

use crate::{
    act::at,
    check,
    controller::{self, Read, Step, Subject},
    explore::Fleet,
    state::{Flight, Life, Objects, Session, State, Vm},
};

pub fn begin(fleet: &Fleet, s: &mut State, c: u8) {
    s.left.sessions = s.left.sessions.saturating_sub(1);
    let nonce = s.next_nonce;
    s.next_nonce += 1;
    s.nonce = nonce;
    let seen = s.store.clone();
    s.sessions[at(c)] = Some(Session {
        nonce,
        preexisting: seen.vms.iter().flatten().map(|vm| vm.uid).collect(),
        old_confirmations: seen.hosts.iter().map(|h| h.confirm).collect(),
        lives: vec![Life::Unknown; seen.hosts.len()],
        seen,
        granted: Vec::new(),
        attested: Vec::new(),
    });
    see(fleet, s, c, |_| {});
}

pub fn see(_: &Fleet, s: &mut State, c: u8, change: impl FnOnce(&mut Objects)) {
    if let Some(session) = &mut s.sessions[at(c)] {
        change(&mut session.seen);
        session.attested = controller::attested(session);
    }
}

pub fn confirmed(s: &State, reads: &[Read]) -> bool {
    reads.iter().all(|read| match read {
        Read::Vm(slot, id) => s.store.vms[at(*slot)].is_some_and(|vm| vm.confirm == Some(*id)),
        Read::Host(host, inc) => s.store.hosts[at(*host)].confirm == Some(*inc),
    })
}

/// Plans, and carries out the first step, or sends it.
pub fn plan(fleet: &Fleet, s: &mut State, c: u8, subject: Subject, slow: bool) -> Option<()> {
    let session = s.session(c)?;
    let planned = controller::planned(session, subject, fleet.guards.stand_without());
    let mut step = planned.steps.first()?.clone();
    let slot = match subject {
        Subject::Disk => {
            let Step::Claims(claims, reads) = step else { return None };
            return claim(fleet, s, c, claims, &reads);
        }
        Subject::Vm { slot, choice } => {
            let granted = matches!(&step, Step::Place { placement, .. } if placement.grant.id == 0);
            // What does not depend on the choice is planned once.
            if choice > 0 && !granted && !matches!(step, Step::Claims(..)) {
                return None;
            }
            slot
        }
    };
    if let Step::Claims(claims, reads) = step {
        return if slow { None } else { claim(fleet, s, c, claims, &reads) };
    }
    let before = session.seen.vms[at(slot)]?;
    let nonce = session.nonce;
    if let Step::Place { placement, .. } = &mut step
        && placement.grant.id == 0
    {
        placement.grant.id = s.next_id;
        s.next_id += 1;
    }
    if slow {
        matches!(step, Step::Place { .. } | Step::Finalizer(false, _)).then_some(())?;
        s.flight = Some(Flight { slot, nonce, before, step });
        return Some(());
    }
    let stored = s.store.vms[at(slot)]?;
    if stored != before && !fleet.guards.unconditional {
        return None;
    }
    let after = write(s, slot, stored, &step)?;
    answered(fleet, s, c, slot, after);
    Some(())
}

pub fn claim(fleet: &Fleet, s: &mut State, c: u8, claims: Vec<(u8, u8)>, reads: &[Read]) -> Option<()> {
    if s.session(c)?.seen.claims != s.store.claims || !confirmed(s, reads) {
        return None;
    }
    if claims.len() > 1 {
        check::broken(s, 2, "two VMs claim one volume");
    }
    s.store.claims.clone_from(&claims);
    see(fleet, s, c, |seen| seen.claims = claims);
    Some(())
}

/// The write itself; answers with the object after it.
pub fn write(s: &mut State, slot: u8, before: Vm, step: &Step) -> Option<Option<Vm>> {
    let mut after = before;
    match step {
        Step::Finalizer(true, _) => after.finalizer = true,
        Step::Finalizer(false, reads) => {
            if !confirmed(s, reads) {
                return None;
            }
            check::farewell(s, &before);
            s.store.vms[at(slot)] = None;
            return Some(None);
        }
        Step::Generation(generation) => after.placement.as_mut()?.generation = *generation,
        Step::Place { placement, evidence, reads } => {
            if !confirmed(s, reads) {
                return None;
            }
            check::granted(s, &before, placement, evidence);
            after.placement = Some(*placement);
        }
        Step::Claims(..) => return None,
    }
    s.store.vms[at(slot)] = Some(after);
    Some(Some(after))
}

pub fn answered(fleet: &Fleet, s: &mut State, c: u8, slot: u8, after: Option<Vm>) {
    if let (Some(session), Some(placement)) = (&mut s.sessions[at(c)], after.and_then(|vm| vm.placement)) {
        let id = placement.grant.id;
        let was = session.seen.vms[at(slot)].and_then(|vm| vm.placement).map(|p| p.grant.id);
        if was != Some(id) && !session.granted.contains(&id) {
            session.granted.push(id);
            session.granted.sort_unstable();
        }
    }
    see(fleet, s, c, |seen| seen.vms[at(slot)] = after);
}
