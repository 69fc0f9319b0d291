//! A daemon's answer to a session: what it holds that the store does not say.

use std::collections::{BTreeMap, BTreeSet};

use controller_plan::Key;
use node_plan::attest::{Known, Stored, attest};
use vireo_crds::v1alpha1::{Holding, VirtualMachine};

use super::super::Sim;
use super::Sight;

impl Sim {
    /// Answers a new session, and again while the answer is not empty.
    pub fn answer(&mut self, m: usize) -> bool {
        if !self.reaches(m) || !self.machines[m].libvirt || self.rules.no_attestation {
            return false;
        }
        let machine = &self.machines[m];
        let Some(daemon) = &machine.daemon else { return false };
        let (Some(session), Some(life), true) = (daemon.listing.clone(), daemon.life.clone(), daemon.listed)
        else {
            return false;
        };
        let empty = daemon.attestation.as_ref().is_none_or(|a| a.claims.is_empty());
        if daemon.answered.is_some() && (empty || self.ms - daemon.attested_at < 10_000) {
            return false;
        }
        let says = |vm: &VirtualMachine| {
            let status = vm.status.as_ref();
            let placement = status.and_then(|s| s.placement.clone());
            let runtime = status.and_then(|s| s.runtime.as_ref());
            let released = placement
                .as_ref()
                .zip(runtime)
                .is_some_and(|(p, r)| r.grant.names(&p.grant()) && r.holding == Holding::Released);
            let listed = placement.as_ref().is_some_and(|p| daemon.listed_grants.contains(&p.id));
            Stored { placement, released, listed }
        };
        let uids: BTreeSet<String> = machine
            .ledger
            .keys()
            .cloned()
            .chain(machine.guests.iter().filter(|(_, g)| g.visible).map(|(u, _)| u.clone()))
            .collect();
        // Mutation: what the ledger does not know is not looked for.
        let looks = |uid: &String| !self.rules.no_census || machine.ledger.contains_key(uid);
        let strays: Vec<String> =
            machine.guests.keys().filter(|uid| !uids.contains(*uid) && looks(uid)).cloned().collect();
        let mut known = BTreeMap::new();
        let mut stored = BTreeMap::new();
        for uid in uids.into_iter().filter(looks) {
            let entry = machine.ledger.get(&uid).cloned();
            let running =
                machine.guests.get(&uid).filter(|g| g.visible).and_then(|g| g.live.metadata.clone());
            let here = match daemon.vms.get(&uid) {
                Some(Sight::Here(vm)) => Some(vm.clone()),
                _ => {
                    let vm = entry.as_ref().map(|e| &e.vm).or(running.as_ref().map(|r| &r.vm));
                    vm.and_then(|vm| self.store.world.vm(&Key::new(&vm.namespace, &vm.name)).cloned())
                        .filter(|o| o.metadata.uid.as_deref() == Some(&uid))
                }
            };
            stored.extend(here.map(|vm| says(&vm)).map(|s| (uid.clone(), s)));
            let process = machine.guests.contains_key(&uid);
            known.insert(uid, Known { entry, running, process });
        }
        for (uid, sight) in &daemon.vms {
            if let Sight::Here(vm) = sight {
                stored.entry(uid.clone()).or_insert_with(|| says(vm));
            }
        }
        if self.store.nonce.as_deref() != Some(&session) && daemon.nonce.as_deref() != Some(&session) {
            return false;
        }
        let attestation = attest(&session, &life.id, known.values(), &strays, &stored);
        let name = machine.name.clone();
        self.say(|| {
            format!(
                "{name} attests {session}: {:?}",
                attestation
                    .claims
                    .iter()
                    .map(|c| (&c.vm_uid, &c.grant.id, c.holding, c.running))
                    .collect::<Vec<_>>()
            )
        });
        let ms = self.ms;
        let Some(daemon) = &mut self.machines[m].daemon else { return false };
        let news = daemon.attestation.as_ref() != Some(&attestation);
        daemon.answered = Some(session);
        daemon.attested_at = ms;
        daemon.attestation = Some(attestation);
        news
    }
}
