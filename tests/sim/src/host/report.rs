//! What a daemon reports of a VM and of the acts on it, if that is due.

use controller_plan::Key;
use vireo_crds::{
    condition::{self, kind},
    v1alpha1::VirtualMachine,
};

use super::super::{
    Sim,
    faults::Fault,
    store::{Refused, Store},
};
use super::{Sight, VM_CONDITIONS, version};

impl Sim {
    /// Writes what a worker has to report, if it is due. True if it was.
    pub fn post(&mut self, m: usize, uid: &str) -> bool {
        if !self.reaches(m) {
            return false;
        }
        let name = self.machines[m].name.clone();
        let Some(daemon) = self.machines[m].daemon.as_mut() else { return false };
        let Some(post) = daemon.workers.get_mut(uid).and_then(|w| w.post.take()) else { return false };
        let mut wrote = false;
        if let Some(report) = &post.plan.report
            && is_due(&self.store, &post.object, report)
        {
            let key = Key::of(post.object.as_ref());
            let stored =
                self.store.world.vm(&key).and_then(|o| o.status.as_ref()?.placement.as_ref()).cloned();
            // Admission: only the host that placement names.
            if stored.as_ref().is_none_or(|p| p.host != name) {
                return false;
            }
            let written = self.store.report(&post.object, &VM_CONDITIONS, |vm| {
                let status = vm.status.get_or_insert_default();
                status.conditions = condition::merge(
                    &status.conditions,
                    &report.conditions,
                    report.observed_generation,
                    post.now,
                );
                status.observed_generation = Some(report.observed_generation);
                status.state = Some(report.state);
                status.summary = Some(report.summary.clone());
                status.runtime.clone_from(&report.runtime);
                status.hardware.clone_from(&report.hardware);
            });
            match written {
                Ok(vm) => {
                    wrote = true;
                    self.counts.writes += 1;
                    self.say(|| {
                        format!(
                            "{name} reports {uid}: {:?}",
                            report.runtime.as_ref().map(|r| (r.holding, r.power, r.stop_cause, &r.grant.id))
                        )
                    });
                    if let Some(daemon) = &mut self.machines[m].daemon {
                        let newer = matches!(daemon.vms.get(uid), Some(Sight::Here(k)) if version(k.as_ref()) > version(vm.as_ref()));
                        if !newer {
                            daemon.vms.insert(uid.into(), Sight::Here(vm));
                        }
                    }
                }
                Err(Refused::Stale(_)) => {
                    self.fault(Fault::Conflict);
                    return false;
                }
                Err(_) => return false,
            }
        }
        for outcome in &post.plan.acts {
            let Some(act) = self.machines[m].daemon.as_ref().and_then(|d| d.acts.get(&outcome.uid)).cloned()
            else {
                continue;
            };
            let status = act.status.clone().unwrap_or_default();
            if status.phase == Some(outcome.phase) && status.message.as_deref() == Some(&outcome.message) {
                continue;
            }
            let written = self.store.report(&act, &[kind::READY], |act| {
                let generation = act.metadata.generation.unwrap_or_default();
                let status = act.status.get_or_insert_default();
                let ready = if outcome.phase == vireo_crds::v1alpha1::ActPhase::Succeeded {
                    condition::ConditionValue::yes(kind::READY, "Succeeded", outcome.message.as_str())
                } else {
                    condition::ConditionValue::no(kind::READY, "Running", outcome.message.as_str())
                };
                status.conditions = condition::merge(&status.conditions, &[ready], generation, post.now);
                status.observed_generation = Some(generation);
                status.phase = Some(outcome.phase);
                status.message = Some(outcome.message.clone());
                status.completed_at =
                    outcome.completed_at.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
            });
            if let Ok(act) = written
                && let Some(daemon) = &mut self.machines[m].daemon
            {
                wrote = true;
                daemon.acts.insert(outcome.uid.clone(), act);
                self.say(|| format!("{name}: act {} is {:?}", outcome.name, outcome.phase));
            }
        }
        wrote
    }
}

fn is_due(store: &Store, object: &VirtualMachine, report: &node_plan::step::VmReport) -> bool {
    let empty = Default::default();
    let status = object.status.as_ref().unwrap_or(&empty);
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let differs = |wanted: &condition::ConditionValue| {
        condition::get(&status.conditions, &wanted.type_).is_none_or(|c| {
            c.status != wanted.status
                || c.reason != wanted.reason
                || c.message != wanted.message
                || c.observed_generation != Some(report.observed_generation)
        })
    };
    let dropped = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        VM_CONDITIONS.contains(&c.type_.as_str())
            && !report.conditions.iter().any(|w| w.type_ == c.type_)
            && store.is_nodes(uid, &c.type_)
    };
    report.conditions.iter().any(differs)
        || status.conditions.iter().any(dropped)
        || status.observed_generation != Some(report.observed_generation)
        || status.state != Some(report.state)
        || status.summary.as_ref() != Some(&report.summary)
        || status.runtime != report.runtime
        || status.hardware != report.hardware
}
