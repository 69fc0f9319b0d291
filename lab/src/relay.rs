//! Carries connections from 127.0.0.1 of the machine to the API server in
//! the fabric. It listens in the machine's network and dials in the fabric's.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::layout::{API_PORT, Layout};
use crate::process::Identity;
use crate::service::{self, Place, Service};

pub const NAME: &str = "relay";

pub fn place(layout: &Layout, fabric: Identity) -> Place {
    Place { init: fabric, run: layout.fabric_run(), namespaces: service::OUTSIDE }
}

pub fn service(layout: &Layout, fabric: Identity, port: u16) -> Service {
    let to = SocketAddr::from((layout.api_address(), API_PORT));
    let argv = [
        layout.exe.clone().into_os_string(),
        "relay".into(),
        "--network".into(),
        format!("/proc/{}/ns/net", fabric.pid).into(),
        "--port".into(),
        port.to_string().into(),
        "--to".into(),
        to.to_string().into(),
    ];
    Service { name: NAME, log: layout.logs().join("relay.log"), argv: argv.into() }
}

/// The remembered port if it is free (kubeconfigs of people name it), else
/// the lab's own, else the next free one.
pub fn choose_port(remembered: Option<u16>, preferred: u16) -> Result<u16> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let candidates = remembered.into_iter().chain(preferred..preferred.saturating_add(500));
    let Some(port) = candidates.into_iter().find(free) else {
        bail!("no free port for the API's relay near {preferred}");
    };
    Ok(port)
}

pub fn run(network: &Path, port: u16, to: SocketAddr) -> Result<()> {
    let network = File::open(network).with_context(|| network.display().to_string())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("cannot listen on 127.0.0.1:{port}"))?;
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let network = network.try_clone().context("cannot share the fabric's network")?;
        thread::spawn(move || {
            if let Err(e) = serve(client, &network, to) {
                eprintln!("relay: {to}: {e}");
            }
        });
    }
    Ok(())
}

fn serve(client: TcpStream, network: &File, to: SocketAddr) -> io::Result<()> {
    // Namespaces belong to threads; the dialled socket stays in the fabric
    // whoever uses it afterwards.
    let server = thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                TcpStream::connect_timeout(&to, Duration::from_secs(5))
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the dialling thread died")))
    })?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_in, server_out) = (client.try_clone()?, server.try_clone()?);
    let back = thread::spawn(move || pump(server, client));
    pump(client_in, server_out);
    let _ = back.join();
    Ok(())
}

/// One direction. Its end closes only that direction, as TCP's does; an
/// error closes both.
fn pump(mut from: TcpStream, mut to: TcpStream) {
    let how = if io::copy(&mut from, &mut to).is_ok() { Shutdown::Write } else { Shutdown::Both };
    let _ = to.shutdown(how);
    if how == Shutdown::Both {
        let _ = from.shutdown(how);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn both_directions_and_a_half_close_pass() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = front.local_addr().unwrap();
        thread::spawn(move || {
            let (mut peer, _) = server.accept().unwrap();
            let mut got = String::new();
            peer.read_to_string(&mut got).unwrap();
            peer.write_all(format!("you said {got}").as_bytes()).unwrap();
        });
        thread::spawn(move || {
            let (client, _) = front.accept().unwrap();
            let server = TcpStream::connect(to).unwrap();
            let (client_in, server_out) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pump(server, client));
            pump(client_in, server_out);
        });
        let mut client = TcpStream::connect(at).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "you said hello");
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(choose_port(Some(port), 21_000).unwrap(), port);
    }
}
