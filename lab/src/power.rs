//! A host's power: off is a pulled plug (silent for its peers, everything
//! gone at once), on is a new boot.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::layout::Layout;
use crate::process::{self, Identity};
use crate::state::State;
use crate::{api, fabric, host};

pub fn off(layout: &Layout, state: &mut State, name: &str) -> Result<bool> {
    let host = layout.host(name)?;
    known(state, name)?;
    let Some(init) = state.host_init(name) else { return Ok(false) };
    fabric::silence(layout, state, &host)?;
    init.kill().with_context(|| format!("cannot cut the power of {name}"))?;
    fabric::detach(layout, state, &host);
    if let Some(entry) = state.hosts.get_mut(name) {
        entry.init = None;
    }
    state.save(&layout.dir)?;
    Ok(true)
}

pub fn on(layout: &Layout, state: &mut State, name: &str) -> Result<bool> {
    known(state, name)?;
    let layout_host = layout.host(name)?;
    let started = host::ensure_on(layout, state, &layout_host)?;
    let (layout_host, place) = host::running_place(layout, state, name)?;
    host::start_libvirtd(layout, &layout_host, &place)?;
    if !state.bare {
        api::start_daemon(layout, &layout_host, &place)?;
    }
    Ok(started)
}

/// Ends everything of a lab, whatever its records say.
pub fn end_all(layout: &Layout, state: &mut State) -> Result<()> {
    let mut inits = recorded(state);
    inits.extend(process::inits_of(&layout.dir));
    end(&inits)?;
    state.fabric = None;
    state.hosts.values_mut().for_each(|host| host.init = None);
    Ok(())
}

/// Ends what a command that was killed half-way left: namespaces of this lab
/// that no record names, and that would otherwise be there twice.
pub fn end_strays(layout: &Layout, state: &State) -> Result<()> {
    let recorded = recorded(state);
    let holders: Vec<i32> = recorded.iter().filter_map(|init| process::parent(*init)).collect();
    let strays: Vec<Identity> = process::inits_of(&layout.dir)
        .into_iter()
        .filter(|found| !recorded.contains(found) && !holders.contains(&found.pid))
        .collect();
    end(&strays)
}

fn recorded(state: &State) -> Vec<Identity> {
    let inits = state.hosts.values().filter_map(|host| host.init).chain(state.fabric);
    inits.filter(|init| init.alive()).collect()
}

/// Signals all before waiting for any: a whole datacentre goes at once.
fn end(inits: &[Identity]) -> Result<()> {
    for init in inits {
        init.signal(Signal::KILL)?;
    }
    inits.iter().try_for_each(|init| init.wait_gone(Duration::from_secs(30)))
}

fn known(state: &State, name: &str) -> Result<()> {
    if !state.hosts.contains_key(name) {
        let names: Vec<&str> = state.hosts.keys().map(String::as_str).collect();
        bail!("this lab has no host {name:?}; its hosts: {}", names.join(", "));
    }
    Ok(())
}
