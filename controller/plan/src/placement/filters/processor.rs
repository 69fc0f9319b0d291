//! Filters `architecture`, `features` and `cpuModel`: what the host's processors, its firmware files and its daemon
//! can do, as the host itself reports it.

use vireo_crds::v1alpha1::{Architecture, CpuModel};

use crate::placement::{candidate::Candidate, lack::Lack};

pub(super) fn architecture(candidate: &Candidate<'_>) -> Option<Lack> {
    let wanted = candidate.request.vm.spec.architecture?;
    let found = candidate.status.cpu.as_ref().map(|c| c.architecture);
    (found != Some(wanted)).then_some(Lack::Architecture(match wanted {
        Architecture::x86_64 => "x86_64",
        Architecture::aarch64 => "aarch64",
        Architecture::Unknown => "of a kind this version does not know",
    }))
}

pub(super) fn features(candidate: &Candidate<'_>) -> Option<Lack> {
    let has = |feature: &str| candidate.status.features.iter().any(|has| has == feature);
    candidate.request.valid.features.iter().find(|f| !has(f)).map(|f| Lack::Feature(f))
}

pub(super) fn model(candidate: &Candidate<'_>) -> Option<Lack> {
    let valid = candidate.request.valid;
    let model = match &candidate.request.vm.spec.cpu.model {
        CpuModel::Named(model) => model.name.as_str(),
        CpuModel::Cluster(_) => valid.cluster.status.as_ref()?.baseline.as_deref()?,
        CpuModel::HostModel(_) | CpuModel::HostPassthrough(_) => return None,
    };
    let cpu = candidate.status.cpu.as_ref();
    let usable = cpu.is_some_and(|c| c.usable_models.iter().any(|usable| usable == model));
    (!usable).then(|| Lack::CpuModel(model.into()))
}
