//! Makes, and removes, volumes of the Disks a host works on.

use std::sync::Arc;

use controller_plan::Key;
use vireo_crds::v1alpha1::{Disk, DiskPhase};

use super::super::{Sim, faults::Fault};
use super::DISK_CONDITIONS;

impl Sim {
    /// Makes, and removes, volumes of the Disks this host works on. True if anything was done.
    pub fn work_on_disks(&mut self, m: usize) -> bool {
        use node_plan::storage::{
            disk::{DiskFacts, DiskIntent, DiskStep, DomainFacts, VolumeFact, plan_disk},
            report::{Teller, disk_report, is_news},
        };
        let name = self.machines[m].name.clone();
        let Some(daemon) = &self.machines[m].daemon else { return false };
        let disks: Vec<Arc<Disk>> = daemon.disks.values().cloned().collect();
        let mut did = false;
        for disk in disks {
            let Some(intent) = DiskIntent::of(&disk, &name) else { continue };
            let file = if self.rules.name_based_volume {
                disk.metadata.name.clone().unwrap_or_default()
            } else {
                intent.uid.clone()
            };
            let volume = self.volumes.entry(file.clone()).or_default().clone();
            let present = if volume.present {
                VolumeFact::Present { capacity: 1 << 30, allocated: 0 }
            } else {
                VolumeFact::Absent
            };
            let facts = DiskFacts {
                volume: present,
                sidecar: volume.sidecar.clone(),
                trashed: volume.trashed.clone(),
                origin: None,
                partials: false,
            };
            let domain = DomainFacts { not_ready: None, available: 1 << 40, block_free: 0 };
            let plan = plan_disk(&intent, &facts, &domain);
            self.counts.node_plans += 1;
            for step in &plan.steps {
                did = true;
                self.say(|| {
                    format!(
                        "{name}: volume {}: {}",
                        intent.uid,
                        match step {
                            DiskStep::Create(..) => "made",
                            DiskStep::MoveToTrash(_) => "moved to the trash",
                            _ => "worked on",
                        }
                    )
                });
                match step {
                    DiskStep::Create(sidecar, _) => {
                        if volume.present {
                            self.violation(
                                "10",
                                format!("volume {} is made anew over a finished one", intent.uid),
                            );
                        }
                        if volume.lost.is_some()
                            && disk.status.as_ref().and_then(|s| s.phase) == Some(DiskPhase::Ready)
                        {
                            self.violation(
                                "10",
                                format!(
                                    "volume {} was ready, is missing, and is replaced by a blank one",
                                    intent.uid
                                ),
                            );
                        }
                        if volume.trashed.is_some() {
                            self.violation(
                                "10",
                                format!(
                                    "volume {} is in the trash and is replaced by a blank one",
                                    intent.uid
                                ),
                            );
                        }
                        let volume = self.volumes.entry(file.clone()).or_default();
                        volume.present = true;
                        volume.lost = None;
                        volume.sidecar = Some(sidecar.clone());
                    }
                    DiskStep::MoveToTrash(sidecar) => {
                        self.removing(&intent.uid, &file);
                        let volume = self.volumes.entry(file.clone()).or_default();
                        volume.present = false;
                        volume.sidecar = None;
                        volume.trashed = Some(sidecar.clone());
                    }
                    DiskStep::WriteSidecar(sidecar) => {
                        self.volumes.entry(file.clone()).or_default().sidecar = Some(sidecar.clone())
                    }
                    _ => {}
                }
            }
            if !self.reaches(m) || !plan.steps.is_empty() {
                continue;
            }
            let old = disk.status.clone().unwrap_or_default();
            let report = disk_report(
                &intent,
                &plan.standing,
                Teller { host: &name, shared: true, progress: None },
                &old,
                self.now(),
            );
            if !is_news(&report, &old) {
                continue;
            }
            let written = self.store.report(&disk, &DISK_CONDITIONS, |disk| {
                let status = disk.status.get_or_insert_default();
                status.conditions.clone_from(&report.conditions);
                status.observed_generation = report.observed_generation;
                status.phase = report.phase;
                status.capacity = report.capacity;
                status.volume.clone_from(&report.volume);
                status.local_host.clone_from(&report.local_host);
                if report.summary.is_some() {
                    status.allocated = report.allocated;
                    status.summary.get_or_insert_default().allocated =
                        report.summary.as_ref().and_then(|s| s.allocated.clone());
                }
            });
            match written {
                Ok(disk) => {
                    did = true;
                    if let Some(daemon) = &mut self.machines[m].daemon {
                        daemon.disks.insert(Key::of(disk.as_ref()), disk);
                    }
                }
                Err(_) => self.fault(Fault::Conflict),
            }
        }
        did
    }
}
