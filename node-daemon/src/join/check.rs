//! Looks at what would hinder this machine from being a host, and says what to do about it. Changes nothing.

use std::{path::Path, process::Command};

use clap::Args;
use serde::Serialize;
use virt::connect::Connect;

use super::{JoinError, RUN_DIR, STATE_DIR};
use crate::host::libvirt::{
    connection::{default_uri, spawn},
    events,
};

/// Oldest libvirt and QEMU that are supported.
const LIBVIRT: u32 = 9_000_000;
const QEMU: u32 = 7_002_000;

/// Flags of `vireo-node check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// libvirt URI; left out, the monolithic or modular daemon of this machine.
    #[arg(long)]
    pub libvirt_uri: Option<String>,
}

/// The finding about the machine's UUID.
const IDENTITY: &str = "identity";

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but something will be worse than it could be.
    Warning,
    /// Without this the machine cannot be a host.
    Error,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub subject: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do; empty if nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub remedy: &'static str,
}

impl Finding {
    fn ok(subject: &'static str, message: impl Into<String>) -> Self {
        Self { subject, level: Level::Ok, message: message.into(), remedy: "" }
    }

    fn warning(subject: &'static str, message: impl Into<String>, remedy: &'static str) -> Self {
        Self { subject, level: Level::Warning, message: message.into(), remedy }
    }

    fn error(subject: &'static str, message: impl Into<String>, remedy: &'static str) -> Self {
        Self { subject, level: Level::Error, message: message.into(), remedy }
    }
}

/// Looks and prints; fails if something hinders.
pub async fn run(args: CheckArgs) -> Result<(), JoinError> {
    let findings = look(&args.libvirt_uri.clone().unwrap_or_else(default_uri)).await;
    if args.json {
        let text = serde_json::to_string_pretty(&findings)
            .map_err(|e| JoinError::Content { path: "-".into(), message: e.to_string() })?;
        println!("{text}");
    } else {
        print!("{}", text(&findings));
    }
    if !hinders(&findings) {
        return Ok(());
    }
    let worst: Vec<Finding> = findings.into_iter().filter(|f| f.level == Level::Error).collect();
    Err(JoinError::Hindered(text(&worst)))
}

/// Looks at everything.
pub async fn look(uri: &str) -> Vec<Finding> {
    let mut findings = vec![root()];
    findings.extend(libvirt(uri).await);
    findings.push(identity(Path::new("/")));
    findings.push(accelerator());
    findings.extend(tools());
    findings.push(guests_service());
    findings.push(sleep());
    findings.push(directories());
    findings
}

/// Whether something hinders.
pub fn hinders(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Error)
}

/// Whether the UUID of this machine stays the same when libvirt is started again.
pub fn has_lasting_uuid(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.subject == IDENTITY && finding.level == Level::Ok)
}

/// One line each, for people.
pub fn text(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "WARNING",
            Level::Error => "ERROR  ",
        };
        let remedy = if finding.remedy.is_empty() { String::new() } else { format!(": {}", finding.remedy) };
        format!("{mark} {:<12} {}{remedy}\n", finding.subject, finding.message)
    };
    findings.iter().map(line).collect()
}

/// Runs one call on a connection of its own.
pub async fn with_libvirt<T: Send + 'static>(
    uri: String,
    call: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
) -> Result<T, String> {
    let work = move || {
        let connect = Connect::open(Some(&uri))?;
        let result = call(&connect);
        events::close(connect);
        result
    };
    spawn("check", work).await.map_err(|e| e.to_string())?.map_err(|e| e.message().to_owned())
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("user", "root")
    } else {
        Finding::error(
            "user",
            "not root",
            "run this as root: it manages libvirt, bridges and files of guests",
        )
    }
}

async fn libvirt(uri: &str) -> Vec<Finding> {
    let found =
        with_libvirt(uri.to_owned(), |connect| Ok((connect.lib_version()?, connect.hyp_version()?))).await;
    let (libvirt, qemu) = match found {
        Ok(versions) => versions,
        Err(message) => {
            return vec![Finding::error(
                "libvirt",
                format!("{uri} does not answer: {message}"),
                "install libvirt-daemon-system and qemu-system, then `systemctl enable --now libvirtd`",
            )];
        }
    };
    let judged = |subject, version, oldest, remedy| {
        if version < oldest {
            Finding::error(subject, format!("{}, older than {}", shown(version), shown(oldest)), remedy)
        } else {
            Finding::ok(subject, shown(version))
        }
    };
    vec![judged("libvirt", libvirt, LIBVIRT, "upgrade libvirt"), judged("qemu", qemu, QEMU, "upgrade QEMU")]
}

fn shown(version: u32) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000)
}

/// By its UUID a machine that rebooted is told from another one. Where the firmware has none, libvirt makes up a new one
/// each time it starts, unless it was given one.
fn identity(root: &Path) -> Finding {
    const NAME: &str = IDENTITY;
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    if !read("sys/class/dmi/id/product_uuid").trim().is_empty() {
        return Finding::ok(NAME, "the firmware has a UUID");
    }
    let given = ["etc/libvirt/libvirtd.conf", "etc/libvirt/virtqemud.conf"]
        .into_iter()
        .any(|path| read(path).lines().any(|line| line.trim_start().starts_with("host_uuid")));
    if given {
        return Finding::ok(NAME, "libvirt was given a UUID");
    }
    Finding::warning(
        NAME,
        "the firmware has no UUID and libvirt was given none: after a reboot this looks like another machine, which \
         does not speak for its Host until an administrator clears status.identity of the Host, and its VMs wait until \
         somebody confirms that they stopped",
        "write `host_uuid = \"...\"`, with a UUID made once, into /etc/libvirt/libvirtd.conf (or virtqemud.conf) \
         and restart libvirt",
    )
}

