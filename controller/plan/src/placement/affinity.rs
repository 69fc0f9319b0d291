//! What affinity groups say of one VM, gathered once per decision: which hosts it must share, avoid, be on or be off.
//!
//! Hard positive VM rules chain: whoever must be with `a`, which must be with `b`, must be with `b` too, and every
//! hard rule of `b` binds it as well; otherwise the first of them to be placed could take a host on which the others
//! can never join it. Soft rules do not chain.

use std::collections::{BTreeMap, BTreeSet};

use vireo_crds::v1alpha1::{AffinityGroup, Enforcement, Host, Members, Polarity};

use super::lack::Lack;
use crate::world::{Key, World};

/// One thing that a group says of the VM.
#[derive(Debug)]
enum Says<'a> {
    /// Be on one of these hosts, where other members are: host to one of the VMs there.
    With(BTreeMap<&'a str, &'a str>),
    /// Be on none of the hosts where members of the group are, or are about to be, the member `besides` apart.
    Apart {
        seats: Option<&'a BTreeMap<String, BTreeSet<Key>>>,
        reserved: Vec<(&'a String, &'a Key)>,
        besides: &'a Key,
    },
    /// Be on one of these hosts.
    On(&'a Members),
    /// Be on none of these hosts.
    Off(&'a Members),
}

#[derive(Debug)]
struct Tie<'a> {
    group: &'a str,
    says: Says<'a>,
}

/// What all groups say of one VM.
#[derive(Debug, Default)]
pub(crate) struct Ties<'a> {
    vm: Option<Key>,
    hard: Vec<Tie<'a>>,
    soft: Vec<Tie<'a>>,
}

/// Whether the group's VM rule is hard and positive: its members are one for all hard rules.
pub(crate) fn binds(group: &AffinityGroup) -> bool {
    group
        .spec
        .vm_rule
        .as_ref()
        .is_some_and(|rule| rule.polarity == Polarity::Positive && is_hard(rule.enforcement))
}

/// A strictness that this version does not know is taken as the stricter one.
pub(crate) fn is_hard(enforcement: Enforcement) -> bool {
    match enforcement {
        Enforcement::Hard | Enforcement::Unknown => true,
        Enforcement::Soft => false,
    }
}

/// The VM and all that must be where it is.
fn bound_to<'a>(world: &'a World, vm: &'a Key) -> BTreeSet<&'a Key> {
    let mut found = BTreeSet::from([vm]);
    let mut open = vec![vm];
    while let Some(next) = open.pop() {
        let groups = world.groups_of(next).filter(|key| world.group(key).is_some_and(|g| binds(g)));
        for member in groups.flat_map(|group| world.members_of(group)) {
            if found.insert(member) {
                open.push(member);
            }
        }
    }
    found
}

impl<'a> Ties<'a> {
    /// Of this VM.
    pub fn of(world: &'a World, key: &Key) -> Self {
        let mut ties = Self::default();
        // The key as the index holds it: it lives as long as the world.
        let Some(vm) = world
            .groups_of(key)
            .next()
            .and_then(|group| world.members_of(group).find(|member| *member == key))
        else {
            return ties;
        };
        ties.vm = Some(key.clone());
        for bound in bound_to(world, vm) {
            for key in world.groups_of(bound) {
                let Some(group) = world.group(key) else { continue };
                ties.add(world, key, group, vm, bound);
            }
        }
        ties
    }

    fn add(&mut self, world: &'a World, key: &'a Key, group: &'a AffinityGroup, vm: &'a Key, bound: &'a Key) {
        let own = bound == vm;
        if let Some(rule) = &group.spec.vm_rule {
            let hard = is_hard(rule.enforcement);
            let says = match rule.polarity {
                // Told once: every bound member would tell it again.
                Polarity::Positive if own || (hard && !self.tells(key)) => {
                    let with = others(world, key, vm);
                    (!with.is_empty()).then_some(Says::With(with))
                }
                Polarity::Negative if own || hard => Some(Says::Apart {
                    seats: world.seat_map(key),
                    reserved: world.reserved_members(key).collect(),
                    besides: bound,
                }),
                Polarity::Positive | Polarity::Negative | Polarity::Unknown => None,
            };
            self.push(hard, key, says);
        }
        if let Some(rule) = &group.spec.host_rule {
            let hard = is_hard(rule.enforcement);
            let says = match rule.polarity {
                Polarity::Positive if own || hard => Some(Says::On(&rule.hosts)),
                Polarity::Negative if own || hard => Some(Says::Off(&rule.hosts)),
                Polarity::Positive | Polarity::Negative | Polarity::Unknown => None,
            };
            self.push(hard, key, says);
        }
    }

