//! What a daemon sees of the API server: lists, watches that forget nothing by themselves, reads by name.

use std::{collections::BTreeMap, sync::Arc};

use controller_plan::{Key, Kind};
use node_plan::{facts::ExitKind, intent::VmRef};
use vireo_crds::{meta::DESTROY_ANNOTATION, v1alpha1::VirtualMachine};

use super::super::{
    Sim,
    store::{Change, Object, Store},
};
use super::{Sight, grant_of, placed_on, version};

impl Sim {
    /// Follows the watches; lists anew where a connection broke.
    pub fn watch(&mut self, m: usize) {
        if !self.reaches(m) {
            return;
        }
        let most = 1 + self.rng.below(8);
        let nonce = self.store.nonce.clone();
        let keeps = self.rules.attest_cached;
        let name = self.machines[m].name.clone();
        let Some(daemon) = &mut self.machines[m].daemon else { return };
        if nonce.is_some() && daemon.nonce != nonce {
            daemon.nonce.clone_from(&nonce);
            (daemon.listing, daemon.answered) = (nonce, None);
            if !keeps {
                daemon.vms.clear();
                daemon.listed = false;
                daemon.connection = 0;
            }
            return;
        }
        if daemon.connection != self.store.connection {
            if keeps && daemon.listed {
                return;
            }
            daemon.connection = self.store.connection;
            daemon.cursors = self.store.ends();
            let here = |vm: &&Arc<VirtualMachine>| placed_on(vm) == Some(name.as_str());
            let listed: BTreeMap<String, Sight> = self
                .store
                .world
                .vms()
                .filter(here)
                .map(|vm| (vm.metadata.uid.clone().unwrap_or_default(), Sight::Here(vm.clone())))
                .collect();
            for (uid, sight) in &mut daemon.vms {
                if matches!(sight, Sight::Here(_)) && !listed.contains_key(uid) {
                    *sight = Sight::Disappeared;
                }
            }
            daemon.listed_grants = listed.values().filter_map(grant_of).collect();
            daemon.vms.extend(listed);
            daemon.disks = self.store.world.disks().map(|d| (Key::of(d.as_ref()), d.clone())).collect();
            daemon.acts = self
                .store
                .world
                .acts()
                .map(|a| (a.metadata.uid.clone().unwrap_or_default(), a.clone()))
                .collect();
            daemon.host = self.store.world.host(&name).cloned();
            daemon.listed = true;
            return self.say(|| format!("{name} lists"));
        }
        let kind =
            [Kind::VirtualMachine, Kind::Disk, Kind::VirtualMachineAction, Kind::Host][self.rng.below(4)];
        self.watch_kind(m, kind, most);
    }

    pub fn watch_kind(&mut self, m: usize, kind: Kind, most: usize) {
        let name = self.machines[m].name.clone();
        let Some(daemon) = &mut self.machines[m].daemon else { return };
        if daemon.connection != self.store.connection {
            return;
        }
        let cursor = &mut daemon.cursors[Store::slot(kind)];
        for change in self.store.since(kind, *cursor).iter().take(most) {
            *cursor += 1;
            match change {
                Change::Put(Object::Vm(vm)) => {
                    let uid = vm.metadata.uid.clone().unwrap_or_default();
                    let known = daemon.vms.get(&uid);
                    if placed_on(vm) == Some(name.as_str()) {
                        if !matches!(known, Some(Sight::Here(known)) if version(known.as_ref()) > version(vm.as_ref()))
                        {
                            daemon.vms.insert(uid, Sight::Here(vm.clone()));
                        }
                    } else if matches!(known, Some(Sight::Here(_))) {
                        daemon.vms.insert(uid, Sight::Disappeared);
                    }
                }
                Change::Put(Object::Disk(disk)) => {
                    let key = Key::of(disk.as_ref());
                    let newer = daemon.disks.get(&key).is_some_and(|k| {
                        k.metadata.uid == disk.metadata.uid && version(k.as_ref()) > version(disk.as_ref())
                    });
                    if !newer {
                        daemon.disks.insert(key, disk.clone());
                    }
                }
                Change::Put(Object::Act(act)) => {
                    let uid = act.metadata.uid.clone().unwrap_or_default();
                    let newer =
                        daemon.acts.get(&uid).is_some_and(|k| version(k.as_ref()) > version(act.as_ref()));
                    if !newer {
                        daemon.acts.insert(uid, act.clone());
                    }
                }
                Change::Put(Object::Host(host)) if host.metadata.name.as_deref() == Some(&name) => {
                    if daemon.host.as_ref().is_none_or(|k| version(k.as_ref()) <= version(host.as_ref())) {
                        daemon.host = Some(host.clone());
                    }
                }
                Change::Put(_) => {}
                Change::Gone(key, uid) => match kind {
                    Kind::VirtualMachine => {
                        if daemon.vms.contains_key(uid) {
                            daemon.vms.insert(uid.clone(), Sight::Disappeared);
                        }
                    }
                    Kind::Disk => {
                        if daemon.disks.get(key).is_some_and(|d| d.metadata.uid.as_deref() == Some(uid)) {
                            daemon.disks.remove(key);
                        }
                    }
                    _ => {
                        daemon.acts.remove(uid);
                    }
                },
            }
        }
    }

    pub(super) fn read_by_name(&mut self, m: usize, uid: &str, vm: &VmRef) {
        let key = Key::new(&vm.namespace, &vm.name);
        let found = self.store.world.vm(&key).filter(|o| o.metadata.uid.as_deref() == Some(uid)).cloned();
        let name = self.machines[m].name.clone();
        let gone_destroys = self.rules.gone_destroys;
        let sight = match &found {
            None => Sight::Gone,
            Some(found) => match found.status.as_ref().and_then(|s| s.placement.as_ref()) {
                Some(placement) if placement.host == name => Sight::Here(found.clone()),
                Some(placement) => Sight::Elsewhere {
                    holder: placement.grant(),
                    order: found
                        .metadata
                        .annotations
                        .as_ref()
                        .and_then(|a| a.get(DESTROY_ANNOTATION))
                        .cloned(),
                },
                None => Sight::Disappeared,
            },
        };
        if gone_destroys && matches!(sight, Sight::Gone) {
            self.stopping(m, uid, "a missing object");
            let now = self.now();
            self.machines[m].end_guest(uid, ExitKind::Destroyed, now);
        }
        self.say(|| {
            format!(
                "{name} reads {uid} by name: {}",
                match &sight {
                    Sight::Here(_) => "here".into(),
                    Sight::Elsewhere { holder, .. } => format!("on {} number {}", holder.host, holder.epoch),
                    Sight::Disappeared => "placed nowhere".into(),
                    Sight::Gone => "gone".to_owned(),
                }
            )
        });
        if let Some(daemon) = &mut self.machines[m].daemon {
            daemon.listed_grants.extend(grant_of(&sight));
            daemon.vms.insert(uid.into(), sight);
        }
    }

    /// Whether everything shown by the watches has been taken in.
    pub fn is_caught_up(&self, m: usize) -> bool {
        let Some(daemon) = &self.machines[m].daemon else { return true };
        let ends = self.store.ends();
        daemon.connection == self.store.connection
            && daemon.nonce == self.store.nonce
            && [Kind::VirtualMachine, Kind::Disk, Kind::VirtualMachineAction, Kind::Host]
                .iter()
                .all(|k| daemon.cursors[Store::slot(*k)] == ends[Store::slot(*k)])
    }
}
