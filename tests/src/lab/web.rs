//! A small web server in a host of the lab, for imports: paced, so that progress can be seen.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::Lab;

/// What the server gives for one path.
pub enum Page {
    /// These bytes at once.
    Bytes(Vec<u8>),
    /// These bytes within about this time.
    Slowly(Vec<u8>, Duration),
    /// A redirect to this address.
    Redirect(String),
}

impl Lab {
    /// Serves pages in a host's network until the test ends; the address, with a slash at its end.
    pub fn serve(&self, host: &str, pages: BTreeMap<String, Page>) -> Result<String> {
        let status: Value = serde_json::from_str(&self.lab(["status", "-o", "json"])?)?;
        let found = status["hosts"].as_array().into_iter().flatten().find(|entry| entry["name"] == host);
        let found = found.with_context(|| format!("the lab has no {host}"))?;
        let (pid, address) = (
            found["pid"].as_i64().context("its pid")?,
            found["address"].as_str().context("its address")?.to_owned(),
        );
        // A thread has a network namespace of its own, and a socket stays in the one it was made in.
        let bind = move || -> Result<TcpListener> {
            let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(TcpListener::bind("0.0.0.0:0")?)
        };
        let listener =
            std::thread::spawn(bind).join().map_err(|_| anyhow!("the listening thread panicked"))??;
        let port = listener.local_addr()?.port();
        let pages = Arc::new(pages);
        std::thread::spawn(move || {
            for visitor in listener.incoming().flatten() {
                let pages = Arc::clone(&pages);
                // A visitor who leaves early is part of some tests.
                std::thread::spawn(move || drop(answer(visitor, &pages)));
            }
        });
        Ok(format!("http://{address}:{port}/"))
    }
}

fn answer(mut visitor: TcpStream, pages: &BTreeMap<String, Page>) -> Result<()> {
    let mut lines = BufReader::new(visitor.try_clone()?).lines();
    let first = lines.next().context("a request")??;
    let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let head = |bytes: &[u8]| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len())
    };
    match pages.get(&path) {
        Some(Page::Bytes(bytes)) => {
            visitor.write_all(head(bytes).as_bytes())?;
            visitor.write_all(bytes)?;
        }
        Some(Page::Slowly(bytes, time)) => {
            visitor.write_all(head(bytes).as_bytes())?;
            for part in bytes.chunks(bytes.len().div_ceil(40).max(1)) {
                visitor.write_all(part)?;
                std::thread::sleep(*time / 40);
            }
        }
        Some(Page::Redirect(to)) => write!(
            visitor,
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?,
        None => write!(visitor, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?,
    }
    Ok(())
}
