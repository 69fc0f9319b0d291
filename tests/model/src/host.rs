//! One VM on one host: the real planner of the node daemon on small numbers, remembered by input.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::OnceLock,
};

use node_plan::{
    attest::{Known, Stored, attest},
    effect,
    facts::{
        DiskToken, DomainFact, DomainState, Exit as ExitFact, ExitKind, Facts, PausedReason, ProcessFact,
        TokenFact,
    },
    intent::{Intent, Machine, MachineDisk, Observation, Policy, ValidatedSpec, VmRef, Volume, Wait, Wanted},
    ledger::{
        Entry as LedgerEntry, Held as LedgerHeld, HeldState as LedgerState, HeldVolume, LastStop, LedgerFact,
        PausedBy, PowerRecord, StopBy, Stopping,
    },
    step::VmStep,
    vm::{plan_vm, start},
};
use serde_json::json;
use vireo_crds::reasons;

use crate::{
    concrete as c,
    controller::Removed,
    state::{
        Attestation, Cause, Entry, Exit, Grant, Held, HeldState, Local, Process, Runtime, Sight, Spec, Vm,
    },
};

const IMAGE: &str = "/srv/shared/volumes/disk.qcow2";
const TOKEN: &str = "/srv/shared/volumes/disk.token";

/// What a worker plans from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    pub host: u8,
    pub inc: u8,
    pub listed: bool,
    pub local: Local,
    /// The Disk is claimed for this VM, as the daemon sees it.
    pub claimed: bool,
    pub token: Option<(u8, Grant)>,
}

/// A step that changes what is explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Ledger(Entry),
    Start(Grant, u8, Spec),
    Destroy,
    Shutdown,
    Pause,
    Resume,
    WriteToken(Grant, Option<(u8, Grant)>),
    RemoveToken(Grant),
}

/// What a worker plans.
#[derive(Debug, Default)]
pub struct Planned {
    pub steps: Vec<Step>,
    pub report: Option<Runtime>,
    pub waits: bool,
    pub unexplained: bool,
}

thread_local! {
    static MEMORY: RefCell<HashMap<(Scene, Removed), Rc<Planned>>> = RefCell::default();
}

/// What this worker plans now.
pub fn planned(scene: Scene, removed: Removed) -> Rc<Planned> {
    let key = (scene, removed);
    if let Some(known) = MEMORY.with(|memory| memory.borrow().get(&key).cloned()) {
        return known;
    }
    let found = Rc::new(plan_now(&key.0));
    MEMORY.with(|memory| memory.borrow_mut().insert(key, found.clone()));
    found
}

fn vm_ref(local: &Local) -> VmRef {
    VmRef { uid: c::name('u', local.uid), namespace: c::NAMESPACE.into(), name: c::name('v', local.slot) }
}

fn wanted(local: &Local, generation: u8, spec: Spec) -> Wanted {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        c::parse(json!({
            "uuid": "", "hostname": "", "architecture": "x86_64", "accelerator": "kvm", "machineType": "q35",
            "sockets": 1, "cores": 1, "threads": 1, "cpu": {"named": "qemu64"}, "memory": 1_073_741_824_u64,
            "firmware": "bios", "serialConsole": true, "guestAgent": false,
        }))
    });
    let disk = MachineDisk {
        name: "root".into(),
        cdrom: false,
        overlay: None,
        volume: Some(Volume {
            path: IMAGE.into(),
            token: TOKEN.into(),
            format: vireo_crds::v1alpha1::DiskFormat::Qcow2,
            disk: c::DISK.into(),
            disk_uid: "disk".into(),
        }),
        bus: vireo_crds::v1alpha1::DiskBus::Virtio,
        boot_order: None,
        read_only: false,
        cache: vireo_crds::v1alpha1::DiskCache::None,
        serial: "root".into(),
    };
    Wanted {
        generation: generation.into(),
        spec: ValidatedSpec::new(&c::spec(spec)).unwrap_or_else(|faults| panic!("{faults:?}")),
        machine: Machine {
            uuid: c::name('u', local.uid),
            hostname: c::name('v', local.slot),
            disks: spec.disk.then_some(disk).into_iter().collect(),
            ..machine.clone()
        },
        seed: None,
        state: None,
        installation_id: "installation".into(),
    }
}

