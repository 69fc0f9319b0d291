//! Virtual processors: topology and model.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    element::Element,
    read::{NodeExt, XmlError, number},
};

/// Virtual processors of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Sockets.
    pub sockets: u32,
    /// Cores per socket.
    pub cores: u32,
    /// Threads per core.
    pub threads: u32,
    /// How many are plugged in, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<u32>,
    /// Model.
    pub mode: CpuMode,
}

/// Model of the processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CpuMode {
    /// The host's own.
    HostPassthrough,
    /// The nearest named model; a running domain shows which one it was.
    HostModel,
    /// All the accelerator can do.
    Maximum,
    /// A named model, exactly.
    Named(String),
    /// Whatever QEMU takes when nothing is said. Never written by us.
    Default,
}

impl Cpu {
    /// Number of virtual processors.
    pub fn vcpus(&self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }

    pub(crate) fn vcpu_element(&self) -> Element {
        Element::text("vcpu", self.vcpus()).attr("placement", "static").attr_opt("current", self.online)
    }

    pub(crate) fn element(&self) -> Element {
        let cpu = Element::new("cpu");
        let cpu = match &self.mode {
            CpuMode::HostPassthrough => cpu.attr("mode", "host-passthrough").attr("check", "none"),
            CpuMode::HostModel => cpu.attr("mode", "host-model").attr("check", "partial"),
            CpuMode::Maximum => cpu.attr("mode", "maximum").attr("check", "none"),
            // `forbid`: a model the host lacks is an error, not another processor under the guest's feet.
            CpuMode::Named(name) => cpu
                .attr("mode", "custom")
                .attr("match", "exact")
                .attr("check", "partial")
                .child(Element::text("model", name).attr("fallback", "forbid")),
            CpuMode::Default => cpu,
        };
        cpu.child(
            Element::new("topology")
                .attr("sockets", self.sockets)
                .attr("cores", self.cores)
                .attr("threads", self.threads),
        )
    }

    pub(crate) fn of(domain: Node<'_, '_>) -> Result<Self, XmlError> {
        let vcpu = domain.child("vcpu");
        let count: u32 = vcpu.and_then(|node| node.text()).map_or(Ok(1), |text| number(text, "vcpu"))?;
        let online = vcpu
            .map_or(Ok(None), |node| node.parsed("current", "vcpu/@current"))?
            .filter(|online| *online != count);
        let node = domain.child("cpu");
        let mode = match node.and_then(|node| node.attribute("mode")) {
            Some("host-passthrough") => CpuMode::HostPassthrough,
            Some("host-model") => CpuMode::HostModel,
            Some("maximum") => CpuMode::Maximum,
            _ => node
                .and_then(|node| node.child_text("model"))
                .map_or(CpuMode::Default, |name| CpuMode::Named(name.into())),
        };
        let (sockets, cores, threads) = match node.and_then(|node| node.child("topology")) {
            None => (count, 1, 1),
            Some(topology) => {
                let part = |name| topology.parsed(name, "cpu/topology").map(|part| part.unwrap_or(1));
                (part("sockets")?, part("cores")?, part("threads")?)
            }
        };
        Ok(Self { sockets, cores, threads, online, mode })
    }
}
