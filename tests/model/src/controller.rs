//! A controller: the real planner on what it has seen, remembered by input, and what its writes come to.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use controller_plan as plan;
use plan::{Freshness, HostLiveness, Key, Kind, World};
use vireo_crds::v1alpha1::EvidenceKind;

use crate::{
    concrete as c,
    state::{Grant, Life, Placement, Session},
};

/// What has to be read once more before a write: the confirmation of a grant, or of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Read {
    Vm(u8, u8),
    Host(u8, u8),
}

/// A write that matters to who may run what. Conditions, columns and events are left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    Finalizer(bool, Vec<Read>),
    Place { placement: Placement, evidence: Vec<(u8, bool)>, reads: Vec<Read> },
    Generation(u8),
    Claims(Vec<(u8, u8)>, Vec<Read>),
}

impl Step {
    /// Everything in it that is an id.
    pub fn each_grant(&mut self, mut change: impl FnMut(&mut Grant)) {
        let mut one = |host: u8, inc: &mut u8, id: &mut u8| {
            let mut grant = Grant { host, inc: *inc, epoch: 0, id: *id };
            change(&mut grant);
            (*inc, *id) = (grant.inc, grant.id);
            grant.host
        };
        let read = |read: &mut Read, one: &mut dyn FnMut(u8, &mut u8, &mut u8) -> u8| match read {
            Read::Vm(_, id) => {
                one(0, &mut 0, id);
            }
            Read::Host(host, inc) => *host = one(*host, inc, &mut 0),
        };
        match self {
            Self::Place { placement, evidence, reads } => {
                let g = &mut placement.grant;
                g.host = one(g.host, &mut g.inc, &mut g.id);
                evidence.iter_mut().for_each(|(id, _)| {
                    one(0, &mut 0, id);
                });
                reads.iter_mut().for_each(|r| read(r, &mut one));
            }
            Self::Finalizer(_, reads) | Self::Claims(_, reads) => {
                reads.iter_mut().for_each(|r| read(r, &mut one))
            }
            Self::Generation(_) => {}
        }
    }
}

/// What a controller plans for one object.
#[derive(Debug, Default)]
pub struct Planned {
    pub steps: Vec<Step>,
    /// It waits for something, or has refused something, and has said so.
    pub waits: bool,
}

/// What is planned for: the VM of this name, with only one host to choose, or the Disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    Vm { slot: u8, choice: u8 },
    Disk,
}

type Memory = HashMap<(Session, Subject, Removed), Rc<Planned>>;
pub type Removed = u8;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
    static ATTESTED: RefCell<HashMap<Session, Vec<u8>>> = RefCell::default();
}

fn world(session: &Session, choice: Option<u8>) -> World {
    let mut world = World::default();
    world.set_installation_id("installation");
    let (cluster, domain) = c::fixed();
    world.put_cluster(cluster);
    world.put_domain(domain);
    for (index, host) in session.seen.hosts.iter().enumerate() {
        let index = u8::try_from(index).unwrap_or(0);
        world.put_host(Arc::new(c::host(host, index, choice.is_none_or(|choice| choice == index))));
        let life = session.lives.get(usize::from(index)).copied().unwrap_or_default();
        let (freshness, inc) = match life {
            Life::Unknown => continue,
            Life::Fresh(inc) => (Freshness::Fresh, inc),
            Life::Silent(inc) => (Freshness::Silent, inc),
        };
        let holder = c::name('i', inc);
        let alive = (freshness == Freshness::Fresh).then(|| holder.clone());
        let liveness = HostLiveness {
            freshness,
            holder: Some(holder),
            alive: alive.into_iter().collect(),
            duplicate: false,
            watched: true,
        };
        world.set_liveness(&c::name('h', index), liveness);
    }
    world.put_disk(Arc::new(c::disk(&session.seen.claims)));
    for (slot, vm) in session.seen.vms.iter().enumerate() {
        if let Some(vm) = vm {
            world.put_vm(Arc::new(c::vm(vm, u8::try_from(slot).unwrap_or(0))));
        }
    }
    let all = |letter: char, numbers: &[u8]| numbers.iter().map(|n| c::name(letter, *n)).collect();
    let old = session
        .old_confirmations
        .iter()
        .enumerate()
        .filter_map(|(host, inc)| Some((c::name('h', u8::try_from(host).ok()?), c::name('i', (*inc)?))));
    let mut preexisting: std::collections::BTreeSet<String> = all('u', &session.preexisting);
    preexisting.insert("disk".into());
    world.set_session(Some(plan::Session {
        nonce: c::name('s', session.nonce),
        preexisting,
        granted: all('g', &session.granted),
        attested: all('g', &session.attested),
        old_confirmations: old.collect(),
    }));
    world
}

