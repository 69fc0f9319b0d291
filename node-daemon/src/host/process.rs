//! Finds QEMU processes by the UUID on their command line: what libvirt says is not the whole truth.

use std::{fs, io, path::Path};

/// A QEMU process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProcess {
    /// Process id, as this process sees it.
    pub pid: u32,
    /// UUID of the domain it runs.
    pub uuid: String,
}

/// All QEMU processes of this host that carry a UUID. Fails rather than leaving out a process it could not look at:
/// what is unknown must not be taken for absent.
pub fn qemu_processes() -> io::Result<Vec<QemuProcess>> {
    scan(Path::new("/proc"))
}

/// The QEMU process that carries `uuid`.
pub fn qemu_process(uuid: &str) -> io::Result<Option<u32>> {
    Ok(qemu_processes()?.into_iter().find(|process| process.uuid == uuid).map(|process| process.pid))
}

fn scan(proc: &Path) -> io::Result<Vec<QemuProcess>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let cmdline = match fs::read(entry.path().join("cmdline")) {
            Ok(cmdline) => cmdline,
            // Ended while we looked.
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        if let Some(uuid) = uuid_of(&cmdline) {
            found.push(QemuProcess { pid, uuid });
        }
    }
    Ok(found)
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// The value of `-uuid` if this is QEMU's command line. The program's name is not asked: emulators have many.
fn uuid_of(cmdline: &[u8]) -> Option<String> {
    let mut arguments = cmdline.split(|byte| *byte == 0);
    let program = std::str::from_utf8(arguments.next()?).ok()?;
    let name = program.rsplit('/').next()?;
    if !(name.contains("qemu") || name.contains("kvm")) {
        return None;
    }
    arguments.find(|argument| *argument == b"-uuid")?;
    let text = std::str::from_utf8(arguments.next()?).ok()?;
    uuid::Uuid::parse_str(text).ok().map(|uuid| uuid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qemu_with_a_uuid_counts() {
        let dir = tempfile::tempdir().unwrap();
        let uuid = "6f9d8f3e-0000-4000-8000-000000000001";
        for (pid, cmdline) in [
            ("10", format!("/usr/bin/qemu-system-x86_64\0-name\0guest=a\0-uuid\0{uuid}\0")),
            ("11", format!("grep\0-uuid\0{uuid}\0")),
            ("12", "/usr/bin/qemu-img\0create\0".into()),
            ("13", String::new()),
        ] {
            fs::create_dir(dir.path().join(pid)).unwrap();
            fs::write(dir.path().join(pid).join("cmdline"), cmdline).unwrap();
        }
        fs::create_dir(dir.path().join("14")).unwrap();
        fs::create_dir(dir.path().join("self")).unwrap();
        assert_eq!(scan(dir.path()).unwrap(), [QemuProcess { pid: 10, uuid: uuid.into() }]);
    }
}
