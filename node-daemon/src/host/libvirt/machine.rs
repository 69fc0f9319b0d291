//! Describes the machine and its hypervisor from libvirt's capabilities. Decides nothing.

use roxmltree::{Document, Node};
use vireo_crds::v1alpha1::{Accelerator, Architecture, HostCpu, HostVersions};
use virt::connect::Connect;

use super::error::LibvirtError;
use crate::{host::HostFacts, resolve::TPM_SOURCE_SINCE};

/// CPU models listed at most; the API takes no more.
const MAX_MODELS: usize = 512;

/// The machine, given what accelerates guests on it. Blocking.
pub fn describe(conn: &Connect, accelerator: Accelerator) -> Result<HostFacts, LibvirtError> {
    let of = |e| LibvirtError::of("reading the host's capabilities", e);
    let capabilities = conn.capabilities().map_err(of)?;
    let node = conn.node_info().map_err(of)?;
    let libvirt = conn.lib_version().map_err(of)?;
    let qemu = conn.hyp_version().map_err(of)?;
    let (machine_uuid, arch, model) = host(&capabilities)?;
    let kind = if accelerator == Accelerator::Kvm { "kvm" } else { "qemu" };
    // The test driver knows no domain capabilities; a host without models fits no VM that names one.
    let usable_models = match conn.domain_capabilities(None, Some(arch_name(arch)), None, Some(kind), 0) {
        Ok(text) => usable_models(&text)?,
        Err(error) => {
            tracing::warn!(error = error.message(), "libvirt does not tell which CPU models guests can have");
            Vec::new()
        }
    };
    let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    Ok(HostFacts {
        machine_uuid,
        versions: HostVersions { libvirt: version(libvirt), qemu: version(qemu), kernel: kernel() },
        accelerator,
        cpu: HostCpu {
            architecture: arch,
            model,
            usable_models,
            sockets: count(node.sockets),
            cores: count(node.cores),
            threads: count(node.threads),
            numa_cells: count(node.nodes),
        },
        memory: node.memory.saturating_mul(1024),
        tpm_source: libvirt >= TPM_SOURCE_SINCE,
    })
}

fn unreadable(message: impl Into<String>) -> LibvirtError {
    LibvirtError::Answer { call: "reading the host's capabilities", message: message.into() }
}

fn host(text: &str) -> Result<(String, Architecture, Option<String>), LibvirtError> {
    let document = Document::parse(text).map_err(|e| unreadable(e.to_string()))?;
    let host = child(document.root_element(), "host").ok_or_else(|| unreadable("no host"))?;
    let uuid = child(host, "uuid").and_then(|node| node.text()).unwrap_or_default().trim().to_lowercase();
    let cpu = child(host, "cpu");
    let text_of = |name| {
        cpu.and_then(|cpu| child(cpu, name)).and_then(|node| node.text()).map(|text| text.trim().to_owned())
    };
    let arch = match text_of("arch").as_deref() {
        Some("x86_64" | "i686") => Architecture::x86_64,
        Some("aarch64") => Architecture::aarch64,
        _ => Architecture::Unknown,
    };
    Ok((uuid, arch, text_of("model").map(|model| model.chars().take(64).collect())))
}

/// Named models the emulator can give a guest here.
fn usable_models(text: &str) -> Result<Vec<String>, LibvirtError> {
    let document = Document::parse(text).map_err(|e| unreadable(e.to_string()))?;
    let custom = document
        .descendants()
        .find(|node| node.has_tag_name("mode") && node.attribute("name") == Some("custom"));
    let mut models: Vec<String> = custom
        .into_iter()
        .flat_map(|mode| mode.children())
        .filter(|node| node.has_tag_name("model") && node.attribute("usable") == Some("yes"))
        .filter_map(|node| node.text().map(|text| text.trim().to_owned()))
        .filter(|name| !name.is_empty() && name.len() <= 64)
        .collect();
    models.sort();
    models.dedup();
    models.truncate(MAX_MODELS);
    Ok(models)
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn arch_name(arch: Architecture) -> &'static str {
    match arch {
        Architecture::aarch64 => "aarch64",
        Architecture::x86_64 | Architecture::Unknown => "x86_64",
    }
}

fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_cannot_be_used_are_not_listed() {
        let text = "<domainCapabilities><cpu><mode name='host-model' supported='yes'><model>x</model></mode>\
            <mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>EPYC</model>\
            <model usable='yes'>Nehalem</model></mode></cpu></domainCapabilities>";
        assert_eq!(usable_models(text).unwrap(), ["Nehalem", "qemu64"]);
    }

    #[test]
    fn versions_are_as_people_write_them() {
        assert_eq!(version(11_003_000), "11.3.0");
        assert_eq!(version(TPM_SOURCE_SINCE), "10.10.0");
    }
}
