//! Derives every path, name, address and port of a lab from its state
//! directory, so that two labs on one machine never meet.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use uuid::Uuid;

/// Where shared and host-local storage is mounted in every host.
pub const SHARED_PATH: &str = "/srv/vireo/shared";
pub const LOCAL_PATH: &str = "/srv/vireo/local";

pub const API_PORT: u16 = 6443;
pub const MAX_HOSTS: u8 = 99;

#[derive(Debug, Clone)]
pub struct Layout {
    /// The state directory, absolute and free of links.
    pub dir: PathBuf,
    /// Where vireo-node and vireo-controller are.
    pub bin: PathBuf,
    /// Where vireo-standalone, kubectl and helm are.
    pub tools: PathBuf,
    /// Where guest images are.
    pub images: PathBuf,
    /// This very program.
    pub exe: PathBuf,
    hash: u64,
}

impl Layout {
    pub fn new(state: Option<&Path>) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot tell where vireo-lab itself is")?;
        let exe_dir = exe.parent().map(Path::to_path_buf).unwrap_or_default();
        let from_env = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| path.display().to_string());
        let bin = absolute(from_env("VIREO_BIN_DIR").unwrap_or_else(|| exe_dir.clone()))?;
        let target = target_dir(&exe_dir);
        let tools = absolute(from_env("VIREO_TOOLS_DIR").unwrap_or_else(|| target.join("tools")))?;
        let images = absolute(from_env("VIREO_IMAGES_DIR").unwrap_or_else(|| target.join("images")))?;
        let dir = state.map_or_else(|| target.join("lab"), Path::to_path_buf);
        let dir = canonical(&dir)?;
        if dir.as_os_str().as_encoded_bytes().iter().any(|byte| b",:\n".contains(byte)) {
            bail!("--state {}: the path must hold no comma, colon or line break", dir.display());
        }
        let hash = fnv1a(dir.as_os_str().as_encoded_bytes());
        Ok(Self { dir, bin, tools, images, exe, hash })
    }

    fn subnet(&self) -> u8 {
        u8::try_from(1 + self.hash % 250).unwrap_or(1)
    }

    /// What the API server and hosts listen on.
    pub fn api_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet(), 1)
    }

    pub fn api_url(&self) -> String {
        format!("https://{}:{API_PORT}", self.api_address())
    }

    /// The router's address in the network that guests can be bridged to.
    pub fn guest_router(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, self.subnet(), 1)
    }

    pub fn guest_dhcp_range(&self) -> (Ipv4Addr, Ipv4Addr) {
        (Ipv4Addr::new(10, 78, self.subnet(), 100), Ipv4Addr::new(10, 78, self.subnet(), 250))
    }

    /// Where the relay for people listens when nothing else does.
    pub fn preferred_port(&self) -> u16 {
        // Below Linux's range for outgoing connections.
        20_000 + u16::try_from((self.hash >> 16) % 12_000).unwrap_or(0)
    }

    pub fn host(&self, name: &str) -> Result<HostLayout> {
        HostLayout::new(self, name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub fn controller_kubeconfig(&self) -> PathBuf {
        self.dir.join("controller.kubeconfig")
    }

    pub fn api_data(&self) -> PathBuf {
        self.dir.join("api")
    }

    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn fabric_run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// One of Vireo's own programs, built beside this one.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin.join(name);
        if !path.is_file() {
            bail!("{} is missing: build it (`make build`) or point VIREO_BIN_DIR at it", path.display());
        }
        Ok(path)
    }

    pub fn tool(&self, name: &str) -> Result<PathBuf> {
        let path = self.tools.join(name);
        if !path.is_file() {
            bail!("{} is missing: run `make tools`", path.display());
        }
        Ok(path)
    }
}

/// What belongs to one host.
#[derive(Debug, Clone)]
pub struct HostLayout {
    pub name: String,
    pub dir: PathBuf,
    pub logs: PathBuf,
    pub address: Ipv4Addr,
    pub uuid: Uuid,
    pub machine_id: String,
    pub mac: String,
    pub guest_mac: String,
    /// Names of the fabric's ends of the host's two cables.
    pub port: String,
    pub guest_port: String,
}

impl HostLayout {
    fn new(layout: &Layout, name: &str) -> Result<Self> {
        let number = name
            .strip_prefix("host")
            .filter(|digits| !digits.starts_with('0'))
            .and_then(|digits| digits.parse::<u8>().ok())
            .filter(|number| (1..=MAX_HOSTS).contains(number));
        let Some(number) = number else {
            bail!("no host is called {name:?}: hosts are named host1, host2, ... host{MAX_HOSTS}");
        };
        let derive = |what: &str| {
            Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{}/{name}/{what}", layout.dir.display()).as_bytes())
        };
        let [.., high, low] = layout.hash.to_be_bytes();
        Ok(Self {
            name: name.to_owned(),

            dir: layout.dir.join("hosts").join(name),
            logs: layout.logs().join(name),
            address: Ipv4Addr::new(10, 77, layout.subnet(), 10 + number),
            uuid: derive("uuid"),
            machine_id: derive("machine-id").simple().to_string(),
            mac: format!("02:76:{high:02x}:{low:02x}:00:{number:02x}"),
            guest_mac: format!("02:76:{high:02x}:{low:02x}:01:{number:02x}"),
            port: format!("{name}m"),
            guest_port: format!("{name}g"),
        })
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
}

/// `target` of a checkout when this program lies in `target/<profile>/`
/// (tests lie one deeper), else `./target`.
fn target_dir(exe_dir: &Path) -> PathBuf {
    exe_dir
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "target"))
        .map_or_else(|| PathBuf::from("target"), Path::to_path_buf)
}

/// Resolves links in the part of the path that exists already; nothing is
/// created, since `status` and `down` may be asked about a lab that never was.
fn canonical(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let mut rest = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return Ok(rest.iter().rev().fold(real, |real, name| real.join(name)));
        }
        rest.extend(ancestor.file_name());
    }
    bail!("{} cannot be resolved", path.display())
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &str) -> Layout {
        Layout::new(Some(Path::new(dir))).unwrap()
    }

    #[test]
    fn hosts_of_one_lab_differ_in_all_that_peers_look_at() {
        let lab = layout("/nonexistent/a");
        let (one, two) = (lab.host("host1").unwrap(), lab.host("host2").unwrap());
        assert_ne!(one.uuid, two.uuid);
        assert_ne!(one.machine_id, two.machine_id);
        assert_ne!(one.mac, two.mac);
        assert_ne!(one.address, two.address);
        assert_ne!(one.mac, one.guest_mac);
        assert!(one.guest_port.len() < 16 && lab.host("host99").unwrap().guest_port.len() < 16);
    }

    #[test]
    fn the_same_directory_gives_the_same_lab_and_another_another() {
        assert_eq!(
            layout("/nonexistent/a").host("host1").unwrap().uuid,
            layout("/nonexistent/./a").host("host1").unwrap().uuid
        );
        assert_ne!(
            layout("/nonexistent/a").host("host1").unwrap().uuid,
            layout("/nonexistent/b").host("host1").unwrap().uuid
        );
        assert_ne!(layout("/nonexistent/a").preferred_port(), layout("/nonexistent/b").preferred_port());
    }

    #[test]
    fn names_that_are_no_host() {
        let lab = layout("/nonexistent/a");
        for name in ["host0", "host01", "host100", "host", "web", "host1/..", "Host1"] {
            assert!(lab.host(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_path_that_mount_options_cannot_carry_is_refused() {
        assert!(Layout::new(Some(Path::new("/nonexistent/a,b"))).is_err());
    }
}