fn accelerator() -> Finding {
    if Path::new("/dev/kvm").exists() {
        Finding::ok("accelerator", "/dev/kvm is there; the daemon boots a probe guest before it relies on it")
    } else {
        Finding::warning(
            "accelerator",
            "no /dev/kvm: guests are emulated, which is slow",
            "turn on virtualization in the firmware, or load the module kvm_intel or kvm_amd",
        )
    }
}

fn tools() -> Vec<Finding> {
    let needed = [
        ("qemu-img", Level::Error, "install qemu-utils (or qemu-img)"),
        ("prlimit", Level::Error, "install util-linux"),
        ("setpriv", Level::Error, "install util-linux"),
        (
            "dnsmasq",
            Level::Warning,
            "install dnsmasq-base (or dnsmasq), without which there are no nat Networks here",
        ),
        ("swtpm", Level::Warning, "install swtpm and swtpm-tools, without which no VM with a TPM runs here"),
    ];
    needed
        .into_iter()
        .map(|(tool, level, remedy)| match find(tool) {
            Some(path) => Finding::ok(tool, path),
            None => Finding { subject: tool, level, message: "not found".into(), remedy },
        })
        .collect()
}

fn find(tool: &str) -> Option<String> {
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    directories.iter().map(|directory| format!("{directory}/{tool}")).find(|path| Path::new(path).exists())
}

/// libvirt-guests starts at boot what ran before: that is for the API server to decide.
fn guests_service() -> Finding {
    const NAME: &str = "libvirt-guests";
    match unit_state(NAME) {
        Some(state) if state == "enabled" => Finding::warning(
            NAME,
            "is enabled: it suspends or stops guests at shutdown and starts them at boot by itself",
            "`systemctl disable --now libvirt-guests`",
        ),
        Some(state) => Finding::ok(NAME, state),
        None => Finding::ok(NAME, "not there"),
    }
}

/// A host that sleeps looks dead, and wakes up with guests that may run elsewhere by then.
fn sleep() -> Finding {
    const NAME: &str = "sleep";
    let able = std::fs::read_to_string("/sys/power/state").is_ok_and(|states| !states.trim().is_empty());
    match unit_state("sleep.target") {
        _ if !able => Finding::ok(NAME, "this machine cannot sleep"),
        Some(state) if state == "masked" => Finding::ok(NAME, "masked"),
        Some(_) | None => Finding::warning(
            NAME,
            "this machine may be put to sleep: its guests would stop, and may run elsewhere when it wakes",
            "`systemctl mask sleep.target suspend.target hibernate.target hybrid-sleep.target`",
        ),
    }
}

fn unit_state(unit: &str) -> Option<String> {
    let output = Command::new("systemctl").args(["is-enabled", unit]).output().ok()?;
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!state.is_empty() && state != "not-found").then_some(state)
}

fn directories() -> Finding {
    let bad =
        [STATE_DIR, RUN_DIR].into_iter().find(|path| Path::new(path).exists() && !Path::new(path).is_dir());
    match bad {
        Some(path) => Finding::error("directories", format!("{path} is not a directory"), "move it away"),
        None => Finding::ok("directories", format!("{STATE_DIR}, {RUN_DIR}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_libvirt_that_does_not_answer_hinders() {
        let findings = libvirt("qemu+unix:///system?socket=/nonexistent").await;
        assert!(hinders(&findings) && text(&findings).contains("does not answer"));
    }

    #[tokio::test]
    async fn versions_are_read_from_a_libvirt_that_answers() {
        let findings = libvirt("test:///default").await;
        assert!(findings.iter().any(|f| f.subject == "libvirt" && f.level == Level::Ok), "{findings:?}");
        assert_eq!(shown(11_003_000), "11.3.0");
    }

    #[test]
    fn a_machine_without_a_lasting_uuid_is_warned_about() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(identity(root.path()).level, Level::Warning);
        put("etc/libvirt/libvirtd.conf", "#host_uuid = \"00000000-0000-0000-0000-000000000000\"\n");
        assert_eq!(identity(root.path()).level, Level::Warning);
        put("etc/libvirt/virtqemud.conf", "host_uuid_source = \"machine-id\"\n");
        assert_eq!(identity(root.path()).level, Level::Ok);
        std::fs::remove_file(root.path().join("etc/libvirt/virtqemud.conf")).unwrap();
        put("sys/class/dmi/id/product_uuid", "6f9d8f3e-0000-4000-8000-000000000001\n");
        assert_eq!(identity(root.path()).level, Level::Ok);
    }

    #[test]
    fn findings_are_told_with_their_remedy() {
        let findings = [Finding::ok("a", "fine"), Finding::warning("b", "slow", "do this")];
        assert_eq!(text(&findings), "ok      a            fine\nWARNING b            slow: do this\n");
        assert!(!hinders(&findings));
        assert_eq!(serde_json::to_value(&findings).unwrap()[1]["level"], "warning");
    }
}
