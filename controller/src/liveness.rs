//! Tells from the hosts' Leases which host is alive, by our own monotonic clock.
//!
//! Times inside a Lease are another machine's and only compared for being the same. Silence is suspicion, never
//! evidence: nothing here ever permits a second copy.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use controller_plan::host::liveness::{Freshness, HostLiveness};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::ResourceExt;

/// A host that renews every ten seconds may miss three.
pub const FRESH_FOR: Duration = Duration::from_secs(40);
/// An incarnation that has not renewed for two and a half intervals shows no life.
const ALIVE_FOR: Duration = Duration::from_secs(25);
/// How long two incarnations that take turns are remembered.
const DUPLICATE_FOR: Duration = Duration::from_secs(60);
const HOLDERS_REMEMBERED: usize = 8;

/// The clock of all hosts. It outlives sessions: what was heard before a gap is still known after it.
#[derive(Debug, Default)]
pub struct Clock {
    hosts: BTreeMap<String, Seen>,
    watching_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Seen {
    holder: Option<String>,
    renewed: Option<MicroTime>,
    /// When we saw it change; none as long as we have only listed it.
    changed: Option<Instant>,
    /// When each incarnation was last heard.
    heard: BTreeMap<String, Instant>,
    /// Incarnations that held it before, oldest first.
    replaced: VecDeque<String>,
    duplicate_until: Option<Instant>,
}

impl Clock {
    /// The watch begins anew, perhaps after a time in which no renewal could be seen: that time counts for nobody.
    pub fn watch_began(&mut self, now: Instant) {
        self.watching_since = Some(now);
    }

    /// Takes in a Lease; `listed` says that it may be as old as anything.
    pub fn observe(&mut self, lease: &Lease, listed: bool, now: Instant) {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|s| s.holder_identity.clone()).filter(|h| !h.is_empty());
        let renewed = spec.and_then(|s| s.renew_time.clone());
        let known = self.hosts.contains_key(&lease.name_any());
        let seen = self.hosts.entry(lease.name_any()).or_default();
        let another = seen.holder != holder;
        // A Lease that nobody holds yet, or that we list for the first time, is no sign of life.
        if (another || seen.renewed != renewed)
            && (known || !listed)
            && let Some(holder) = &holder
        {
            seen.changed = Some(now);
            seen.heard.retain(|_, at| now.saturating_duration_since(*at) < ALIVE_FOR);
            seen.heard.insert(holder.clone(), now);
        }
        if another {
            if holder.as_ref().is_some_and(|h| seen.replaced.contains(h)) {
                seen.duplicate_until = Some(now + DUPLICATE_FOR);
            }
            if let Some(old) = seen.holder.take() {
                seen.replaced.retain(|h| *h != old);
                seen.replaced.push_back(old);
                if seen.replaced.len() > HOLDERS_REMEMBERED {
                    seen.replaced.pop_front();
                }
            }
        }
        seen.holder = holder;
        seen.renewed = renewed;
    }

    /// The Lease is gone.
    pub fn forget(&mut self, host: &str) {
        self.hosts.remove(host);
    }

    /// What is known of `host`.
    pub fn of(&self, host: &str, now: Instant) -> HostLiveness {
        let watched_for =
            |least| self.watching_since.is_some_and(|since| now.saturating_duration_since(since) >= least);
        let unheard = if watched_for(FRESH_FOR) { Freshness::Silent } else { Freshness::NotYetKnown };
        let watched = watched_for(ALIVE_FOR);
        let Some(seen) = self.hosts.get(host) else {
            return HostLiveness { freshness: unheard, watched, ..HostLiveness::default() };
        };
        let within = |since: Instant, limit| now.saturating_duration_since(since) < limit;
        HostLiveness {
            freshness: if seen.changed.is_some_and(|at| within(at, FRESH_FOR)) {
                Freshness::Fresh
            } else {
                unheard
            },
            holder: seen.holder.clone(),
            alive: seen
                .heard
                .iter()
                .filter(|(_, at)| within(**at, ALIVE_FOR))
                .map(|(name, _)| name.clone())
                .collect(),
            duplicate: seen.duplicate_until.is_some_and(|until| now < until),
            watched,
        }
    }

