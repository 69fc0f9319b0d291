//! Decides whether this machine may speak for its Host. A copy of a host (its disk put into another machine) has the
//! name, the key and the ledger of the original, but none of its guests: what it attests would be true of itself and
//! read as the word of the original.

use vireo_crds::v1alpha1::Host;

use crate::guard::{Guard, stands};

/// Why this machine may not speak for a Host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// The Host is tied to a machine, and which one this is has yet to be found out.
    #[error("Host {host} is tied to machine {pinned}, and which machine this is, libvirt has not said yet")]
    Unknown {
        /// Name of the Host.
        host: String,
        /// UUID of the machine it is tied to.
        pinned: String,
    },
    /// The Host is another machine's.
    #[error(
        "Host {host} is tied to machine {pinned}, and this is machine {found}: it renews no Lease and says nothing of the host. \
         If this is a copy of that machine, give it a name and a key of its own with `vireo-node join`; if it takes that \
         machine's place and that one is off for good, have an administrator clear status.identity of the Host"
    )]
    OtherMachine {
        /// Name of the Host.
        host: String,
        /// UUID of the machine it is tied to.
        pinned: String,
        /// UUID of this machine.
        found: String,
    },
}

/// Whether the machine with this UUID, if it is known, is the one the Host is tied to. A Host that is tied to none is
/// that of the first machine to report.
pub fn ours(host: &Host, machine_uuid: Option<&str>) -> Result<(), NotOurs> {
    let pinned = host
        .status
        .as_ref()
        .and_then(|status| status.identity.as_ref())
        .map(|identity| identity.machine_uuid.as_str())
        .filter(|pinned| !pinned.is_empty());
    let Some(pinned) = pinned.filter(|_| stands(Guard::SameMachine)) else { return Ok(()) };
    let (host, tied) = (host.metadata.name.clone().unwrap_or_default(), pinned.to_owned());
    match machine_uuid.filter(|found| !found.is_empty()) {
        None => Err(NotOurs::Unknown { host, pinned: tied }),
        Some(found) if found.eq_ignore_ascii_case(pinned) => Ok(()),
        Some(found) => Err(NotOurs::OtherMachine { host, pinned: tied, found: found.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(identity: serde_json::Value) -> Host {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "Host", "metadata": {"name": "host1"},
            "spec": {"cluster": "default"}, "status": {"identity": identity},
        }))
        .unwrap()
    }

    #[test]
    fn only_the_machine_a_host_is_tied_to_speaks_for_it() {
        let tied = host(serde_json::json!({"publicKeySha256": "k", "machineUuid": "a-1"}));
        assert_eq!(ours(&tied, Some("a-1")), Ok(()));
        assert_eq!(ours(&tied, Some("A-1")), Ok(()), "a UUID is the same in capitals");
        let refused = ours(&tied, Some("b-2")).unwrap_err();
        for word in ["host1", "a-1", "b-2", "vireo-node join", "status.identity"] {
            assert!(refused.to_string().contains(word), "{refused}");
        }
        for unknown in [None, Some("")] {
            assert!(matches!(ours(&tied, unknown), Err(NotOurs::Unknown { .. })));
        }
    }

    #[test]
    fn a_host_tied_to_no_machine_is_the_first_ones() {
        let untied = host(serde_json::json!({"publicKeySha256": "k", "machineUuid": ""}));
        let mut fresh = untied.clone();
        fresh.status = None;
        for host in [untied, fresh] {
            assert_eq!(ours(&host, Some("b-2")), Ok(()));
            assert_eq!(ours(&host, None), Ok(()));
        }
    }
}
