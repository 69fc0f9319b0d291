//! A host in memory: guests that take a moment to boot, faults that are scripted. Its steps have the very effect their
//! doc comments state (`node_plan::effect`), so planner and daemon are tried without QEMU. The guests outlive the
//! daemon that drives them, as real ones do: for as long as this value lives or, if they are kept in a file, until that
//! is lost.

mod kept;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use node_plan::{
    effect,
    facts::{
        AgentState, DomainFact, DomainState, ExitKind, Facts, HostFiles, PausedReason, ProcessFact, TokenFact,
    },
    ledger::LedgerFact,
    orphan::Found,
    step::VmStep,
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use vireo_crds::v1alpha1::{Accelerator, Architecture, HostCpu, HostVersions};

use super::{
    Census, DomainEvent, HostDriver, HostEvent, HostFacts, HostSide, Lifecycle, Query, StepError, StoppedHow,
    Target, process::QemuProcess,
};
use crate::{error::RetryClass, step_names::step_name};

/// What a host in memory looks like.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    /// UUID of the machine.
    pub machine_uuid: String,
    /// Threads.
    pub cpus: i32,
    /// Bytes.
    pub memory: u64,
    /// Time from the start of a guest to its agent's first words.
    pub boot_time: Duration,
    /// Time a guest takes to shut down when asked.
    pub shutdown_time: Duration,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            machine_uuid: uuid::Uuid::new_v4().to_string(),
            cpus: 8,
            memory: 64 << 30,
            boot_time: Duration::from_millis(50),
            shutdown_time: Duration::from_millis(50),
        }
    }
}

/// A fault to come.
#[derive(Debug, Clone)]
struct Fault {
    step: &'static str,
    times: u32,
    class: RetryClass,
}

/// A guest in memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Guest {
    facts: Facts,
    pid: u32,
    starts: u32,
}

#[derive(Default)]
struct State {
    guests: BTreeMap<String, Guest>,
    tokens: BTreeMap<String, TokenFact>,
    foreign: Vec<String>,
    faults: Vec<Fault>,
    stuck: Vec<String>,
    down: bool,
    next_pid: u32,
    events: Option<UnboundedSender<HostEvent>>,
    without_tpm_source: bool,
    file: Option<PathBuf>,
}

/// A host in memory.
pub struct MemoryHost {
    config: MemoryConfig,
    /// Where guests boot and shut down: they go on when the daemon's own runtime ends.
    clockwork: Handle,
    state: Mutex<State>,
}

impl MemoryHost {
    /// A host without guests, whose time passes in this runtime.
    pub fn new(config: MemoryConfig, clockwork: Handle) -> Arc<Self> {
        Arc::new(Self { config, clockwork, state: Mutex::default() })
    }

    /// A host whose guests are kept in this file: they survive the process, and go on where they stood.
    pub fn open(config: MemoryConfig, clockwork: Handle, file: PathBuf) -> io::Result<Arc<Self>> {
        let state = kept::read(&file)?;
        let host =
            Arc::new(Self { config, clockwork, state: Mutex::new(State { file: Some(file), ..state }) });
        let under_way: Vec<(String, u32, bool)> = {
            let state = host.lock();
            let live = state.guests.iter().filter(|(_, guest)| guest.facts.live().is_some());
            live.map(|(uuid, guest)| (uuid.clone(), guest.pid, guest.facts.shutdown_asked.is_some()))
                .collect()
        };
        for (uuid, pid, shuts_down) in under_way {
            host.boot(&uuid, pid);
            if shuts_down {
                host.shut_down(&uuid, pid);
            }
        }
        Ok(host)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: HostEvent) {
        if let Some(events) = &self.lock().events {
            let _ = events.send(event);
        }
    }

    fn tell(&self, uuid: &str, event: DomainEvent) {
        if !self.lock().down {
            self.send(HostEvent::Domain { uuid: uuid.into(), event });
        }
    }

