//! Elects the leader among replicas over one Lease.
//!
//! [`Elector`] decides from what was read and the time passed in; [`run`] reads, writes and waits. A leader that
//! cannot renew stops leading before anybody else may start: its permission ends `renew_deadline` after the last
//! renewal was *sent*, a candidate takes over `duration` after it last *saw* a change.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vireo_crds::meta::{LEADER_LEASE, SYSTEM_NAMESPACE};

use crate::error::{Error, chain};

/// Times of the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after the last renewal they saw.
    pub duration: Duration,
    /// How long a leader leads after its last renewal.
    pub renew_deadline: Duration,
    /// How often it is renewed, and how often candidates look.
    pub retry_period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// Refuses times with which two could lead at once.
    pub fn checked(self) -> Result<Self, Error> {
        if self.renew_deadline < self.duration
            && self.retry_period * 2 <= self.renew_deadline
            && !self.retry_period.is_zero()
        {
            return Ok(self);
        }
        Err(Error::Config(format!(
            "lease times {:?}/{:?}/{:?}: the renew deadline must be shorter than the duration, and the retry period at most half of the deadline",
            self.duration, self.renew_deadline, self.retry_period
        )))
    }
}

/// What the Lease says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Who leads; none after a release.
    pub holder: Option<String>,
    /// When it was renewed, by the holder's clock: only compared for being the same.
    pub renewed: Option<MicroTime>,
    /// Number of changes of leader.
    pub transitions: i32,
    /// How long the holder asks others to wait.
    pub duration: Option<Duration>,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Write ourselves into the Lease with this number of transitions.
    Take {
        /// Number of changes of leader, this one included.
        transitions: i32,
    },
    /// Somebody else leads; look again after this long.
    Wait(Duration),
}

/// The decision of one replica.
#[derive(Debug)]
pub struct Elector {
    identity: String,
    timing: Timing,
    seen: Option<(Record, Instant)>,
}

impl Elector {
    /// `identity` must be unique to this process.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None }
    }

    /// Decides from the Lease as just read (none: there is none).
    pub fn decide(&mut self, lease: Option<&Record>, now: Instant) -> Decision {
        let Some(record) = lease else {
            return Decision::Take { transitions: 0 };
        };
        let seen_at = match &self.seen {
            Some((seen, at)) if seen == record => *at,
            _ => {
                self.seen = Some((record.clone(), now));
                now
            }
        };
        match record.holder.as_deref() {
            None | Some("") => Decision::Take { transitions: record.transitions.saturating_add(1) },
            Some(holder) if holder == self.identity => Decision::Take { transitions: record.transitions },
            Some(_) => {
                let patience =
                    record.duration.unwrap_or(self.timing.duration).max(self.timing.renew_deadline);
                let waited = now.saturating_duration_since(seen_at);
                if waited >= patience {
                    Decision::Take { transitions: record.transitions.saturating_add(1) }
                } else {
                    Decision::Wait((patience - waited).min(self.timing.retry_period))
                }
            }
        }
    }

    fn record(&self, transitions: i32, renewed: jiff::Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs().max(1)).ok(),
            lease_transitions: Some(transitions),
            renew_time: Some(MicroTime(renewed)),
            acquire_time: None,
            ..LeaseSpec::default()
        }
    }
}

/// Whether this replica leads, and until when it may act on that without another renewal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    until: Option<Instant>,
}

