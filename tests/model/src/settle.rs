//! What follows once faults stop and everybody is heard: the fleet must come to rest, write nothing any more, and run
//! every VM as its spec has it, or say which person it waits for.

use crate::{
    act::{self, Act, index},
    check,
    controller::{self, Subject},
    explore::Fleet,
    host,
    state::{Budget, State},
};

/// How a state ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At rest, every VM as wanted.
    AsWanted,
    /// At rest, and a VM waits for a person.
    Waits,
    /// At rest, and a VM is not as wanted for no reason given.
    Stuck,
    /// It never comes to rest, or breaks a promise on the way.
    Restless,
}

/// Lets a state come to rest without faults.
pub fn settle(fleet: &Fleet, from: &State) -> (State, End) {
    let mut s = from.clone();
    s.left = Budget { sessions: 200, ..Budget::default() };
    for machine in &mut s.machines {
        (machine.powered, machine.cut) = (true, false);
        machine.vms.iter_mut().filter_map(|l| l.process.as_mut()).for_each(|p| p.disowned = false);
    }
    try_act(fleet, &mut s, Act::Arrive);
    for _ in 0..60 {
        let before = s.canonical(false);
        round(fleet, &mut s);
        s = s.canonical(false);
        if s.ghost.broken.is_some() {
            return (s, End::Restless);
        }
        if s == before {
            let wrong = check::not_as_wanted(&s);
            let end = match () {
                () if wrong.is_empty() => End::AsWanted,
                () if wrong.iter().all(|slot| waits(fleet, &s, *slot)) => End::Waits,
                () => End::Stuck,
            };
            return (s, end);
        }
    }
    (s, End::Restless)
}

fn try_act(fleet: &Fleet, s: &mut State, act: Act) -> bool {
    let Some(mut next) = act::after(fleet, s, act) else { return false };
    check::judge(&mut next);
    let changed = next != *s;
    *s = next;
    changed
}

fn round(fleet: &Fleet, s: &mut State) {
    for c in 0..index(s.sessions.len()) {
        let over = s.session(c).is_some_and(|session| session.nonce != s.nonce);
        if over || c > 0 {
            try_act(fleet, s, Act::End(c));
        }
    }
    if s.session(0).is_none() {
        try_act(fleet, s, Act::Begin(0));
    }
    let hosts = index(s.machines.len());
    for h in 0..hosts {
        for act in [Act::Open(h), Act::List(h), Act::WatchDisk(h)] {
            let wanted = !matches!(act, Act::Open(_)) || s.machines[usize::from(h)].inc == 0;
            if wanted {
                try_act(fleet, s, act);
            }
        }
        let uids: Vec<u8> = s.machines[usize::from(h)].vms.iter().map(|l| l.uid).collect();
        let stored = s.store.vms.iter().flatten().map(|vm| vm.uid);
        let mut uids: Vec<u8> = uids.into_iter().chain(stored).collect();
        uids.sort_unstable();
        uids.dedup();
        for uid in uids {
            try_act(fleet, s, Act::Watch(h, uid));
            try_act(fleet, s, Act::Get(h, uid));
            for _ in 0..30 {
                if !try_act(fleet, s, Act::Work(h, uid)) {
                    break;
                }
            }
            try_act(fleet, s, Act::Report(h, uid));
        }
        try_act(fleet, s, Act::Answer(h));
        try_act(fleet, s, Act::ReportHost(h));
    }
    for h in 0..hosts {
        try_act(fleet, s, Act::SeeHost(0, h));
        try_act(fleet, s, Act::Hear(0, h));
    }
    try_act(fleet, s, Act::SeeDisk(0));
    for slot in 0..index(s.store.vms.len()) {
        try_act(fleet, s, Act::SeeVm(0, slot));
        for _ in 0..4 {
            let planned =
                (0..hosts).any(|choice| try_act(fleet, s, Act::Plan(0, Subject::Vm { slot, choice })));
            if !planned {
                break;
            }
        }
    }
    try_act(fleet, s, Act::Plan(0, Subject::Disk));
}

/// Whether somebody says that this VM waits for a person.
fn waits(fleet: &Fleet, s: &State, slot: u8) -> bool {
    let removed = fleet.guards.stand_without();
    let told = s
        .session(0)
        .is_some_and(|session| controller::planned(session, Subject::Vm { slot, choice: 0 }, removed).waits);
    let uid = s.store.vms[usize::from(slot)].map(|vm| vm.uid);
    told || (0..index(s.machines.len()))
        .filter_map(|h| s.scene(h, uid?))
        .any(|scene| host::planned(scene, removed).waits)
}