    /// The guest of this domain UUID ends in this way.
    pub fn end(&self, uuid: &str, how: ExitKind) {
        let mut state = self.lock();
        let Some(guest) = state.guests.get_mut(uuid) else { return };
        effect::end(&mut guest.facts, how, Timestamp::now());
        kept::save(&state);
        drop(state);
        let how = match how {
            ExitKind::Shutdown | ExitKind::PoweredOff | ExitKind::Reset => StoppedHow::Shutdown,
            ExitKind::Destroyed => StoppedHow::Destroyed,
            ExitKind::Crashed => StoppedHow::Crashed,
            ExitKind::Failed => StoppedHow::Failed,
        };
        self.tell(uuid, DomainEvent::Lifecycle(Lifecycle::Stopped(how)));
    }

    /// A disk of the guest fails: it is paused.
    pub fn fail_disk(&self, uuid: &str) {
        if let Some(Guest { facts: Facts { domain: DomainFact::Present(live), .. }, .. }) =
            self.lock().guests.get_mut(uuid)
        {
            live.state = DomainState::Paused(PausedReason::IoError);
        }
        self.tell(uuid, DomainEvent::Lifecycle(Lifecycle::Suspended));
    }

    /// The hypervisor stops answering, or answers again. Guests go on.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        self.send(if down {
            HostEvent::ConnectionClosed { generation: 0, reason: "the test says so" }
        } else {
            HostEvent::Connected
        });
    }

    /// Power is cut: every guest is gone at once, and nobody is told.
    pub fn cut_power(&self) {
        let mut state = self.lock();
        state.guests.clear();
        state.events = None;
    }

    /// The next `times` runs of a step fail with this class.
    pub fn fail_step(&self, step: &'static str, times: u32, class: RetryClass) {
        self.lock().faults.push(Fault { step, times, class });
    }

    /// Every step on this domain hangs for ever, or no longer.
    pub fn set_stuck(&self, uuid: &str, stuck: bool) {
        let mut state = self.lock();
        state.stuck.retain(|other| other != uuid);
        if stuck {
            state.stuck.push(uuid.into());
        }
    }

    /// Domains of somebody else.
    pub fn set_foreign(&self, names: Vec<String>) {
        self.lock().foreign = names;
    }

    /// Process ids of running guests by domain UUID: unchanged as long as nothing was restarted.
    pub fn pids(&self) -> BTreeMap<String, u32> {
        let state = self.lock();
        let running = state.guests.iter().filter(|(_, guest)| guest.facts.live().is_some());
        running.map(|(uuid, guest)| (uuid.clone(), guest.pid)).collect()
    }

    /// How often the guest of this domain UUID was started.
    pub fn starts(&self, uuid: &str) -> u32 {
        self.lock().guests.get(uuid).map_or(0, |guest| guest.starts)
    }

    fn side(&self, query: &Query) -> HostSide {
        let state = self.lock();
        let guest = state.guests.get(&query.uuid).map(|guest| guest.facts.clone());
        let tokens = query
            .tokens
            .iter()
            .map(|path| (path.clone(), state.tokens.get(path).cloned().unwrap_or(TokenFact::None)))
            .collect();
        let facts = guest.unwrap_or_else(blank);
        HostSide {
            domain: if state.down {
                DomainFact::Unknown { why: "the hypervisor is down".into() }
            } else {
                facts.domain
            },
            process: facts.process,
            exit: facts.exit,
            files: facts.files,
            tokens,
            guest: facts.guest,
            addresses: facts.addresses,
        }
    }

    async fn carry_out(&self, target: &Target, step: &VmStep) -> Result<(), StepError> {
        let name = step_name(step);
        if self.lock().stuck.contains(&target.uuid) {
            std::future::pending::<()>().await;
        }
        self.may_fail(name)?;
        match step {
            VmStep::WriteDiskToken { path, token, replaces: _ } => {
                self.lock().tokens.insert(path.clone(), TokenFact::Present(token.clone()));
            }
            VmStep::RemoveDiskToken { path, token } => {
                let mut state = self.lock();
                if state.tokens.get(path) == Some(&TokenFact::Present(token.clone())) {
                    state.tokens.remove(path);
                }
            }
            step => self.apply(target, step)?,
        }
        kept::save(&self.lock());
        self.follow(target, step);
        Ok(())
    }

    fn may_fail(&self, name: &'static str) -> Result<(), StepError> {
        let mut state = self.lock();
        if state.down {
            let error = StepError::new(RetryClass::WaitFor, "the hypervisor is down");
            return Err(StepError { unanswered: true, ..error });
        }
        let fault = state.faults.iter_mut().find(|fault| fault.step == name && fault.times > 0);
        let Some(fault) = fault else { return Ok(()) };
        fault.times -= 1;
        Err(StepError::new(fault.class, format!("{name} fails because the test says so")))
    }

    fn apply(&self, target: &Target, step: &VmStep) -> Result<(), StepError> {
        let mut state = self.lock();
        let next_pid = state.next_pid + 1;
        let guest = state.guests.entry(target.uuid.clone()).or_insert_with(|| Guest {
            facts: blank(),
            pid: 0,
            starts: 0,
        });
        let ran = guest.facts.live().is_some();
        if let (VmStep::Destroy { grant }, Some(metadata)) =
            (step, guest.facts.live().and_then(|live| live.metadata.as_ref()))
            && metadata.grant.id != grant.id
        {
            return Err(StepError::new(RetryClass::Rejected, "the domain runs under another grant"));
        }
        effect::apply(step, &mut guest.facts, Timestamp::now());
        if !ran && guest.facts.live().is_some() {
            guest.pid = 1000 + next_pid;
            guest.starts += 1;
            guest.facts.process = ProcessFact::Present { pids: vec![guest.pid] };
            state.next_pid = next_pid;
        }
        Ok(())
    }

    /// What a real host would say of a step by itself, now or later.
    fn follow(&self, target: &Target, step: &VmStep) {
        match step {
            VmStep::StartDomain { .. } => self.tell(&target.uuid, DomainEvent::Lifecycle(Lifecycle::Started)),
            VmStep::Destroy { .. } => {
                self.tell(&target.uuid, DomainEvent::Lifecycle(Lifecycle::Stopped(StoppedHow::Destroyed)))
            }
            VmStep::Pause => self.tell(&target.uuid, DomainEvent::Lifecycle(Lifecycle::Suspended)),
            VmStep::Resume => self.tell(&target.uuid, DomainEvent::Lifecycle(Lifecycle::Resumed)),
            _ => {}
        }
    }

    /// The guest has booted: its agent speaks, its interfaces have addresses.
    fn booted(&self, uuid: &str, pid: u32) {
        let mut state = self.lock();
        let Some(guest) = state.guests.get_mut(uuid).filter(|guest| guest.pid == pid) else { return };
        let DomainFact::Present(live) = &mut guest.facts.domain else { return };
        if live.agent == AgentState::Disconnected {
            live.agent = AgentState::Connected;
        }
        let addresses = live
            .nics
            .iter()
            .enumerate()
            .map(|(index, nic)| (nic.mac.clone(), vec![format!("10.0.{}.{}", pid % 250, index + 2)]))
            .collect();
        guest.facts.addresses = addresses;
        kept::save(&state);
        drop(state);
        self.tell(uuid, DomainEvent::GuestChanged);
    }

    /// The guest of this process has booted after its time.
    fn boot(self: &Arc<Self>, uuid: &str, pid: u32) {
        let (host, uuid) = (Arc::clone(self), uuid.to_owned());
        self.clockwork.spawn(async move {
            tokio::time::sleep(host.config.boot_time).await;
            host.booted(&uuid, pid);
        });
    }

    /// The guest of this process has shut down after its time.
    fn shut_down(self: &Arc<Self>, uuid: &str, pid: u32) {
        let (host, uuid) = (Arc::clone(self), uuid.to_owned());
        self.clockwork.spawn(async move {
            tokio::time::sleep(host.config.shutdown_time).await;
            if host.pid(&uuid) == Some(pid) {
                host.end(&uuid, ExitKind::PoweredOff);
            }
        });
    }

    fn pid(&self, uuid: &str) -> Option<u32> {
        self.lock().guests.get(uuid).filter(|guest| guest.facts.live().is_some()).map(|guest| guest.pid)
    }
}

