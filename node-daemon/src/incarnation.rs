//! Knows which life of this host's ledger this is, and which came before it.
//!
//! An incarnation is a random id kept twice: in /run, which a boot empties, and beside the ledger, which a
//! reinstallation loses. Only if both are there, agree, and name the present boot does it go on; otherwise a new one is
//! minted. A reboot, a lost ledger and a cloned disk are therefore new incarnations.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::PastIncarnation;

use crate::ledger::files::{self, FileError};

/// Version of the record's format.
const FORMAT: u32 = 1;
/// Earlier incarnations remembered; the API takes no more.
const REMEMBERED: usize = 16;
const FILE: &str = "incarnation.json";

/// Which life of the ledger this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incarnation {
    format_version: u32,
    /// The random id.
    pub id: String,
    /// Kernel's boot id in which it lives.
    pub boot_id: String,
    /// UUID of the machine on which it lives.
    pub machine_uuid: String,
    /// Incarnations this ledger knows to be over, the newest last.
    #[serde(default)]
    pub past: Vec<PastIncarnation>,
}

/// What the two copies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Both are there and agree: the same life goes on.
    Same(Incarnation),
    /// A new life begins; what the ledger remembers of earlier ones.
    New(Vec<PastIncarnation>),
}

/// Reads the two copies. Fails if the ledger's copy is there but cannot be read: then nothing may be started.
pub fn read(run_dir: &Path, ledger_dir: &Path, boot_id: &str) -> Result<Found, FileError> {
    let of_ledger: Option<Incarnation> = files::read_json(&ledger_dir.join(FILE), FORMAT)?;
    // The copy in /run only has to agree; one that cannot be read does not.
    let of_run: Option<Incarnation> = files::read_json(&run_dir.join(FILE), FORMAT).unwrap_or_default();
    Ok(decide(of_run, of_ledger, boot_id))
}

fn decide(of_run: Option<Incarnation>, of_ledger: Option<Incarnation>, boot_id: &str) -> Found {
    let Some(known) = of_ledger else { return Found::New(Vec::new()) };
    if known.boot_id == boot_id
        && of_run.is_some_and(|run| run.id == known.id && run.boot_id == known.boot_id)
    {
        return Found::Same(known);
    }
    let mut past = known.past;
    past.push(PastIncarnation {
        incarnation: known.id,
        boot_id: known.boot_id,
        machine_uuid: known.machine_uuid,
    });
    past.drain(..past.len().saturating_sub(REMEMBERED));
    Found::New(past)
}

/// Mints a new incarnation and makes both copies durable, the ledger's first: a crash in between leaves two copies
/// that differ, and so another new incarnation.
pub fn mint(
    run_dir: &Path,
    ledger_dir: &Path,
    boot_id: &str,
    machine_uuid: &str,
    past: Vec<PastIncarnation>,
) -> Result<Incarnation, FileError> {
    let minted = Incarnation {
        format_version: FORMAT,
        id: uuid::Uuid::new_v4().to_string(),
        boot_id: boot_id.into(),
        machine_uuid: machine_uuid.into(),
        past,
    };
    files::write_json(&ledger_dir.join(FILE), &minted)?;
    files::write_json(&run_dir.join(FILE), &minted)?;
    Ok(minted)
}

/// The kernel's boot id.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(id: &str, boot: &str) -> Incarnation {
        Incarnation {
            format_version: FORMAT,
            id: id.into(),
            boot_id: boot.into(),
            machine_uuid: "m".into(),
            past: vec![],
        }
    }

    #[test]
    fn only_two_agreeing_copies_of_this_boot_go_on() {
        assert_eq!(decide(Some(life("a", "1")), Some(life("a", "1")), "1"), Found::Same(life("a", "1")));
        for (run, ledger, boot) in [
            (None, Some(life("a", "1")), "1"),
            (Some(life("b", "1")), Some(life("a", "1")), "1"),
            (Some(life("a", "1")), Some(life("a", "1")), "2"),
        ] {
            let Found::New(past) = decide(run, ledger, boot) else { panic!("went on") };
            assert_eq!(past.last().map(|p| p.incarnation.as_str()), Some("a"));
        }
        assert_eq!(
            decide(Some(life("a", "1")), None, "1"),
            Found::New(vec![]),
            "a lost ledger remembers nothing"
        );
    }

    #[test]
    fn a_reboot_is_a_new_incarnation_that_names_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let (run, ledger) = (dir.path().join("run"), dir.path().join("ledger"));
        fs::create_dir_all(&run).unwrap();
        fs::create_dir_all(&ledger).unwrap();
        let Found::New(past) = read(&run, &ledger, "boot1").unwrap() else { panic!("nothing was there") };
        let first = mint(&run, &ledger, "boot1", "machine", past).unwrap();
        assert_eq!(read(&run, &ledger, "boot1").unwrap(), Found::Same(first.clone()));
        fs::remove_dir_all(&run).unwrap();
        fs::create_dir_all(&run).unwrap();
        let Found::New(past) = read(&run, &ledger, "boot2").unwrap() else { panic!("went on after a boot") };
        assert_eq!(
            past,
            [PastIncarnation {
                incarnation: first.id,
                boot_id: "boot1".into(),
                machine_uuid: "machine".into()
            }]
        );
        fs::write(ledger.join(FILE), "{").unwrap();
        assert!(read(&run, &ledger, "boot2").is_err(), "an unreadable ledger is not a lost one");
    }
}
