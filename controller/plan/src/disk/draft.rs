//! The controller's part of a Disk's status, changed piece by piece and always applied whole.

use vireo_crds::{
    condition::{self, ConditionValue, kind},
    reasons,
    v1alpha1::{Attachment, Disk, DiskPlacement, DiskSummary},
};

use super::{to_be_made, validate};
use crate::{
    conditions,
    step::{DiskStatusApply, FreshRead, Kind, ObjectRef, Step},
    vm::fault::{self, Fault},
    world::World,
};

/// A status to be.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    disk: &'a Disk,
    accepted: ConditionValue,
    ready: Option<ConditionValue>,
    /// `Reconciling` or `Stalled` beside a `Ready` of ours.
    beside: Option<ConditionValue>,
    speaks: bool,
    placement: Option<DiskPlacement>,
    attachments: Vec<Attachment>,
    remove: Option<bool>,
    read_first: Vec<FreshRead>,
}

impl<'a> Draft<'a> {
    /// What is stored, with `Accepted` as it is now.
    pub fn of(world: &World, disk: &'a Disk) -> Self {
        let status = disk.status.as_ref();
        let stored = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let faults = validate::faults(world, disk);
        let accepted = match fault::leading(&faults) {
            None => ConditionValue::yes(kind::ACCEPTED, reasons::ACCEPTED, ""),
            Some(fault) => ConditionValue::no(kind::ACCEPTED, fault.reason, fault::text(&faults)),
        };
        Self {
            disk,
            accepted,
            ready: conditions::carried_ready(&disk.metadata, stored),
            beside: None,
            speaks: false,
            placement: status.and_then(|s| s.placement.clone()),
            attachments: status.map(|s| s.attachments.clone()).unwrap_or_default(),
            remove: status.and_then(|s| s.remove),
            read_first: Vec::new(),
        }
    }

    /// Lets a VM attach it; a claim that writes takes the place of one that reads.
    pub fn claim(&mut self, vm_uid: &str, vm: &str, read_only: bool) {
        match self.attachments.iter_mut().find(|a| a.vm_uid == vm_uid) {
            Some(held) => held.read_only = held.read_only && read_only,
            None => self.attachments.push(Attachment { vm_uid: vm_uid.into(), vm: vm.into(), read_only }),
        }
    }

    /// Takes a claim back, on the word of these confirmations.
    pub fn unclaim(&mut self, vm_uid: &str, reads: &[FreshRead]) {
        self.attachments.retain(|a| a.vm_uid != vm_uid);
        self.rely_on(reads);
    }

    fn rely_on(&mut self, reads: &[FreshRead]) {
        for read in reads {
            if !self.read_first.contains(read) {
                self.read_first.push(read.clone());
            }
        }
    }

    /// Names the working host.
    pub fn work_on(&mut self, host: &str) {
        let held = self.placement.as_ref();
        if held.is_some_and(|p| p.host == host) {
            return;
        }
        let epoch = held.map_or(0, |p| p.epoch).saturating_add(1);
        self.placement = Some(DiskPlacement { host: host.into(), epoch });
        self.ready = Some(to_be_made(host));
        self.beside = None;
        self.speaks = true;
    }

    /// Names the working host if there is none.
    pub fn work_on_if_free(&mut self, host: &str) {
        if self.placement.is_none() {
            self.work_on(host);
        }
    }

    /// Orders the removal of the volume, on the word of these confirmations.
    pub fn remove(&mut self, reads: &[FreshRead]) {
        self.remove = Some(true);
        self.rely_on(reads);
    }

    /// Says that the spec is refused.
    pub fn refused(&mut self, faults: &[Fault]) {
        let reason = fault::leading(faults).map_or(reasons::REFUSED, |f| f.reason);
        let waits = !faults.iter().any(|f| f.stalls);
        let beside = if waits { kind::RECONCILING } else { kind::STALLED };
        self.say(reason, &fault::text(faults), beside);
    }

    /// Says what is waited for.
    pub fn waits(&mut self, reason: &'static str, message: &str) {
        self.say(reason, message, kind::RECONCILING);
    }

    /// Says what its deletion waits for.
    pub fn deleting(&mut self, message: &str) {
        self.accepted = ConditionValue::no(kind::ACCEPTED, reasons::DELETING, message);
    }

    fn say(&mut self, reason: &str, message: &str, beside: &str) {
        if self.placement.is_none() {
            self.ready = Some(ConditionValue::no(kind::READY, reason, message));
            self.speaks = true;
        }
        if self.placement.is_none() || beside == kind::STALLED {
            self.beside = Some(ConditionValue::yes(beside, reason, message));
        }
    }

    /// Reason of a stored condition.
    pub fn stored_reason(&self, type_: &str) -> Option<&'a str> {
        condition::get(&self.disk.status.as_ref()?.conditions, type_).map(|c| c.reason.as_str())
    }

    fn used_by(&self) -> Option<String> {
        let mut names: Vec<_> = self.attachments.iter().map(|a| a.vm.as_str()).collect();
        names.sort_unstable();
        let text = names.join(", ");
        let text = if text.len() > 128 { format!("{} VMs", names.len()) } else { text };
        (!text.is_empty()).then_some(text)
    }

    fn apply(&self) -> DiskStatusApply {
        let stored = self.disk.status.as_ref();
        let mut values = vec![self.accepted.clone()];
        values.extend(self.ready.clone());
        values.extend(self.beside.clone());
        let observed_generation = match (self.speaks, &self.ready) {
            (true, _) => self.disk.metadata.generation,
            (false, Some(_)) => stored.and_then(|s| s.observed_generation),
            (false, None) => None,
        };
        DiskStatusApply {
            placement: self.placement.clone(),
            attachments: self.attachments.clone(),
            remove: self.remove,
            conditions: values,
            observed_generation,
            summary: self.used_by().map(|used_by| DiskSummary { used_by: Some(used_by), allocated: None }),
        }
    }

    /// The write, if claims, working host or order differ from what is stored.
    pub fn step(self) -> Option<Step> {
        let stored = self.disk.status.clone().unwrap_or_default();
        let differs = stored.placement != self.placement
            || stored.attachments != self.attachments
            || stored.remove != self.remove;
        if differs { self.into_step() } else { None }
    }

    /// The write, if anything differs from what is stored.
    pub fn step_if_different(self) -> Option<Step> {
        let stored = self.disk.status.clone().unwrap_or_default();
        let apply = self.apply();
        let differs = stored.placement != apply.placement
            || stored.attachments != apply.attachments
            || stored.remove != apply.remove
            || conditions::differ(&self.disk.metadata, &stored.conditions, &apply.conditions)
            || (apply.observed_generation.is_some()
                && apply.observed_generation != stored.observed_generation)
            || stored.summary.and_then(|s| s.used_by) != apply.summary.and_then(|s| s.used_by);
        if differs { self.into_step() } else { None }
    }

    fn into_step(self) -> Option<Step> {
        let disk = ObjectRef::of(Kind::Disk, self.disk)?;
        let status = Box::new(self.apply());
        Some(Step::SetDiskStatus { disk, read_first: self.read_first, status })
    }
}
