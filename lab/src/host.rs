//! One host of the lab: its files, its power-on, its libvirtd and its node
//! daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::init::HostSpec;
use crate::layout::{HostLayout, LOCAL_PATH, Layout, MAX_HOSTS, SHARED_PATH};
use crate::process::{Identity, wait_until};
use crate::service::{self, Place, Service};
use crate::state::{State, write_atomically};
use crate::{fabric, init_start};

pub const LIBVIRTD: &str = "libvirtd";
pub const DAEMON: &str = "vireo-node";

/// Directories of a host that survive its power: name under the host's
/// directory, path inside.
const KEPT: [(&str, &str); 8] = [
    ("etc-vireo", "/etc/vireo"),
    ("var-lib-vireo", "/var/lib/vireo"),
    ("etc-libvirt", "/etc/libvirt"),
    ("var-lib-libvirt", "/var/lib/libvirt"),
    ("var-log-libvirt", "/var/log/libvirt"),
    // What libvirt found out about QEMU; asking again costs half a second.
    ("var-cache-libvirt", "/var/cache/libvirt"),
    ("var-lib-swtpm-localca", "/var/lib/swtpm-localca"),
    ("local", LOCAL_PATH),
];

pub fn place(host: &HostLayout, init: Identity) -> Place {
    Place { init, run: host.run(), namespaces: service::HOST }
}

/// The place of a host whose power is on.
pub fn running_place(layout: &Layout, state: &State, name: &str) -> Result<(HostLayout, Place)> {
    let host = layout.host(name)?;
    if !state.hosts.contains_key(name) {
        let known: Vec<&str> = state.hosts.keys().map(String::as_str).collect();
        bail!(
            "this lab has no {name}; it has: {}",
            if known.is_empty() { "no hosts".into() } else { known.join(", ") }
        );
    }
    let Some(init) = state.host_init(name) else {
        bail!("{name} is powered off: `vireo-lab power on {name}`");
    };
    let place = place(&host, init);
    Ok((host, place))
}

/// Powers a host on unless it is; true if it was off.
pub fn ensure_on(layout: &Layout, state: &mut State, host: &HostLayout) -> Result<bool> {
    let mut started = false;
    let init = match state.host_init(&host.name) {
        Some(init) => init,
        None => {
            let spec = prepare(layout, state, host)?;
            let init = init_start::host(layout, host, &spec)?;
            state.hosts.entry(host.name.clone()).or_default().init = Some(init);
            state.save(&layout.dir)?;
            started = true;
            init
        }
    };
    fabric::attach(layout, state, host, init)?;
    Ok(started)
}

/// Makes the host's files; those it wrote itself are left as they are.
fn prepare(layout: &Layout, state: &State, host: &HostLayout) -> Result<PathBuf> {
    let mut binds = Vec::new();
    for (name, inside) in KEPT {
        binds.push((host.dir.join(name), PathBuf::from(inside)));
    }
    binds.push((layout.shared(), PathBuf::from(SHARED_PATH)));
    for path in [&host.logs, &layout.shared()] {
        create_dir(path)?;
    }
    for (path, _) in &binds {
        create_dir(path)?;
    }
    // A new boot knows none of the processes of the last one.
    let run = host.run();
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
    }
    create_dir(&run)?;
    create_dir(&layout.images)?;
    // At their own paths, and live: what is built or written while the host
    // is up is seen inside at once.
    for path in [&layout.dir, &layout.bin, &layout.images] {
        binds.push((path.clone(), path.clone()));
    }
    libvirt_files(host)?;
    let spec = HostSpec {
        hostname: host.name.clone(),
        machine_id: host.machine_id.clone(),
        uuid: host.uuid.to_string(),
        hosts_file: hosts_file(layout)?,
        kvm: state.kvm,
        binds,
    };
    let path = host.dir.join("spec.json");
    write_atomically(&path, serde_json::to_string_pretty(&spec)?.as_bytes())?;
    Ok(path)
}

