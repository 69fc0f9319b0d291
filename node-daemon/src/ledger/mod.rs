//! The ledger's files: one per VM, written before the act it permits, read once at the start. What an entry means is
//! decided by `node_plan::ledger`.

pub mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use node_plan::ledger::{Entry, LedgerFact, decode, encode};

use files::FileError;

/// The ledger of this host.
pub struct Ledger {
    dir: PathBuf,
    entries: Mutex<BTreeMap<String, LedgerFact>>,
}

impl Ledger {
    /// Reads every file. A file that cannot be read is an entry that says so; a directory that cannot be read is an
    /// error, because then nothing is known.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        let fail = |source: io::Error| FileError::Io { path: dir.into(), source };
        fs::create_dir_all(dir).map_err(fail)?;
        let mut entries = BTreeMap::new();
        for file in fs::read_dir(dir).map_err(fail)? {
            let path = file.map_err(fail)?.path();
            let uid =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            let Some(uid) = uid.filter(|uid| is_uid(uid)) else { continue };
            entries.insert(uid.to_owned(), read(&path, uid));
        }
        Ok(Self { dir: dir.into(), entries: Mutex::new(entries) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LedgerFact>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a VM.
    pub fn get(&self, uid: &str) -> LedgerFact {
        self.lock().get(uid).cloned().unwrap_or_default()
    }

    /// uids of all VMs with a file.
    pub fn uids(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// All entries that can be read.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |fact: &LedgerFact| match fact {
            LedgerFact::Entry(entry) => Some(entry.as_ref().clone()),
            LedgerFact::None | LedgerFact::Unreadable { .. } => None,
        };
        self.lock().values().filter_map(entry).collect()
    }

    /// uids whose file cannot be used.
    pub fn unreadable(&self) -> Vec<String> {
        let is = |(uid, fact): (&String, &LedgerFact)| {
            matches!(fact, LedgerFact::Unreadable { .. }).then(|| uid.clone())
        };
        self.lock().iter().filter_map(is).collect()
    }

    /// Writes an entry. On return it survives a power cut. Blocking. A file that could not be read is never replaced.
    pub fn write(&self, entry: &Entry) -> Result<(), FileError> {
        let uid = &entry.vm.uid;
        let path = self.path(uid)?;
        if let LedgerFact::Unreadable { why } = self.get(uid) {
            return Err(FileError::Content { path, message: why });
        }
        let text =
            encode(entry).map_err(|e| FileError::Content { path: path.clone(), message: e.to_string() })?;
        files::write_bytes(&path, text.as_bytes())?;
        self.lock().insert(uid.clone(), LedgerFact::Entry(Box::new(entry.clone())));
        Ok(())
    }

    /// Drops entries of incarnations that are over: nothing of them can ever be asked for again. What still runs was
    /// adopted by the census before this is called, and is kept.
    pub fn drop_over(&self, present: &str, running: &BTreeSet<String>) -> Result<(), FileError> {
        let over: Vec<String> = self
            .entries()
            .into_iter()
            .filter(|entry| !running.contains(&entry.vm.uid))
            .filter(|entry| entry.held.as_ref().is_none_or(|held| held.grant.incarnation != present))
            .map(|entry| entry.vm.uid)
            .collect();
        for uid in over {
            files::remove(&self.path(&uid)?)?;
            self.lock().remove(&uid);
        }
        Ok(())
    }

    fn path(&self, uid: &str) -> Result<PathBuf, FileError> {
        if is_uid(uid) {
            return Ok(self.dir.join(format!("{uid}.json")));
        }
        Err(FileError::Content {
            path: self.dir.clone(),
            message: format!("\"{uid}\" is not the uid of a VM"),
        })
    }
}

/// Whether a text is fit to be a file name: a UUID as the API server makes them.
fn is_uid(text: &str) -> bool {
    uuid::Uuid::parse_str(text).is_ok_and(|uuid| uuid.to_string() == text)
}

fn read(path: &Path, uid: &str) -> LedgerFact {
    let decoded = fs::read_to_string(path)
        .map_err(|e| e.to_string())
        .and_then(|text| decode(&text, uid).map_err(|e| e.to_string()));
    match decoded {
        Ok(entry) => LedgerFact::Entry(Box::new(entry)),
        Err(why) => {
            let why = format!("{}: {why}", path.display());
            tracing::error!(
                why,
                "a ledger file cannot be used: nothing of this VM is started or touched until somebody looks"
            );
            LedgerFact::Unreadable { why }
        }
    }
}

#[cfg(test)]
mod tests {
    use node_plan::intent::VmRef;
    use vireo_crds::v1alpha1::Grant;

    use super::*;

    const UID: &str = "6f9d8f3e-0000-4000-8000-000000000001";

    fn entry() -> Entry {
        let mut entry =
            Entry::new(VmRef { uid: UID.into(), namespace: "default".into(), name: "web".into() });
        entry.accept(
            &Grant { host: "host1".into(), incarnation: "inc".into(), epoch: 1, id: "g".into() },
            jiff::Timestamp::UNIX_EPOCH,
        );
        entry
    }

    #[test]
    fn what_was_written_is_read_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.write(&entry()).unwrap();
        let again = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.get(UID), LedgerFact::Entry(Box::new(entry())));
    }

    #[test]
    fn an_unreadable_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{UID}.json")), "{").unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert!(matches!(ledger.get(UID), LedgerFact::Unreadable { .. }));
        assert!(ledger.write(&entry()).is_err());
        assert_eq!(fs::read_to_string(dir.path().join(format!("{UID}.json"))).unwrap(), "{");
    }

    #[test]
    fn entries_are_dropped_only_when_their_incarnation_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.write(&entry()).unwrap();
        ledger.drop_over("inc", &BTreeSet::new()).unwrap();
        assert!(!ledger.uids().is_empty());
        ledger.drop_over("next", &BTreeSet::from([UID.to_owned()])).unwrap();
        assert!(!ledger.uids().is_empty(), "it still runs");
        ledger.drop_over("next", &BTreeSet::new()).unwrap();
        assert!(Ledger::open(dir.path()).unwrap().uids().is_empty());
    }

    #[test]
    fn a_uid_that_is_no_uuid_never_becomes_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let mut evil = entry();
        evil.vm.uid = "../../etc/passwd".into();
        assert!(ledger.write(&evil).is_err());
    }
}
