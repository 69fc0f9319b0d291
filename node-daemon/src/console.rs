//! Attaches a terminal to the serial console of a VM on this host, and lets a VNC viewer of this host reach its screen.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    net::SocketAddr,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use node_plan::xml::{
    live::console_log,
    observe::{Observed, observe},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, OFlags},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};
use tokio::net::{TcpListener, UnixStream};

use crate::{error::RetryClass, host::libvirt::connection::default_uri, join::check::with_libvirt};

/// Ctrl-], as virsh and telnet have it.
const DETACH: u8 = 0x1d;

/// QEMU has noticed by then that the console was opened.
const NOTICED: Duration = Duration::from_millis(1500);
/// A guest that never falls silent does not keep us longer.
const LONGEST_LINGER: Duration = Duration::from_secs(5);

/// Flags of `vireo-node console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The VM, as NAMESPACE/NAME.
    pub vm: String,
    /// Send what comes on standard input to the console and end with it.
    #[arg(long, conflicts_with = "log")]
    pub send: bool,
    /// Print what the console has printed so far, and end.
    #[arg(long)]
    pub log: bool,
    /// Attach even if somebody else is attached.
    #[arg(long)]
    pub force: bool,
    /// The daemon's state directory, which has the records of guests that do not run.
    #[arg(long, default_value = "/var/lib/vireo")]
    pub state_dir: PathBuf,
    /// libvirt URI; left out, the monolithic or modular daemon of this machine.
    #[arg(long)]
    pub libvirt_uri: Option<String>,
}

/// Flags of `vireo-node vnc`.
#[derive(Debug, Args)]
pub struct VncArgs {
    /// The VM, as NAMESPACE/NAME.
    pub vm: String,
    /// Loopback address at which a viewer can connect; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// libvirt URI; left out, the monolithic or modular daemon of this machine.
    #[arg(long)]
    pub libvirt_uri: Option<String>,
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Not NAMESPACE/NAME.
    #[error("\"{0}\" is not NAMESPACE/NAME, such as default/web-1")]
    Name(String),
    /// The VM is not here.
    #[error("VM {vm} does not run on this host ({why}): `kubectl get vvm` shows where it runs")]
    NotHere {
        /// Which VM.
        vm: String,
        /// What libvirt says.
        why: String,
    },
    /// It has none.
    #[error("VM {vm} has no {what}: {remedy}")]
    None {
        /// Which VM.
        vm: String,
        /// What it lacks.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Somebody else is attached.
    #[error(
        "somebody else is attached to the console of VM {0}: use --force to attach nevertheless; each will see a part"
    )]
    Busy(String),
    /// Not a loopback address.
    #[error(
        "--listen {0}: the screen has no password, so it is offered on loopback only; use ssh -L for more"
    )]
    NotLoopback(SocketAddr),
    /// Input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl ConsoleError {
    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::NotHere { .. } | Self::Busy(_) => RetryClass::WaitFor,
            Self::Io { .. } => RetryClass::Transient,
            Self::Name(_) | Self::None { .. } | Self::NotLoopback(_) => RetryClass::Rejected,
        }
    }

    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Attaches to the serial console.
pub async fn run_console(args: ConsoleArgs) -> Result<(), ConsoleError> {
    let (xml, observed) = match look(&args.vm, args.libvirt_uri.clone()).await {
        Err(ConsoleError::NotHere { vm, why }) if args.log => {
            let Some(record) = record_of_stopped(&args.state_dir, &vm) else {
                return Err(ConsoleError::NotHere { vm, why });
            };
            return print(&record);
        }
        looked => looked?,
    };
    let ended = tokio::task::spawn_blocking(move || match (args.log, observed.console_tty) {
        (true, _) => print_log(&args.vm, &xml),
        (false, Some(tty)) => {
            let console = open(&args.vm, &tty, args.force)?;
            if args.send { send(console, io::stdin().lock()) } else { attach(&args.vm, &console) }
        }
        (false, None) => Err(ConsoleError::None {
            vm: args.vm,
            what: "serial console",
            remedy: "set spec.serialConsole: true, then restart it",
        }),
    });
    ended.await.unwrap_or_else(|e| Err(ConsoleError::io("console")(io::Error::other(e))))
}

