//! Decides what a VM's status says, from what is observed and from nothing else: a step that is only planned has not
//! happened yet. Never Ready before the guest is as wanted; a guest that is down on purpose is as wanted.

mod conditions;

use conditions::conditions;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vireo_crds::{
    power::{stays_down, wants_new_grant},
    reasons,
    units::human_bytes,
    v1alpha1::{
        ConsoleStatus, Grant, GrantRef, Holding, InterfaceStatus, PauseCause, Power, RunStrategy, Runtime,
        StopCause, VmState, VmSummary,
    },
};

use crate::{
    facts::{DomainState, Facts, LiveDomain, PausedReason},
    intent::{Intent, Wait},
    ledger::{Entry, PausedBy, StopBy},
    step::{Plan, VmReport},
    vm::{backoff, diff::Sorted, exit, state::Standing},
};

/// Everything a VM's status is made from.
pub struct Scene<'a> {
    /// What is wanted.
    pub intent: &'a Intent,
    /// What is there.
    pub facts: &'a Facts,
    /// The ledger entry as it is.
    pub entry: &'a Entry,
    /// Where the VM stands.
    pub standing: &'a Standing<'a>,
    /// Differences between the running guest and its spec.
    pub sorted: Option<&'a Sorted>,
    /// Waits and refusals.
    pub plan: &'a Plan,
    /// Now.
    pub now: Timestamp,
}

/// What people are told: state, whether all is well, and why not.
struct Verdict {
    state: VmState,
    power: Power,
    reason: &'static str,
    message: String,
    ready: Health,
    passing: bool,
}

/// How the VM is, in kstatus' terms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    /// As wanted.
    Ready,
    /// Being worked on.
    Reconciling,
    /// Somebody must act.
    Stalled,
    /// Cannot be said.
    Unknown,
}

/// The daemon's part of the status.
pub fn report(scene: &Scene<'_>) -> VmReport {
    let verdict = verdict(scene);
    let runtime = runtime(scene, &verdict);
    let summary = summary(scene, &runtime.interfaces);
    let hardware =
        live(scene).and_then(|live| live.hardware.clone()).or_else(|| scene.intent.hardware.clone());
    VmReport {
        hardware,
        conditions: conditions(scene, &verdict, &runtime.pending_changes),
        state: verdict.state,
        summary,
        observed_generation: scene.intent.accepted_generation.min(scene.intent.generation),
        passing: verdict.passing,
        runtime: Some(runtime),
    }
}

fn live<'a>(scene: &Scene<'a>) -> Option<&'a LiveDomain> {
    match scene.standing {
        Standing::Up { live, .. } | Standing::Stray { live, .. } | Standing::Clash { live, .. } => Some(live),
        Standing::Locked(_) | Standing::Unknown(_) | Standing::Blocked(_) | Standing::Down => None,
    }
}

fn verdict(scene: &Scene<'_>) -> Verdict {
    match scene.standing {
        Standing::Locked(why) => Verdict {
            state: VmState::Unknown,
            power: Power::Unknown,
            reason: reasons::LEDGER_UNREADABLE,
            message: format!("nothing is started or touched: {why}"),
            ready: Health::Stalled,
            passing: false,
        },
        Standing::Unknown(why) => Verdict {
            state: VmState::Unknown,
            power: Power::Unknown,
            reason: reasons::HYPERVISOR_DOWN,
            message: why.clone(),
            ready: Health::Unknown,
            passing: true,
        },
        Standing::Blocked(why) => Verdict {
            state: VmState::Stopped,
            power: Power::Off,
            reason: reasons::DOMAIN_NAME_TAKEN,
            message: why.clone(),
            ready: Health::Stalled,
            passing: false,
        },
        Standing::Clash { why, .. } => clash(why.clone()),
        Standing::Up { grant, .. } | Standing::Stray { grant, .. } if *grant != scene.intent.grant => clash(
            scene
                .plan
                .waits
                .iter()
                .find(|wait| wait.reason == reasons::GRANT_CLASH)
                .map(|wait| wait.message.clone())
                .unwrap_or_default(),
        ),
        Standing::Up { live, .. } | Standing::Stray { live, .. } => up(scene, live),
        Standing::Down => down(scene),
    }
}

