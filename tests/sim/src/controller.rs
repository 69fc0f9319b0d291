//! A controller process as the executor runs one: leadership, one session per unbroken connection, a world fed by
//! watches and by answers, plans carried out step by step. Every decision is the real planner's.

use std::{collections::VecDeque, time::Instant};

use controller_plan::{Key, Kind, Plan, Step, World};

use super::{
    Sim,
    faults::Fault,
    liveness::Clock,
    store::{self, Change, KINDS, Refused, Store},
};

/// A controller process.
#[derive(Default)]
pub struct Controller {
    /// The process lives.
    pub alive: bool,
    /// It is stopped by its scheduler, or its machine is.
    pub frozen: bool,
    /// It may hold itself for the leader until then.
    pub leader_until: i64,
    pub clock: Clock,
    pub session: Option<CtlSession>,
    /// When its world was last told of signs of life, and after how many renewals.
    pub measured: Option<(i64, u64)>,
}

/// A session.
pub struct CtlSession {
    pub world: World,
    pub nonce: String,
    pub begun: bool,
    pub connection: u64,
    pub cursors: [usize; KINDS.len()],
    pub nonce_cursor: usize,
    pub jobs: Vec<Job>,
    /// A look at everything found nothing to do.
    pub rested: bool,
}

/// A plan being carried out.
#[derive(Clone)]
pub struct Job {
    pub item: (Kind, Key),
    pub steps: VecDeque<Step>,
    versions: Vec<(Kind, String, String)>,
}

/// A write on its way.
pub struct InFlight {
    pub controller: usize,
    pub nonce: String,
    pub connection: u64,
    pub step: Step,
    pub job: Job,
}

impl Job {
    fn next(&mut self) -> Option<Step> {
        let mut step = self.steps.pop_front()?;
        store::set_reference(&mut step, |object| {
            if let Some((.., version)) =
                self.versions.iter().find(|(k, uid, _)| *k == object.kind && *uid == object.uid)
            {
                object.resource_version.clone_from(version);
            }
        });
        Some(step)
    }

    fn wrote(&mut self, object: &store::Object) {
        let (kind, meta) = (object.kind(), object.meta());
        let (uid, version) =
            (meta.uid.clone().unwrap_or_default(), meta.resource_version.clone().unwrap_or_default());
        self.versions.retain(|(k, u, _)| !(*k == kind && *u == uid));
        self.versions.push((kind, uid, version));
    }
}

/// Sets room aside, or gives it back, for the placements among these steps.
fn reserve(world: &mut World, steps: &VecDeque<Step>, yes: bool) {
    for step in steps {
        let Step::SetPlacement { vm, status, .. } = step else { continue };
        let Some(placement) = &status.placement else { continue };
        match world.vm_by_uid(&vm.uid).cloned() {
            Some(object) if yes => {
                world.reserve(&vm.uid, &placement.host, controller_plan::resources_of(&object))
            }
            _ => world.unreserve(&vm.uid),
        }
    }
}

/// The plan for an object of a world.
pub fn plan_object(world: &World, object: &store::Object, now: jiff::Timestamp, fresh: &str) -> Plan {
    match object {
        store::Object::Vm(o) => controller_plan::plan_vm(world, o, now, fresh),
        store::Object::Disk(o) => controller_plan::plan_disk(world, o, now),
        store::Object::Act(o) => controller_plan::plan_act(world, o, now),
        store::Object::Host(o) => controller_plan::plan_host(world, o, now),
        store::Object::Cluster(o) => controller_plan::plan_cluster(world, o, now),
        store::Object::Domain(o) => controller_plan::plan_domain(world, o, now),
    }
}

impl Sim {
    fn instant(&self) -> Instant {
        self.epoch + std::time::Duration::from_millis(u64::try_from(self.ms).unwrap_or(0))
    }

    /// Renews leader leases; called whenever time passes.
    pub fn lead(&mut self) {
        for c in 0..self.controllers.len() {
            let ctl = &mut self.controllers[c];
            if !ctl.alive || ctl.frozen || !self.store.up {
                continue;
            }
            match self.leader {
                Some((holder, renewed)) if holder == c => {
                    if self.ms - renewed >= 2000 {
                        self.leader = Some((c, self.ms));
                        ctl.leader_until = self.ms + 10_000;
                    }
                }
                Some((_, renewed)) if self.ms - renewed <= 15_000 => {}
                _ => {
                    self.leader = Some((c, self.ms));
                    ctl.leader_until = self.ms + 10_000;
                }
            }
        }
    }

