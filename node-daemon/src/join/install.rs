//! Writes the systemd unit and the libvirt hook; starts the service.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{JoinError, config};

const UNIT: &str = "/etc/systemd/system/vireo-node.service";
const HOOKS: &str = "/etc/libvirt/hooks";
/// By this line a hook is known as ours.
const MARK: &str = "# Written by vireo-node join.";

/// What became of the hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// It was written.
    New(PathBuf),
    /// It was there as wanted.
    Same(PathBuf),
}

impl Hook {
    /// For people.
    pub fn shown(&self) -> String {
        match self {
            Self::New(path) | Self::Same(path) => path.display().to_string(),
        }
    }

    /// libvirt looks for hooks only when it starts.
    pub fn is_new(&self) -> bool {
        matches!(self, Self::New(_))
    }
}

/// Writes the hook by which libvirt refuses a domain of ours that we did not permit.
pub fn hook(run_dir: &Path) -> Result<Hook, JoinError> {
    hook_in(Path::new(HOOKS), run_dir)
}

fn hook_in(hooks: &Path, run_dir: &Path) -> Result<Hook, JoinError> {
    let content = hook_script(run_dir);
    let main = hooks.join("qemu");
    // A hook somebody else put there stays; libvirt runs those in qemu.d beside it.
    let path = match fs::read_to_string(&main) {
        Ok(found) if !found.contains(MARK) => hooks.join("qemu.d/vireo"),
        // A program that is no text is somebody else's, too.
        Err(_) if main.exists() => hooks.join("qemu.d/vireo"),
        Ok(_) | Err(_) => main,
    };
    if fs::read_to_string(&path).is_ok_and(|found| found == content) {
        return Ok(Hook::Same(path));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(JoinError::file(parent))?;
    }
    config::write(&path, content.as_bytes(), 0o755)?;
    Ok(Hook::New(path))
}

/// The hook: asked before a domain starts, never when libvirt reconnects to one that runs.
fn hook_script(run_dir: &Path) -> String {
    format!(
        r#"#!/bin/sh
{MARK}
# Refuses to start a virtual machine of Vireo for which this host has no permit: it may run elsewhere.
case "$2" in
prepare | start) ;;
*) exit 0 ;;
esac
xml=$(cat)
case "$xml" in
*'{namespace}'*) ;;
*) exit 0 ;;
esac
uuid=$(printf '%s\n' "$xml" | sed -n 's:.*<uuid>\([0-9a-fA-F-]*\)</uuid>.*:\1:p' | head -n 1)
if [ -n "$uuid" ] && [ -e '{run_dir}/permits/'"$uuid" ]; then
	exit 0
fi
echo "vireo: virtual machine $1 may not be started by hand: it may run on another host. Start it with: kubectl edit vvm" >&2
exit 1
"#,
        namespace = vireo_crds::meta::LIBVIRT_METADATA_NS,
        run_dir = run_dir.display(),
    )
}

/// Writes the systemd unit.
pub fn unit(etc_dir: &Path) -> Result<PathBuf, JoinError> {
    let program = std::env::current_exe().map_err(JoinError::file("/proc/self/exe"))?;
    let path = PathBuf::from(UNIT);
    config::write(&path, unit_text(&program, etc_dir).as_bytes(), 0o644)?;
    Ok(path)
}

fn unit_text(program: &Path, etc_dir: &Path) -> String {
    format!(
        r"# Written by vireo-node join.
[Unit]
Description=Vireo node daemon
Documentation=https://vireo.dev
Wants=network-online.target
After=network-online.target libvirtd.service virtqemud.service virtnetworkd.service

[Service]
Type=notify
ExecStart={program} run --etc-dir {etc_dir}
Restart=always
RestartSec=1
# Guests are libvirt's children, not ours; whatever else is left must not be killed with us.
KillMode=process
TimeoutStopSec=10
RuntimeDirectory=vireo
RuntimeDirectoryPreserve=yes
StateDirectory=vireo
UMask=0077
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
",
        program = program.display(),
        etc_dir = etc_dir.display(),
    )
}

/// Starts the service; restarts libvirt first if it has to see a new hook. Guests go on.
pub fn start(new_hook: bool) -> Result<(), JoinError> {
    systemctl(&["daemon-reload"])?;
    if new_hook {
        // A machine has one of the two, and naming a unit that is not there is an error even to try-restart.
        for unit in ["libvirtd.service", "virtqemud.service"].into_iter().filter(|unit| is_active(unit)) {
            systemctl(&["restart", unit])?;
        }
    }
    systemctl(&["enable", "vireo-node.service"])?;
    systemctl(&["restart", "vireo-node.service"])
}

fn is_active(unit: &str) -> bool {
    Command::new("systemctl")
        .args(["--quiet", "is-active", unit])
        .status()
        .is_ok_and(|status| status.success())
}

fn systemctl(args: &[&str]) -> Result<(), JoinError> {
    let command = format!("systemctl {}", args.join(" "));
    let failed = |message: String| JoinError::Command { command: command.clone(), message };
    let output = Command::new("systemctl").args(args).output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
    };

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    fn ask(hook: &Path, operation: &str, xml: &str) -> bool {
        let mut child = Command::new(hook)
            .args(["default.web-1", operation, "begin", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A hook that does not care may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
        child.wait().unwrap().success()
    }

    #[test]
    fn the_hook_refuses_what_has_no_permit() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let Hook::New(hook) = hook_in(&dir.path().join("hooks"), &run_dir).unwrap() else {
            panic!("not written")
        };
        assert_eq!(fs::metadata(&hook).unwrap().permissions().mode() & 0o777, 0o755);
        let ours = format!(
            "<domain>\n  <name>default.web-1</name>\n  <uuid>{UUID}</uuid>\n  <metadata><x xmlns='{}'/></metadata>\n</domain>",
            vireo_crds::meta::LIBVIRT_METADATA_NS
        );
        let foreign = format!("<domain><uuid>{UUID}</uuid></domain>");
        assert!(!ask(&hook, "prepare", &ours) && !ask(&hook, "start", &ours));
        assert!(ask(&hook, "prepare", &foreign));
        assert!(ask(&hook, "reconnect", &ours) && ask(&hook, "release", &ours));
        fs::create_dir_all(run_dir.join("permits")).unwrap();
        fs::write(run_dir.join("permits").join(UUID), "{}").unwrap();
        assert!(ask(&hook, "prepare", &ours) && ask(&hook, "start", &ours));
    }

    #[test]
    fn hooks_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("qemu"), "#!/bin/sh\n").unwrap();
        let Hook::New(path) = hook_in(dir.path(), Path::new("/run/vireo")).unwrap() else {
            panic!("not written")
        };
        assert_eq!(path, dir.path().join("qemu.d/vireo"));
        assert_eq!(fs::read_to_string(dir.path().join("qemu")).unwrap(), "#!/bin/sh\n");
        assert_eq!(hook_in(dir.path(), Path::new("/run/vireo")).unwrap(), Hook::Same(path));
    }

    #[test]
    fn the_unit_runs_this_program() {
        let text = unit_text(Path::new("/usr/bin/vireo-node"), Path::new("/etc/vireo"));
        assert!(
            text.contains("Type=notify")
                && text.contains("ExecStart=/usr/bin/vireo-node run --etc-dir /etc/vireo\n")
                && text.contains("KillMode=process")
        );
    }
}