    fn tells(&self, group: &Key) -> bool {
        self.hard.iter().any(|tie| tie.group == group.name && matches!(tie.says, Says::With(_)))
    }

    fn push(&mut self, hard: bool, group: &'a Key, says: Option<Says<'a>>) {
        let Some(says) = says else { return };
        let tie = Tie { group: &group.name, says };
        if hard { self.hard.push(tie) } else { self.soft.push(tie) }
    }

    /// The first hard VM rule that this host breaks.
    pub fn vm_lack(&self, name: &str) -> Option<Lack> {
        self.hard.iter().find_map(|tie| match &tie.says {
            Says::With(hosts) if !hosts.contains_key(name) => {
                let (host, vm) = hosts.first_key_value()?;
                Some(Lack::NotWith { group: tie.group.into(), vm: (*vm).into(), host: (*host).into() })
            }
            Says::Apart { seats, reserved, besides } => {
                let vm = self.seated(*seats, reserved, besides, name)?;
                Some(Lack::NotApart { group: tie.group.into(), vm: vm.name.clone() })
            }
            Says::With(_) | Says::On(_) | Says::Off(_) => None,
        })
    }

    /// The first hard host rule that this host breaks.
    pub fn host_lack(&self, name: &str, host: &Host) -> Option<Lack> {
        self.hard.iter().find_map(|tie| match &tie.says {
            Says::On(hosts) => (!hosts.contains(name, host.metadata.labels.as_ref()))
                .then(|| Lack::NotOn { group: tie.group.into() }),
            Says::Off(hosts) => hosts
                .contains(name, host.metadata.labels.as_ref())
                .then(|| Lack::NotOff { group: tie.group.into() }),
            Says::With(_) | Says::Apart { .. } => None,
        })
    }

    /// Share of the soft rules that this host breaks, in 1/1000.
    pub fn soft_broken(&self, name: &str, host: &Host) -> i64 {
        let labels = host.metadata.labels.as_ref();
        let broken = self.soft.iter().filter(|tie| match &tie.says {
            Says::With(hosts) => !hosts.contains_key(name),
            Says::Apart { seats, reserved, besides } => {
                self.seated(*seats, reserved, besides, name).is_some()
            }
            Says::On(hosts) => !hosts.contains(name, labels),
            Says::Off(hosts) => hosts.contains(name, labels),
        });
        let broken = broken.count() * 1000;
        broken.checked_div(self.soft.len()).and_then(|share| i64::try_from(share).ok()).unwrap_or(0)
    }

    /// A member of the group on this host that is neither the VM itself nor the one that the rule is about.
    fn seated(
        &self,
        seats: Option<&'a BTreeMap<String, BTreeSet<Key>>>,
        reserved: &[(&'a String, &'a Key)],
        besides: &Key,
        host: &str,
    ) -> Option<&'a Key> {
        let other = |member: &&Key| Some(*member) != self.vm.as_ref() && *member != besides;
        let here = seats.and_then(|seats| seats.get(host)).into_iter().flatten();
        let coming = reserved.iter().filter(|(at, _)| *at == host).map(|(_, vm)| *vm);
        here.chain(coming).find(other)
    }
}

/// Hosts of the other members of a group, each with one of them.
fn others<'a>(world: &'a World, group: &'a Key, vm: &Key) -> BTreeMap<&'a str, &'a str> {
    let seated = world.seats_of(group).flat_map(|(host, vms)| vms.iter().map(move |vm| (host, vm)));
    let all = seated.chain(world.reserved_members(group)).filter(|(_, member)| *member != vm);
    all.map(|(host, member)| (host.as_str(), member.name.as_str())).collect()
}