fn entry(e: &Entry, local: &Local) -> LedgerEntry {
    let held = |held: Held| LedgerHeld {
        grant: c::grant(held.grant),
        state: match held.state {
            HeldState::Accepted => LedgerState::Accepted,
            HeldState::Activated => LedgerState::Activated,
            HeldState::Released => LedgerState::Released,
        },
        incarnation: c::name('i', held.inc),
        follows: false,
        since: c::ago(1000),
    };
    let volume = HeldVolume { path: IMAGE.into(), token: TOKEN.into(), cached: false };
    LedgerEntry {
        vm: vm_ref(local),
        highest_epoch: e.highest.into(),
        held: e.held.map(held),
        wanted: e.wanted.map(|(generation, spec)| wanted(local, generation, spec)),
        volumes: e.volume.then_some(volume).into_iter().collect(),
        state_dir: None,
        power: PowerRecord {
            up_since: e.up.then(|| c::ago(900)),
            stopping: e.stopping.map(|by_spec| Stopping {
                since: c::ago(400),
                by: if by_spec { StopBy::Spec } else { StopBy::Withdrawn },
            }),
            last_stop: e.last.map(|why| LastStop {
                at: c::ago(500),
                cause: why.map(c::cause),
                message: None,
            }),
            crashes: e.crashed.into(),
            retry_at: None,
            paused_by: e.superseded.then_some(PausedBy::Superseded),
            reboot_applies: e.reboot_applies,
        },
        acts: BTreeMap::new(),
    }
}

fn abstract_entry(e: &LedgerEntry) -> Entry {
    let held = |held: &LedgerHeld| Held {
        grant: c::abstract_grant(&held.grant),
        state: match held.state {
            LedgerState::Accepted => HeldState::Accepted,
            LedgerState::Activated => HeldState::Activated,
            LedgerState::Released => HeldState::Released,
        },
        inc: c::number(&held.incarnation),
    };
    let spec = |wanted: &Wanted| {
        let spec = wanted.spec.get();
        let halted = spec.run_strategy == vireo_crds::v1alpha1::RunStrategy::Halted;
        (c::small(wanted.generation), Spec { halted, disk: !spec.disks.is_empty() })
    };
    Entry {
        highest: c::small(e.highest_epoch),
        held: e.held.as_ref().map(held),
        wanted: e.wanted.as_ref().map(spec),
        volume: !e.volumes.is_empty(),
        up: e.power.up_since.is_some(),
        stopping: e.power.stopping.as_ref().map(|s| s.by == StopBy::Spec),
        last: e.power.last_stop.as_ref().map(|stop| stop.cause.map(c::abstract_cause)),
        crashed: e.power.crashes > 0,
        superseded: e.power.paused_by == Some(PausedBy::Superseded),
        reboot_applies: e.power.reboot_applies,
    }
}

fn observation(scene: &Scene) -> Observation {
    if !scene.listed {
        return Observation::Unseen;
    }
    let local = &scene.local;
    match local.sight {
        Sight::None | Sight::Disappeared => Observation::Disappeared,
        Sight::Gone => Observation::Gone,
        Sight::Elsewhere(grant) => Observation::Elsewhere { holder: c::grant(grant), destroy_order: None },
        Sight::Here(vm) => {
            let Some(placement) = vm.placement else { return Observation::Disappeared };
            let waits = (vm.spec.disk && !scene.claimed)
                .then(|| Wait::new(reasons::DISK_NOT_READY, "the Disk is not claimed for this VM"));
            Observation::Granted(Box::new(Intent {
                vm: vm_ref(local),
                grant: c::grant(placement.grant),
                listed: false,
                generation: vm.generation.into(),
                accepted_generation: placement.generation.into(),
                deleting: vm.deleting,
                policy: Policy::of(&c::spec(vm.spec)),
                wanted: Some(wanted(local, placement.generation, vm.spec)),
                waits: waits.into_iter().collect(),
                faults: Vec::new(),
                acts: Vec::new(),
                hardware: None,
                reported: None,
                storage_ready: true,
            }))
        }
    }
}

fn start_step(p: &Process, local: &Local) -> VmStep {
    let wanted = wanted(local, p.generation, p.spec);
    VmStep::StartDomain {
        metadata: Box::new(start::metadata(&vm_ref(local), &c::grant(p.grant), &wanted)),
        machine: Box::new(wanted.machine),
        hardware: None,
        seed: None,
        tpm_dir: None,
    }
}

fn facts(scene: &Scene) -> Facts {
    let local = &scene.local;
    let token = scene.token.map_or(TokenFact::None, |(uid, grant)| {
        TokenFact::Present(DiskToken {
            vm_uid: c::name('u', uid),
            epoch: grant.epoch.into(),
            id: c::name('g', grant.id),
        })
    });
    let mut facts = Facts {
        host: c::name('h', scene.host),
        incarnation: c::name('i', scene.inc),
        ledger: LedgerFact::None,
        domain: DomainFact::Absent { defined: false },
        process: ProcessFact::None,
        exit: None,
        start_failure: None,
        shutdown_asked: None,
        resume_attempts: None,
        files: Default::default(),
        tokens: BTreeMap::from([(TOKEN.to_owned(), token)]),
        guest: None,
        addresses: BTreeMap::new(),
    };
    if let Some(process) = &local.process {
        effect::apply(&start_step(process, local), &mut facts, c::now());
        if let (DomainFact::Present(live), true) = (&mut facts.domain, process.paused) {
            live.state = DomainState::Paused(PausedReason::User);
        }
        if process.disowned {
            facts.domain = DomainFact::Absent { defined: false };
        }
    }
    if let Some(held) = &local.entry {
        facts.ledger = LedgerFact::Entry(Box::new(entry(held, local)));
    }
    facts.exit = local.exit.filter(|_| local.process.is_none()).map(|exit| ExitFact {
        at: c::ago(10),
        how: match exit {
            Exit::Crashed => ExitKind::Crashed,
            Exit::PoweredOff => ExitKind::PoweredOff,
            Exit::Destroyed => ExitKind::Destroyed,
        },
        detail: None,
    });
    facts
}

