//! Makes this machine a host, once: looks at what it has, makes its key, exchanges the bootstrap token for one of its
//! own, asks for a peer certificate, writes configuration, systemd unit and libvirt hook, and says what it did.

pub mod check;
pub mod config;
pub mod credentials;
pub mod install;
pub mod renew;

use std::path::PathBuf;

use clap::Args;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use node_plan::{
    identity::{self, NotOurs},
    xml::capabilities::machine,
};
use serde_json::json;
use vireo_crds::{meta::NODE_MANAGER, v1alpha1::Host};

use crate::{error::RetryClass, host::libvirt::connection::default_uri};
pub use config::{NodeConfig, public_key_sha256};

/// Where things are when nobody says otherwise.
const STATE_DIR: &str = "/var/lib/vireo";
const RUN_DIR: &str = "/run/vireo";

/// Flags of `vireo-node join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Address of the API server, such as https://api.example:6443.
    pub server: String,
    /// Name of the Host; the object must exist.
    #[arg(long)]
    pub host: String,
    /// File with the bootstrap token: `kubectl create token host-NAME -n vireo-hosts --duration 15m`.
    #[arg(long = "token", value_name = "FILE")]
    pub token_file: PathBuf,
    /// File with the certificates of the API server's authority.
    #[arg(long = "ca-file", value_name = "FILE")]
    pub ca_file: PathBuf,
    /// Directory for configuration, key, token and certificates.
    #[arg(long, default_value = "/etc/vireo")]
    pub etc_dir: PathBuf,
    /// Directory that survives a boot, if not /var/lib/vireo.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    /// Directory that a boot empties, if not /run/vireo.
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
    /// libvirt URI; left out, the monolithic or modular daemon of this machine.
    #[arg(long)]
    pub libvirt_uri: Option<String>,
    /// Write no systemd unit and start nothing.
    #[arg(long)]
    pub no_systemd: bool,
}

/// Why a machine cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The machine lacks something.
    #[error("this machine cannot be a host yet:\n{0}")]
    Hindered(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be understood.
    #[error("{}: {message}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The Host object is missing.
    #[error(
        "there is no Host {0}: make it first (kind Host, metadata.name {0}), wait a second for its ServiceAccount, then make a token for it"
    )]
    NoHost(String),
    /// Another machine joined under this name.
    #[error(
        "Host {host} belongs to another machine (key {pinned}, this one has {found}): choose another name, or, if that machine is gone for good, have an administrator clear status.identity of the Host"
    )]
    OtherKey {
        /// Name of the Host.
        host: String,
        /// Key pinned.
        pinned: String,
        /// Key of this machine.
        found: String,
    },
    /// Another machine joined under this name and with this key.
    #[error(transparent)]
    OtherMachine(NotOurs),
    /// The API server refused.
    #[error("{what}: {source}")]
    Api {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// Key or request cannot be made.
    #[error("cannot make {what}: {message}")]
    Key {
        /// What.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// The signer has not answered.
    #[error("no certificate was issued within {0} s: is the controller running?")]
    NotSigned(u64),
    /// A command failed.
    #[error("`{command}` failed: {message}")]
    Command {
        /// Which.
        command: String,
        /// What it said.
        message: String,
    },
}

impl JoinError {
    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Api { .. } | Self::NotSigned(_) | Self::File { .. } => RetryClass::Transient,
            Self::NoHost(_) => RetryClass::WaitFor,
            Self::Hindered(_)
            | Self::Content { .. }
            | Self::OtherKey { .. }
            | Self::OtherMachine(_)
            | Self::Key { .. }
            | Self::Command { .. } => RetryClass::Rejected,
        }
    }

    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source: Box::new(source) }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// Joins.
