//! What a daemon reports of its host.

use node_plan::identity;
use vireo_crds::{
    condition::{self, kind},
    v1alpha1::{Host, HostIdentity, OrphanDomain},
};

use super::super::{Sim, faults::Fault, resolve};
use super::{HOST_CONDITIONS, SaidOf};

impl Sim {
    /// Writes Host.status if it differs. True if it did.
    pub fn report_host(&mut self, m: usize) -> bool {
        if !self.reaches(m) {
            return false;
        }
        let machine = &self.machines[m];
        let Some(daemon) = &machine.daemon else { return false };
        let (Some(host), Some(life)) = (daemon.host.clone(), daemon.life.clone()) else { return false };
        if identity::ours(&host, Some(&life.machine_uuid)).is_err() {
            return false;
        }
        let orphans: Vec<OrphanDomain> = machine
            .guests
            .iter()
            .filter(|(_, g)| g.visible)
            .filter_map(|(uid, g)| {
                let reason = daemon.workers.get(uid)?.unexplained.clone()?;
                Some(OrphanDomain {
                    name: g.live.name.clone(),
                    vm_uid: uid.clone(),
                    reason: reason.chars().take(256).collect(),
                })
            })
            .collect();
        let up = machine.libvirt;
        let (boot, uuid, attestation) =
            (machine.boot_id(), machine.machine_uuid.clone(), daemon.attestation.clone());
        let said_of: SaidOf = (
            host.metadata.resource_version.clone(),
            life.id.clone(),
            boot.clone(),
            up,
            attestation.clone(),
            orphans.clone(),
        );
        if daemon.nothing_to_say.as_ref() == Some(&said_of) {
            return false;
        }
        let mut wanted = host.as_ref().clone();
        let now = self.now();
        let edit = |host: &mut Host| {
            let generation = host.metadata.generation.unwrap_or_default();
            let status = host.status.get_or_insert_default();
            let ready = |type_, yes| {
                if yes {
                    condition::ConditionValue::yes(type_, "Ready", "")
                } else {
                    condition::ConditionValue::no(type_, "HypervisorDown", "libvirt does not answer")
                }
            };
            let values = [
                ready(kind::HYPERVISOR_READY, up),
                ready(kind::STORAGE_READY, true),
                ready(kind::NETWORK_READY, true),
            ];
            status.conditions = condition::merge(&status.conditions, &values, generation, now);
            status.incarnation = Some(life.id.clone());
            status.boot_id = Some(boot.clone());
            status.past_incarnations.clone_from(&life.past);
            let past = status.past_incarnations.len().saturating_sub(16);
            status.past_incarnations.drain(..past);
            status.attestation.clone_from(&attestation);
            status.identity =
                Some(HostIdentity { public_key_sha256: String::new(), machine_uuid: uuid.clone() });
            status.domains.clone_from(&orphans);
            let fixed: vireo_crds::v1alpha1::HostStatus = resolve::host_status();
            status.features = fixed.features;
            status.cpu = fixed.cpu;
            status.allocatable = fixed.allocatable;
            status.storage_domains = self.domain_reports.clone();
        };
        edit(&mut wanted);
        let same = {
            let (a, b) = (host.status.clone().unwrap_or_default(), wanted.status.clone().unwrap_or_default());
            let said = |s: &vireo_crds::v1alpha1::HostStatus| {
                let own: Vec<_> = HOST_CONDITIONS
                    .iter()
                    .map(|t| {
                        condition::get(&s.conditions, t)
                            .map(|c| (c.status.clone(), c.reason.clone(), c.observed_generation))
                    })
                    .collect();
                (
                    own,
                    s.incarnation.clone(),
                    s.boot_id.clone(),
                    s.past_incarnations.clone(),
                    s.attestation.clone(),
                    s.identity.clone(),
                    s.domains.clone(),
                    s.storage_domains.clone(),
                )
            };
            said(&a) == said(&b)
        };
        if same {
            if let Some(daemon) = &mut self.machines[m].daemon {
                daemon.nothing_to_say = Some(said_of);
            }
            return false;
        }
        let edit2 = edit;
        match self.store.report(&host, &HOST_CONDITIONS, edit2) {
            Ok(host) => {
                let name = host.metadata.name.clone().unwrap_or_default();
                self.say(|| format!("{name} reports about itself"));
                if let Some(daemon) = &mut self.machines[m].daemon {
                    daemon.host = Some(host);
                }
                true
            }
            Err(_) => {
                self.fault(Fault::Conflict);
                false
            }
        }
    }
}
