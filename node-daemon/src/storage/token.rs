//! Reads and writes disk tokens: who may write to a volume. Whether a VM may start with what is found is decided by
//! the VM's planner.

use std::path::Path;

use node_plan::facts::{DiskToken, TokenFact};
use serde::{Deserialize, Serialize};

use super::{error::StorageError, files};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenFile {
    format_version: u32,
    #[serde(flatten)]
    token: DiskToken,
}

/// What lies at the path. Blocks.
pub fn read(path: &Path) -> TokenFact {
    match files::read_json::<TokenFile>(path) {
        Ok(None) => match path.parent().map(Path::try_exists) {
            Some(Ok(true)) => TokenFact::None,
            _ => TokenFact::Unknown { why: format!("the directory of {} cannot be read", path.display()) },
        },
        Ok(Some(file)) if file.format_version == FORMAT => TokenFact::Present(file.token),
        Ok(Some(file)) => TokenFact::Unknown {
            why: format!(
                "{}: format version {}, this version knows {FORMAT}",
                path.display(),
                file.format_version
            ),
        },
        Err(error) => TokenFact::Unknown { why: error.to_string() },
    }
}

/// Afterwards the token lies there and survives a power cut.
pub fn write(path: &Path, token: &DiskToken) -> Result<(), StorageError> {
    files::write_json(path, &TokenFile { format_version: FORMAT, token: token.clone() })
}

/// Afterwards this token no longer lies there; another one is left alone.
pub fn remove(path: &Path, token: &DiskToken) -> Result<(), StorageError> {
    match read(path) {
        TokenFact::Present(found) if found == *token => files::remove(path),
        TokenFact::Present(_) | TokenFact::None => Ok(()),
        TokenFact::Unknown { why } => Err(StorageError::Path(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(epoch: i64) -> DiskToken {
        DiskToken { vm_uid: "v".into(), epoch, id: format!("id-{epoch}") }
    }

    #[test]
    fn tokens_are_written_replaced_and_removed_by_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.token");
        assert_eq!(read(&path), TokenFact::None);
        write(&path, &token(1)).unwrap();
        write(&path, &token(2)).unwrap();
        assert_eq!(read(&path), TokenFact::Present(token(2)));
        remove(&path, &token(1)).unwrap();
        assert_eq!(read(&path), TokenFact::Present(token(2)));
        remove(&path, &token(2)).unwrap();
        assert_eq!(read(&path), TokenFact::None);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(&dir.path().join("unmounted/disk.token")), TokenFact::Unknown { .. }));
        let path = dir.path().join("disk.token");
        std::fs::write(&path, "{\"formatVersion\":7,\"vmUid\":\"v\",\"epoch\":1,\"id\":\"x\"}").unwrap();
        assert!(matches!(read(&path), TokenFact::Unknown { .. }));
        std::fs::write(&path, "garbage").unwrap();
        assert!(matches!(read(&path), TokenFact::Unknown { .. }));
        assert!(remove(&path, &token(1)).is_err());
    }
}
