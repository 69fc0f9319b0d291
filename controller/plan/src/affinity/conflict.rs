//! Finds hard rules of the groups of a namespace that cannot all be kept, wherever the VMs go:
//!
//! 1. two VMs that one group wants apart are tied together by others;
//! 2. host rules leave no host of the cluster for a VM, or for VMs that are tied together;
//! 3. VMs that are tied together belong to different clusters;
//! 4. host rules leave fewer hosts than there are VMs that a group wants apart.

use std::collections::{BTreeMap, BTreeSet};

use vireo_crds::v1alpha1::{AffinityGroup, Polarity};

use crate::{
    placement::affinity::{binds, is_hard},
    world::{Key, World},
};

/// What of it this group has a part in, in words that name all groups concerned.
pub(super) fn of(world: &World, key: &Key) -> Vec<String> {
    let rules = Rules::of(world, &key.namespace);
    let mut found = BTreeSet::new();
    for (groups, message) in rules.apart().into_iter().chain(rules.without_host()) {
        if groups.contains(&key.name) {
            found.insert(message);
        }
    }
    found.into_iter().collect()
}

type Conflict = (BTreeSet<String>, String);

/// VMs that are tied together, by the groups that tie them.
#[derive(Debug, Default)]
struct Class<'a> {
    vms: BTreeSet<&'a Key>,
    ties: BTreeSet<&'a str>,
}

/// The hard rules of one namespace.
struct Rules<'a> {
    world: &'a World,
    groups: Vec<(&'a Key, &'a AffinityGroup)>,
    classes: Vec<Class<'a>>,
    class_of: BTreeMap<&'a Key, usize>,
}

impl<'a> Rules<'a> {
    fn of(world: &'a World, namespace: &str) -> Self {
        let groups: Vec<_> = world
            .groups_in(namespace)
            .filter_map(|key| Some((key, world.group(key)?.as_ref())))
            .filter(|(_, group)| group.metadata.deletion_timestamp.is_none())
            .collect();
        let mut rules = Self { world, groups, classes: Vec::new(), class_of: BTreeMap::new() };
        for (key, _) in rules.groups.clone().into_iter().filter(|(_, group)| binds(group)) {
            rules.tie(key);
        }
        rules
    }

    /// Joins the classes of all members of a group.
    fn tie(&mut self, group: &'a Key) {
        let mut joined = Class { vms: self.world.members_of(group).collect(), ties: BTreeSet::new() };
        if joined.vms.len() < 2 {
            return;
        }
        joined.ties.insert(&group.name);
        let old: BTreeSet<usize> =
            joined.vms.iter().filter_map(|vm| self.class_of.get(vm).copied()).collect();
        for index in old {
            let class = self.classes.get_mut(index).map(std::mem::take).unwrap_or_default();
            joined.vms.extend(class.vms);
            joined.ties.extend(class.ties);
        }
        let index = self.classes.len();
        self.class_of.extend(joined.vms.iter().map(|vm| (*vm, index)));
        self.classes.push(joined);
    }