pub async fn run(args: JoinArgs) -> Result<(), JoinError> {
    let uri = args.libvirt_uri.clone().unwrap_or_else(default_uri);
    let findings = check::look(&uri).await;
    if check::hinders(&findings) {
        return Err(JoinError::Hindered(check::text(&findings)));
    }
    print!("{}", check::text(&findings));
    let config = NodeConfig {
        host: args.host.clone(),
        server: args.server.clone(),
        state_dir: args.state_dir.clone(),
        run_dir: args.run_dir.clone(),
        libvirt_uri: args.libvirt_uri.clone(),
    };
    config::make_directory(&args.etc_dir)?;
    let ca = std::fs::read(&args.ca_file).map_err(JoinError::file(&args.ca_file))?;
    config::write(&args.etc_dir.join(config::CA), &ca, 0o644)?;
    let bootstrap = std::fs::read_to_string(&args.token_file).map_err(JoinError::file(&args.token_file))?;
    let kube = config.config_with_token(&args.etc_dir, bootstrap.trim())?;
    let client = Client::try_from(kube).map_err(JoinError::api("cannot use the API server"))?;

    let key = config::ensure_key(&args.etc_dir)?;
    let fingerprint = config::fingerprint(&key);
    // One that does not last is left for the daemon to find out: joining may start libvirt anew.
    let lasting = check::has_lasting_uuid(&findings);
    let machine_uuid = if lasting { machine_uuid(&uri).await } else { String::new() };
    pin(&client, &args.host, &fingerprint, &machine_uuid).await?;
    println!(
        "key       {} (SHA-256 {fingerprint}), pinned in Host {}",
        args.etc_dir.join(config::KEY).display(),
        args.host
    );
    let expires = credentials::renew_token(&client, &args.host, &args.etc_dir).await?;
    println!(
        "token     {}, renewed by the daemon, good until {expires}",
        args.etc_dir.join(config::TOKEN).display()
    );
    match credentials::renew_certificate(&client, &args.host, &key, &args.etc_dir).await {
        Ok(_) => println!("peers     {}", args.etc_dir.join(config::PEER_CERTIFICATE).display()),
        Err(error) => println!("peers     WARNING: {error}; the daemon tries again"),
    }
    config.store(&args.etc_dir)?;
    println!("config    {}", args.etc_dir.join(config::FILE).display());
    let run_dir = args.run_dir.clone().unwrap_or_else(|| RUN_DIR.into());
    let hook = install::hook(&run_dir)?;
    println!("hook      {}", hook.shown());
    if args.no_systemd {
        if hook.is_new() {
            println!("          restart libvirtd once so that it sees the hook; guests go on");
        }
        println!(
            "Host {} has joined. Start it with: vireo-node run --etc-dir {}",
            args.host,
            args.etc_dir.display()
        );
        return Ok(());
    }
    let unit = install::unit(&args.etc_dir)?;
    println!("service   {}", unit.display());
    install::start(hook.is_new())?;
    println!("Host {} has joined and runs; look at it with: kubectl get vhost {}", args.host, args.host);
    Ok(())
}

/// UUID of the machine as libvirt knows it, by which a reboot is told from a replacement.
async fn machine_uuid(uri: &str) -> String {
    let uri = uri.to_owned();
    let found = check::with_libvirt(uri, |connect| connect.capabilities()).await.ok();
    found.and_then(|xml| machine(&xml).ok()).map(|machine| machine.uuid).unwrap_or_default()
}

/// Ties the Host to this machine's key, unless it is tied to another.
async fn pin(client: &Client, name: &str, fingerprint: &str, machine_uuid: &str) -> Result<(), JoinError> {
    let api: Api<Host> = Api::all(client.clone());
    let host = api.get_opt(name).await.map_err(JoinError::api(format!("cannot read Host {name}")))?;
    let host = host.ok_or_else(|| JoinError::NoHost(name.into()))?;
    let pinned = host.status.as_ref().and_then(|status| status.identity.as_ref());
    match pinned {
        Some(identity) if identity.public_key_sha256 == fingerprint => {
            // A copy has the key, too. What is not known here, the daemon finds out.
            return match identity::ours(&host, Some(machine_uuid)) {
                Ok(()) | Err(NotOurs::Unknown { .. }) => Ok(()),
                Err(other @ NotOurs::OtherMachine { .. }) => Err(JoinError::OtherMachine(other)),
            };
        }
        Some(identity) if !identity.public_key_sha256.is_empty() => {
            return Err(JoinError::OtherKey {
                host: name.into(),
                pinned: identity.public_key_sha256.clone(),
                found: fingerprint.into(),
            });
        }
        Some(_) | None => {}
    }
    // Conditional on the version just read: of two machines that join under one name, one loses.
    let patch = json!({
        "metadata": {"resourceVersion": host.metadata.resource_version},
        "status": {"identity": {"publicKeySha256": fingerprint, "machineUuid": machine_uuid}},
    });
    let params = PatchParams { field_manager: Some(NODE_MANAGER.into()), ..PatchParams::default() };
    api.patch_status(name, &params, &Patch::Merge(&patch))
        .await
        .map(drop)
        .map_err(JoinError::api(format!("cannot pin the key in Host {name}")))
}
