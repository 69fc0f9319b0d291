//! Carries out steps: one match arm each. Decides nothing; what a step leaves behind is what its doc comment says.

use std::path::{Path, PathBuf};

use node_plan::{
    facts::{DomainMetadata, OnReboot, ShutdownVia},
    intent::{Fault, KernelBoot, Machine},
    step::VmStep,
    xml::{
        self,
        build::{DomainInput, build_domain},
        metadata::METADATA_KEY,
    },
};
use vireo_crds::{
    meta::LIBVIRT_METADATA_NS,
    v1alpha1::{Grant, Hardware},
};
use virt::{connect::Connect, domain::Domain};

use super::{device, error::LibvirtError, events, read};
use crate::{
    error::RetryClass,
    host::{StepError, Target},
};

impl From<LibvirtError> for StepError {
    fn from(error: LibvirtError) -> Self {
        Self { class: error.class(), unanswered: error.is_disconnected(), message: error.to_string() }
    }
}

/// What a `StartDomain` step asks for.
pub struct Start<'a> {
    /// Metadata.
    pub metadata: &'a DomainMetadata,
    /// Machine.
    pub machine: &'a Machine,
    /// Addresses to keep.
    pub hardware: Option<&'a Hardware>,
    /// Seed image.
    pub seed: Option<&'a str>,
    /// TPM state directory.
    pub tpm_dir: Option<&'a str>,
    /// File that keeps what the guest writes to its serial console.
    pub console_log: Option<PathBuf>,
}

/// Creates the domain. Blocking.
pub fn start(conn: &Connect, start: &Start<'_>, libvirt_tpm_dir: &str) -> Result<(), StepError> {
    if let Some(kernel) = &start.machine.kernel {
        check_kernel(kernel)?;
    }
    let mut input = DomainInput {
        name: start.metadata.vm.domain_name(),
        machine: start.machine.clone(),
        seed: start.seed.map(Into::into),
        // libvirt's own directory is not named to it: older versions cannot be told.
        tpm_dir: start.tpm_dir.filter(|dir| !dir.starts_with(libvirt_tpm_dir)).map(Into::into),
        console_log: start.console_log.as_ref().map(|path| path.display().to_string()),
        hardware: start.hardware.cloned(),
        metadata: read::to_element(start.metadata, None),
    };
    let built = build_domain(&input).map_err(refused)?;
    // The record of addresses and of the domain is known only now, and belongs into the metadata.
    input.metadata = read::to_element(start.metadata, Some(&built));
    let built = build_domain(&input).map_err(refused)?;
    let text = xml::render(&built.domain);
    conn.create_domain_xml(&text, 0).map_err(|e| LibvirtError::of("starting the domain", e))?;
    Ok(())
}

fn refused(faults: Vec<Fault>) -> StepError {
    let faults: Vec<_> = faults.iter().map(Fault::to_string).collect();
    StepError::new(RetryClass::Rejected, faults.join("; "))
}

/// A kernel's path was checked as text; here what lies there must be a plain file that no link led out of the domain to.
fn check_kernel(kernel: &KernelBoot) -> Result<(), StepError> {
    for path in std::iter::once(&kernel.kernel).chain(&kernel.initrd) {
        let refuse = |why: String| StepError::new(RetryClass::Transient, format!("{path}: {why}"));
        let real = Path::new(path).canonicalize().map_err(|e| refuse(e.to_string()))?;
        let root = path.split("/files/").next().map(|domain| PathBuf::from(domain).join("files"));
        let root = root
            .and_then(|root| root.canonicalize().ok())
            .ok_or_else(|| refuse("its domain has no files directory".into()))?;
        if !real.starts_with(&root) || !real.is_file() {
            return Err(refuse("is not a file inside its storage domain".into()));
        }
    }
    Ok(())
}

/// Carries out a step on the live domain. Blocking.
pub fn on_domain(conn: &Connect, target: &Target, step: &VmStep) -> Result<(), StepError> {
    let handle = read::find(conn, &target.vm, &target.uuid)?;
    match step {
        VmStep::Destroy { grant } => match handle {
            Some(handle) => destroy(&handle, grant),
            None => Ok(()),
        },
        VmStep::Undefine { name } => match handle {
            Some(handle) => undefine(&handle, target, name),
            None => Ok(()),
        },
        step => {
            let gone = || StepError::new(RetryClass::Transient, "the domain is not there any more");
            on_handle(&handle.ok_or_else(gone)?, step)
        }
    }
}

