//! Explores small fleets with every guard in place. One line for each: its size, what may go wrong in it, how many
//! states there are, how deep, and whether that is all of them.
//!
//! `VIREO_MODEL` names the fleets to explore, those "by hand" included; `VIREO_MODEL_SECONDS` is the time for each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use system_model::{Budget, Fleet, explore};

struct Setting {
    name: &'static str,
    fleet: Fleet,
    depth: Option<usize>,
    /// It must be explored to the last state.
    whole: bool,
    by_hand: bool,
    seconds: u64,
}

fn one_vm(controllers: usize, budget: Budget) -> Fleet {
    Fleet { controllers, hosts: 2, vms: 1, symmetric: true, sample: 20, budget, ..Fleet::default() }
}

fn settings() -> Vec<Setting> {
    let whole = |name, fleet| Setting { name, fleet, depth: None, whole: true, by_hand: false, seconds: 600 };
    // To a depth, not for a time: the same states are seen on every machine.
    let part = |name, depth, fleet| Setting { depth: Some(depth), whole: false, ..whole(name, fleet) };
    let by_hand = |name, fleet| Setting { whole: false, by_hand: true, seconds: 600, ..whole(name, fleet) };
    let none = Budget { any: 1, sessions: 1, ..Budget::default() };
    let two = Budget { any: 1, sessions: 2, ..Budget::default() };
    let work = Budget { power: 1, daemon: 1, guest: 1, cut: 1, disown: 1, ledger: 1, ..none };
    let people = Budget { confirm: 1, edit: 1, delete: 1, ..none };
    vec![
        whole("crash, reboot, partition", one_vm(1, work)),
        whole("confirmation, halt, deletion", one_vm(1, people)),
        whole("backup from before the first grant", one_vm(1, Budget { restore: 1, ..two })),
        whole("lost ledger, false confirmation", one_vm(1, Budget { any: 2, ledger: 1, lie: 1, ..none })),
        part("two leaders, slow write", 16, one_vm(2, Budget { slow: 1, ..two })),
        part("two leaders, crash, reboot", 10, one_vm(2, Budget { sessions: 2, ..work })),
        whole("made again under the same name", one_vm(1, Budget { any: 2, delete: 1, recreate: 1, ..none })),
        part("any backup, two leaders", 11, one_vm(2, Budget { any: 2, restore: 1, backup: 1, ..two })),
        by_hand("two faults", one_vm(1, Budget { any: 2, edit: 1, confirm: 1, ..work })),
        part(
            "a disk edited into a second VM",
            24,
            Fleet { vms: 2, disk: true, ..one_vm(1, Budget { attach: 1, edit: 1, ..none }) },
        ),
        part(
            "three hosts, two VMs",
            7,
            Fleet { hosts: 3, vms: 2, ..one_vm(2, Budget { power: 1, cut: 1, ..two }) },
        ),
        by_hand(
            "everything",
            one_vm(
                2,
                Budget {
                    any: 3,
                    sessions: 3,
                    restore: 1,
                    backup: 1,
                    confirm: 1,
                    edit: 1,
                    delete: 1,
                    recreate: 1,
                    slow: 1,
                    ..work
                },
            ),
        ),
    ]
}

#[test]
fn no_history_breaks_a_promise() {
    let only = std::env::var("VIREO_MODEL").ok();
    let seconds = std::env::var("VIREO_MODEL_SECONDS").ok().and_then(|s| s.parse().ok());
    let mut wrong = Vec::new();
    for setting in settings() {
        let Setting { name, fleet, depth, whole, by_hand, seconds: own } = setting;
        match &only {
            Some(only) if !name.contains(only.as_str()) => continue,
            None if by_hand => continue,
            _ => {}
        }
        let size = format!("{} controllers, {} hosts, {} VMs", fleet.controllers, fleet.hosts, fleet.vms);
        let bounds = format!("{:?}", fleet.budget);
        let found = explore(fleet, Duration::from_secs(seconds.unwrap_or(own)), depth);
        println!(
            "{name}: {size}; {} states ({} generated), depth {}, {}, {:.0} s; {} let come to rest, {} of them wait for a person; {bounds}",
            found.states,
            found.generated,
            found.depth,
            if found.fixpoint { "all of them" } else { "not all of them" },
            found.seconds,
            found.settled,
            found.waiting,
        );
        if let Some((invariant, what)) = found.broken {
            println!("BROKEN {invariant}: {what}\n{}", found.trace.join("\n"));
            wrong.push(format!("{name} breaks {invariant}: {what}"));
        } else if whole && !found.fixpoint {
            wrong.push(format!("{name} was not explored to the end"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