fn plan_now(scene: &Scene) -> Planned {
    let (observation, facts) = (observation(scene), facts(scene));
    let plan = plan_vm(&vm_ref(&scene.local), &observation, &facts, c::now());
    let with_host = |token: &DiskToken| {
        let grant = Grant { host: 0, inc: 0, epoch: c::small(token.epoch), id: c::number(&token.id) };
        (c::number(&token.vm_uid), grant)
    };
    let steps = plan.steps.iter().filter_map(|step| match step {
        VmStep::WriteLedger { entry, .. } => {
            let entry = abstract_entry(entry);
            (Some(entry) != scene.local.entry).then_some(Step::Ledger(entry))
        }
        VmStep::StartDomain { metadata, .. } => {
            let spec = metadata.built.spec.get();
            let halted = spec.run_strategy == vireo_crds::v1alpha1::RunStrategy::Halted;
            let spec = Spec { halted, disk: !spec.disks.is_empty() };
            Some(Step::Start(c::abstract_grant(&metadata.grant), c::small(metadata.built.generation), spec))
        }
        VmStep::Destroy { .. } => Some(Step::Destroy),
        VmStep::RequestShutdown { .. } => Some(Step::Shutdown),
        VmStep::Pause => Some(Step::Pause),
        VmStep::Resume => Some(Step::Resume),
        VmStep::WriteDiskToken { token, replaces, .. } => {
            Some(Step::WriteToken(with_host(token).1, replaces.as_ref().map(with_host)))
        }
        VmStep::RemoveDiskToken { token, .. } => Some(Step::RemoveToken(with_host(token).1)),
        _ => None,
    });
    let report = plan.report.as_ref().and_then(|r| r.runtime.as_ref());
    Planned {
        steps: steps.collect(),
        report: report.map(|r| c::abstract_runtime(r, scene.host)),
        waits: !plan.refusals.is_empty()
            || plan
                .waits
                .iter()
                .any(|w| [reasons::GRANT_REFUSED, reasons::GRANT_CLASH].contains(&w.reason.as_str())),
        unexplained: plan.unexplained.is_some(),
    }
}

/// The answer of a host to a session: what it knows against what the store says.
pub fn answer(
    session: u8,
    host: u8,
    inc: u8,
    locals: &[Local],
    stored: impl Fn(&Local) -> Option<Vm>,
) -> Attestation {
    let metadata = |local: &Local| {
        let process = local.process.filter(|p| !p.disowned)?;
        let wanted = wanted(local, process.generation, process.spec);
        Some(start::metadata(&vm_ref(local), &c::grant(process.grant), &wanted))
    };
    let known: Vec<Known> = locals
        .iter()
        .filter(|l| l.entry.is_some() || l.process.is_some())
        .map(|l| Known { entry: l.entry.as_ref().map(|e| entry(e, l)), running: metadata(l), process: false })
        .collect();
    let says = |local: &Local| {
        let vm = stored(local)?;
        let released = vm.placement.zip(vm.runtime).is_some_and(|(p, r)| {
            r.released && (r.grant.id, r.grant.inc, r.grant.epoch) == (p.grant.id, p.grant.inc, p.grant.epoch)
        });
        let placement = c::vm(&vm, local.slot).status.and_then(|s| s.placement);
        Some((c::name('u', local.uid), Stored { placement, released, listed: false }))
    };
    let stored: BTreeMap<String, Stored> = locals.iter().filter_map(says).collect();
    c::abstract_attestation(&attest(&c::name('s', session), &c::name('i', inc), &known, &[], &stored), host)
}

/// Whether this ending is one the ledger now knows.
pub fn settles(before: Option<&Entry>, after: &Entry) -> bool {
    let id = |entry: &Entry| entry.held.map(|held| held.grant.id);
    let accepted = before.and_then(id) != id(after);
    let stopped = after.last.is_some() && before.is_some_and(|b| b.up || b.last.is_none());
    accepted || stopped || after.last == Some(Some(Cause::Other))
}