fn on_handle(handle: &Domain, step: &VmStep) -> Result<(), StepError> {
    let of = |call: &'static str| move |error| StepError::from(LibvirtError::of(call, error));
    let live = virt_sys::VIR_DOMAIN_AFFECT_LIVE;
    match step {
        VmStep::RequestShutdown { via } => {
            let flags = match via {
                ShutdownVia::Agent => virt_sys::VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
                ShutdownVia::Acpi => virt_sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
            };
            handle.shutdown_flags(flags).map_err(of("asking the guest to shut down"))
        }
        VmStep::Reset => handle.reset().map_err(of("resetting the guest")),
        VmStep::InjectNmi => events::inject_nmi(handle).map_err(of("injecting an NMI")),
        VmStep::Pause => handle.suspend().map_err(of("pausing the guest")),
        VmStep::Resume => handle.resume().map_err(of("resuming the guest")),
        VmStep::SetLink { mac, link, .. } => {
            let text = handle.xml_desc(0).map_err(of("reading the domain"))?;
            let Some(device) = xml::live::with_link(&text, mac, *link) else {
                return Err(StepError::new(
                    RetryClass::Transient,
                    format!("no interface {mac} in the domain"),
                ));
            };
            handle.update_device_flags(&device, live).map_err(of("setting the link of an interface"))
        }
        VmStep::SetMedia { disk, source } => {
            let text = handle.xml_desc(0).map_err(of("reading the domain"))?;
            let device = device::with_medium(&text, disk, source).map_err(no_device)?;
            handle.update_device_flags(&device, live).map_err(of("changing the medium of a CD drive"))
        }
        VmStep::SetNetwork { nic, source, .. } => {
            let text = handle.xml_desc(0).map_err(of("reading the domain"))?;
            let device = device::with_network(&text, nic, source).map_err(no_device)?;
            handle.update_device_flags(&device, live).map_err(of("plugging in an interface"))
        }
        VmStep::EndWithGuest => {
            let destroy = virt_sys::VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY;
            for event in [virt_sys::VIR_DOMAIN_LIFECYCLE_POWEROFF, virt_sys::VIR_DOMAIN_LIFECYCLE_CRASH] {
                let set = handle.set_lifecycle_action(event, destroy, live);
                set.map_err(of("setting what the guest's end does"))?;
            }
            Ok(())
        }
        VmStep::SetOnReboot { action } => {
            let action = match action {
                OnReboot::Restart => virt_sys::VIR_DOMAIN_LIFECYCLE_ACTION_RESTART,
                OnReboot::Destroy | OnReboot::Other => virt_sys::VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY,
            };
            let reboot = virt_sys::VIR_DOMAIN_LIFECYCLE_REBOOT;
            handle.set_lifecycle_action(reboot, action, live).map_err(of("setting what a reboot does"))
        }
        VmStep::WriteMetadata { metadata } => {
            let element = xml::metadata::element_for_set(&read::to_element(metadata, None));
            let kind = i32::try_from(virt_sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or(2);
            handle
                .set_metadata(kind, Some(&element), Some(METADATA_KEY), Some(LIBVIRT_METADATA_NS), live)
                .map_err(of("writing the domain's metadata"))
        }
        other => Err(StepError::new(
            RetryClass::Bug,
            format!("{} is not a step on a domain", crate::step_names::step_name(other)),
        )),
    }
}

/// Destroys the domain only if it runs under the very grant that is to end.
fn destroy(handle: &Domain, grant: &Grant) -> Result<(), StepError> {
    let text = match handle.xml_desc(0).map_err(|e| LibvirtError::of("reading the domain", e)) {
        Ok(text) => text,
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let found =
        xml::metadata::read(&text).map_err(|e| StepError::new(RetryClass::Transient, e.to_string()))?;
    if let Some(found) = found.filter(|found| found.grant.id != grant.id) {
        let message =
            format!("the domain runs under grant {}, not {}; it is not destroyed", found.grant.id, grant.id);
        return Err(StepError::new(RetryClass::Rejected, message));
    }
    match handle.destroy().map_err(|e| LibvirtError::of("stopping the domain", e)) {
        Err(error) if error.is_gone() || (error.is_wrong_state() && !handle.is_active().unwrap_or(true)) => {
            Ok(())
        }
        outcome => outcome.map_err(StepError::from),
    }
}

fn undefine(handle: &Domain, target: &Target, name: &str) -> Result<(), StepError> {
    let of = |error| StepError::from(LibvirtError::of("removing the domain's definition", error));
    if handle.uuid_string().map_err(of)? != target.uuid || !handle.is_persistent().map_err(of)? {
        return Ok(());
    }
    tracing::info!(domain = name, "somebody made the domain persistent; its definition is removed");
    let flags = virt_sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | virt_sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        | virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM;
    match handle.undefine_flags(flags) {
        Ok(()) => Ok(()),
        // Flags an older libvirt or a guest without TPM does not take.
        Err(_) => handle.undefine_flags(virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM).map_err(of),
    }
}

fn no_device(message: String) -> StepError {
    StepError::new(RetryClass::Transient, message)
}
