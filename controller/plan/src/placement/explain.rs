//! Explains, for one VM, why it is where it is and what every other host lacks: the same filters and weights that
//! place it, all of them asked, over every host of its cluster.

use std::fmt;

use serde::Serialize;
use vireo_crds::{condition::kind, v1alpha1::VirtualMachine};

use super::{
    candidate::{Candidate, Request},
    filters,
    lack::asked,
    weights::{Factors, Score},
};
use crate::{
    capacity::human,
    vm::references::{self, ValidatedVm},
    world::World,
};

/// Why a VM is where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Namespace and name of the VM.
    pub vm: String,
    /// Its HostCluster.
    pub cluster: String,
    /// Where it is, in words.
    pub stands: String,
    /// What it asks of a host, in words.
    pub asks: String,
    /// Faults of its spec; while there are any, no host is looked at.
    pub faults: Vec<String>,
    /// Every host of the cluster: those that fit, best first, then the others by name.
    pub hosts: Vec<HostVerdict>,
}

/// What is to be said of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostVerdict {
    /// Its name.
    pub host: String,
    /// The VM is there now.
    pub here: bool,
    /// Sum of the weights, the lowest is best; none of a host that does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// The weights that count, such as `load 312 x 1`.
    pub weights: Vec<String>,
    /// What is free there for this VM.
    pub free: String,
    /// What it lacks: filter, what is wrong and what to do about it.
    pub lacks: Vec<LackTold>,
}

/// One reason for which a host cannot take the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LackTold {
    /// The filter.
    pub filter: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Explains where this VM is and could be, as if it were placed now.
pub fn explain(world: &World, vm: &VirtualMachine) -> Explanation {
    let namespace = vm.metadata.namespace.as_deref().unwrap_or_default();
    let mut told = Explanation {
        vm: format!("{namespace}/{}", vm.metadata.name.as_deref().unwrap_or_default()),
        cluster: vm.spec.cluster.clone(),
        ..Explanation::default()
    };
    match references::validate(world, vm) {
        Ok(valid) => {
            told.asks = asks(&valid);
            told.hosts = verdicts(world, vm, &valid);
        }
        Err(faults) => {
            told.faults = faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect();
        }
    }
    told.stands = stands(vm, &told.hosts);
    told
}

fn asks(valid: &ValidatedVm<'_>) -> String {
    let need = valid.need;
    let guest = valid.guest_memory;
    format!(
        "{} vCPUs and {} of memory: {} of its own and {} for QEMU",
        need.cpus,
        asked(need.memory),
        human(guest),
        human(need.memory.saturating_sub(guest))
    )
}

fn verdicts(world: &World, vm: &VirtualMachine, valid: &ValidatedVm<'_>) -> Vec<HostVerdict> {
    let request = Request::of(world, vm, valid);
    let factors = Factors::of(valid.cluster);
    let here = vm.status.as_ref().and_then(|s| s.placement.as_ref()).map(|p| p.host.as_str());
    let mut all: Vec<(Option<Score<'_>>, HostVerdict)> = world
        .hosts_of_cluster(&vm.spec.cluster)
        .map(|(name, host)| {
            let candidate = Candidate::of(world, &request, name, host);
            let lacks: Vec<_> = filters::all_lacks(&candidate)
                .into_iter()
                .map(|(filter, lack)| LackTold {
                    filter,
                    what: lack.phrase(false, &lack.differing()),
                    remedy: lack.remedy(name),
                })
                .collect();
            let score = lacks.is_empty().then(|| factors.score(&candidate));
            let weights = factors.each(&candidate).into_iter();
            let free = candidate.free();
            let verdict = HostVerdict {
                host: name.clone(),
                here: here == Some(name),
                score: score.map(|score| score.total),
                weights: weights.map(|(name, factor, value)| format!("{name} {value} x {factor}")).collect(),
                free: format!("{} vCPUs, {}", free.cpus, human(free.memory)),
                lacks,
            };
            (score, verdict)
        })
        .collect();
    all.sort_by(|(a, x), (b, y)| (a.is_none(), a, &x.host).cmp(&(b.is_none(), b, &y.host)));
    all.into_iter().map(|(_, verdict)| verdict).collect()
}

fn stands(vm: &VirtualMachine, hosts: &[HostVerdict]) -> String {
    let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
    let Some(placement) = placement else {
        let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let placed = vireo_crds::condition::get(conditions, kind::PLACED);
        return match placed.filter(|placed| placed.status != "True") {
            Some(placed) => format!("has no host: {}: {}", placed.reason, placed.message),
            None => "has no host".into(),
        };
    };
    let host = &placement.host;
    let first = hosts.first().filter(|first| first.score.is_some());
    let now = match (hosts.iter().find(|verdict| verdict.here), first) {
        (Some(own), _) if !own.lacks.is_empty() => "; it would not be placed there now",
        (Some(own), Some(first)) if own.host == first.host => "; it would be placed there again",
        (Some(_), Some(_)) => "; it fits there, and another host would be better now",
        _ => "",
    };
    format!("is on {host} under grant number {}{now}", placement.epoch)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VirtualMachine {} {}.", self.vm, self.stands)?;
        if !self.asks.is_empty() {
            writeln!(f, "It asks HostCluster {} for {}.", self.cluster, self.asks)?;
        }
        for fault in &self.faults {
            writeln!(f, "Its spec cannot be acted on: {fault}.")?;
        }
        if self.hosts.is_empty() {
            return Ok(());
        }
        let rows = self.hosts.iter().map(|verdict| {
            let host = if verdict.here { format!("{} *", verdict.host) } else { verdict.host.clone() };
            let score = verdict.score.map_or_else(|| "-".to_owned(), |score| score.to_string());
            (host, score, verdict.weights.join(", "), verdict.free.clone())
        });
        let head = ["HOST", "SCORE", "WEIGHTS", "FREE"].map(str::to_owned);
        let rows: Vec<[String; 4]> =
            std::iter::once(head).chain(rows.map(|(a, b, c, d)| [a, b, c, d])).collect();
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..4).map(width).collect();
        writeln!(f)?;
        let verdicts = std::iter::once(None).chain(self.hosts.iter().map(Some));
        for (row, verdict) in rows.iter().zip(verdicts) {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "{cell:<width$}  ")?;
            }
            match verdict {
                None => writeln!(f, "VERDICT")?,
                Some(verdict) if verdict.lacks.is_empty() => writeln!(f, "fits")?,
                Some(verdict) => {
                    writeln!(f, "{}", if verdict.lacks.len() == 1 { "one lack" } else { "several lacks" })?
                }
            }
            for lack in verdict.into_iter().flat_map(|verdict| &verdict.lacks) {
                writeln!(f, "    {}: {}: {}", lack.filter, lack.what, lack.remedy)?;
            }
        }
        Ok(())
    }
}
