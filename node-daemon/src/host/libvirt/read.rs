//! Reads libvirt's handles into facts. Decides nothing; an answer that is not complete is an error, never "absent".

use node_plan::{
    facts::{
        AgentState, Built, DomainFact, DomainMetadata, DomainState, LiveDisk, LiveDomain, LiveNic, OnReboot,
        PausedReason,
    },
    intent::VmRef,
    orphan::Found,
    xml::{self, DiskSource, LifecycleAction, build::BuiltDomain, interface::LinkState},
};
use vireo_crds::v1alpha1::{Hardware, Link};
use virt::{
    connect::Connect,
    domain::{Domain, DomainPausedReason, DomainState as State, DomainStateReason},
    enumutil::Enum,
};

use super::{error::LibvirtError, events};

/// Keys of the notes we keep in a domain's metadata.
pub mod note {
    /// The spec it was built from.
    pub const SPEC: &str = "spec";
    /// CPU model it resolved to.
    pub const CPU_MODEL: &str = "cpuModel";
    /// Where its devices sit.
    pub const HARDWARE: &str = "hardware";
    /// The domain that was started, by which changes made by hand are known.
    pub const DOMAIN: &str = "domain";
}

/// The domain of a VM, by uuid or else by name.
pub fn domain(conn: &Connect, vm: &VmRef, uuid: &str) -> Result<DomainFact, LibvirtError> {
    let Some(handle) = find(conn, vm, uuid)? else { return Ok(DomainFact::Absent { defined: false }) };
    let call = |e| LibvirtError::of("reading a domain", e);
    let outcome = read(&handle, uuid);
    match outcome {
        Ok(Some(live)) => Ok(DomainFact::Present(Box::new(live))),
        Ok(None) => {
            if handle.uuid_string().map_err(call)? == uuid {
                return Ok(DomainFact::Absent { defined: true });
            }
            let why = format!(
                "a domain named {} with another uuid is defined in libvirt; undefine or rename it",
                vm.domain_name()
            );
            Ok(DomainFact::Unknown { why })
        }
        // It went away between two calls.
        Err(error) if error.is_gone() || (error.is_wrong_state() && !is_active(&handle)) => {
            domain_once_more(conn, vm, uuid)
        }
        Err(error) => Err(error),
    }
}

fn domain_once_more(conn: &Connect, vm: &VmRef, uuid: &str) -> Result<DomainFact, LibvirtError> {
    match find(conn, vm, uuid)? {
        None => Ok(DomainFact::Absent { defined: false }),
        Some(_) => Ok(DomainFact::Unknown { why: "the domain is changing right now".into() }),
    }
}

fn is_active(handle: &Domain) -> bool {
    handle.is_active().unwrap_or(false)
}

/// The handle of a VM's domain, by uuid or else by name; none if libvirt knows neither.
pub fn find(conn: &Connect, vm: &VmRef, uuid: &str) -> Result<Option<Domain>, LibvirtError> {
    match conn.lookup_domain_by_uuid_string(uuid) {
        Ok(handle) => return Ok(Some(handle)),
        Err(error) => {
            let error = LibvirtError::of("looking up a domain", error);
            if !error.is_gone() {
                return Err(error);
            }
        }
    }
    match conn.lookup_domain_by_name(&vm.domain_name()) {
        Ok(handle) => Ok(Some(handle)),
        Err(error) => {
            let error = LibvirtError::of("looking up a domain", error);
            if error.is_gone() { Ok(None) } else { Err(error) }
        }
    }
}

/// A domain that runs; none if only its definition is there.
fn read(handle: &Domain, wanted_uuid: &str) -> Result<Option<LiveDomain>, LibvirtError> {
    let call = |e| LibvirtError::of("reading a domain", e);
    if !handle.is_active().map_err(call)? {
        return Ok(None);
    }
    let state = state(handle)?;
    let text = handle.xml_desc(0).map_err(call)?;
    let uuid = handle.uuid_string().map_err(call)?;
    let name = handle.name().map_err(call)?;
    let persistent = handle.is_persistent().map_err(call)?;
    let metadata = metadata(&text)?;
    match xml::parse(&text) {
        Ok(config) => Ok(Some(live(config, &text, state, persistent, metadata)?)),
        // Somebody else's domain may be anything; ours can be read.
        Err(_) if metadata.is_none() && uuid != wanted_uuid => {
            Ok(Some(stranger(name, uuid, state, persistent)))
        }
        Err(error) => Err(LibvirtError::Answer { call: "reading a domain", message: error.to_string() }),
    }
}