/// Relays the screen to a loopback port until it is stopped.
pub async fn run_vnc(args: VncArgs) -> Result<(), ConsoleError> {
    if !args.listen.ip().is_loopback() {
        return Err(ConsoleError::NotLoopback(args.listen));
    }
    let (_, observed) = look(&args.vm, args.libvirt_uri.clone()).await?;
    let Some(socket) = observed.vnc_socket else {
        return Err(ConsoleError::None {
            vm: args.vm,
            what: "screen",
            remedy: "set spec.graphics: {vnc: {}}, then restart it",
        });
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(ConsoleError::io(format!("--listen {}", args.listen)))?;
    let address = listener.local_addr().map_err(ConsoleError::io("listen"))?;
    println!("vnc://{address} (socket {socket}); Ctrl-C ends it");
    relay(listener, socket.into()).await
}

async fn relay(listener: TcpListener, socket: PathBuf) -> Result<(), ConsoleError> {
    loop {
        let (mut viewer, _) = listener.accept().await.map_err(ConsoleError::io("accept"))?;
        let mut screen =
            UnixStream::connect(&socket).await.map_err(ConsoleError::io(format!("{}", socket.display())))?;
        tokio::spawn(async move {
            // A viewer that goes away is no failure.
            let _ = tokio::io::copy_bidirectional(&mut viewer, &mut screen).await;
        });
    }
}

/// The live domain of a VM.
async fn look(vm: &str, uri: Option<String>) -> Result<(String, Observed), ConsoleError> {
    let domain = domain_name(vm)?;
    let xml = with_libvirt(uri.unwrap_or_else(default_uri), move |connect| {
        connect.lookup_domain_by_name(&domain)?.xml_desc(0)
    })
    .await
    .map_err(|why| ConsoleError::NotHere { vm: vm.into(), why })?;
    let observed = observe(&xml).map_err(|e| ConsoleError::NotHere { vm: vm.into(), why: e.to_string() })?;
    Ok((xml, observed))
}

fn domain_name(vm: &str) -> Result<String, ConsoleError> {
    match vm.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(format!("{namespace}.{name}"))
        }
        _ => Err(ConsoleError::Name(vm.chars().take(200).collect())),
    }
}

/// Prints the record that libvirt keeps of the console.
fn print_log(vm: &str, xml: &str) -> Result<(), ConsoleError> {
    let none = || ConsoleError::None {
        vm: vm.into(),
        what: "record of its console",
        remedy: "set spec.serialConsole: true, then restart it",
    };
    print(Path::new(&console_log(xml).ok_or_else(none)?))
}

fn print(path: &Path) -> Result<(), ConsoleError> {
    let name = || path.display().to_string();
    let mut file = File::open(path).map_err(ConsoleError::io(name()))?;
    io::copy(&mut file, &mut io::stdout().lock()).map(drop).map_err(ConsoleError::io(name()))
}

/// What the last guest of this name wrote to its console before it went down: the ledger knows which VM that was.
fn record_of_stopped(state_dir: &Path, vm: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(state_dir.join("ledger")).ok()?.flatten();
    let records = entries.filter_map(|file| {
        let path = file.path();
        let uid = path.file_stem()?.to_str()?;
        let entry = node_plan::ledger::decode(&std::fs::read_to_string(&path).ok()?, uid).ok()?;
        let record = state_dir.join("logs").join(format!("{uid}.console.log"));
        let written = record.metadata().ok()?.modified().ok()?;
        (format!("{}/{}", entry.vm.namespace, entry.vm.name) == vm).then_some((written, record))
    });
    records.max_by_key(|(written, _)| *written).map(|(_, record)| record)
}

fn open(vm: &str, tty: &str, force: bool) -> Result<File, ConsoleError> {
    let flags = i32::try_from((OFlags::NOCTTY | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(tty)
        .map_err(ConsoleError::io(tty))?;
    match rustix::fs::flock(&console, FlockOperation::NonBlockingLockExclusive) {
        Err(_) if !force => Err(ConsoleError::Busy(vm.into())),
        _ => Ok(console),
    }
}

/// Sends everything at the pace of the guest.
fn send(mut console: File, mut input: impl Read) -> Result<(), ConsoleError> {
    let opened = Instant::now();
    let mut buffer = [0; 256];
    loop {
        match input.read(&mut buffer).map_err(ConsoleError::io("standard input"))? {
            0 => return linger(&console, opened),
            read => write_all(&mut console, buffer.get(..read).unwrap_or_default())?,
        }
    }
}

/// Holds the terminal open until QEMU has taken what was sent: it looks only once a second whether somebody opened
/// it, and drops what is left when it is closed before.
fn linger(console: &File, opened: Instant) -> Result<(), ConsoleError> {
    let (mut reader, mut buffer) = (console, [0; 4096]);
    let mut fds = [PollFd::from_borrowed_fd(console.as_fd(), PollFlags::IN)];
    let quiet = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    loop {
        match poll(&mut fds, Some(&quiet)) {
            Ok(0) if opened.elapsed() >= NOTICED => return Ok(()),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ConsoleError::io("console")(error.into())),
            // The record keeps what the guest says; nobody asked for it here.
            Ok(_) => match reader.read(&mut buffer) {
                Ok(1..) if opened.elapsed() < LONGEST_LINGER => {}
                _ => return Ok(()),
            },
        }
    }
}

fn write_all(console: &mut File, mut bytes: &[u8]) -> Result<(), ConsoleError> {
    while !bytes.is_empty() {
        match console.write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(console, PollFlags::OUT)];
                poll(&mut fds, None).map_err(|e| ConsoleError::io("console")(e.into()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ConsoleError::io("console")(error)),
        }
    }
    Ok(())
}

