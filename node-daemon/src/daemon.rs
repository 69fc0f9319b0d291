//! The command `vireo-node run`: a [`Daemon`] from node.yaml and flags, with signals and systemd around it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use fail_points::ApiLayer;
use http::{HeaderValue, header::USER_AGENT};
use kube::{
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use sd_notify::NotifyState;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{HostDriverKind, RunArgs},
    backing::BackingConfig,
    host::{
        HostDriver,
        libvirt::{LibvirtConfig, LibvirtHost, connection::default_uri},
        memory::{MemoryConfig, MemoryDriver, MemoryHost},
    },
    http::Listen,
    join::{self, NodeConfig},
    network::nat::LibvirtNat,
    run::{Daemon, Options},
    watch::WATCH_SECONDS,
};

/// Where things are when nobody says otherwise.
const STATE_DIR: &str = "/var/lib/vireo";
const RUN_DIR: &str = "/run/vireo";
const LIBVIRT_LOG_DIR: &str = "/var/log/libvirt/qemu";
const LIBVIRT_TPM_DIR: &str = "/var/lib/libvirt/swtpm";
const QEMU_IMG: &str = "/usr/bin/qemu-img";
/// Where a host in memory keeps its guests, in the run directory.
const MEMORY_HOST: &str = "memory-host.json";
/// Longest wait for a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT. Guests are not touched by its end.
pub async fn run(args: RunArgs) -> Result<()> {
    let config = NodeConfig::load(&args.etc_dir);
    let (mut kube, host, node) = match &args.kubeconfig {
        Some(path) => {
            let kubeconfig =
                Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            let kube =
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            (kube, args.host.clone().context("--host is missing")?, None)
        }
        None => {
            let node = config.context("this machine has not joined; run `vireo-node join` first")?;
            (
                node.client_config(&args.etc_dir)?,
                args.host.clone().unwrap_or_else(|| node.host.clone()),
                Some(node),
            )
        }
    };
    kube.connect_timeout = Some(CONNECT_TIMEOUT);
    let agent = HeaderValue::from_static(concat!("vireo-node/", env!("CARGO_PKG_VERSION")));
    kube.headers.push((USER_AGENT, agent));
    let client = ClientBuilder::try_from(kube)
        .context("the configuration of the API server cannot be used")?
        .with_layer(&ApiLayer)
        .build();
    let of_node = |pick: fn(&NodeConfig) -> Option<PathBuf>| node.as_ref().and_then(pick);
    let state_dir = args
        .state_dir
        .clone()
        .or_else(|| of_node(|node| node.state_dir.clone()))
        .unwrap_or_else(|| STATE_DIR.into());
    let run_dir = args
        .run_dir
        .clone()
        .or_else(|| of_node(|node| node.run_dir.clone()))
        .unwrap_or_else(|| RUN_DIR.into());
    let uri = args
        .libvirt_uri
        .clone()
        .or_else(|| node.as_ref().and_then(|node| node.libvirt_uri.clone()))
        .unwrap_or_else(default_uri);
    let (driver, backing): (Arc<dyn HostDriver>, BackingConfig) = match args.host_driver {
        HostDriverKind::Memory => {
            std::fs::create_dir_all(&run_dir).with_context(|| format!("making {}", run_dir.display()))?;
            let file = run_dir.join(MEMORY_HOST);
            let config = MemoryConfig { machine_uuid: format!("memory-{host}"), ..MemoryConfig::default() };
            let memory = MemoryHost::open(config, Handle::current(), file.clone())
                .with_context(|| format!("reading {}", file.display()))?;
            (Arc::new(MemoryDriver(memory)), BackingConfig::Memory)
        }
        HostDriverKind::Libvirt => {
            std::fs::create_dir_all(&run_dir).with_context(|| format!("making {}", run_dir.display()))?;
            let libvirt = LibvirtConfig {
                uri: uri.clone(),
                run_dir: run_dir.clone(),
                state_dir: state_dir.clone(),
                log_dir: LIBVIRT_LOG_DIR.into(),
                tpm_dir: LIBVIRT_TPM_DIR.into(),
                qemu_img: QEMU_IMG.into(),
            };
            let nat = Arc::new(LibvirtNat::new(uri));
            (LibvirtHost::start(libvirt)?, BackingConfig::Real { qemu_img: QEMU_IMG.into(), nat })
        }
    };
    let public_key_sha256 = join::public_key_sha256(&args.etc_dir).unwrap_or_default();
    let stop_renewal = CancellationToken::new();
    if let Some(node) = node {
        tokio::spawn(join::renew::run(client.clone(), node, args.etc_dir.clone(), stop_renewal.clone()));
    }
    let http = args.http.clone().unwrap_or_else(|| Listen::Unix(run_dir.join("metrics.sock")));
    let daemon = Daemon::start(Options {
        host,
        client,
        driver,
        backing,
        state_dir,
        run_dir,
        libvirt_tpm_dir: LIBVIRT_TPM_DIR.into(),
        boot_id: None,
        public_key_sha256,
        http: Some(http),
        watch_seconds: WATCH_SECONDS,
    })?;
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping; guests go on");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    stop_renewal.cancel();
    // What hangs must not keep the daemon from ending: it has nothing to lose.
    let _ = tokio::time::timeout(Duration::from_secs(2), daemon.stop()).await;
    std::process::exit(0);
}
