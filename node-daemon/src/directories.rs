//! Makes the daemon's directories, each open to exactly those who need it: the ledger to root alone; files that QEMU
//! opens below directories it may enter but not list; sockets that QEMU makes in a directory of its own user.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Users QEMU runs as, by distribution.
const QEMU_USERS: [&str; 2] = ["libvirt-qemu", "qemu"];

/// Makes all directories; on failure, which one and why.
pub fn prepare(state: &Path, run: &Path) -> Result<(), (PathBuf, io::Error)> {
    let private = 0o700;
    let passable = 0o711;
    let wanted = [
        (state.to_owned(), passable),
        (state.join("ledger"), private),
        (state.join("logs"), passable),
        (state.join("overlays"), passable),
        (state.join("seeds"), passable),
        (run.to_owned(), passable),
        (run.join("permits"), private),
        (run.join("sockets"), private),
    ];
    for (path, mode) in wanted {
        let made =
            fs::create_dir_all(&path).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)));
        made.map_err(|error| (path, error))?;
    }
    let sockets = run.join("sockets");
    match qemu_user() {
        Some((user, group)) => {
            std::os::unix::fs::chown(&sockets, Some(user), Some(group)).map_err(|error| (sockets, error))
        }
        None => Ok(()),
    }
}

/// User and group QEMU runs as; none if this machine has no user of its own for it.
fn qemu_user() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    QEMU_USERS.iter().find_map(|name| find_user(&users, name))
}

fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_qemu_is_found_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nlibvirt-qemu:x:64055:994:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin\n";
        assert_eq!(find_user(passwd, "libvirt-qemu"), Some((64055, 994)));
        assert_eq!(find_user(passwd, "qemu"), None);
    }

    #[test]
    fn the_ledger_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        prepare(&dir.path().join("state"), &dir.path().join("run")).unwrap();
        let mode = fs::metadata(dir.path().join("state/ledger")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