fn stranger(name: String, uuid: String, state: DomainState, persistent: bool) -> LiveDomain {
    LiveDomain {
        name,
        uuid,
        state,
        metadata: None,
        persistent,
        on_reboot: OnReboot::Other,
        vcpus: 0,
        memory: 0,
        disks: Vec::new(),
        nics: Vec::new(),
        agent: AgentState::None,
        serial: false,
        vnc: false,
        hardware: None,
        drift: Vec::new(),
    }
}

fn live(
    config: xml::DomainConfig,
    text: &str,
    state: DomainState,
    persistent: bool,
    metadata: Option<DomainMetadata>,
) -> Result<LiveDomain, LibvirtError> {
    let observed = xml::observe::observe(text)
        .map_err(|e| LibvirtError::Answer { call: "reading a domain", message: e.to_string() })?;
    let hardware =
        config.metadata.as_ref().and_then(|ours| kept_hardware(ours, observed.machine_type.as_deref()));
    let started = config.metadata.as_ref().and_then(started);
    let drift = started.as_ref().map(|started| xml::compare(started, &config)).unwrap_or_default();
    let source_drifted = |device: &str| {
        let source = format!("{device}.source");
        drift.iter().any(|found| found.path.starts_with(&source))
    };
    let medium = |name: &str| {
        let started = started.as_ref().filter(|_| source_drifted(&format!("disks[{name}]")))?;
        Some(started.disks.iter().find(|disk| disk.name == name)?.source.clone())
    };
    let network = |name: &str| {
        let started = started.as_ref().filter(|_| source_drifted(&format!("interfaces[{name}]")))?;
        Some(started.interfaces.iter().find(|nic| nic.name == name)?.source.clone())
    };
    Ok(LiveDomain {
        metadata,
        state,
        persistent,
        on_reboot: match config.lifecycle.on_reboot {
            LifecycleAction::Restart => OnReboot::Restart,
            LifecycleAction::Destroy => OnReboot::Destroy,
            LifecycleAction::Other(_) => OnReboot::Other,
        },
        vcpus: config.cpu.vcpus().into(),
        memory: config.memory,
        disks: config
            .disks
            .iter()
            .map(|disk| LiveDisk {
                name: disk.name.clone(),
                path: match &disk.source {
                    DiskSource::File { path, .. } => Some(path.clone()),
                    DiskSource::Empty | DiskSource::Other(_) => None,
                },
                started_with: medium(&disk.name),
            })
            .collect(),
        nics: config
            .interfaces
            .iter()
            .map(|nic| LiveNic {
                name: nic.name.clone(),
                mac: nic.mac.clone(),
                link: match nic.link {
                    LinkState::Up => Link::Up,
                    LinkState::Down => Link::Down,
                    LinkState::Other(_) => Link::Unknown,
                },
                started_in: network(&nic.name),
            })
            .collect(),
        agent: match (config.channels.is_empty(), observed.agent_connected) {
            (true, _) => AgentState::None,
            (false, true) => AgentState::Connected,
            (false, false) => AgentState::Disconnected,
        },
        serial: config.serial.is_some(),
        vnc: !config.graphics.is_empty(),
        hardware,
        name: config.name,
        uuid: config.uuid,
        drift,
    })
}

/// The record of the domain that was started; none if there is none, or another version wrote it in other words.
fn started(ours: &xml::DomainMetadata) -> Option<xml::DomainConfig> {
    serde_json::from_value(ours.notes.get(note::DOMAIN)?.clone()).ok()
}

/// The record made when the domain was built, with the machine type libvirt settled on.
fn kept_hardware(ours: &xml::DomainMetadata, machine_type: Option<&str>) -> Option<Hardware> {
    let mut hardware: Hardware = serde_json::from_value(ours.notes.get(note::HARDWARE)?.clone()).ok()?;
    if let Some(machine_type) = machine_type {
        hardware.machine_type = machine_type.into();
    }
    Some(hardware)
}

/// Our element of a domain document. An error: it says it is ours and cannot be understood.
fn metadata(text: &str) -> Result<Option<DomainMetadata>, LibvirtError> {
    let fail =
        |message: String| LibvirtError::Answer { call: "reading Vireo's metadata of a domain", message };
    let Some(found) = xml::metadata::read(text).map_err(|e| fail(e.to_string()))? else { return Ok(None) };
    let spec = found.notes.get(note::SPEC).cloned().ok_or_else(|| fail("it holds no spec".into()))?;
    Ok(Some(DomainMetadata {
        installation_id: found.installation_id,
        vm: VmRef { uid: found.vm_uid, namespace: found.namespace, name: found.name },
        grant: found.grant,
        built: Built {
            generation: found.generation,
            spec_hash: found.spec_hash,
            spec: serde_json::from_value(spec).map_err(|e| fail(e.to_string()))?,
            cpu_model: found.notes.get(note::CPU_MODEL).and_then(|v| v.as_str()).map(Into::into),
        },
    }))
}