    /// Every host with a Lease.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(String::as_str)
    }

    /// The next instant at which an answer changes if nothing is heard.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        let watching = self.watching_since.into_iter().flat_map(|at| [at + ALIVE_FOR, at + FRESH_FOR]);
        let hosts = self.hosts.values().flat_map(|seen| {
            let fresh = seen.changed.map(|at| at + FRESH_FOR);
            // The holder's is due again and again while it renews; what it replaced is what matters.
            let alive = seen
                .heard
                .iter()
                .filter(|(name, _)| seen.holder.as_ref() != Some(*name))
                .map(|(_, at)| *at + ALIVE_FOR);
            fresh.into_iter().chain(seen.duplicate_until).chain(alive)
        });
        watching.chain(hosts).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    fn lease(holder: &str, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta { name: Some("h1".into()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                renew_time: Some(MicroTime(jiff::Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    struct Time(Instant);

    impl Time {
        fn at(&self, seconds: u64) -> Instant {
            self.0 + Duration::from_secs(seconds)
        }
    }

    fn watching() -> (Clock, Time) {
        let time = Time(Instant::now());
        let mut clock = Clock::default();
        clock.watch_began(time.at(0));
        (clock, time)
    }

    #[test]
    fn a_listed_lease_proves_nothing_until_it_is_renewed() {
        let (mut clock, time) = watching();
        clock.observe(&lease("i1", 5), true, time.at(0));
        assert_eq!(clock.of("h1", time.at(1)).freshness, Freshness::NotYetKnown);
        assert!(clock.of("h1", time.at(1)).alive.is_empty() && !clock.of("h1", time.at(1)).watched);
        assert_eq!(clock.of("h1", time.at(41)).freshness, Freshness::Silent);
        clock.observe(&lease("i1", 15), false, time.at(42));
        assert_eq!(clock.of("h1", time.at(42)).freshness, Freshness::Fresh);
    }

    #[test]
    fn a_host_that_stops_renewing_falls_silent_after_forty_seconds() {
        let (mut clock, time) = watching();
        clock.observe(&lease("i1", 5), false, time.at(50));
        assert_eq!(clock.of("h1", time.at(89)).freshness, Freshness::Fresh);
        assert_eq!(clock.next_change(time.at(60)), Some(time.at(90)));
        assert_eq!(clock.of("h1", time.at(90)).freshness, Freshness::Silent);
        clock.observe(&lease("i1", 5), false, time.at(91));
        assert_eq!(clock.of("h1", time.at(91)).freshness, Freshness::Silent, "the same renewal seen again");
    }

    #[test]
    fn a_lease_nobody_holds_is_no_sign_of_life() {
        let (mut clock, time) = watching();
        let empty = Lease { spec: None, ..lease("", 1) };
        clock.observe(&empty, false, time.at(1));
        assert_eq!(clock.of("h1", time.at(2)).freshness, Freshness::NotYetKnown);
        assert_eq!(clock.of("h1", time.at(45)).freshness, Freshness::Silent);
    }

    #[test]
    fn an_outage_of_the_api_silences_nobody() {
        let (mut clock, time) = watching();
        clock.observe(&lease("i1", 5), false, time.at(1));
        clock.watch_began(time.at(500));
        clock.observe(&lease("i1", 5), true, time.at(500));
        assert_eq!(clock.of("h1", time.at(501)).freshness, Freshness::NotYetKnown);
        clock.observe(&lease("i1", 510), false, time.at(502));
        assert_eq!(clock.of("h1", time.at(502)).freshness, Freshness::Fresh);
        assert!(!clock.of("h1", time.at(502)).watched);
        assert!(clock.of("h1", time.at(525)).watched);
    }

    #[test]
    fn a_reboot_is_one_change_of_incarnation_and_a_clone_takes_turns() {
        let (mut clock, time) = watching();
        clock.observe(&lease("i1", 1), false, time.at(1));
        clock.observe(&lease("i2", 2), false, time.at(2));
        let rebooted = clock.of("h1", time.at(2));
        assert_eq!((rebooted.freshness, rebooted.duplicate), (Freshness::Fresh, false));
        assert!(rebooted.may_live("i1"), "heard a second ago");
        assert!(!clock.of("h1", time.at(27)).may_live("i1"));
        clock.observe(&lease("i1", 3), false, time.at(28));
        assert!(clock.of("h1", time.at(28)).duplicate);
        clock.observe(&lease("i1", 60), false, time.at(62));
        clock.observe(&lease("i1", 95), false, time.at(95));
        assert!(!clock.of("h1", time.at(95)).duplicate, "only one is left");
    }
}
