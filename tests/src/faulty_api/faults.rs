//! Which fault comes next, from a seed, and how often each came.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Method;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An answer comes late.
    Latency,
    /// A write is refused: the object has changed, it says.
    Conflict,
    /// 429 with Retry-After.
    TooMany,
    /// 500.
    ServerError,
    /// The stream is reset before the request is read.
    Reset,
    /// The request is carried out and the stream reset before the answer.
    LostAnswer,
    /// No answer for seconds, then a reset.
    Hang,
    /// The whole connection is cut.
    Disconnect,
    /// A list that was true some seconds ago.
    StaleList,
    /// A watch says 410.
    WatchGone,
    /// A watch stays open and says nothing any more.
    WatchStall,
    /// A watch shows bookmarks only.
    WatchBookmarks,
    /// A watch is cut.
    WatchCut,
    /// Nothing gets through to one side for a while.
    Absence,
}

/// Every kind: each must occur.
pub const ALL: [Fault; 14] = [
    Fault::Latency,
    Fault::Conflict,
    Fault::TooMany,
    Fault::ServerError,
    Fault::Reset,
    Fault::LostAnswer,
    Fault::Hang,
    Fault::Disconnect,
    Fault::StaleList,
    Fault::WatchGone,
    Fault::WatchStall,
    Fault::WatchBookmarks,
    Fault::WatchCut,
    Fault::Absence,
];

/// Of a thousand requests, how many meet which fault.
const OF_REQUESTS: [(Fault, u32); 7] = [
    (Fault::Latency, 80),
    (Fault::Conflict, 60),
    (Fault::TooMany, 25),
    (Fault::ServerError, 40),
    (Fault::Reset, 20),
    (Fault::LostAnswer, 40),
    (Fault::Hang, 20),
];
/// Of a thousand lists, how many are stale: there are few of them.
const STALE_LISTS: u32 = 300;
/// Of a thousand watches, how many meet which fault.
const OF_WATCHES: [(Fault, u32); 6] = [
    (Fault::WatchGone, 60),
    (Fault::WatchStall, 60),
    (Fault::WatchBookmarks, 60),
    (Fault::WatchCut, 60),
    (Fault::Reset, 30),
    (Fault::TooMany, 30),
];
/// Of a thousand requests on a connection, how many take it with them.
const DISCONNECTS: u32 = 15;
/// The same before the first.
const FIRST_DISCONNECT: u32 = 100;

/// The faults.
pub struct Faults {
    random: Mutex<fastrand::Rng>,
    on: AtomicBool,
    counts: Mutex<BTreeMap<Fault, u64>>,
}

impl Faults {
    /// None until they are switched on.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            on: AtomicBool::new(false),
            counts: Mutex::default(),
        }
    }

    /// Switches them on or off.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    fn below(&self, limit: u32) -> u32 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u32(0..limit)
    }

    /// One more of this kind.
    pub fn count(&self, fault: Fault) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(fault).or_default() += 1;
    }

    /// How often each came.
    pub fn counts(&self) -> BTreeMap<Fault, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kinds that have not come yet.
    pub fn never(&self) -> Vec<Fault> {
        let counts = self.counts();
        ALL.into_iter().filter(|fault| !counts.contains_key(fault)).collect()
    }

    /// Chance says whether something goes wrong. What it is, too, once each of these kinds has come: with chance alone
    /// one would be left out now and then.
    fn pick(&self, shares: &[(Fault, u32)]) -> Option<Fault> {
        let never = self.never();
        let mut dice = self.below(1000);
        for (fault, share) in shares {
            if dice < *share {
                let first = shares.iter().map(|(fault, _)| fault).find(|fault| never.contains(fault));
                return Some(*first.unwrap_or(fault));
            }
            dice -= share;
        }
        None
    }

    /// What happens to a request that is no watch. A stale list is counted where one is really served.
    pub(super) fn of_request(&self, method: &Method) -> Option<Fault> {
        if !self.on.load(Ordering::SeqCst) {
            return None;
        }
        let reads = *method == Method::GET;
        if reads && self.below(1000) < STALE_LISTS {
            return Some(Fault::StaleList);
        }
        let shares: Vec<_> =
            OF_REQUESTS.into_iter().filter(|(fault, _)| !reads || *fault != Fault::Conflict).collect();
        let fault = self.pick(&shares)?;
        self.count(fault);
        Some(fault)
    }

    /// What happens to a watch.
    pub(super) fn of_watch(&self) -> Option<Fault> {
        if !self.on.load(Ordering::SeqCst) {
            return None;
        }
        let fault = self.pick(&OF_WATCHES)?;
        self.count(fault);
        Some(fault)
    }

    /// Whether the connection is cut now.
    pub(super) fn disconnects(&self) -> bool {
        let share = if self.never().contains(&Fault::Disconnect) { FIRST_DISCONNECT } else { DISCONNECTS };
        let cut = self.on.load(Ordering::SeqCst) && self.below(1000) < share;
        if cut {
            self.count(Fault::Disconnect);
        }
        cut
    }

    /// How late an answer is.
    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(u64::from(self.below(700)))
    }

    /// After how many events of a watch its fault begins.
    pub(super) fn lines(&self) -> u32 {
        self.below(6)
    }
}