fn clash(message: String) -> Verdict {
    Verdict {
        state: VmState::Running,
        power: Power::On,
        reason: reasons::GRANT_CLASH,
        message,
        ready: Health::Stalled,
        passing: false,
    }
}

fn up(scene: &Scene<'_>, live: &LiveDomain) -> Verdict {
    let is = |state, power, reason, message: &str, ready| Verdict {
        state,
        power,
        reason,
        message: message.into(),
        ready,
        passing: false,
    };
    let power = &scene.entry.power;
    if live.state == DomainState::ShuttingDown {
        return is(
            VmState::Stopping,
            Power::Stopping,
            reasons::STOPPING,
            "the guest is shutting down",
            Health::Reconciling,
        );
    }
    if let Some(stopping) = &power.stopping {
        match stopping.by {
            StopBy::Spec | StopBy::Stop { .. } => {
                return is(
                    VmState::Stopping,
                    Power::Stopping,
                    reasons::STOPPING,
                    &stopping_message(scene),
                    Health::Reconciling,
                );
            }
            StopBy::Restart { .. } => {
                return is(
                    VmState::Stopping,
                    Power::Stopping,
                    reasons::RESTARTING,
                    &stopping_message(scene),
                    Health::Reconciling,
                );
            }
            StopBy::Withdrawn => {}
        }
    }
    match (live.state, power.paused_by) {
        (DomainState::Running, _) => running(scene),
        (DomainState::Paused(PausedReason::IoError), _) => is(
            VmState::Paused,
            Power::Paused,
            reasons::PAUSED_IO_ERROR,
            &io_message(scene),
            Health::Reconciling,
        ),
        (DomainState::Paused(PausedReason::Transient) | DomainState::Other, _) => Verdict {
            passing: true,
            ..is(
                VmState::Starting,
                Power::Starting,
                reasons::STARTING,
                "the guest is being started",
                Health::Reconciling,
            )
        },
        (DomainState::Paused(_), Some(PausedBy::Act)) => is(
            VmState::Paused,
            Power::Paused,
            reasons::PAUSED_BY_ACTION,
            "paused by an act; resume it with a VirtualMachineAction resume",
            Health::Stalled,
        ),
        (DomainState::Paused(_), Some(PausedBy::Superseded)) => is(
            VmState::Paused,
            Power::Paused,
            reasons::SUPERSEDED,
            "paused because another host held a newer grant; being resumed",
            Health::Reconciling,
        ),
        (DomainState::Paused(PausedReason::Watchdog), None) => is(
            VmState::Paused,
            Power::Paused,
            reasons::PAUSED_OUTSIDE,
            "its watchdog paused it; resume or reset it with a VirtualMachineAction",
            Health::Stalled,
        ),
        (DomainState::Paused(_), None) => {
            let message =
                "somebody paused it with libvirt's tools; resume it with a VirtualMachineAction resume";
            is(VmState::Paused, Power::Paused, reasons::PAUSED_OUTSIDE, message, Health::Stalled)
        }
        (DomainState::Suspended, _) => is(
            VmState::Paused,
            Power::Paused,
            reasons::PAUSED_OUTSIDE,
            "the guest has suspended itself to memory (S3)",
            Health::Stalled,
        ),
        (DomainState::ShuttingDown, _) => is(
            VmState::Stopping,
            Power::Stopping,
            reasons::STOPPING,
            "the guest is shutting down",
            Health::Reconciling,
        ),
    }
}

