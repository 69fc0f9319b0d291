//! Lets a test kill a part, or make it stand still, right before or right after each thing it does to the world: every
//! step, every durable file, every write to the API server.
//!
//! Always compiled in, so that what is tried is what ships. Nothing is armed unless `main` calls
//! [`arm_from_environment`] and the environment names points; until then a point costs one load of an atomic.

mod api;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use rustix::process::{Signal, getpid, kill_process};

pub use api::ApiLayer;

/// Names points and what happens at them: `step:StartDomain:before=abort;api:APPLY hosts/status:after=hang:5`.
pub const POINTS: &str = "VIREO_FAIL_POINTS";
/// A file to which each point is written when it is reached for the first time, and the one at which the part ends.
pub const LOG: &str = "VIREO_FAIL_POINTS_LOG";

/// Directories whose files are told apart from those of the same name elsewhere.
const FOLDERS: [&str; 7] = ["ledger", "permits", "seeds", "sockets", "trash", "volumes", "vms"];

static ARMED: OnceLock<Armed> = OnceLock::new();

struct Armed {
    points: BTreeMap<String, End>,
    log: Option<File>,
    reached: Mutex<BTreeSet<String>>,
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process is gone at once.
    Abort,
    /// The whole process stands still for so many seconds, once.
    Hang(u32),
}

/// When, seen from what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it has been done.
    Before,
    /// It has been done, and nothing after it.
    After,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

/// Arms what the environment names; whether that is anything. To be called once, at the start of `main`.
pub fn arm_from_environment() -> Result<bool, String> {
    let points = std::env::var(POINTS).unwrap_or_default();
    let log = std::env::var_os(LOG);
    if points.is_empty() && log.is_none() {
        return Ok(false);
    }
    let points = parse(&points).map_err(|error| format!("{POINTS}: {error}"))?;
    let open = |path| OpenOptions::new().create(true).append(true).open(path);
    let log = log.map(open).transpose().map_err(|error| format!("{LOG}: {error}"))?;
    let armed = Armed { points, log, reached: Mutex::default() };
    ARMED.set(armed).map_err(|_| "fail points are armed already".to_owned())?;
    Ok(true)
}

fn parse(text: &str) -> Result<BTreeMap<String, End>, String> {
    let one = |part: &str| {
        let (point, end) = part.split_once('=').ok_or_else(|| format!("{part:?} is not POINT=END"))?;
        let end = match end.split_once(':') {
            None if end == "abort" => End::Abort,
            Some(("hang", seconds)) => {
                End::Hang(seconds.parse().map_err(|_| format!("{seconds:?} is not a number of seconds"))?)
            }
            _ => return Err(format!("{end:?} is neither abort nor hang:SECONDS")),
        };
        Ok((point.to_owned(), end))
    };
    text.split(';').filter(|part| !part.is_empty()).map(one).collect()
}

/// A step of a plan.
pub fn step(name: &str, moment: Moment) {
    if let Some(armed) = ARMED.get() {
        armed.reach(&format!("step:{name}:{moment}"));
    }
}

/// A change of a file that must survive the process: `verb` is write, rename or remove.
pub fn file(verb: &str, path: &Path, moment: Moment) {
    if let Some(armed) = ARMED.get() {
        armed.reach(&format!("file:{verb} {}:{moment}", class(path)));
    }
}

/// Runs what changes a file between its two points.
pub fn around<T>(verb: &str, path: &Path, change: impl FnOnce() -> T) -> T {
    file(verb, path, Moment::Before);
    let done = change();
    file(verb, path, Moment::After);
    done
}

/// What kind of file it is: its name with every UUID as `*`, after the folder if that is one of ours.
fn class(path: &Path) -> String {
    let name = path.file_name().map(|name| without_uuids(&name.to_string_lossy())).unwrap_or_default();
    let folder = path.parent().and_then(Path::file_name).map(|folder| folder.to_string_lossy());
    match folder.filter(|folder| FOLDERS.contains(&folder.as_ref())) {
        Some(folder) => format!("{folder}/{name}"),
        None => name,
    }
}

fn without_uuids(name: &str) -> String {
    const LENGTH: usize = 36;
    let is_uuid = |text: &str| {
        text.char_indices().all(|(index, c)| {
            if matches!(index, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() }
        })
    };
    let mut text = name.to_owned();
    let mut start = 0;
    while start + LENGTH <= text.len() {
        let found = text.get(start..start + LENGTH).is_some_and(is_uuid);
        if found {
            text.replace_range(start..start + LENGTH, "*");
        }
        start += 1;
    }
    // The number of a host's work on a Disk, or of a process.
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').map(|part| if is_number(part) { "#" } else { part }).collect::<Vec<_>>().join(".")
}

impl Armed {
    fn reach(&self, point: &str) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let first = reached.insert(point.to_owned());
        let end = self.points.get(point);
        if first {
            self.note("reached", point);
        }
        match end {
            Some(End::Abort) => {
                // The lock is kept: no other thread passes a point after this one.
                self.note("aborted", point);
                std::process::abort()
            }
            Some(End::Hang(seconds)) if first => {
                drop(reached);
                self.note("hangs", point);
                if let Err(error) = hang(*seconds) {
                    self.note(&format!("does not hang ({error})"), point);
                }
            }
            _ => {}
        }
    }

    fn note(&self, what: &str, point: &str) {
        if let Some(mut log) = self.log.as_ref() {
            // One write is one line, whoever else appends. Whether it succeeded shows when the file is read.
            let _ = log.write_all(format!("{what} {point}\n").as_bytes());
        }
    }
}

/// Stops every thread of this process; somebody else wakes it.
fn hang(seconds: u32) -> io::Result<()> {
    let pid = getpid();
    let wake = format!("sleep {seconds}; kill -CONT {}", pid.as_raw_nonzero());
    let mut waker = Command::new("sh");
    waker.args(["-c", &wake]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waker = waker.spawn()?;
    kill_process(pid, Signal::STOP)?;
    waker.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_from_text() {
        let points = parse("step:Pause:before=abort;api:APPLY hosts/status:after=hang:5;").unwrap();
        assert_eq!(points.get("step:Pause:before"), Some(&End::Abort));
        assert_eq!(points.get("api:APPLY hosts/status:after"), Some(&End::Hang(5)));
        for bad in ["step:Pause:before", "x=explode", "x=hang:", "x=hang"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_told_apart_by_kind() {
        let uid = "6f9d8f3e-0000-4000-8000-000000000001";
        for (path, expected) in [
            (format!("/var/lib/vireo/ledger/{uid}.json"), "ledger/*.json"),
            ("/var/lib/vireo/ledger/incarnation.json".to_owned(), "ledger/incarnation.json"),
            ("/run/vireo/incarnation.json".to_owned(), "incarnation.json"),
            (format!("/srv/domain/volumes/{uid}.qcow2"), "volumes/*.qcow2"),
            (format!("/srv/domain/volumes/{uid}.3.source.partial"), "volumes/*.#.source.partial"),
            (format!("/srv/domain/vms/{uid}/hardware.json"), "hardware.json"),
        ] {
            assert_eq!(class(Path::new(&path)), expected);
        }
    }

    #[test]
    fn nothing_happens_unless_armed() {
        step("Pause", Moment::Before);
        file("write", Path::new("/x"), Moment::After);
        assert_eq!(around("write", Path::new("/x"), || 5), 5);
    }
}
