//! The lab's network: a namespace with two bridges (one for hosts and the
//! API, one for guests), a pair of cables per host, and the breaking of them.
//! The machine's own network gets no link, address or rule.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::init_start;
use crate::layout::{HostLayout, Layout};
use crate::process::Identity;
use crate::service::{self, Place, Service};
use crate::state::{Cut, State};

const HOSTS_BRIDGE: &str = "hosts";
const GUESTS_BRIDGE: &str = "guests";

pub fn place(layout: &Layout, init: Identity) -> Place {
    Place { init, run: layout.fabric_run(), namespaces: service::FABRIC }
}

/// Starts the fabric when it does not run; true if it was started.
pub fn ensure(layout: &Layout, state: &mut State) -> Result<bool> {
    if state.fabric().is_some() {
        return Ok(false);
    }
    fs::create_dir_all(layout.logs()).with_context(|| layout.logs().display().to_string())?;
    let init = init_start::fabric(layout)?;
    state.fabric = Some(init);
    state.save(&layout.dir)?;
    let place = place(layout, init);
    let bridge = "type bridge stp_state 0 forward_delay 0";
    let (hosts, guests) = (layout.api_address(), layout.guest_router());
    ip_batch(
        &place,
        &[
            format!("link add {HOSTS_BRIDGE} {bridge}"),
            format!("link add {GUESTS_BRIDGE} {bridge}"),
            format!("addr add {hosts}/24 dev {HOSTS_BRIDGE}"),
            format!("addr add {guests}/24 dev {GUESTS_BRIDGE}"),
            format!("link set {HOSTS_BRIDGE} up"),
            format!("link set {GUESTS_BRIDGE} up"),
        ],
    )
    .context("cannot make the fabric's bridges")?;
    apply_cuts(layout, state)?;
    Ok(true)
}

/// Gives addresses to guests on the network that hosts can bridge to.
pub fn dhcp(layout: &Layout) -> Service {
    let (first, last) = layout.guest_dhcp_range();
    let argv = [
        "dnsmasq".into(),
        "--keep-in-foreground".into(),
        "--conf-file=/dev/null".into(),
        "--port=0".into(),
        "--bind-interfaces".into(),
        format!("--interface={GUESTS_BRIDGE}"),
        "--except-interface=lo".into(),
        format!("--dhcp-range={first},{last},1h"),
        "--dhcp-authoritative".into(),
        "--no-ping".into(),
        format!("--dhcp-leasefile={}", layout.fabric_run().join("dhcp.leases").display()),
        "--pid-file=".into(),
        "--user=root".into(),
        "--log-facility=-".into(),
    ];
    Service {
        name: "dhcp",
        log: layout.logs().join("dhcp.log"),
        argv: argv.into_iter().map(Into::into).collect(),
    }
}

/// Plugs a host's two cables in, with the same hardware addresses at every
/// power-on: peers remember them for longer than a reboot takes.
pub fn attach(layout: &Layout, state: &State, host: &HostLayout, init: Identity) -> Result<()> {
    let Some(fabric) = state.fabric() else { bail!("the lab's fabric is not running: run `vireo-lab up`") };
    let fabric = place(layout, fabric);
    let cables = [
        (&host.port, HOSTS_BRIDGE, "eth0", &host.mac),
        (&host.guest_port, GUESTS_BRIDGE, "eth1", &host.guest_mac),
    ];
    let inside = Place { init, run: host.run(), namespaces: &["--net"] };
    let mut added = false;
    for (port, bridge, interface, mac) in cables {
        // Asked at the host's end: the kernel takes the network of a host
        // that lost power apart at leisure, and its cables with it.
        if has_link(&inside, interface)? {
            continue;
        }
        unplug(&fabric, port);
        added = true;
        ip_batch(
            &fabric,
            &[
                format!("link add {port} type veth peer name {interface} address {mac} netns {}", init.pid),
                format!("link set {port} master {bridge}"),
            ],
        )
        .with_context(|| format!("cannot plug {} into the fabric", host.name))?;
    }
    if added {
        ip_batch(
            &inside,
            &[
                format!("addr replace {}/24 dev eth0", host.address),
                "link set eth0 up".into(),
                "link set eth1 up".into(),
            ],
        )
        .with_context(|| format!("cannot set up the network of {}", host.name))?;
    }
    link_state(&fabric, state, host)
}

/// Takes the fabric's ends of a host's cables down, so that its peers hear
/// nothing of what happens to it next, not even closed connections.
pub fn silence(layout: &Layout, state: &State, host: &HostLayout) -> Result<()> {
    let Some(fabric) = state.fabric() else { return Ok(()) };
    let fabric = place(layout, fabric);
    for port in [&host.port, &host.guest_port] {
        if has_link(&fabric, port)? {
            ip_batch(&fabric, &[format!("link set {port} down")])?;
        }
    }
    Ok(())
}

