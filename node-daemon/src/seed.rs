//! Keeps the seed image from which cloud-init reads its first-boot data. Readable by root only, since it may hold
//! passwords.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

pub use node_plan::seed::Seed;
use node_plan::seed::nocloud;

use crate::storage::{error::StorageError, files};

/// Makes the image, replacing what was there. Blocks.
pub fn make_seed(path: &Path, seed: &Seed) -> Result<(), StorageError> {
    let image = nocloud(seed).ok_or_else(|| {
        StorageError::Path(format!("{}: the first-boot data is larger than an image can be", path.display()))
    })?;
    files::write_whole(path, &image)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(StorageError::io("cannot set the mode of", path))
}

/// Removes the image; one that is not there is fine.
pub fn remove_seed(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StorageError::io("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn isoinfo(image: &Path, args: &[&str]) -> String {
        let output = Command::new("isoinfo")
            .arg("-i")
            .arg(image)
            .args(args)
            .output()
            .expect("isoinfo comes with genisoimage");
        assert!(output.status.success(), "isoinfo {args:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn cloud_init_finds_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.iso");
        let big = format!("#cloud-config\n# {}\n", "x".repeat(1 << 20));
        let seed = Seed {
            instance_id: "11111111-2222-3333-4444-555555555555".into(),
            local_hostname: "web-1".into(),
            user_data: Some(big.clone()),
            network_config: Some("version: 2\n".into()),
        };
        make_seed(&path, &seed).unwrap();
        make_seed(&path, &seed).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(isoinfo(&path, &["-d"]).contains("Volume id: CIDATA"));
        for flag in ["-J", "-R"] {
            let list = isoinfo(&path, &[flag, "-f"]);
            assert!(
                ["/user-data", "/meta-data", "/network-config"]
                    .iter()
                    .all(|name| list.lines().any(|line| line == *name)),
                "{flag}: {list}"
            );
            assert_eq!(isoinfo(&path, &[flag, "-x", "/user-data"]), big);
        }
        let meta = isoinfo(&path, &["-J", "-x", "/meta-data"]);
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(
            (meta["instance-id"].as_str(), meta["local-hostname"].as_str()),
            (Some(seed.instance_id.as_str()), Some("web-1"))
        );
        remove_seed(&path).unwrap();
        remove_seed(&path).unwrap();
    }

    #[test]
    fn without_data_the_image_still_names_the_instance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.iso");
        make_seed(
            &path,
            &Seed {
                instance_id: "i".into(),
                local_hostname: "h".into(),
                user_data: None,
                network_config: None,
            },
        )
        .unwrap();
        assert!(isoinfo(&path, &["-J", "-x", "/user-data"]).starts_with("#cloud-config"));
        assert!(!isoinfo(&path, &["-J", "-f"]).contains("network-config"));
    }
}
