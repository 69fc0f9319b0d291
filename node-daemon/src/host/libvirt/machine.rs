//! Describes the machine and its hypervisor from libvirt's capabilities. Decides nothing.

use node_plan::xml::{
    XmlError,
    capabilities::{Machine, machine, usable_models},
};
use vireo_crds::v1alpha1::{Accelerator, Architecture, HostCpu, HostVersions};
use virt::connect::Connect;

use super::error::LibvirtError;
use crate::{host::HostFacts, resolve::TPM_SOURCE_SINCE};

/// The machine, given what accelerates guests on it. Blocking.
pub fn describe(conn: &Connect, accelerator: Accelerator) -> Result<HostFacts, LibvirtError> {
    let of = |e| LibvirtError::of("reading the host's capabilities", e);
    let capabilities = conn.capabilities().map_err(of)?;
    let node = conn.node_info().map_err(of)?;
    let libvirt = conn.lib_version().map_err(of)?;
    let qemu = conn.hyp_version().map_err(of)?;
    let Machine { uuid: machine_uuid, architecture: arch, cpu_model: model } =
        machine(&capabilities).map_err(|error| unreadable(&error))?;
    let kind = if accelerator == Accelerator::Kvm { "kvm" } else { "qemu" };
    // The test driver knows no domain capabilities; a host without models fits no VM that names one.
    let usable_models = match conn.domain_capabilities(None, Some(arch_name(arch)), None, Some(kind), 0) {
        Ok(text) => usable_models(&text).map_err(|error| unreadable(&error))?,
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

fn unreadable(error: &XmlError) -> LibvirtError {
    LibvirtError::Answer { call: "reading the host's capabilities", message: error.to_string() }
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
    fn versions_are_as_people_write_them() {
        assert_eq!(version(11_003_000), "11.3.0");
        assert_eq!(version(TPM_SOURCE_SINCE), "10.10.0");
    }
}