/// A guest that runs although it is to be down is not as wanted, even before the stop has begun; and one that the
/// ledger has not noted yet is not yet told of.
fn running(scene: &Scene<'_>) -> Verdict {
    let is = |state, reason, message: &str, ready| Verdict {
        state,
        power: Power::On,
        reason,
        message: message.into(),
        ready,
        passing: ready == Health::Reconciling,
    };
    if is_to_be_down(scene) {
        is(
            VmState::Stopping,
            reasons::STOPPING,
            "the guest is about to be asked to shut down",
            Health::Reconciling,
        )
    } else if scene.entry.power.up_since.is_none() {
        is(VmState::Starting, reasons::STARTING, "the guest is up", Health::Reconciling)
    } else {
        is(VmState::Running, reasons::RUNNING, "", Health::Ready)
    }
}

fn is_to_be_down(scene: &Scene<'_>) -> bool {
    scene.intent.deleting
        || (scene.intent.is_accepted() && scene.intent.policy.run_strategy == RunStrategy::Halted)
}

fn stopping_message(scene: &Scene<'_>) -> String {
    let grace = scene.intent.policy.grace_period_seconds;
    format!("asked the guest to shut down; its power is cut {grace} s after that (spec.gracePeriodSeconds)")
}

fn io_message(scene: &Scene<'_>) -> String {
    if scene.intent.storage_ready {
        "a disk reported an error; the guest is resumed as soon as the disk works again".into()
    } else {
        "a disk reported an error and its storage domain is not ready on this host; the guest is resumed when it is".into()
    }
}

fn down(scene: &Scene<'_>) -> Verdict {
    let (intent, entry) = (scene.intent, scene.entry);
    if entry.is_released(&intent.grant) {
        return released(scene);
    }
    // What is waited for is often only on its way here: a Disk that is being looked up, a claim the watch has yet to
    // bring. It is told of if it lasts longer than a moment.
    let waiting = |wait: &Wait, state, ready| Verdict {
        state,
        power: Power::Off,
        reason: known_reason(&wait.reason),
        message: wait.message.clone(),
        ready,
        passing: ready == Health::Reconciling,
    };
    if intent.grant.incarnation != scene.facts.incarnation {
        return host_lost(scene);
    }
    if let Some(fault) = scene.plan.refusals.first() {
        return Verdict {
            state: VmState::Stopped,
            power: Power::Off,
            reason: reasons::REFUSED,
            message: fault.to_string(),
            ready: Health::Stalled,
            passing: false,
        };
    }
    let crashing = entry.open() == Some(&intent.grant)
        && entry.power.crashes >= backoff::CRASH_LOOP
        && entry.power.last_stop.is_some();
    if crashing {
        let last = entry.power.last_stop.as_ref().and_then(|stop| stop.message.clone()).unwrap_or_default();
        let next = entry
            .power
            .retry_at
            .filter(|at| *at > scene.now)
            .map(|at| format!("; next start at {at:.0}"))
            .unwrap_or_default();
        let message = format!("{} crashes in a row, the last: {last}{next}", entry.power.crashes);
        return Verdict {
            state: VmState::CrashLoop,
            power: Power::Off,
            reason: reasons::CRASH_LOOP,
            message,
            ready: Health::Reconciling,
            passing: false,
        };
    }
    if let Some(wait) = scene.plan.waits.first() {
        let state = if wait.reason == reasons::GRANT_REFUSED { VmState::Stopped } else { VmState::Starting };
        let ready = if wait.reason == reasons::GRANT_REFUSED { Health::Stalled } else { Health::Reconciling };
        let mut verdict = waiting(wait, state, ready);
        if let Some(stop) = entry.power.last_stop.as_ref().and_then(|stop| stop.message.as_ref()) {
            verdict.message = format!("{stop}; {}", verdict.message);
        }
        return verdict;
    }
    if is_to_be_down(scene) || is_to_be_released(scene) {
        let message = "the guest is down; its grant is being released".to_owned();
        return Verdict {
            state: VmState::Stopping,
            power: Power::Off,
            reason: reasons::STOPPING,
            message,
            ready: Health::Reconciling,
            passing: true,
        };
    }
    let message = "the guest is being started".to_owned();
    Verdict {
        state: VmState::Starting,
        power: Power::Starting,
        reason: reasons::STARTING,
        message,
        ready: Health::Reconciling,
        passing: true,
    }
}

