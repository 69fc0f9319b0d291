//! Where a VM stands on this host, before anything is decided:
//!
//! ```text
//!  ledger unreadable ───────────────────────────────▶ Locked    nothing is started or touched
//!  libvirt or process table not answering ──────────▶ Unknown   nothing is started or stopped
//!  a domain that is not this VM's in its place ─────▶ Blocked   listed, never touched
//!  its domain ─┬─ grant in metadata = open in ledger ▶ Up
//!              ├─ no grant open in ledger ───────────▶ Stray     kept; the ledger adopts its grant
//!              └─ another or a released grant ───────▶ Clash     kept; reported; nobody acts
//!  libvirt complete, no QEMU process ───────────────▶ Down
//! ```

use vireo_crds::v1alpha1::Grant;

use crate::{
    facts::{DomainMetadata, Facts, LiveDomain, Presence},
    intent::VmRef,
    ledger::{Entry, LedgerFact},
};

/// Where a VM stands on this host.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing<'a> {
    /// The ledger cannot be used.
    Locked(String),
    /// Whether a guest is here cannot be said.
    Unknown(String),
    /// Somebody else's domain has its name or uuid.
    Blocked(String),
    /// It runs under the grant the ledger holds.
    Up {
        /// The domain.
        live: &'a LiveDomain,
        /// The grant.
        grant: Grant,
    },
    /// It runs under a grant the ledger knows nothing of.
    Stray {
        /// The domain.
        live: &'a LiveDomain,
        /// The grant in its metadata.
        grant: Grant,
    },
    /// It runs under a grant that the ledger contradicts.
    Clash {
        /// The domain.
        live: &'a LiveDomain,
        /// The grant in its metadata.
        grant: Grant,
        /// What is wrong.
        why: String,
    },
    /// It is certainly not here.
    Down,
}

/// Where `vm` stands. `installation` is this installation's identity, if it is known.
pub fn standing<'a>(vm: &VmRef, facts: &'a Facts, installation: Option<&str>) -> Standing<'a> {
    let entry = match &facts.ledger {
        LedgerFact::Unreadable { why } => return Standing::Locked(why.clone()),
        LedgerFact::None => None,
        LedgerFact::Entry(entry) => Some(entry.as_ref()),
    };
    let live = match facts.presence() {
        Presence::Absent => return Standing::Down,
        Presence::Unknown(why) => return Standing::Unknown(why),
        Presence::Present(live) => live,
    };
    let open = entry.and_then(Entry::open);
    match (&live.metadata, open) {
        (None, Some(open)) => Standing::Up { live, grant: open.clone() },
        (None, None) => Standing::Blocked(format!(
            "the libvirt domain {} (uuid {}) has this VM's name or uuid but is not Vireo's; remove it or rename the VM",
            live.name, live.uuid
        )),
        (Some(metadata), open) => match owner_fault(vm, metadata, installation) {
            Some(fault) => Standing::Blocked(format!(
                "the libvirt domain {} has this VM's name or uuid but {fault}",
                live.name
            )),
            None => known(live, &metadata.grant, entry, open),
        },
    }
}

fn owner_fault(vm: &VmRef, metadata: &DomainMetadata, installation: Option<&str>) -> Option<String> {
    if metadata.vm.uid != vm.uid {
        return Some(format!("belongs to an earlier VM (uid {}), which must end first", metadata.vm.uid));
    }
    installation
        .filter(|ours| *ours != metadata.installation_id)
        .map(|_| "belongs to another installation of Vireo".into())
}

fn known<'a>(
    live: &'a LiveDomain,
    grant: &Grant,
    entry: Option<&Entry>,
    open: Option<&Grant>,
) -> Standing<'a> {
    let grant = grant.clone();
    match open {
        Some(open) if *open == grant => Standing::Up { live, grant },
        Some(open) => {
            let why = format!(
                "a guest runs under grant {} (number {}), but the ledger of this host holds grant {} (number {})",
                grant.id, grant.epoch, open.id, open.epoch
            );
            Standing::Clash { live, grant, why }
        }
        None if entry.is_some_and(|entry| entry.is_released(&grant)) => {
            let why = format!(
                "a guest runs under grant {}, which this host has released; somebody started it by hand",
                grant.id
            );
            Standing::Clash { live, grant, why }
        }
        None => Standing::Stray { live, grant },
    }
}
