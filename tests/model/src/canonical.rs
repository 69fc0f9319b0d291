//! One form for states that differ only in random ids, or in which host is which.

use std::collections::BTreeMap;

use crate::state::{Attestation, Grant, Life, Objects, Past, Sight, State, Vm};

/// New numbers for random ids, in the order in which they are met: states that differ only in ids become one.
#[derive(Default)]
struct Names {
    hosts: Vec<u8>,
    ids: BTreeMap<u8, u8>,
    incs: BTreeMap<u8, u8>,
    nonces: BTreeMap<u8, u8>,
}

fn rename(names: &mut BTreeMap<u8, u8>, old: &mut u8) {
    if *old > 0 {
        let next = u8::try_from(names.len() + 1).unwrap_or(u8::MAX);
        *old = *names.entry(*old).or_insert(next);
    }
}

impl Names {
    fn host(&self, host: &mut u8) {
        *host = self.hosts[usize::from(*host)];
    }

    fn grant(&mut self, grant: &mut Grant) {
        self.host(&mut grant.host);
        rename(&mut self.incs, &mut grant.inc);
        rename(&mut self.ids, &mut grant.id);
    }

    fn vm(&mut self, vm: &mut Vm) {
        vm.placement.iter_mut().for_each(|p| self.grant(&mut p.grant));
        vm.runtime.iter_mut().for_each(|r| self.grant(&mut r.grant));
        vm.confirm.iter_mut().for_each(|id| rename(&mut self.ids, id));
    }

    fn attestation(&mut self, attestation: &mut Attestation) {
        rename(&mut self.nonces, &mut attestation.session);
        rename(&mut self.incs, &mut attestation.inc);
        attestation.claims.iter_mut().for_each(|c| self.grant(&mut c.grant));
    }

    fn objects(&mut self, objects: &mut Objects) {
        objects.hosts = permuted(&objects.hosts, &self.hosts);
        objects.vms.iter_mut().flatten().for_each(|vm| self.vm(vm));
        for host in &mut objects.hosts {
            rename(&mut self.incs, &mut host.inc);
            host.confirm.iter_mut().for_each(|inc| rename(&mut self.incs, inc));
            host.attestation.iter_mut().for_each(|a| self.attestation(a));
        }
    }

    fn known(names: &BTreeMap<u8, u8>, list: &mut Vec<u8>) {
        *list = list.iter().filter_map(|old| names.get(old).copied()).collect();
        list.sort_unstable();
    }

    fn past(&self, past: &mut Vec<Past>) {
        *past = past.iter().filter_map(|(inc, same)| Some((*self.incs.get(inc)?, *same))).collect();
        past.sort_unstable();
    }
}

fn permuted<T: Clone>(list: &[T], order: &[u8]) -> Vec<T> {
    let mut placed: Vec<_> = order.iter().zip(list).map(|(to, item)| (*to, item.clone())).collect();
    placed.sort_by_key(|(to, _)| *to);
    placed.into_iter().map(|(_, item)| item).collect()
}

impl State {
    /// The same state with ids numbered in order of appearance and, with `symmetric`, hosts in one fixed order:
    /// nothing in here depends on which host is which.
    pub fn canonical(&self, symmetric: bool) -> Self {
        let hosts = u8::try_from(self.machines.len()).unwrap_or(0);
        let identity: Vec<u8> = (0..hosts).collect();
        if !symmetric {
            return self.renamed(identity);
        }
        permutations(&identity).into_iter().map(|order| self.renamed(order)).min().unwrap_or_default()
    }

    fn renamed(&self, hosts: Vec<u8>) -> Self {
        let mut names = Names { hosts, ..Names::default() };
        let mut s = self.clone();
        rename(&mut names.nonces, &mut s.nonce);
        names.objects(&mut s.store);
        s.machines = permuted(&s.machines, &names.hosts);
        for machine in &mut s.machines {
            rename(&mut names.incs, &mut machine.inc);
            rename(&mut names.nonces, &mut machine.daemon.nonce);
            machine.daemon.attestation.iter_mut().for_each(|a| names.attestation(a));
            machine.vms.retain(|l| {
                l.entry.is_some() || l.process.is_some() || l.exit.is_some() || l.sight != Sight::None
            });
            machine.vms.sort_by_key(|l| l.uid);
            for local in &mut machine.vms {
                if let Some(held) = local.entry.as_mut().and_then(|e| e.held.as_mut()) {
                    names.grant(&mut held.grant);
                    rename(&mut names.incs, &mut held.inc);
                }
                local.process.iter_mut().for_each(|p| names.grant(&mut p.grant));
                match &mut local.sight {
                    Sight::Here(vm) => names.vm(vm),
                    Sight::Elsewhere(grant) => names.grant(grant),
                    Sight::None | Sight::Disappeared | Sight::Gone => {}
                }
            }
        }
        for session in s.sessions.iter_mut().flatten() {
            rename(&mut names.nonces, &mut session.nonce);
            names.objects(&mut session.seen);
            session.lives = permuted(&session.lives, &names.hosts);
            for life in &mut session.lives {
                match life {
                    Life::Unknown => {}
                    Life::Fresh(inc) | Life::Silent(inc) => rename(&mut names.incs, inc),
                }
            }
            session.old_confirmations = permuted(&session.old_confirmations, &names.hosts);
            session.old_confirmations.iter_mut().flatten().for_each(|inc| rename(&mut names.incs, inc));
        }
        s.token.iter_mut().for_each(|(_, grant)| rename(&mut names.ids, &mut grant.id));
        if let Some(flight) = &mut s.flight {
            rename(&mut names.nonces, &mut flight.nonce);
            names.vm(&mut flight.before);
            flight.step.each_grant(|grant| names.grant(grant));
        }
        names.objects(&mut s.backup.0);
        rename(&mut names.nonces, &mut s.backup.1);
        // What nothing else names any more cannot come back.
        for session in s.sessions.iter_mut().flatten() {
            Names::known(&names.ids, &mut session.granted);
            Names::known(&names.ids, &mut session.attested);
            session.seen.hosts.iter_mut().for_each(|h| names.past(&mut h.past));
        }
        s.store.hosts.iter_mut().chain(&mut s.backup.0.hosts).for_each(|h| names.past(&mut h.past));
        s.machines.iter_mut().for_each(|m| names.past(&mut m.past));
        Names::known(&names.ids, &mut s.ghost.released);
        Names::known(&names.ids, &mut s.ghost.ended);
        s.ghost.lie.iter_mut().for_each(|host| names.host(host));
        let next = |names: &BTreeMap<u8, u8>| u8::try_from(names.len() + 1).unwrap_or(u8::MAX);
        s.next_id = next(&names.ids);
        s.next_inc = next(&names.incs);
        s.next_nonce = next(&names.nonces);
        s
    }
}

fn permutations(items: &[u8]) -> Vec<Vec<u8>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(at);
        all.extend(permutations(&rest).into_iter().map(|mut tail| {
            tail.insert(0, first);
            tail
        }));
    }
    all
}