    fn leads(&self, c: usize) -> bool {
        self.controllers[c].leader_until > self.ms
    }

    /// One piece of work of a controller: whatever comes next.
    pub fn controller_works(&mut self, c: usize) {
        if !self.controllers[c].alive || self.controllers[c].frozen {
            return;
        }
        let Some(session) = &self.controllers[c].session else { return self.connect(c) };
        if !session.begun {
            return self.begin(c);
        }
        match self.rng.below(10) {
            0..=3 => self.deliver(c),
            4 => self.notice(c),
            _ if !session.jobs.is_empty() && self.rng.below(3) > 0 => self.carry_on(c),
            _ => self.plan_something(c),
        }
    }

    fn connect(&mut self, c: usize) {
        if !self.store.up || !self.leads(c) {
            return;
        }
        let mut world = World::default();
        world.set_installation_id("installation");
        store::all(&self.store.world).into_iter().for_each(|object| object.put(&mut world));
        let now = self.instant();
        let clock = &mut self.controllers[c].clock;
        clock.watch_began(now);
        for (host, renewal) in &self.store.leases {
            clock.observe(&lease(host, renewal), true, now);
        }
        self.serial += 1;
        let nonce = format!("s{}", self.serial);
        self.say(|| format!("controller {c} connects and lists for session {nonce}"));
        self.controllers[c].measured = None;
        self.controllers[c].session = Some(CtlSession {
            world,
            nonce,
            begun: false,
            connection: self.store.connection,
            cursors: self.store.ends(),
            nonce_cursor: self.store.nonces.len(),
            jobs: Vec::new(),
            rested: false,
        });
    }

    fn begin(&mut self, c: usize) {
        let leads = self.leads(c);
        let Some(session) = &mut self.controllers[c].session else { return };
        if session.connection != self.store.connection || !self.store.up || !leads {
            self.end_session(c, "the connection broke before it began");
            return;
        }
        session.world.begin_session(&session.nonce);
        session.begun = true;
        self.store.nonce = Some(session.nonce.clone());
        self.store.nonces.push(session.nonce.clone());
        let nonce = session.nonce.clone();
        session.nonce_cursor = self.store.nonces.len();
        self.say(|| format!("controller {c} begins session {nonce}"));
    }

    pub fn end_session(&mut self, c: usize, why: &str) {
        if let Some(session) = self.controllers[c].session.take() {
            self.say(|| format!("controller {c}: session {} ends: {why}", session.nonce));
        }
    }

    /// Takes in changes of one kind.
    pub fn deliver(&mut self, c: usize) {
        let kind = KINDS[self.rng.below(KINDS.len())];
        let most = 1 + self.rng.below(6);
        self.deliver_kind(c, kind, most);
    }

    pub fn deliver_kind(&mut self, c: usize, kind: Kind, most: usize) {
        let Some(session) = &mut self.controllers[c].session else { return };
        if session.connection != self.store.connection || !self.store.up {
            return;
        }
        let cursor = &mut session.cursors[Store::slot(kind)];
        for change in self.store.since(kind, *cursor).iter().take(most) {
            *cursor += 1;
            match change.clone() {
                Change::Put(object) => object.put(&mut session.world),
                Change::Gone(key, _) => store::remove(&mut session.world, kind, &key),
            }
        }
    }

    /// Notices a broken connection, another's session, or lost leadership.
    pub fn notice(&mut self, c: usize) {
        let leads = self.leads(c);
        let survives = self.rules.session_survives;
        let Some(session) = &mut self.controllers[c].session else { return };
        if session.connection != self.store.connection {
            if survives && self.store.up {
                session.connection = self.store.connection;
                session.cursors = [0; KINDS.len()];
                return;
            }
            return self.end_session(c, "the connection broke");
        }
        let others = self
            .store
            .nonces
            .get(session.nonce_cursor..)
            .unwrap_or_default()
            .iter()
            .any(|n| *n != session.nonce);
        if others {
            return self.end_session(c, "another controller began a session");
        }
        if !leads {
            self.end_session(c, "it no longer leads");
        }
    }

    fn plan_something(&mut self, c: usize) {
        let Some(session) = &self.controllers[c].session else { return };
        let mut all = store::all(&session.world);
        // What people wait for comes more often than what only sums up.
        if self.rng.below(4) > 0 {
            all.retain(|o| {
                matches!(o, store::Object::Vm(_) | store::Object::Disk(_) | store::Object::Act(_))
            });
        }
        let Some(object) = self.rng.pick(&all).cloned() else { return };
        self.plan_one(c, &object);
    }