fn hosts_file(layout: &Layout) -> Result<String> {
    let mut text = format!("127.0.0.1 localhost\n::1 localhost\n{} api\n", layout.api_address());
    for number in 1..=MAX_HOSTS {
        let host = layout.host(&format!("host{number}"))?;
        text += &format!("{} {}\n", host.address, host.name);
    }
    Ok(text)
}

fn libvirt_files(host: &HostLayout) -> Result<()> {
    let etc = host.dir.join("etc-libvirt");
    create_dir(&etc.join("qemu/networks"))?;
    create_dir(&etc.join("nwfilter"))?;
    for (name, content) in [
        (
            "libvirtd.conf",
            format!(
                "host_uuid = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n\
                 unix_sock_ro_perms = \"0700\"\nunix_sock_rw_perms = \"0700\"\n\
                 listen_tls = 0\nlisten_tcp = 0\nlog_outputs = \"3:stderr\"\n",
                host.uuid
            ),
        ),
        (
            "qemu.conf",
            format!(
                "user = \"root\"\ngroup = \"root\"\nswtpm_user = \"root\"\nswtpm_group = \"root\"\n\
                 security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n\
                 dynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n\
                 shared_filesystems = [ \"{SHARED_PATH}\" ]\nmigration_host = \"{}\"\n",
                host.address
            ),
        ),
    ] {
        let path = etc.join(name);
        if !path.exists() {
            write_atomically(&path, content.as_bytes())?;
        }
    }
    // The stock filters, but no default network: networks are Vireo's to make.
    let stock = Path::new("/etc/libvirt/nwfilter");
    for entry in fs::read_dir(stock).into_iter().flatten().flatten() {
        let target = etc.join("nwfilter").join(entry.file_name());
        if !target.exists() {
            fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
        }
    }
    Ok(())
}

/// Where libvirtd of a running host can be reached from outside: sockets in
/// the file system cross namespaces.
pub fn libvirt_socket(init: Identity) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/run/libvirt/libvirt-sock", init.pid))
}

pub fn libvirtd(host: &HostLayout) -> Service {
    Service { name: LIBVIRTD, log: host.logs.join("libvirtd.log"), argv: vec!["/usr/sbin/libvirtd".into()] }
}

/// Starts libvirtd unless it runs, and waits until it answers.
pub fn start_libvirtd(layout: &Layout, host: &HostLayout, place: &Place) -> Result<bool> {
    if !Path::new("/usr/sbin/libvirtd").exists() {
        bail!("/usr/sbin/libvirtd is missing: run tools/install-deps.sh as root");
    }
    let service = libvirtd(host);
    let started = service.start(place, &layout.exe)?;
    let answers = wait_until(Duration::from_secs(60), || {
        service::running(place, LIBVIRTD).is_none() || libvirt_answers(place.init)
    });
    if answers.is_err() || service::running(place, LIBVIRTD).is_none() {
        bail!("libvirtd of {} does not answer; see {}", host.name, service.log.display());
    }
    Ok(started)
}

pub fn libvirt_answers(init: Identity) -> bool {
    let socket = libvirt_socket(init);
    socket.exists()
        && Command::new("virsh")
            .args(["-q", "-c", &format!("qemu+unix:///system?socket={}", socket.display()), "list"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

pub fn daemon(layout: &Layout, host: &HostLayout) -> Result<Service> {
    let program = layout.program("vireo-node")?;
    let argv = [program.into_os_string(), "run".into(), "--etc-dir".into(), "/etc/vireo".into()];
    Ok(Service { name: DAEMON, log: host.logs.join("vireo-node.log"), argv: argv.into() })
}

pub fn boot_id(init: Identity) -> Option<String> {
    let path = format!("/proc/{}/root/proc/sys/kernel/random/boot_id", init.pid);
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}