/// Grants attested in this session as far as it has seen.
pub fn attested(session: &Session) -> Vec<u8> {
    if let Some(known) = ATTESTED.with(|memory| memory.borrow().get(session).cloned()) {
        return known;
    }
    let world = world(session, None);
    let mut found: Vec<u8> =
        world.session().into_iter().flat_map(|s| &s.attested).map(|id| c::number(id)).collect();
    found.sort_unstable();
    ATTESTED.with(|memory| memory.borrow_mut().insert(session.clone(), found.clone()));
    found
}

/// What this controller plans now; `removed` is the guard that does not stand.
pub fn planned(session: &Session, subject: Subject, removed: Removed) -> Rc<Planned> {
    let key = (session.clone(), subject, removed);
    if let Some(known) = MEMORY.with(|memory| memory.borrow().get(&key).cloned()) {
        return known;
    }
    let found = Rc::new(plan_now(session, subject));
    MEMORY.with(|memory| {
        let mut memory = memory.borrow_mut();
        if memory.len() > 400_000 {
            memory.clear();
        }
        memory.insert(key, found.clone())
    });
    found
}

fn plan_now(session: &Session, subject: Subject) -> Planned {
    let plan = match subject {
        Subject::Vm { slot, choice } => {
            let world = world(session, Some(choice));
            let Some(vm) = world.vm(&Key::new(c::NAMESPACE, &c::name('v', slot))).cloned() else {
                return Planned::default();
            };
            plan::plan_vm(&world, &vm, c::now(), "g0")
        }
        Subject::Disk => {
            let world = world(session, None);
            let Some(disk) = world.disk(&Key::new(c::NAMESPACE, c::DISK)).cloned() else {
                return Planned::default();
            };
            plan::plan_disk(&world, &disk, c::now())
        }
    };
    let seen = |slot: u8| session.seen.vms.get(usize::from(slot)).copied().flatten();
    let steps = plan.steps.iter().filter_map(|step| match step {
        plan::Step::EnsureFinalizer { object } if object.kind == Kind::VirtualMachine => {
            Some(Step::Finalizer(true, Vec::new()))
        }
        plan::Step::RemoveFinalizer { object, read_first } if object.kind == Kind::VirtualMachine => {
            Some(Step::Finalizer(false, reads(read_first)))
        }
        plan::Step::SetPlacement { read_first, status, .. } => {
            let placement = status.placement.as_ref()?;
            let evidence =
                placement.evidence.iter().map(|e| (c::number(&e.grant_id), e.kind == EvidenceKind::Released));
            Some(Step::Place {
                placement: c::abstract_placement(placement),
                evidence: evidence.collect(),
                reads: reads(read_first),
            })
        }
        plan::Step::SetVmStatus { vm, status } => {
            let generation = c::small(status.placement.as_ref()?.generation);
            let stored = seen(c::number(&vm.name))?.placement?;
            (stored.generation != generation).then_some(Step::Generation(generation))
        }
        plan::Step::SetDiskStatus { status, read_first, .. } => {
            let claims: Vec<(u8, u8)> =
                status.attachments.iter().map(|a| (c::number(&a.vm_uid), c::number(&a.vm))).collect();
            (claims != session.seen.claims).then(|| Step::Claims(claims, reads(read_first)))
        }
        _ => None,
    });
    Planned {
        steps: steps.collect(),
        waits: !plan.refusals.is_empty() || plan.waits.iter().any(for_a_person),
    }
}

/// Whether this waits for a person: everything else has to pass by itself once faults stop.
fn for_a_person(wait: &plan::Wait) -> bool {
    ["say so", "disagree"].iter().any(|words| wait.message.contains(words))
}

fn reads(reads: &[plan::FreshRead]) -> Vec<Read> {
    let one = |read: &plan::FreshRead| {
        let (object, value) = (c::number(&read.object.name), c::number(&read.confirm_annotation));
        if read.object.kind == Kind::Host { Read::Host(object, value) } else { Read::Vm(object, value) }
    };
    reads.iter().map(one).collect()
}