    /// Tells the world of signs of life; true if any of them has changed.
    pub fn measure(&mut self, c: usize) -> bool {
        let now = self.instant();
        let at = (self.ms, self.store.renewals);
        let ctl = &mut self.controllers[c];
        let Some(session) = &mut ctl.session else { return false };
        if ctl.measured.replace(at) == Some(at) {
            return false;
        }
        let mut moved = false;
        let hosts: Vec<String> = session.world.hosts().map(|(name, _)| name.clone()).collect();
        for host in hosts {
            let mut liveness = ctl.clock.of(&host, now);
            if self.rules.suspicion {
                // Mutation: what has not been heard for a while counts as dead.
                liveness.watched = true;
            }
            if session.world.liveness(&host) != Some(&liveness) {
                moved = true;
                session.world.set_liveness(&host, liveness);
            }
        }
        moved
    }

    /// Plans one object; true if that left something to do.
    pub fn plan_one(&mut self, c: usize, object: &store::Object) -> bool {
        self.measure(c);
        self.serial += 1;
        let fresh = format!("g{}", self.serial);
        let now = self.now();
        let lints = self.rules.lints;
        let Some(session) = &mut self.controllers[c].session else { return false };
        let item = (
            object.kind(),
            Key::new(
                object.meta().namespace.as_deref().unwrap_or_default(),
                object.meta().name.as_deref().unwrap_or_default(),
            ),
        );
        let Some(object) = store::get(&session.world, item.0, &item.1) else { return false };
        let object = &object;
        if session.jobs.iter().any(|job| job.item == item) {
            return false;
        }
        let plan = plan_object(&session.world, object, now, &fresh);
        self.counts.controller_plans += 1;
        if lints {
            let found = controller_plan::lint::lint(&session.world, &plan);
            if !found.is_empty() {
                let text = format!("controller's plan for {item:?} breaks a rule: {found:?}");
                self.violation("lint", text);
                return true;
            }
        }
        if plan.steps.is_empty() {
            return false;
        }
        let steps: VecDeque<Step> = plan.steps.into();
        reserve(&mut session.world, &steps, true);
        let names: Vec<_> = steps.iter().map(Step::name).collect();
        self.say(|| format!("controller {c} plans {} {}: {names:?}", item.0, item.1));
        if let Some(session) = &mut self.controllers[c].session {
            session.jobs.push(Job { item, steps, versions: Vec::new() });
        }
        true
    }

    /// Sends the next write of one plan.
    pub fn carry_on(&mut self, c: usize) {
        let leads = self.leads(c);
        let jobs = self.controllers[c].session.as_ref().map_or(0, |s| s.jobs.len());
        let at = self.rng.below(jobs);
        let Some(session) = &mut self.controllers[c].session else { return };
        if session.jobs.is_empty() {
            return;
        }
        let mut job = session.jobs.remove(at);
        if !leads {
            return self.end_session(c, "it no longer leads");
        }
        let nonce = session.nonce.clone();
        let Some(step) = job.next() else { return };
        let connection = session.connection;
        let flight = InFlight { controller: c, nonce, connection, step, job };
        let grants = matches!(flight.step, Step::SetPlacement { .. });
        let held = self.held == Some(flight.step.name());
        if held || (self.rng.one_in(if grants { 3 } else { 12 }) && !self.settling) {
            self.say(|| format!("a write of controller {c} ({}) is on its way", flight.step.name()));
            self.fault(Fault::SlowWrite);
            self.flights.push(flight);
        } else {
            self.arrive(flight);
        }
    }

    /// A write arrives at the API server, and its answer at the controller.
    pub fn arrive(&mut self, flight: InFlight) {
        let InFlight { controller: c, nonce, connection, step, mut job } = flight;
        let replay = self.rules.replay;
        let outcome = if !self.store.up || (connection != self.store.connection && !replay) {
            Err(Refused::Unreachable)
        } else {
            self.write(&step)
        };
        let name = step.name();
        let placement = matches!(step, Step::SetPlacement { .. });
        let lost = outcome.is_ok() && !self.settling && self.rng.one_in(40);
        match &outcome {
            Ok(_) => self.say(|| format!("controller {c}: {name} {} done", describe(&step))),
            Err(why) => self.say(|| format!("controller {c}: {name} failed: {why:?}")),
        }
        if lost {
            self.fault(Fault::LostAnswer);
        }
        if let Err(Refused::Stale(why)) = &outcome
            && why.contains("changed")
        {
            self.fault(Fault::Conflict);
        }
        if let Err(Refused::Invalid(why)) = &outcome {
            self.violation("admission", format!("the API server refuses {name}: {why}"));
        }
        let now = self.now();
        let Some(session) = self.controllers[c].session.as_mut().filter(|s| s.nonce == nonce) else { return };
        let outcome = if lost { Err(Refused::Unreachable) } else { outcome };
        match outcome {
            Ok(object) => {
                settle(&mut session.world, &step, object.as_ref(), now);
                if let Some(object) = object {
                    job.wrote(&object);
                }
                if !job.steps.is_empty() {
                    session.jobs.push(job);
                }
            }
            Err(why) => {
                let mut left = job.steps;
                left.push_front(step);
                reserve(&mut session.world, &left, false);
                if placement && why == Refused::Unreachable {
                    self.end_session(c, "the answer to a placement did not come");
                }
            }
        }
    }