/// The element to keep in a domain, with the record of what was started if that is known.
pub fn to_element(metadata: &DomainMetadata, built: Option<&BuiltDomain>) -> xml::DomainMetadata {
    let mut notes = serde_json::Map::new();
    let mut note = |key: &str, value: serde_json::Result<serde_json::Value>| {
        if let Ok(value) = value
            && !value.is_null()
        {
            notes.insert(key.into(), value);
        }
    };
    note(note::SPEC, serde_json::to_value(&metadata.built.spec));
    note(note::CPU_MODEL, serde_json::to_value(&metadata.built.cpu_model));
    note(note::HARDWARE, serde_json::to_value(built.map(|built| &built.hardware)));
    note(note::DOMAIN, serde_json::to_value(built.map(|built| without_metadata(&built.domain))));
    xml::DomainMetadata {
        installation_id: metadata.installation_id.clone(),
        vm_uid: metadata.vm.uid.clone(),
        namespace: metadata.vm.namespace.clone(),
        name: metadata.vm.name.clone(),
        grant: metadata.grant.clone(),
        generation: metadata.built.generation,
        spec_hash: metadata.built.spec_hash.clone(),
        notes,
    }
}

fn without_metadata(domain: &xml::DomainConfig) -> xml::DomainConfig {
    xml::DomainConfig { metadata: None, ..domain.clone() }
}

fn state(handle: &Domain) -> Result<DomainState, LibvirtError> {
    let (state, reason) = handle.state().map_err(|e| LibvirtError::of("reading a domain's state", e))?;
    // The crate turns a failed call into a state it does not know.
    let Some(state) = state.known() else {
        return Err(LibvirtError::Answer {
            call: "reading a domain's state",
            message: "libvirt names a state this version does not know".into(),
        });
    };
    Ok(match state {
        State::Running | State::Blocked => DomainState::Running,
        State::Paused => DomainState::Paused(match reason {
            Enum::Known(DomainStateReason::Paused(reason)) => match paused(reason.known()) {
                // libvirt does not always connect the pause with the error that caused it; the disks know.
                PausedReason::Other if events::failed_disks(handle).is_ok_and(|disks| disks > 0) => {
                    PausedReason::IoError
                }
                reason => reason,
            },
            Enum::Known(_) | Enum::Unknown(_) => PausedReason::Other,
        }),
        State::Shutdown => DomainState::ShuttingDown,
        State::PMSuspended => DomainState::Suspended,
        State::NoState | State::Shutoff | State::Crashed => DomainState::Other,
    })
}

fn paused(reason: Option<DomainPausedReason>) -> PausedReason {
    match reason {
        Some(DomainPausedReason::User) => PausedReason::User,
        Some(DomainPausedReason::IOError) => PausedReason::IoError,
        Some(DomainPausedReason::Watchdog) => PausedReason::Watchdog,
        Some(
            DomainPausedReason::Migration
            | DomainPausedReason::Save
            | DomainPausedReason::Dump
            | DomainPausedReason::FromSnapshot
            | DomainPausedReason::ShuttingDown
            | DomainPausedReason::Snapshot
            | DomainPausedReason::StartingUp,
        ) => PausedReason::Transient,
        Some(
            DomainPausedReason::Unknown
            | DomainPausedReason::Crashed
            | DomainPausedReason::PostCopy
            | DomainPausedReason::PostCopyFailed
            | DomainPausedReason::APIError,
        )
        | None => PausedReason::Other,
    }
}

/// All domains, whoever made them. Fails unless libvirt answers completely.
pub fn census(conn: &Connect) -> Result<Vec<Found>, LibvirtError> {
    let call = |e| LibvirtError::of("listing domains", e);
    let mut found = Vec::new();
    for handle in conn.list_all_domains(0).map_err(call)? {
        match listed(&handle) {
            Ok(domain) => found.push(domain),
            // It ended meanwhile.
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn listed(handle: &Domain) -> Result<Found, LibvirtError> {
    let call = |e| LibvirtError::of("listing domains", e);
    let (name, uuid) = (handle.name().map_err(call)?, handle.uuid_string().map_err(call)?);
    let text = handle.xml_desc(0).map_err(call)?;
    Ok(match metadata(&text) {
        Ok(metadata) => Found { name, uuid, metadata, unreadable: false },
        Err(error) => {
            tracing::warn!(domain = name, %error, "a domain says it is Vireo's but cannot be understood; it is listed and never touched");
            Found { name, uuid, metadata: None, unreadable: true }
        }
    })
}