/// The guest went down under its open grant for a cause that ends it.
fn is_to_be_released(scene: &Scene<'_>) -> bool {
    let entry = scene.entry;
    if entry.open() != Some(&scene.intent.grant) {
        return false;
    }
    let cause = match exit::unrecorded(entry, scene.facts) {
        Some(ending) => ending.cause,
        None => entry.power.last_stop.as_ref().and_then(|stop| stop.cause),
    };
    scene.intent.is_accepted()
        && cause.is_some_and(|cause| stays_down(scene.intent.policy.run_strategy, cause))
}

fn released(scene: &Scene<'_>) -> Verdict {
    let stop = scene.entry.power.last_stop.as_ref();
    let cause = stop.and_then(|stop| stop.cause);
    let why = stop.and_then(|stop| stop.message.clone()).unwrap_or_else(|| "it is not running".into());
    // A strategy the controller has not accepted yet says nothing about whether this is as wanted.
    let again = scene.intent.is_accepted() && wants_new_grant(scene.intent.policy.run_strategy, cause, false);
    let (ready, message) = if scene.intent.deleting {
        (Health::Reconciling, "released; waiting for the controller to finish the deletion".to_owned())
    } else if again {
        (Health::Reconciling, format!("{why}; waiting for the controller to place it again"))
    } else {
        (Health::Ready, why)
    };
    Verdict {
        state: VmState::Stopped,
        power: Power::Off,
        reason: reasons::STOPPED,
        message,
        ready,
        passing: false,
    }
}

fn host_lost(scene: &Scene<'_>) -> Verdict {
    let again = wants_new_grant(scene.intent.policy.run_strategy, Some(StopCause::HostLost), false)
        && !scene.intent.deleting;
    let ready = if again || scene.intent.deleting { Health::Reconciling } else { Health::Ready };
    let message = format!("went down with host {}, which has started anew since", scene.facts.host);
    Verdict {
        state: VmState::Stopped,
        power: Power::Off,
        reason: reasons::HOST_RESTARTED,
        message,
        ready,
        passing: again,
    }
}

/// The constant for a reason that came as data; its text is the same.
fn known_reason(reason: &str) -> &'static str {
    reasons::ALL.iter().find(|known| known.name == reason).map_or(reasons::WAITING, |known| known.name)
}

fn runtime(scene: &Scene<'_>, verdict: &Verdict) -> Runtime {
    let (intent, entry) = (scene.intent, scene.entry);
    let live = live(scene);
    let (grant, holding) = reported_grant(scene);
    let reference = GrantRef::from(&grant);
    let since = intent
        .reported
        .as_ref()
        .filter(|old| old.power == verdict.power && old.grant == reference && old.vm_uid == intent.vm.uid)
        .map_or_else(|| Time(scene.now), |old| old.since.clone());
    let about_this_grant = entry.held.as_ref().is_some_and(|held| held.grant == grant);
    let last_stop = entry.power.last_stop.as_ref().filter(|_| about_this_grant && live.is_none());
    let lost = matches!(scene.standing, Standing::Down)
        && !entry.is_released(&grant)
        && grant.incarnation != scene.facts.incarnation;
    Runtime {
        vm_uid: intent.vm.uid.clone(),
        grant: reference,
        holding,
        power: verdict.power,
        since,
        stop_cause: if lost { Some(StopCause::HostLost) } else { last_stop.and_then(|stop| stop.cause) },
        pause_cause: live.and_then(|live| pause_cause(live, entry)),
        crashes: if about_this_grant { i32::try_from(entry.power.crashes).unwrap_or(i32::MAX) } else { 0 },
        generation: live.and_then(|live| live.metadata.as_ref()).map(|metadata| metadata.built.generation),
        guest: live.and(scene.facts.guest.clone()),
        interfaces: live.map(|live| interfaces(live, scene.facts)).unwrap_or_default(),
        pending_changes: scene.sorted.map(|sorted| sorted.pending.clone()).unwrap_or_default(),
        console: live.map(|live| ConsoleStatus { serial: live.serial, vnc: live.vnc }),
    }
}

