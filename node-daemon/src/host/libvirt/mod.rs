//! The host as libvirt and this machine's file systems have it.

pub mod connection;
mod device;
pub mod error;
pub mod events;
mod exits;
mod files;
mod guests;
mod machine;
mod read;
mod run;
pub mod state_home;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use node_plan::{
    facts::{AgentState, DomainFact, ProcessFact},
    step::VmStep,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use self::{
    connection::{Connections, Lane, spawn},
    error::LibvirtError,
    exits::Exits,
    files::HostPaths,
    guests::Guests,
};
use super::{Census, HostDriver, HostEvent, HostFacts, HostSide, Query, StepError, Target, probe, process};
use crate::error::RetryClass;

/// Longest wait for an answer that libvirt gives from its own memory.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for what lies on storage before it counts as unknown.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where things are on this host.
#[derive(Debug, Clone)]
pub struct LibvirtConfig {
    /// libvirt URI.
    pub uri: String,
    /// The daemon's run directory.
    pub run_dir: PathBuf,
    /// The daemon's state directory.
    pub state_dir: PathBuf,
    /// Where libvirt keeps QEMU's logs.
    pub log_dir: PathBuf,
    /// Where libvirt keeps TPM state unless it is told otherwise.
    pub tpm_dir: PathBuf,
    /// qemu-img.
    pub qemu_img: PathBuf,
}

/// The host by way of libvirt.
pub struct LibvirtHost {
    config: LibvirtConfig,
    connections: Arc<Connections>,
    exits: Arc<Exits>,
    guests: Arc<Guests>,
    paths: HostPaths,
    events: Mutex<Option<UnboundedReceiver<HostEvent>>>,
}

impl LibvirtHost {
    /// Starts connecting, and goes on connecting for ever.
    pub fn start(config: LibvirtConfig) -> Result<Arc<Self>, LibvirtError> {
        events::start_event_loop().map_err(LibvirtError::NoThread)?;
        let (from_libvirt, raw) = unbounded_channel();
        let (to_daemon, events) = unbounded_channel();
        let connections = Connections::new(config.uri.clone(), from_libvirt.clone());
        let this = Arc::new(Self {
            exits: Arc::new(Exits::new(&config.log_dir)),
            guests: Arc::new(Guests::new(Arc::clone(&connections), from_libvirt)),
            paths: HostPaths::new(&config),
            connections,
            config,
            events: Mutex::new(Some(events)),
        });
        tokio::spawn(Arc::clone(&this).forward(raw, to_daemon));
        let connections = Arc::clone(&this.connections);
        tokio::spawn(async move { connections.reopen().await });
        Ok(this)
    }

    /// Passes events on after taking from them what is remembered here; reopens a lost connection.
    async fn forward(
        self: Arc<Self>,
        mut raw: UnboundedReceiver<HostEvent>,
        to_daemon: UnboundedSender<HostEvent>,
    ) {
        while let Some(event) = raw.recv().await {
            match &event {
                HostEvent::Connected => tracing::info!(uri = %self.config.uri, "libvirt answers"),
                HostEvent::ConnectionClosed { generation, reason } => {
                    if !self.connections.close_generation(*generation) {
                        continue;
                    }
                    tracing::warn!(reason, "the connection to libvirt is lost; guests go on");
                    let connections = Arc::clone(&self.connections);
                    tokio::spawn(async move { connections.reopen().await });
                }
                HostEvent::Domain { uuid, event } => {
                    self.exits.note(uuid, event, Timestamp::now());
                    if matches!(event, super::DomainEvent::Agent { .. } | super::DomainEvent::Reboot) {
                        self.guests.ask(uuid);
                    }
                }
            }
            if to_daemon.send(event).is_err() {
                return;
            }
        }
    }

    async fn domain(&self, query: &Query) -> DomainFact {
        let (vm, uuid) = (query.vm.clone(), query.uuid.clone());
        let call =
            self.connections.call(Lane::Queries, "read-domain", move |conn| read::domain(conn, &vm, &uuid));
        match tokio::time::timeout(QUERY_TIMEOUT, call).await {
            Ok(Ok(fact)) => fact,
            Ok(Err(error)) => DomainFact::Unknown { why: error.to_string() },
            Err(_) => DomainFact::Unknown { why: format!("no answer within {} s", QUERY_TIMEOUT.as_secs()) },
        }
    }

