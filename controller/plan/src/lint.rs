//! What no plan may ever do, checked apart from the planners and with none of their code: each rule is stated from
//! the protocol, so that a planner that forgets a guard is caught even if all its own helpers agree with it.

use std::collections::BTreeSet;

use vireo_crds::{
    meta,
    v1alpha1::{
        Attachment, Disk, DiskStatus, Evidence, EvidenceKind, Grant, Holding, Placement, VirtualMachine,
    },
};

use crate::{
    plan::Plan,
    step::{Kind, ObjectRef, Step},
    world::{Key, World},
};

/// Everything the plan must not do in this world; empty for a sound plan.
pub fn lint(world: &World, plan: &Plan) -> Vec<String> {
    let mut lint = Lint { world, plan, found: Vec::new() };
    for step in &plan.steps {
        lint.step(step);
    }
    lint.found
}

struct Lint<'a> {
    world: &'a World,
    plan: &'a Plan,
    found: Vec<String>,
}

impl Lint<'_> {
    fn demand(&mut self, holds: bool, rule: impl Into<String>) {
        if !holds {
            self.found.push(rule.into());
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::SetPlacement { vm, session, read_first, status } => {
                let Some(held) = self.vm(vm) else { return };
                let Some(after) = &status.placement else {
                    return self.demand(false, "a placement write without placement");
                };
                let confirmed = after.evidence.iter().filter(|e| e.kind == EvidenceKind::Confirmed).count();
                self.demand(
                    read_first.len() >= confirmed,
                    "a confirmation is relied on without being read again",
                );
                self.grant(&held, session, after);
            }
            Step::SetVmStatus { vm, status } => {
                let Some(held) = self.vm(vm) else { return };
                let stored = held.status.as_ref().and_then(|s| s.placement.clone());
                let grants = |p: &Option<Placement>| p.clone().map(|p| Placement { generation: 0, ..p });
                self.demand(
                    grants(&stored) == grants(&status.placement),
                    "a grant is changed by a status write",
                );
            }
            Step::SetDiskStatus { disk, read_first, status } => {
                let Some(held) = self.world.disk(&key(disk)).cloned() else { return };
                self.claims(&held, &status.attachments);
                self.demand(
                    !read_first.is_empty() || !self.rests_on_a_confirmation(&held, &status.attachments),
                    "a claim is taken back on a confirmation that is not read again",
                );
                self.demand(
                    status.remove != Some(true) || held.metadata.deletion_timestamp.is_some(),
                    "a volume is removed whose Disk stays",
                );
                self.demand(
                    status.remove != Some(true) || status.attachments.is_empty(),
                    "a volume is removed while claimed",
                );
                let before = held.status.as_ref().and_then(|s| s.placement.clone());
                let moved = before.is_none_or(|before| {
                    status
                        .placement
                        .as_ref()
                        .is_some_and(|after| after == &before || after.epoch > before.epoch)
                });
                self.demand(moved, "a Disk changes its host without a new number");
            }
            Step::RemoveFinalizer { object, .. } => self.farewell(object),
            Step::EnsureFinalizer { object } => {
                let deleting = match object.kind {
                    Kind::VirtualMachine => {
                        self.world.vm(&key(object)).and_then(|o| o.metadata.deletion_timestamp.clone())
                    }
                    Kind::Disk => {
                        self.world.disk(&key(object)).and_then(|o| o.metadata.deletion_timestamp.clone())
                    }
                    _ => None,
                };
                self.demand(deleting.is_none(), "a finalizer is added to an object that is being deleted");
            }
            Step::SetDomainStatus { domain, status } => {
                let Some(held) = self.world.domain(&domain.name).cloned() else { return };
                let seen: BTreeSet<_> = status.initialized.iter().collect();
                let before = held.status.clone().unwrap_or_default();
                self.demand(
                    !status.initialize.iter().any(|h| seen.contains(h)),
                    "a host may mark a domain it has seen marked",
                );
                self.demand(
                    before.initialized.iter().all(|h| seen.contains(h)),
                    "a host that saw the marker is forgotten",
                );
                let shared = held.spec.directory.shared;
                self.demand(
                    !shared || status.initialize.len() <= 1,
                    "two hosts may mark one shared directory",
                );
                self.demand(
                    !shared || seen.is_empty() || status.initialize.is_empty(),
                    "a marked shared directory is marked again",
                );
                self.demand(before.marker.is_none() || before.marker == status.marker, "a marker changes");
            }
            Step::DeleteAct { act } => {
                let phase = self.world.act(&key(act)).and_then(|a| a.status.as_ref()?.phase);
                self.demand(phase.is_some_and(|p| p.is_final()), "an act is deleted before its end");
            }
            Step::CreateDisk { .. }
            | Step::SetActStatus { .. }
            | Step::SetHostStatus { .. }
            | Step::SetClusterStatus { .. }
            | Step::SetNetworkStatus { .. }
            | Step::SetGroupStatus { .. }
            | Step::EnsureHostAccess { .. }
            | Step::EnsureSecretAccess { .. }
            | Step::RemoveSecretAccess { .. } => {}
        }
    }

    fn vm(&mut self, object: &ObjectRef) -> Option<VirtualMachine> {
        let held = self.world.vm(&key(object)).filter(|vm| vm.metadata.uid.as_deref() == Some(&object.uid));
        let held = held.map(|vm| vm.as_ref().clone());
        self.demand(held.is_some(), "a write to a VM that does not exist");
        held
    }

    /// Rules 1 and 2 of grants.
    fn grant(&mut self, vm: &VirtualMachine, session: &str, after: &Placement) {
        let before = vm.status.as_ref().and_then(|s| s.placement.clone());
        let last = before.as_ref().map_or(0, |p| p.last_epoch);
        self.demand(
            self.world.session().is_some_and(|s| s.nonce == session),
            "a placement outside the session",
        );
        self.demand(
            after.last_epoch >= last && after.epoch <= after.last_epoch,
            "lastEpoch falls or does not cover the grant",
        );
        let is_new = before.as_ref().is_none_or(|p| p.id != after.id);
        self.demand(is_new, "a placement write without a new grant");
        self.demand(after.epoch > last, "a new grant takes an old number");
        for grant in before.iter().flat_map(|p| std::iter::once(p.grant()).chain(p.target.clone())) {
            let evidence = after.evidence.iter().find(|e| e.grant_id == grant.id);
            match evidence {
                None => self.demand(false, format!("no evidence for grant {}", grant.id)),
                Some(evidence) => {
                    let holds =
                        self.is_true(vm, before.as_ref().is_some_and(|p| p.id == grant.id), &grant, evidence);
                    self.demand(holds, format!("{:?} is no evidence for grant {}", evidence.kind, grant.id));
                }
            }
        }
        let mut others = self
            .world
            .vms()
            .filter(|o| o.metadata.uid != vm.metadata.uid)
            .filter_map(|o| o.status.as_ref()?.placement.as_ref());
        let unique = !others.any(|p| p.id == after.id || p.target.as_ref().is_some_and(|t| t.id == after.id));
        self.demand(unique, "a grant id is used twice");
        let adopted = self.claims_of(vm).iter().any(|(host, id, _)| *id == after.id && *host == after.host);
        self.barrier(vm, before.as_ref(), after, adopted);
        if !adopted {
            self.fresh_grant(vm, after);
        }
    }

    /// What a grant made by us, not found, must fulfil.
    fn fresh_grant(&mut self, vm: &VirtualMachine, after: &Placement) {
        let host = self.world.host(&after.host).cloned();
        let present = host.as_ref().and_then(|h| h.status.as_ref()?.incarnation.clone());
        self.demand(
            present.as_deref() == Some(&after.incarnation),
            "a grant for an incarnation that is not the present one",
        );
        self.demand(vm.metadata.deletion_timestamp.is_none(), "a VM that is being deleted gets a grant");
        self.demand(
            host.is_some_and(|h| h.spec.schedulable && h.metadata.deletion_timestamp.is_none()),
            "a grant on a host that takes none",
        );
        let over = self
            .world
            .host(&after.host)
            .and_then(|h| h.metadata.annotations.as_ref()?.get(meta::CONFIRM_ANNOTATION).cloned());
        self.demand(
            over.as_ref() != Some(&after.incarnation),
            "a grant for an incarnation confirmed to be over",
        );
        let uid = vm.metadata.uid.clone().unwrap_or_default();
        let namespace = vm.metadata.namespace.clone().unwrap_or_default();
        for name in disks_of(vm) {
            let claim = self.claims_after(&Key::new(&namespace, &name)).into_iter().find(|c| c.vm_uid == uid);
            self.demand(claim.is_some(), format!("Disk {name} is not claimed before the VM is placed"));
        }
    }

    fn barrier(&mut self, vm: &VirtualMachine, before: Option<&Placement>, after: &Placement, adopted: bool) {
        let Some(session) = self.world.session() else { return };
        let young = vm.metadata.uid.as_ref().is_some_and(|uid| !session.preexisting.contains(uid));
        let known =
            before.is_some_and(|p| session.granted.contains(&p.id) || session.attested.contains(&p.id));
        let nonce = session.nonce.clone();
        let heard = |host: &vireo_crds::v1alpha1::Host| {
            let status = host.status.as_ref();
            let attested = status.and_then(|s| s.attestation.as_ref()).is_some_and(|a| a.session == nonce);
            let annotation = host.metadata.annotations.as_ref().and_then(|a| a.get(meta::CONFIRM_ANNOTATION));
            let confirmed = annotation.is_some() && annotation == status.and_then(|s| s.incarnation.as_ref());
            attested || confirmed
        };
        let all = self.world.hosts().all(|(_, host)| heard(host))
            && self.world.undecodable(Kind::Host).next().is_none();
        self.demand((young || known) && !adopted || all, "a placement before the barrier");
        let listed =
            |id: &str| before.is_some_and(|p| p.id == id || p.target.as_ref().is_some_and(|t| t.id == id));
        let granted = session.granted.clone();
        let open = self
            .claims_of(vm)
            .into_iter()
            .filter(|(_, id, open)| *open && !listed(id) && !granted.contains(id));
        let open: Vec<_> = open.filter(|(_, id, _)| *id != after.id).collect();
        self.demand(adopted || open.is_empty(), "a placement over a claim that nobody has explained");
    }

    /// Claims of all hosts on this VM in this session: host, grant id, whether it is open.
    fn claims_of(&self, vm: &VirtualMachine) -> Vec<(String, String, bool)> {
        let Some(session) = self.world.session() else { return Vec::new() };
        let mut found = Vec::new();
        for (name, host) in self.world.hosts() {
            let attestation = host
                .status
                .as_ref()
                .and_then(|s| s.attestation.as_ref())
                .filter(|a| a.session == session.nonce);
            for claim in attestation
                .into_iter()
                .flat_map(|a| &a.claims)
                .filter(|c| Some(&c.vm_uid) == vm.metadata.uid.as_ref())
            {
                let open = !matches!(claim.holding, Holding::Released | Holding::Renounced);
                found.push((name.clone(), claim.grant.id.clone(), open));
            }
        }
        found
    }

    fn is_true(&self, vm: &VirtualMachine, holder: bool, grant: &Grant, evidence: &Evidence) -> bool {
        let Some(status) = &vm.status else { return false };
        let uid = vm.metadata.uid.as_deref().unwrap_or_default();
        let alive = self.world.liveness(&grant.host).is_some_and(|l| l.alive.contains(&grant.incarnation));
        match evidence.kind {
            EvidenceKind::Released | EvidenceKind::Renounced if holder => {
                status.runtime.as_ref().is_some_and(|r| {
                    r.vm_uid == uid
                        && r.grant.id == grant.id
                        && r.grant.incarnation == grant.incarnation
                        && r.holding == Holding::Released
                })
            }
            EvidenceKind::Released | EvidenceKind::Renounced => status.incoming.as_ref().is_some_and(|i| {
                let over = matches!(i.holding, Holding::Released | Holding::Renounced);
                i.vm_uid == uid && i.grant.id == grant.id && i.grant.incarnation == grant.incarnation && over
            }),
            EvidenceKind::Rebooted => {
                let Some(host) = self.world.host(&grant.host).and_then(|h| h.status.as_ref()) else {
                    return false;
                };
                let past = host.past_incarnations.iter().find(|p| p.incarnation == grant.incarnation);
                let machine = host.identity.as_ref().map(|i| i.machine_uuid.as_str());
                let duplicate = self.world.liveness(&grant.host).is_none_or(|l| l.duplicate || !l.watched);
                !alive
                    && !duplicate
                    && host.incarnation.as_deref() != Some(&grant.incarnation)
                    && past.is_some_and(|p| {
                        Some(p.machine_uuid.as_str()) == machine && Some(&p.boot_id) != host.boot_id.as_ref()
                    })
            }
            EvidenceKind::Confirmed => {
                let annotation = |m: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
                    m.annotations.as_ref().and_then(|a| a.get(meta::CONFIRM_ANNOTATION)).cloned()
                };
                let on_vm = annotation(&vm.metadata).as_deref() == Some(&grant.id);
                let on_host = self.world.host(&grant.host).and_then(|h| annotation(&h.metadata));
                !alive && (on_vm || on_host.as_deref() == Some(&grant.incarnation))
            }
            EvidenceKind::PowerOff | EvidenceKind::Lease | EvidenceKind::Unknown => false,
        }
    }

    /// Claims of a Disk as they are once the plan has been carried out.
    fn claims_after(&self, disk: &Key) -> Vec<Attachment> {
        let planned = self.plan.steps.iter().rev().find_map(|step| match step {
            Step::SetDiskStatus { disk: object, status, .. } if key(object) == *disk => {
                Some(status.attachments.clone())
            }
            _ => None,
        });
        planned.unwrap_or_else(|| {
            self.world
                .disk(disk)
                .and_then(|d| d.status.as_ref())
                .map(|s| s.attachments.clone())
                .unwrap_or_default()
        })
    }

    fn claims(&mut self, disk: &Disk, after: &[Attachment]) {
        let writers = after.iter().filter(|c| !c.read_only).count();
        self.demand(writers == 0 || after.len() == 1, "a Disk has a writer and another user");
        let empty = DiskStatus::default();
        let before = disk.status.as_ref().unwrap_or(&empty);
        let name = disk.metadata.name.clone().unwrap_or_default();
        for lost in before.attachments.iter().filter(|c| !after.iter().any(|a| a.vm_uid == c.vm_uid)) {
            let Some(vm) = self.world.vm_by_uid(&lost.vm_uid).cloned() else { continue };
            let named = disks_of(&vm).contains(&name) && vm.metadata.deletion_timestamp.is_none();
            let open = self.may_run(&vm);
            self.demand(!(open && named), "a claim is taken from a VM that may run and names the Disk");
            self.demand(
                !(open && disk.metadata.deletion_timestamp.is_some()),
                "a Disk is torn from a VM that may run",
            );
        }
    }

    /// Whether somebody's word is all that says that a VM whose claim goes does not run.
    fn rests_on_a_confirmation(&self, disk: &Disk, after: &[Attachment]) -> bool {
        let before = disk.status.iter().flat_map(|s| &s.attachments);
        let mut lost = before.filter(|c| !after.iter().any(|a| a.vm_uid == c.vm_uid));
        lost.any(|claim| {
            let Some(vm) = self.world.vm_by_uid(&claim.vm_uid) else { return false };
            let of_newest = vm.status.as_ref().and_then(|s| s.runtime.as_ref()).and_then(|r| r.generation);
            let lets_go = of_newest.is_some() && of_newest == vm.metadata.generation;
            let shown = [EvidenceKind::Released, EvidenceKind::Rebooted];
            !lets_go && self.open_without(vm, &shown) && !self.may_run(vm)
        })
    }

    /// Whether a VM may be running, for all that reports, boots and confirmations tell.
    fn may_run(&self, vm: &VirtualMachine) -> bool {
        self.open_without(vm, &[EvidenceKind::Released, EvidenceKind::Rebooted, EvidenceKind::Confirmed])
    }

    /// Whether a grant is open for all that evidence of these kinds tells.
    fn open_without(&self, vm: &VirtualMachine, kinds: &[EvidenceKind]) -> bool {
        let Some(placement) = vm.status.as_ref().and_then(|s| s.placement.as_ref()) else { return false };
        let over = |holder: bool, grant: &Grant| {
            kinds.iter().any(|kind| {
                let kind = *kind;
                let evidence =
                    Evidence { grant_id: grant.id.clone(), kind, session: String::new(), detail: None };
                self.is_true(vm, holder, grant, &evidence)
            })
        };
        !over(true, &placement.grant()) || placement.target.as_ref().is_some_and(|t| !over(false, t))
    }

    fn farewell(&mut self, object: &ObjectRef) {
        self.demand(
            !self.world.is_terminating(object.kind),
            "a deletion is obeyed while its CRD is terminating",
        );
        match object.kind {
            Kind::VirtualMachine => {
                let Some(vm) = self.vm(object) else { return };
                self.demand(vm.metadata.deletion_timestamp.is_some(), "the finalizer of a living VM goes");
                let may_run = self.may_run(&vm);
                self.demand(!may_run, "a VM goes that may be running");
                let claimed = self
                    .world
                    .disks_claimed_by(&object.uid)
                    .filter(|k| self.claims_after(k).iter().any(|c| c.vm_uid == object.uid));
                let claimed = claimed.count();
                self.demand(claimed == 0, "a VM goes and leaves a claim behind");
            }
            Kind::Disk => {
                let Some(disk) = self.world.disk(&key(object)).cloned() else { return };
                self.demand(
                    disk.metadata.deletion_timestamp.is_some(),
                    "the finalizer of a living Disk goes",
                );
                let users = disk
                    .status
                    .iter()
                    .flat_map(|s| &s.attachments)
                    .filter_map(|c| self.world.vm_by_uid(&c.vm_uid));
                let torn = users.filter(|vm| self.may_run(vm)).count();
                self.demand(torn == 0, "a Disk goes that a VM may have open");
            }
            Kind::Host => {
                let on_it = self.world.vms().filter(|vm| {
                    let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
                    placement.is_some_and(|p| p.host == object.name) && self.may_run(vm)
                });
                let on_it = on_it.count();
                self.demand(on_it == 0, "a Host goes that a VM may run on");
            }
            Kind::VirtualMachineAction
            | Kind::HostCluster
            | Kind::Network
            | Kind::StorageDomain
            | Kind::AffinityGroup => {}
        }
    }
}

fn key(object: &ObjectRef) -> Key {
    Key::new(object.namespace.as_deref().unwrap_or_default(), &object.name)
}

/// Names of the Disks a VM's spec names.
fn disks_of(vm: &VirtualMachine) -> Vec<String> {
    let own = vm.metadata.name.as_deref().unwrap_or_default();
    let mut names = Vec::new();
    for disk in &vm.spec.disks {
        names.extend(disk.template.is_some().then(|| format!("{own}-{}", disk.name)));
        names.extend(disk.disk.as_ref().map(|d| d.name.clone()));
        names.extend(disk.cdrom.as_ref().and_then(|c| c.disk.clone()));
        names.extend(disk.ephemeral.as_ref().map(|e| e.disk.clone()));
    }
    names
}