/// The grant the report is about: that of what runs, else the object's, unless the ledger has refused it.
fn reported_grant(scene: &Scene<'_>) -> (Grant, Holding) {
    let holding = |entry: &Entry, grant: &Grant| {
        if entry.is_released(grant) { Holding::Released } else { Holding::Open }
    };
    match scene.standing {
        Standing::Up { grant, .. } | Standing::Stray { grant, .. } | Standing::Clash { grant, .. } => {
            (grant.clone(), Holding::Open)
        }
        Standing::Locked(_) | Standing::Unknown(_) | Standing::Blocked(_) | Standing::Down => {
            let wanted = &scene.intent.grant;
            match &scene.entry.held {
                Some(held) if held.grant.epoch >= wanted.epoch || is_open_here(scene) => {
                    (held.grant.clone(), holding(scene.entry, &held.grant))
                }
                Some(_) | None => (wanted.clone(), holding(scene.entry, wanted)),
            }
        }
    }
}

/// What an earlier incarnation left open is not this one's to speak of once the object names another grant.
fn is_open_here(scene: &Scene<'_>) -> bool {
    scene.entry.open_in(&scene.facts.incarnation).is_some()
}

fn pause_cause(live: &LiveDomain, entry: &Entry) -> Option<PauseCause> {
    match (live.state, entry.power.paused_by) {
        (DomainState::Paused(PausedReason::IoError), _) => Some(PauseCause::IoError),
        (
            DomainState::Paused(PausedReason::Transient)
            | DomainState::Running
            | DomainState::ShuttingDown
            | DomainState::Other,
            _,
        ) => None,
        (DomainState::Paused(_), Some(PausedBy::Act)) => Some(PauseCause::ByAction),
        (DomainState::Paused(_), Some(PausedBy::Superseded)) => Some(PauseCause::Superseded),
        (DomainState::Paused(_), None) | (DomainState::Suspended, _) => Some(PauseCause::Outside),
    }
}

fn interfaces(live: &LiveDomain, facts: &Facts) -> Vec<InterfaceStatus> {
    let status = |nic: &crate::facts::LiveNic| InterfaceStatus {
        name: nic.name.clone(),
        mac: nic.mac.clone(),
        addresses: facts
            .addresses
            .get(&nic.mac)
            .map(|all| all.iter().take(16).cloned().collect())
            .unwrap_or_default(),
    };
    live.nics.iter().take(16).map(status).collect()
}

fn summary(scene: &Scene<'_>, interfaces: &[InterfaceStatus]) -> VmSummary {
    let wanted = scene.intent.wanted.as_ref().or(scene.entry.wanted.as_ref());
    let live = live(scene);
    let cpus = live.map(|live| live.vcpus).or_else(|| wanted.map(|wanted| wanted.spec.get().cpu.vcpus()));
    let memory = live.map(|live| live.memory).or_else(|| wanted.map(|wanted| wanted.machine.memory));
    let is_local = |address: &&String| address.starts_with("fe80:") || address.starts_with("169.254.");
    let addresses = || interfaces.iter().flat_map(|nic| &nic.addresses);
    VmSummary {
        cpu: cpus.map(|cpus| cpus.to_string()).unwrap_or_default(),
        memory: memory.map(human_bytes).unwrap_or_default(),
        ip: addresses().find(|address| !is_local(address)).or_else(|| addresses().next()).cloned(),
        guest_os: live
            .and(scene.facts.guest.as_ref())
            .and_then(|guest| guest.os.clone())
            .map(|os| os.chars().take(128).collect()),
    }
}
