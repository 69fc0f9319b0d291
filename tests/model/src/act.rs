//! What the parts do by themselves: each action is one durable write, one message taken in, or one step on a host, so
//! that a crash, a stale read or a lost message may come between any two.

use crate::{
    controller::Subject,
    daemon,
    explore::Fleet,
    host::Scene,
    lead,
    state::{Entry, HeldState, Life, Local, Session, State},
};

/// Something a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Act {
    /// A controller lists everything and writes the nonce of a session.
    Begin(u8),
    /// It crashes, or notices that its session is over.
    End(u8),
    /// Its watch shows what one object is now.
    SeeVm(u8, u8),
    SeeHost(u8, u8),
    SeeDisk(u8),
    /// A renewal of a Lease, or a long silence, is noticed.
    Hear(u8, u8),
    Silence(u8, u8),
    /// It plans and sends the first write.
    Plan(u8, Subject),
    /// It plans, and its placement write is on its way for a while.
    Send(u8, Subject),
    Arrive,
    /// A daemon finds out its incarnation.
    Open(u8),
    /// It connects, or sees a new session, and lists.
    List(u8),
    /// Its watch shows what one VM is now.
    Watch(u8, u8),
    WatchDisk(u8),
    /// It reads a VM by name.
    Get(u8, u8),
    /// It plans one VM and does the first step.
    Work(u8, u8),
    /// It plans one VM and carries the plan through.
    WorkThrough(u8, u8),
    /// It writes `status.runtime`.
    Report(u8, u8),
    /// It makes up its answer to the session, and writes `Host.status`.
    Answer(u8),
    ReportHost(u8),
}

pub fn at(index: u8) -> usize {
    usize::from(index)
}