/// Ties terminal and console together until Ctrl-], the end of input or the end of the guest.
fn attach(vm: &str, console: &File) -> Result<(), ConsoleError> {
    let raw = Raw::set()?;
    if raw.is_some() {
        eprint!("attached to {vm}; Ctrl-] detaches\r\n");
    }
    let ended = pump(console, io::stdin(), io::stdout());
    drop(raw);
    eprintln!();
    ended
}

fn pump(console: &File, input: impl AsFd + Read, mut output: impl Write) -> Result<(), ConsoleError> {
    let (mut input, mut console_in, mut console_out) =
        (input, console, console.try_clone().map_err(ConsoleError::io("console"))?);
    let mut buffer = [0; 4096];
    loop {
        let (from_guest, from_user) = {
            let mut fds = [
                PollFd::new(&console_in, PollFlags::IN),
                PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(ConsoleError::io("console")(error.into())),
                Ok(_) => {}
            }
            let [guest, user] = fds;
            (!guest.revents().is_empty(), !user.revents().is_empty())
        };
        if from_guest {
            match console_in.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    let shown = output
                        .write_all(buffer.get(..read).unwrap_or_default())
                        .and_then(|()| output.flush());
                    shown.map_err(ConsoleError::io("standard output"))?;
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // The other end is gone: the guest has stopped.
                Err(_) => return Ok(()),
            }
        }
        if from_user {
            let read = input.read(&mut buffer).map_err(ConsoleError::io("standard input"))?;
            let typed = buffer.get(..read).unwrap_or_default();
            let until = typed.iter().position(|byte| *byte == DETACH);
            write_all(&mut console_out, typed.get(..until.unwrap_or(read)).unwrap_or_default())?;
            if read == 0 || until.is_some() {
                return Ok(());
            }
        }
    }
}

/// A terminal that passes every key on; as it was before when dropped.
struct Raw(Termios);

impl Raw {
    /// None: standard input is no terminal.
    fn set() -> Result<Option<Self>, ConsoleError> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin()).map_err(|e| ConsoleError::io("terminal")(e.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .map_err(|e| ConsoleError::io("terminal")(e.into()))?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing better to do if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A pseudo terminal as QEMU makes it: its own end, and the path of the other.
    fn pty() -> (File, String) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let mut raw = tcgetattr(&master).unwrap();
        raw.make_raw();
        tcsetattr(&master, OptionalActions::Now, &raw).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        (File::from(master), path)
    }

    #[test]
    fn keys_go_in_and_output_comes_out_until_the_user_detaches() {
        let (mut guest, path) = pty();
        let console = open("default/a", &path, false).unwrap();
        assert!(matches!(open("default/a", &path, false), Err(ConsoleError::Busy(_))));
        guest.write_all(b"login: ").unwrap();
        let (keys, mut keyboard) = io::pipe().unwrap();
        let (mut screen, shown) = io::pipe().unwrap();
        let attached = std::thread::spawn(move || pump(&console, keys, shown));
        let mut prompt = [0; 7];
        screen.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"login: ");
        keyboard.write_all(b"root\x1d not sent").unwrap();
        attached.join().unwrap().unwrap();
        let mut typed = [0; 4];
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root");
    }

    #[test]
    fn what_is_sent_waits_for_qemu_to_look() {
        let (mut guest, path) = pty();
        let console = open("default/a", &path, false).unwrap();
        let sent = std::thread::spawn(move || send(console, b"poweroff\n".as_slice()));
        let mut typed = [0; 9];
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"poweroff\n");
        guest.write_all(b"# ").unwrap();
        sent.join().unwrap().unwrap();
    }

    #[test]
    fn the_end_of_the_guest_is_the_end() {
        let (guest, path) = pty();
        let console = open("default/a", &path, false).unwrap();
        drop(guest);
        let (keys, _keyboard) = io::pipe().unwrap();
        pump(&console, keys, io::sink()).unwrap();
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(domain_name("default/web-1").unwrap(), "default.web-1");
        for bad in ["web-1", "/web-1", "default/", "a/b/c", ""] {
            assert!(matches!(domain_name(bad), Err(ConsoleError::Name(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_screen_is_offered_on_loopback_only() {
        let refused = run_vnc(VncArgs {
            vm: "default/a".into(),
            listen: "0.0.0.0:0".parse().unwrap(),
            libvirt_uri: None,
        })
        .await;
        assert!(matches!(refused, Err(ConsoleError::NotLoopback(_))));
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vnc.sock");
        let screen = tokio::net::UnixListener::bind(&socket).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relayed = tokio::spawn(relay(listener, socket));
        let mut viewer = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut display, _) = screen.accept().await.unwrap();
        display.write_all(b"RFB").await.unwrap();
        let mut greeting = [0; 3];
        viewer.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"RFB");
        relayed.abort();
    }
}