    /// Applies a step of a controller's and notes what that means for the invariants.
    fn write(&mut self, step: &Step) -> Result<Option<store::Object>, Refused> {
        let object = step.object().cloned();
        let key = object.as_ref().map(|o| Key::new(o.namespace.as_deref().unwrap_or_default(), &o.name));
        let before = key.as_ref().and_then(|key| self.store.world.vm(key).cloned());
        let done = self.store.apply(step, self.now())?;
        self.counts.writes += 1;
        if let (Step::SetPlacement { status, .. }, Some(vm)) = (step, &before)
            && let Some(placement) = &status.placement
        {
            self.granted(vm, placement);
        }
        Ok(done)
    }

    /// Shows a renewal of a host's Lease to the controllers.
    pub fn show_lease(&mut self, host: &str) {
        let now = self.instant();
        let Some(renewal) = self.store.leases.get(host).cloned() else { return };
        for ctl in &mut self.controllers {
            let connected = ctl.session.as_ref().is_some_and(|s| s.connection == self.store.connection);
            if ctl.alive && !ctl.frozen && connected {
                ctl.clock.observe(&lease(host, &renewal), false, now);
            }
        }
    }
}

/// Takes in what a step left behind.
fn settle(world: &mut World, step: &Step, object: Option<&store::Object>, now: jiff::Timestamp) {
    match (object, step.object()) {
        (Some(object), _) => object.clone().put(world),
        (None, Some(of)) if matches!(step, Step::RemoveFinalizer { .. } | Step::DeleteAct { .. }) => {
            store::remove(world, of.kind, &Key::new(of.namespace.as_deref().unwrap_or_default(), &of.name));
        }
        _ => {}
    }
    match step {
        Step::SetPlacement { vm, status, .. } => {
            world.unreserve(&vm.uid);
            if let Some(placement) = &status.placement {
                world.note_granted(&placement.id);
            }
        }
        Step::SetHostStatus { host, .. } => world.note_summary_written(Kind::Host, &host.name, now),
        Step::SetClusterStatus { cluster, .. } => {
            world.note_summary_written(Kind::HostCluster, &cluster.name, now)
        }
        Step::EnsureHostAccess { host } => world.set_host_access(&host.name, true),
        _ => {}
    }
}

fn describe(step: &Step) -> String {
    match step {
        Step::SetPlacement { vm, status, .. } => {
            let grant = status.placement.as_ref().map(|p| {
                format!(
                    "{} number {} on {} ({}) because {:?}",
                    p.id,
                    p.epoch,
                    p.host,
                    p.incarnation,
                    p.evidence.iter().map(|e| (&e.grant_id, e.kind)).collect::<Vec<_>>()
                )
            });
            format!("{}/{} = {}", vm.name, vm.uid, grant.unwrap_or_default())
        }
        Step::SetDiskStatus { disk, status, .. } => format!(
            "{} claims {:?} remove {:?}",
            disk.name,
            status.attachments.iter().map(|a| a.vm_uid.as_str()).collect::<Vec<_>>(),
            status.remove
        ),
        step => step.object().map(|o| o.name.clone()).unwrap_or_default(),
    }
}

fn lease(host: &str, renewal: &store::Renewal) -> k8s_openapi::api::coordination::v1::Lease {
    use k8s_openapi::{
        api::coordination::v1::{Lease, LeaseSpec},
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    };
    Lease {
        metadata: ObjectMeta { name: Some(host.into()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(renewal.holder.clone()),
            renew_time: jiff::Timestamp::from_millisecond(renewal.time).ok().map(MicroTime),
            ..LeaseSpec::default()
        }),
    }
}