fn blank() -> Facts {
    Facts {
        host: String::new(),
        incarnation: String::new(),
        ledger: LedgerFact::None,
        domain: DomainFact::Absent { defined: false },
        process: ProcessFact::None,
        exit: None,
        start_failure: None,
        shutdown_asked: None,
        resume_attempts: None,
        files: HostFiles::default(),
        tokens: BTreeMap::new(),
        guest: None,
        addresses: BTreeMap::new(),
    }
}

/// Drives a [`MemoryHost`] that is shared with whoever scripts it.
#[derive(Clone)]
pub struct MemoryDriver(pub Arc<MemoryHost>);

impl HostDriver for MemoryDriver {
    fn facts(&self, query: Query) -> BoxFuture<'_, HostSide> {
        async move { self.0.side(&query) }.boxed()
    }

    fn run<'a>(&'a self, vm: &'a Target, step: &'a VmStep) -> BoxFuture<'a, Result<(), StepError>> {
        async move {
            self.0.carry_out(vm, step).await?;
            match (step, self.0.pid(&vm.uuid)) {
                (VmStep::StartDomain { .. }, Some(pid)) => self.0.boot(&vm.uuid, pid),
                (VmStep::RequestShutdown { .. }, Some(pid)) => self.0.shut_down(&vm.uuid, pid),
                _ => {}
            }
            Ok(())
        }
        .boxed()
    }

    fn census(&self) -> BoxFuture<'_, Result<Census, StepError>> {
        async move {
            let state = self.0.lock();
            if state.down {
                return Err(StepError::new(RetryClass::WaitFor, "the hypervisor is down"));
            }
            let live =
                state.guests.iter().filter_map(|(uuid, guest)| Some((uuid, guest.pid, guest.facts.live()?)));
            let mut census = Census::default();
            for (uuid, pid, live) in live {
                census.found.push(Found {
                    name: live.name.clone(),
                    uuid: uuid.clone(),
                    metadata: live.metadata.clone(),
                    unreadable: false,
                });
                census.processes.push(QemuProcess { pid, uuid: uuid.clone() });
            }
            let foreign = |name: &String| Found {
                name: name.clone(),
                uuid: String::new(),
                metadata: None,
                unreadable: false,
            };
            census.found.extend(state.foreign.iter().map(foreign));
            Ok(census)
        }
        .boxed()
    }

    fn describe(&self) -> BoxFuture<'_, Result<HostFacts, StepError>> {
        async move {
            let config = &self.0.config;
            Ok(HostFacts {
                machine_uuid: config.machine_uuid.clone(),
                versions: HostVersions {
                    libvirt: "0.0.0".into(),
                    qemu: "0.0.0".into(),
                    kernel: "memory".into(),
                },
                accelerator: Accelerator::Tcg,
                cpu: HostCpu {
                    architecture: Architecture::x86_64,
                    model: Some("qemu64".into()),
                    usable_models: vec!["qemu64".into()],
                    sockets: 1,
                    cores: config.cpus,
                    threads: 1,
                    numa_cells: 1,
                },
                memory: config.memory,
                tpm_source: !self.0.lock().without_tpm_source,
            })
        }
        .boxed()
    }

    fn forget<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn is_up(&self) -> bool {
        !self.0.lock().down
    }

    fn take_events(&self) -> Option<UnboundedReceiver<HostEvent>> {
        let (sender, receiver) = unbounded_channel();
        let mut state = self.0.lock();
        if !state.down {
            let _ = sender.send(HostEvent::Connected);
        }
        state.events = Some(sender);
        Some(receiver)
    }
}