pub fn index(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

impl State {
    pub fn session(&self, c: u8) -> Option<&Session> {
        self.sessions[at(c)].as_ref()
    }

    /// Whether the daemon of this host works at all.
    pub fn works(&self, h: u8) -> bool {
        let machine = &self.machines[at(h)];
        machine.powered && machine.inc > 0
    }

    pub fn reaches(&self, h: u8) -> bool {
        self.works(h) && !self.machines[at(h)].cut
    }

    pub fn local(&mut self, h: u8, uid: u8, slot: u8) -> &mut Local {
        let vms = &mut self.machines[at(h)].vms;
        if let Some(found) = vms.iter().position(|l| l.uid == uid) {
            return &mut vms[found];
        }
        vms.push(Local { uid, slot, ..Local::default() });
        vms.last_mut().unwrap()
    }

    pub fn scene(&self, h: u8, uid: u8) -> Option<Scene> {
        let machine = &self.machines[at(h)];
        let local = *machine.vms.iter().find(|l| l.uid == uid)?;
        Some(Scene {
            host: h,
            inc: machine.inc,
            listed: machine.daemon.listed,
            local,
            claimed: machine.daemon.claims.iter().any(|(claimant, _)| *claimant == uid),
            token: self.token,
        })
    }
}

/// Everything that parts can do in this state; some of it changes nothing.
pub fn acts(fleet: &Fleet, s: &State, all: &mut Vec<Act>) {
    let hosts = index(s.machines.len());
    for c in 0..index(s.sessions.len()) {
        let Some(session) = s.session(c) else {
            if s.left.sessions > 0 {
                all.push(Act::Begin(c));
            }
            continue;
        };
        all.push(Act::End(c));
        for slot in 0..index(s.store.vms.len()) {
            if session.seen.vms[at(slot)] != s.store.vms[at(slot)] {
                all.push(Act::SeeVm(c, slot));
            }
            if session.seen.vms[at(slot)].is_some() {
                for choice in 0..hosts {
                    all.push(Act::Plan(c, Subject::Vm { slot, choice }));
                    if s.left.slow > 0 && s.left.any > 0 && s.flight.is_none() {
                        all.push(Act::Send(c, Subject::Vm { slot, choice }));
                    }
                }
            }
        }
        for h in 0..hosts {
            if session.seen.hosts[at(h)] != s.store.hosts[at(h)] {
                all.push(Act::SeeHost(c, h));
            }
            all.push(Act::Hear(c, h));
            all.push(Act::Silence(c, h));
        }
        if fleet.disk {
            if session.seen.claims != s.store.claims {
                all.push(Act::SeeDisk(c));
            }
            all.push(Act::Plan(c, Subject::Disk));
        }
    }
    if s.flight.is_some() {
        all.push(Act::Arrive);
    }
    for h in 0..hosts {
        let machine = &s.machines[at(h)];
        if machine.powered && machine.inc == 0 {
            all.push(Act::Open(h));
        }
        if !s.works(h) {
            continue;
        }
        all.extend([Act::List(h), Act::Answer(h), Act::ReportHost(h)]);
        if fleet.disk {
            all.push(Act::WatchDisk(h));
        }
        let uids = machine.vms.iter().map(|l| l.uid).chain(s.store.vms.iter().flatten().map(|v| v.uid));
        let uids: std::collections::BTreeSet<u8> = uids.collect();
        for uid in uids {
            all.extend([Act::Watch(h, uid), Act::Get(h, uid), Act::Report(h, uid)]);
            all.extend([Act::Work(h, uid), Act::WorkThrough(h, uid)]);
        }
    }
}

/// The state after this act; none if it changes nothing or cannot be.
pub fn after(fleet: &Fleet, s: &State, act: Act) -> Option<State> {
    let mut next = s.clone();
    match act {
        Act::Begin(c) => lead::begin(fleet, &mut next, c),
        Act::End(c) => next.sessions[at(c)] = None,
        Act::SeeVm(c, slot) => {
            let vm = next.store.vms[at(slot)];
            lead::see(fleet, &mut next, c, |seen| seen.vms[at(slot)] = vm);
        }
        Act::SeeHost(c, h) => {
            let host = next.store.hosts[at(h)].clone();
            lead::see(fleet, &mut next, c, |seen| seen.hosts[at(h)] = host);
        }
        Act::SeeDisk(c) => {
            let claims = next.store.claims.clone();
            lead::see(fleet, &mut next, c, |seen| seen.claims = claims);
        }
        Act::Hear(c, h) => {
            if !next.reaches(h) {
                return None;
            }
            let inc = next.machines[at(h)].inc;
            next.sessions[at(c)].as_mut()?.lives[at(h)] = Life::Fresh(inc);
        }
        Act::Silence(c, h) => {
            if next.reaches(h) || next.ghost.lie == Some(h) {
                return None;
            }
            let session = next.sessions[at(c)].as_mut()?;
            let last = match session.lives[at(h)] {
                Life::Fresh(inc) | Life::Silent(inc) => inc,
                Life::Unknown => session.seen.hosts[at(h)].inc,
            };
            if last == 0 {
                return None;
            }
            session.lives[at(h)] = Life::Silent(last);
        }
        Act::Plan(c, subject) => lead::plan(fleet, &mut next, c, subject, false)?,
        Act::Send(c, subject) => {
            next.left.slow -= 1;
            next.left.any -= 1;
            lead::plan(fleet, &mut next, c, subject, true)?;
        }
        Act::Arrive => {
            let flight = next.flight.take()?;
            if next.store.vms[at(flight.slot)] == Some(flight.before) {
                let after = lead::write(&mut next, flight.slot, flight.before, &flight.step)?;
                let grants = (0..index(next.sessions.len()))
                    .find(|c| next.session(*c).is_some_and(|session| session.nonce == flight.nonce));
                if let Some(c) = grants {
                    lead::answered(fleet, &mut next, c, flight.slot, after);
                }
            }
        }
        Act::Open(h) => daemon::open(&mut next, h),
        Act::List(h) => daemon::list(fleet, &mut next, h)?,
        Act::Watch(h, uid) => daemon::watch(&mut next, h, uid)?,
        Act::WatchDisk(h) => {
            if !next.reaches(h) || !next.machines[at(h)].daemon.connected {
                return None;
            }
            next.machines[at(h)].daemon.claims = next.store.claims.clone();
        }
        Act::Get(h, uid) => daemon::get(&mut next, h, uid)?,
        Act::Work(h, uid) => daemon::work(fleet, &mut next, h, uid)?,
        Act::WorkThrough(h, uid) => daemon::work_through(fleet, &mut next, h, uid)?,
        Act::Report(h, uid) => daemon::report(fleet, &mut next, h, uid)?,
        Act::Answer(h) => daemon::answer(&mut next, h)?,
        Act::ReportHost(h) => daemon::report_host(fleet, &mut next, h)?,
    }
    Some(next)
}

/// Whether the ledger of a host holds this grant open in a life that goes on.
pub fn holds(entry: &Entry, inc: u8) -> bool {
    entry.held.is_some_and(|held| held.state != HeldState::Released && held.inc == inc)
}
