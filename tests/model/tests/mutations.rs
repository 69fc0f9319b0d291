//! Takes guards away one at a time and demands that the model finds a history that breaks a promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use controller_plan::guard::Guard as Controller;
use node_plan::guard::Guard as Node;
use system_model::{Budget, Fleet, Guards, explore};

fn fleet(controllers: usize, vms: usize, disk: bool, budget: Budget) -> Fleet {
    Fleet { controllers, hosts: 2, vms, disk, symmetric: true, budget, ..Fleet::default() }
}

fn removals() -> Vec<(&'static str, Guards, Fleet)> {
    let controller = |guard| Guards { controller: Some(guard), ..Guards::default() };
    let node = |guard| Guards { node: Some(guard), ..Guards::default() };
    let faults = |any, budget| fleet(1, 1, false, Budget { any, ..budget });
    let at_rest = |any, budget| Fleet { at_rest: true, ..faults(any, budget) };
    let none = Budget::default();
    vec![
        (
            "start not bound to the incarnation",
            node(Node::Incarnation),
            at_rest(1, Budget { power: 1, ..none }),
        ),
        ("ledger release check removed", node(Node::Released), at_rest(2, Budget { edit: 2, ..none })),
        (
            "release on libvirt's word",
            node(Node::ProcessCounts),
            faults(2, Budget { sessions: 1, disown: 1, edit: 1, ..none }),
        ),
        (
            "gone destroys",
            node(Node::DisappearanceStopsNothing),
            faults(1, Budget { sessions: 1, restore: 1, ..none }),
        ),
        (
            "suspicion as evidence",
            controller(Controller::SilenceIsNoEvidence),
            faults(1, Budget { sessions: 1, cut: 1, ..none }),
        ),
        (
            "no attestation awaited",
            controller(Controller::Barrier),
            faults(1, Budget { sessions: 2, restore: 1, ..none }),
        ),
        (
            "unexplained claims ignored",
            controller(Controller::UnexplainedClaims),
            at_rest(1, Budget { sessions: 1, restore: 1, ..none }),
        ),
        (
            "confirmation accepted while alive",
            controller(Controller::ConfirmationWhileAlive),
            faults(1, Budget { sessions: 1, lie: 1, ..none }),
        ),
        (
            "stale runtime report accepted",
            controller(Controller::ReportNamesGrant),
            faults(2, Budget { sessions: 1, edit: 2, ..none }),
        ),
        (
            "VM deleted before release",
            controller(Controller::DeletionWaits),
            faults(1, Budget { sessions: 1, delete: 1, ..none }),
        ),
        (
            "disk claim removed",
            controller(Controller::DiskClaim),
            fleet(1, 2, true, Budget { any: 1, sessions: 1, attach: 1, ..none }),
        ),
    ]
}

#[test]
fn the_removal_of_a_guard_is_found() {
    let seconds = std::env::var("VIREO_MODEL_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let only = std::env::var("VIREO_MUTATION").ok();
    let mut missed = Vec::new();
    println!("{:<40} broken  states   steps", "guard taken away");
    for (number, (name, guards, fleet)) in removals().into_iter().enumerate() {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let removal = u8::try_from(number + 1).unwrap();
        let fleet = Fleet { guards: Guards { removal, ..guards }, ..fleet };
        let found = explore(fleet, Duration::from_secs(seconds), None);
        match found.broken {
            Some((invariant, what)) => {
                println!("{name:<40} {invariant:<7} {:<8} {:<5} {what}", found.states, found.trace.len());
                if only.is_some() {
                    println!("{}", found.trace.join("\n"));
                }
            }
            None => {
                println!(
                    "{name:<40} nothing {:<8} {}",
                    found.states,
                    if found.fixpoint { "all" } else { "not all" }
                );
                missed.push(name);
            }
        }
    }
    assert!(missed.is_empty(), "nothing found without {missed:?}");
}