    async fn side(&self, query: Query) -> HostSide {
        let domain = self.domain(&query).await;
        let (exits, uuid, name) = (Arc::clone(&self.exits), query.uuid.clone(), query.vm.domain_name());
        let absent = matches!(domain, DomainFact::Absent { .. });
        let local = spawn("read-process", move || {
            (process::qemu_process(&uuid), if absent { exits.of(&uuid, &name) } else { None })
        })
        .await;
        let (process, exit) = match local {
            Ok((Ok(Some(pid)), exit)) => (ProcessFact::Present { pids: vec![pid] }, exit),
            Ok((Ok(None), exit)) => (ProcessFact::None, exit),
            Ok((Err(error), exit)) => (ProcessFact::Unknown { why: error.to_string() }, exit),
            Err(error) => (ProcessFact::Unknown { why: error.to_string() }, None),
        };
        let (files, tokens) = self.paths.read(&query, STORAGE_TIMEOUT).await;
        let told = match &domain {
            DomainFact::Present(live) => self.guests.told(
                &live.uuid,
                live.agent == AgentState::Connected,
                self.paths.console_log(&query.vm.uid),
            ),
            DomainFact::Absent { .. } => {
                self.guests.forget(&query.uuid);
                guests::Told::default()
            }
            DomainFact::Unknown { .. } => guests::Told::default(),
        };
        HostSide { domain, process, exit, files, tokens, guest: told.guest, addresses: told.addresses }
    }

    async fn carry_out(&self, target: &Target, step: &VmStep) -> Result<(), StepError> {
        match step {
            VmStep::StartDomain { metadata, machine, hardware, seed, tpm_dir } => {
                self.exits.forget(&machine.uuid);
                let (metadata, machine, hardware) = (metadata.clone(), machine.clone(), hardware.clone());
                let (seed, tpm_dir) = (seed.clone(), tpm_dir.clone());
                let console_log = machine.serial_console.then(|| self.paths.console_log(&target.vm.uid));
                let libvirt_tpm = self.config.tpm_dir.display().to_string();
                let create = move |conn: &virt::connect::Connect| {
                    let start = run::Start {
                        metadata: &metadata,
                        machine: &machine,
                        hardware: hardware.as_ref(),
                        seed: seed.as_deref(),
                        tpm_dir: tpm_dir.as_deref(),
                        console_log,
                    };
                    Ok(run::start(conn, &start, &libvirt_tpm))
                };
                self.connections.call(Lane::Jobs, "start-domain", create).await?
            }
            VmStep::RequestShutdown { .. }
            | VmStep::Destroy { .. }
            | VmStep::Reset
            | VmStep::InjectNmi
            | VmStep::Pause
            | VmStep::Resume
            | VmStep::SetLink { .. }
            | VmStep::SetMedia { .. }
            | VmStep::SetNetwork { .. }
            | VmStep::EndWithGuest
            | VmStep::SetOnReboot { .. }
            | VmStep::WriteMetadata { .. }
            | VmStep::Undefine { .. } => {
                let (target, step) = (target.clone(), step.clone());
                let act = move |conn: &virt::connect::Connect| Ok(run::on_domain(conn, &target, &step));
                self.connections.call(Lane::Jobs, "domain-step", act).await?
            }
            VmStep::WriteLedger { .. } => {
                Err(StepError::new(RetryClass::Bug, "the ledger is not the host's"))
            }
            VmStep::WritePermit { .. }
            | VmStep::RemovePermit { .. }
            | VmStep::WriteDiskToken { .. }
            | VmStep::RemoveDiskToken { .. }
            | VmStep::MakeSeed { .. }
            | VmStep::RemoveSeed
            | VmStep::MakeOverlay { .. }
            | VmStep::RemoveOverlay { .. }
            | VmStep::EnsureStateDir { .. }
            | VmStep::CopyTpmIn { .. }
            | VmStep::CopyTpmOut { .. }
            | VmStep::KeepHardware { .. }
            | VmStep::RemoveStateDir { .. }
            | VmStep::FlushDisks { .. } => self.paths.run(target, step).await,
        }
    }

    async fn count(&self) -> Result<Census, StepError> {
        let found = self.connections.call(Lane::Queries, "census", read::census).await?;
        let processes = spawn("census", process::qemu_processes).await?;
        let processes = processes.map_err(|error| {
            StepError::new(RetryClass::Transient, format!("the process table cannot be read: {error}"))
        })?;
        Ok(Census { found, processes })
    }
}

impl HostDriver for LibvirtHost {
    fn facts(&self, query: Query) -> BoxFuture<'_, HostSide> {
        self.side(query).boxed()
    }

    fn run<'a>(&'a self, vm: &'a Target, step: &'a VmStep) -> BoxFuture<'a, Result<(), StepError>> {
        self.carry_out(vm, step).boxed()
    }

    fn census(&self) -> BoxFuture<'_, Result<Census, StepError>> {
        self.count().boxed()
    }

    fn describe(&self) -> BoxFuture<'_, Result<HostFacts, StepError>> {
        async move {
            let accelerator = probe::accelerator(&self.config.run_dir).await;
            let describe = move |conn: &virt::connect::Connect| machine::describe(conn, accelerator);
            Ok(self.connections.call(Lane::Queries, "describe", describe).await?)
        }
        .boxed()
    }

    fn forget<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, ()> {
        async move {
            let log = self.paths.console_log(vm_uid);
            if let Err(error) = tokio::fs::remove_file(&log).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(%error, path = %log.display(), "the record of a console was not removed");
            }
        }
        .boxed()
    }

    fn is_up(&self) -> bool {
        self.connections.is_open()
    }

    fn take_events(&self) -> Option<UnboundedReceiver<HostEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