impl Leadership {
    /// Leads at this instant. Asked before every write: a process that was stopped for a while finds out here.
    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Takes part in the election until `shutdown`, then gives the Lease back. Publishes each change and renewal.
pub async fn run(
    client: Client,
    identity: String,
    timing: Timing,
    publish: watch::Sender<Leadership>,
    shutdown: CancellationToken,
) {
    let mut campaign = Campaign {
        api: Api::namespaced(client, SYSTEM_NAMESPACE),
        elector: Elector::new(identity, timing),
        timing,
        publish,
        until: None,
        acquired: None,
        refused: false,
    };
    loop {
        let wait = tokio::select! {
            () = shutdown.cancelled() => break,
            wait = campaign.turn() => wait,
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    campaign.release().await;
}

struct Campaign {
    api: Api<Lease>,
    elector: Elector,
    timing: Timing,
    publish: watch::Sender<Leadership>,
    until: Option<Instant>,
    acquired: Option<jiff::Timestamp>,
    refused: bool,
}

impl Campaign {
    /// One look at the Lease, and one write if it is ours to make. Gives the time until the next.
    async fn turn(&mut self) -> Duration {
        let started = Instant::now();
        // A leader's request must not outlive its permission, or the loss would be noticed too late.
        let patience =
            self.until.map_or(self.timing.renew_deadline, |until| until.saturating_duration_since(started));
        let outcome = tokio::time::timeout(patience, self.attempt(started)).await;
        match outcome {
            Ok(Ok(Decision::Take { .. })) => {
                self.refused = false;
                self.set(Some(started + self.timing.renew_deadline));
                return self.timing.retry_period;
            }
            Ok(Ok(Decision::Wait(wait))) => {
                self.refused = false;
                self.set(None);
                return wait;
            }
            Ok(Err(error)) if error.is_conflict() => {}
            Ok(Err(error)) => {
                // Once per change: a missing permission would otherwise repeat every two seconds.
                if !self.refused {
                    tracing::warn!(error = %chain(&error), "the leader's Lease cannot be renewed or read");
                }
                self.refused = true;
            }
            Err(_) => tracing::warn!("the API server did not answer a renewal of the leader's Lease"),
        }
        let now = Instant::now();
        if self.until.is_some_and(|until| now >= until) {
            self.set(None);
        }
        self.until.map_or(self.timing.retry_period, |until| {
            until.saturating_duration_since(now).min(self.timing.retry_period).max(Duration::from_millis(50))
        })
    }

    async fn attempt(&mut self, now: Instant) -> Result<Decision, Error> {
        let what = || format!("renew Lease {SYSTEM_NAMESPACE}/{LEADER_LEASE}");
        let found = self.api.get_opt(LEADER_LEASE).await.map_err(Error::api(what()))?;
        let record = found.as_ref().map(read);
        let decision = self.elector.decide(record.as_ref(), now);
        let Decision::Take { transitions } = decision else { return Ok(decision) };
        let mut spec = self.elector.record(transitions, jiff::Timestamp::now());
        let ours = record.as_ref().and_then(|r| r.holder.as_deref()) == Some(self.elector.identity.as_str());
        let acquired = *self.acquired.get_or_insert_with(jiff::Timestamp::now);
        spec.acquire_time = match &found {
            Some(lease) if ours => lease.spec.as_ref().and_then(|s| s.acquire_time.clone()),
            _ => Some(MicroTime(acquired)),
        };
        match found {
            None => {
                let metadata = ObjectMeta { name: Some(LEADER_LEASE.into()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                self.api.create(&PostParams::default(), &lease).await.map_err(Error::api(what()))?;
            }
            Some(mut lease) => {
                lease.spec = Some(spec);
                // Carries the resourceVersion just read: of two candidates one gets a conflict.
                self.api
                    .replace(LEADER_LEASE, &PostParams::default(), &lease)
                    .await
                    .map_err(Error::api(what()))?;
            }
        }
        Ok(decision)
    }

    fn set(&mut self, until: Option<Instant>) {
        match (self.until.is_some(), until.is_some()) {
            (false, true) => tracing::info!(identity = self.elector.identity, "leading"),
            (true, false) => {
                self.acquired = None;
                tracing::warn!(identity = self.elector.identity, "not leading any more");
            }
            _ => {}
        }
        self.until = until;
        self.publish.send_replace(Leadership { until });
    }

    /// Clears the holder, so that the next replica need not wait.
    async fn release(&mut self) {
        if self.until.is_none() {
            return;
        }
        self.set(None);
        let released = tokio::time::timeout(Duration::from_secs(3), async {
            let mut lease = self.api.get(LEADER_LEASE).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(self.elector.identity.as_str()) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.api.replace(LEADER_LEASE, &PostParams::default(), &lease).await.map(|_| ())
        })
        .await;
        match released {
            Ok(Ok(())) => tracing::info!("the leader's Lease is released"),
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the leader's Lease could not be released")
            }
            Err(_) => tracing::warn!("the leader's Lease could not be released: no answer"),
        }
    }
}

fn read(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    Record {
        holder: spec.and_then(|s| s.holder_identity.clone()),
        renewed: spec.and_then(|s| s.renew_time.clone()),
        transitions: spec.and_then(|s| s.lease_transitions).unwrap_or(0),
        duration: spec
            .and_then(|s| s.lease_duration_seconds)
            .and_then(|s| u64::try_from(s).ok())
            .map(Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str, renewal: i64, transitions: i32) -> Record {
        Record {
            holder: Some(by.into()),
            renewed: Some(MicroTime(jiff::Timestamp::from_second(renewal).unwrap())),
            transitions,
            duration: Some(Duration::from_secs(15)),
        }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_nobody_holds_is_taken() {
        let mut elector = Elector::new("a".into(), Timing::default());
        let now = Instant::now();
        assert_eq!(elector.decide(None, now), Decision::Take { transitions: 0 });
        let released = Record { holder: Some(String::new()), transitions: 4, ..Record::default() };
        assert_eq!(elector.decide(Some(&released), now), Decision::Take { transitions: 5 });
    }

    #[test]
    fn a_renewed_lease_is_never_taken_however_old_its_time_looks() {
        let mut elector = Elector::new("a".into(), Timing::default());
        let start = Instant::now();
        for second in 0..100 {
            let decision =
                elector.decide(Some(&held("b", i64::try_from(second).unwrap(), 1)), at(start, second));
            assert!(matches!(decision, Decision::Wait(_)), "{second}: {decision:?}");
        }
    }

    #[test]
    fn a_silent_holder_is_replaced_only_after_the_full_duration() {
        let mut elector = Elector::new("a".into(), Timing::default());
        let start = Instant::now();
        let record = held("b", 0, 7);
        assert_eq!(elector.decide(Some(&record), start), Decision::Wait(Duration::from_secs(2)));
        assert_eq!(elector.decide(Some(&record), at(start, 14)), Decision::Wait(Duration::from_secs(1)));
        assert_eq!(elector.decide(Some(&record), at(start, 15)), Decision::Take { transitions: 8 });
    }

    #[test]
    fn a_short_duration_in_the_lease_does_not_shorten_the_wait_below_a_leaders_permission() {
        let mut elector = Elector::new("a".into(), Timing::default());
        let start = Instant::now();
        let record = Record { duration: Some(Duration::from_secs(1)), ..held("b", 0, 0) };
        elector.decide(Some(&record), start);
        assert!(matches!(elector.decide(Some(&record), at(start, 9)), Decision::Wait(_)));
        assert!(matches!(elector.decide(Some(&record), at(start, 10)), Decision::Take { .. }));
    }

    #[test]
    fn permission_ends_before_others_may_take_over() {
        let timing = Timing::default();
        let sent = Instant::now();
        let leadership = Leadership { until: Some(sent + timing.renew_deadline) };
        assert!(leadership.holds(at(sent, 9)));
        assert!(!leadership.holds(at(sent, 10)));
        assert!(timing.renew_deadline < timing.duration);
        assert!(Timing { renew_deadline: timing.duration, ..timing }.checked().is_err());
    }
}