/// Removes the cables of a host that has no power any more.
pub fn detach(layout: &Layout, state: &State, host: &HostLayout) {
    let Some(fabric) = state.fabric() else { return };
    let fabric = place(layout, fabric);
    for port in [&host.port, &host.guest_port] {
        unplug(&fabric, port);
    }
}

/// The kernel may be doing the same, so that it fails to find the cable is
/// as good.
fn unplug(fabric: &Place, port: &str) {
    let mut command = fabric.command(Path::new("ip"));
    let _ = command.args(["link", "del", port]).stdin(Stdio::null()).stderr(Stdio::null()).status();
}

/// Makes the network what the state says: cables in or out, pairs parted.
pub fn apply_cuts(layout: &Layout, state: &State) -> Result<()> {
    let Some(init) = state.fabric() else { bail!("the lab is not running: run `vireo-lab up`") };
    let fabric = place(layout, init);
    for name in state.hosts.keys() {
        link_state(&fabric, state, &layout.host(name)?)?;
    }
    let mut nft = fabric.command(Path::new("nft"));
    let mut child = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("cannot run nft")?;
    let rules = ruleset(layout, state)?;
    child.stdin.take().context("nft has no input")?.write_all(rules.as_bytes()).context("cannot feed nft")?;
    if !child.wait()?.success() {
        bail!("nft refused the rules that part hosts");
    }
    Ok(())
}

fn link_state(fabric: &Place, state: &State, host: &HostLayout) -> Result<()> {
    let unplugged = state.cuts.contains(&Cut { host: host.name.clone(), from: None });
    let wanted = if unplugged { "down" } else { "up" };
    for port in [&host.port, &host.guest_port] {
        if has_link(fabric, port)? {
            ip_batch(fabric, &[format!("link set {port} {wanted}")])?;
        }
    }
    Ok(())
}

/// Drops what passes between parted hosts, either way, on both bridges, and
/// between a host and the fabric's own address, where the API is.
fn ruleset(layout: &Layout, state: &State) -> Result<String> {
    let (mut forward, mut input, mut output) = (String::new(), String::new(), String::new());
    for Cut { host, from } in &state.cuts {
        let host = layout.host(host)?;
        match from.as_deref() {
            None => {}
            Some("api") => {
                input += &format!("    iifname {:?} drop\n", host.port);
                output += &format!("    oifname {:?} drop\n", host.port);
            }
            Some(other) => {
                let other = layout.host(other)?;
                for (a, b) in [(&host.port, &other.port), (&host.guest_port, &other.guest_port)] {
                    forward += &format!("    iifname {a:?} oifname {b:?} drop\n");
                    forward += &format!("    iifname {b:?} oifname {a:?} drop\n");
                }
            }
        }
    }
    let chain = |hook: &str, rules: &str| {
        format!("  chain {hook} {{\n    type filter hook {hook} priority 0; policy accept;\n{rules}  }}\n")
    };
    Ok(format!(
        "table bridge cuts\ndelete table bridge cuts\ntable bridge cuts {{\n{}{}{}}}\n",
        chain("forward", &forward),
        chain("input", &input),
        chain("output", &output)
    ))
}

fn has_link(place: &Place, name: &str) -> Result<bool> {
    let output = place
        .command(Path::new("ip"))
        .args(["-o", "link", "show", "dev", name])
        .stderr(Stdio::null())
        .output()
        .context("cannot run ip")?;
    Ok(output.status.success())
}

fn ip_batch(place: &Place, lines: &[String]) -> Result<()> {
    // Not through the PID namespace: interfaces are given away by the
    // machine's PIDs.
    let mut command = Command::new("nsenter");
    command.arg("--target").arg(place.init.pid.to_string()).args(["--net", "--", "ip", "-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().context("cannot run nsenter")?;
    let text = lines.join("\n") + "\n";
    child.stdin.take().context("ip has no input")?.write_all(text.as_bytes()).context("cannot feed ip")?;
    if !child.wait()?.success() {
        bail!("ip failed on: {}", lines.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cut_blocks_both_ways_and_only_that_pair() {
        let layout = Layout::new(Some(Path::new("/nonexistent/a"))).unwrap();
        let cut = |host: &str, from: Option<&str>| Cut { host: host.into(), from: from.map(Into::into) };
        let state = State {
            cuts: [cut("host1", Some("host2")), cut("host3", Some("api")), cut("host4", None)].into(),
            ..State::default()
        };
        let rules = ruleset(&layout, &state).unwrap();
        for rule in [
            r#"iifname "host1m" oifname "host2m" drop"#,
            r#"iifname "host2m" oifname "host1m" drop"#,
            r#"iifname "host1g" oifname "host2g" drop"#,
            r#"iifname "host3m" drop"#,
            r#"oifname "host3m" drop"#,
        ] {
            assert!(rules.contains(rule), "{rule} in\n{rules}");
        }
        assert_eq!(rules.matches("drop").count(), 6);
        assert!(!rules.contains("host4"));
    }
}
