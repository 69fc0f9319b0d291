//! Finds members of a group that have a host where a rule does not want them.

use std::collections::BTreeSet;

use vireo_crds::v1alpha1::{AffinityGroup, HostRule, Polarity, Violation, VmRule};

use crate::world::{Key, World};

/// All of them, by VM.
pub(super) fn of(world: &World, key: &Key, group: &AffinityGroup) -> Vec<Violation> {
    let seats: Vec<(&String, &BTreeSet<Key>)> = world.seats_of(key).collect();
    let mut found = Vec::new();
    if let Some(rule) = &group.spec.vm_rule {
        match rule.polarity {
            Polarity::Positive => spread(&seats, rule, &mut found),
            Polarity::Negative => crowded(&seats, rule, &mut found),
            Polarity::Unknown => {}
        }
    }
    if let Some(rule) = &group.spec.host_rule {
        misplaced(world, &seats, rule, &mut found);
    }
    found.sort_by(|a, b| (&a.vm, &a.host, &a.message).cmp(&(&b.vm, &b.host, &b.message)));
    found
}

/// Members that are not where most of them are; of equally many, the first host by name counts.
fn spread(seats: &[(&String, &BTreeSet<Key>)], rule: &VmRule, found: &mut Vec<Violation>) {
    let most = seats.iter().max_by_key(|(host, vms)| (vms.len(), std::cmp::Reverse(*host)));
    let Some((home, there)) = most else { return };
    for (host, vms) in seats.iter().filter(|(host, _)| host != home) {
        for vm in vms.iter().filter(|vm| !there.contains(vm)) {
            found.push(Violation {
                vm: vm.name.clone(),
                host: (*host).clone(),
                enforcement: rule.enforcement,
                message: format!("is not with the others on {home}"),
            });
        }
    }
}

/// Members that share a host.
fn crowded(seats: &[(&String, &BTreeSet<Key>)], rule: &VmRule, found: &mut Vec<Violation>) {
    for (host, vms) in seats.iter().filter(|(_, vms)| vms.len() > 1) {
        for vm in *vms {
            let other = vms.iter().find(|other| *other != vm).map_or("", |other| other.name.as_str());
            let more = if vms.len() > 2 { format!(" and {} more", vms.len() - 2) } else { String::new() };
            found.push(Violation {
                vm: vm.name.clone(),
                host: (*host).clone(),
                enforcement: rule.enforcement,
                message: format!("shares it with {other}{more}"),
            });
        }
    }
}

/// Members on a host that the host rule does not want them on.
fn misplaced(
    world: &World,
    seats: &[(&String, &BTreeSet<Key>)],
    rule: &HostRule,
    found: &mut Vec<Violation>,
) {
    for (host, vms) in seats {
        let labels = world.host(host).and_then(|h| h.metadata.labels.as_ref());
        let listed = rule.hosts.contains(host, labels);
        let message = match rule.polarity {
            Polarity::Positive if !listed => "is on none of the rule's hosts",
            Polarity::Negative if listed => "is on one of the rule's hosts",
            Polarity::Positive | Polarity::Negative | Polarity::Unknown => continue,
        };
        found.extend(vms.iter().map(|vm| Violation {
            vm: vm.name.clone(),
            host: (*host).clone(),
            enforcement: rule.enforcement,
            message: message.into(),
        }));
    }
}