    fn class(&self, vm: &Key) -> Option<&Class<'a>> {
        self.classes.get(*self.class_of.get(vm)?)
    }

    /// Groups that want members apart, with the hard rule only.
    fn separating(&self) -> impl Iterator<Item = &'a Key> {
        self.groups.iter().filter_map(|(key, group)| {
            let rule = group.spec.vm_rule.as_ref()?;
            (rule.polarity == Polarity::Negative && is_hard(rule.enforcement)).then_some(*key)
        })
    }

    /// Faults 1 and 4.
    fn apart(&self) -> Vec<Conflict> {
        let mut found = Vec::new();
        for group in self.separating() {
            let mut first: BTreeMap<usize, &Key> = BTreeMap::new();
            for vm in self.world.members_of(group) {
                let Some(index) = self.class_of.get(vm) else { continue };
                let Some(other) = first.get(index) else {
                    first.insert(*index, vm);
                    continue;
                };
                let Some(class) = self.classes.get(*index) else { continue };
                let message = format!(
                    "{} wants {} and {} apart, {} together; change one of them",
                    group.name,
                    other.name,
                    vm.name,
                    told("ties them", "tie them", &class.ties),
                );
                found.push((names(&class.ties, &group.name), message));
                break;
            }
            found.extend(self.too_few_hosts(group));
        }
        found
    }

    /// Fault 4. Only if every member is confined: all hosts may be more tomorrow.
    fn too_few_hosts(&self, group: &Key) -> Option<Conflict> {
        let mut hosts = BTreeSet::new();
        let mut by: BTreeSet<&str> = BTreeSet::new();
        let mut known: BTreeMap<Vec<&str>, BTreeSet<&str>> = BTreeMap::new();
        let mut count = 0;
        for vm in self.world.members_of(group) {
            let rules = self.host_rules([vm]);
            let confined = rules.iter().any(|(_, group)| {
                group.spec.host_rule.as_ref().is_some_and(|rule| rule.polarity == Polarity::Positive)
            });
            if !confined || !self.has_hosts(vm) {
                return None;
            }
            let names: Vec<&str> = rules.iter().map(|(key, _)| key.name.as_str()).collect();
            by.extend(&names);
            let allowed = known.entry(names).or_insert_with(|| self.allowed(vm, &rules));
            hosts.extend(allowed.iter().copied());
            count += 1;
        }
        (count > hosts.len()).then(|| {
            let message = format!(
                "{} wants {count} VMs apart, {} to {} of the hosts; change one of them",
                group.name,
                told("confines them", "confine them", &by),
                hosts.len(),
            );
            (names(&by, &group.name), message)
        })
    }

    /// Hard host rules that bind any of these VMs.
    fn host_rules<'v>(&self, vms: impl IntoIterator<Item = &'v Key>) -> Vec<(&'a Key, &'a AffinityGroup)> {
        let of: BTreeSet<&Key> = vms.into_iter().flat_map(|vm| self.world.groups_of(vm)).collect();
        self.groups
            .iter()
            .filter(|(key, _)| of.contains(key))
            .filter(|(_, group)| group.spec.host_rule.as_ref().is_some_and(|r| is_hard(r.enforcement)))
            .copied()
            .collect()
    }

    /// A cluster that nobody has joined yet contradicts no rule.
    fn has_hosts(&self, vm: &Key) -> bool {
        self.world.vm(vm).is_some_and(|vm| self.world.hosts_of_cluster(&vm.spec.cluster).next().is_some())
    }

    /// Hosts of the VM's cluster that keep all these rules.
    fn allowed(&self, vm: &Key, rules: &[(&Key, &AffinityGroup)]) -> BTreeSet<&'a str> {
        let Some(vm) = self.world.vm(vm) else { return BTreeSet::new() };
        let keeps = |name: &str, labels| {
            rules.iter().filter_map(|(_, group)| group.spec.host_rule.as_ref()).all(|rule| {
                match rule.polarity {
                    Polarity::Positive => rule.hosts.contains(name, labels),
                    Polarity::Negative => !rule.hosts.contains(name, labels),
                    Polarity::Unknown => true,
                }
            })
        };
        self.world
            .hosts_of_cluster(&vm.spec.cluster)
            .filter(|(name, host)| keeps(name, host.metadata.labels.as_ref()))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Faults 2 and 3.
    fn without_host(&self) -> Vec<Conflict> {
        let mut found = Vec::new();
        for class in self.classes.iter().filter(|class| !class.vms.is_empty()) {
            let clusters: BTreeSet<&str> =
                class.vms.iter().filter_map(|vm| Some(self.world.vm(vm)?.spec.cluster.as_str())).collect();
            if clusters.len() > 1 {
                let message = format!(
                    "{} VMs of different HostClusters together: {}",
                    told("ties", "tie", &class.ties),
                    clusters.into_iter().collect::<Vec<_>>().join(", ")
                );
                found.push((names(&class.ties, ""), message));
            } else if let Some(first) = class.vms.first() {
                let rules = self.host_rules(class.vms.iter().copied());
                found.extend(self.no_host(first, &rules, &class.ties));
            }
        }
        let mut seen: BTreeSet<(Vec<&str>, &str)> = BTreeSet::new();
        let ruled = self.groups.iter().filter(|(_, group)| group.spec.host_rule.is_some());
        for vm in ruled.flat_map(|(key, _)| self.world.members_of(key)) {
            if self.class(vm).is_some() {
                continue;
            }
            let Some(cluster) = self.world.vm(vm).map(|vm| vm.spec.cluster.as_str()) else { continue };
            let rules = self.host_rules([vm]);
            if seen.insert((rules.iter().map(|(key, _)| key.name.as_str()).collect(), cluster)) {
                found.extend(self.no_host(vm, &rules, &BTreeSet::new()));
            }
        }
        found
    }

    fn no_host(&self, vm: &Key, rules: &[(&Key, &AffinityGroup)], ties: &BTreeSet<&str>) -> Option<Conflict> {
        if rules.is_empty() || !self.has_hosts(vm) || !self.allowed(vm, rules).is_empty() {
            return None;
        }
        let by: BTreeSet<&str> = rules.iter().map(|(key, _)| key.name.as_str()).collect();
        let cluster = self.world.vm(vm).map(|vm| vm.spec.cluster.clone()).unwrap_or_default();
        let tied = if ties.is_empty() {
            String::new()
        } else {
            format!(", whose company is chosen by {}", ties.iter().copied().collect::<Vec<_>>().join(", "))
        };
        let message = format!(
            "{} no host of HostCluster {cluster} for {}{tied}; change one of them",
            told("leaves", "leave", &by),
            vm.name
        );
        let mut groups = names(&by, "");
        groups.extend(ties.iter().map(|name| (*name).to_owned()));
        Some((groups, message))
    }
}

fn told(one: &str, more: &str, groups: &BTreeSet<&str>) -> String {
    let verb = if groups.len() == 1 { one } else { more };
    let all: Vec<_> = groups.iter().copied().collect();
    match all.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last} {verb}", before.join(", ")),
        Some((last, _)) => format!("{last} {verb}"),
        None => verb.into(),
    }
}

fn names(groups: &BTreeSet<&str>, and: &str) -> BTreeSet<String> {
    let all = groups.iter().copied().chain(Some(and).filter(|name| !name.is_empty()));
    all.map(str::to_owned).collect()
}
