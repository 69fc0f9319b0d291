//! A queue of objects to look at: each object once, never twice at the same time, and again if it changed meanwhile.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The queue.
#[derive(Debug)]
pub struct Queue<K> {
    inner: Mutex<Inner<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    running: HashSet<K>,
    woken_while_running: HashSet<K>,
    due: HashMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Inner<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            running: HashSet::new(),
            woken_while_running: HashSet::new(),
            due: HashMap::new(),
            by_time: BTreeSet::new(),
        }
    }
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: Notify::new() }
    }
}

impl<K: Clone + Eq + Ord + Hash> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look at `key`: at once, or after the look that is going on.
    pub fn wake(&self, key: K) {
        if self.lock().wake(key) {
            self.changed.notify_one();
        }
    }

    /// Ends a look; `again` is when to look next if nothing wakes the object earlier.
    pub fn done(&self, key: &K, again: Option<Duration>) {
        let mut inner = self.lock();
        inner.running.remove(key);
        inner.forget_due(key);
        if inner.woken_while_running.remove(key) {
            inner.wake(key.clone());
        } else if let Some(due) = again.and_then(|after| Instant::now().checked_add(after)) {
            inner.due.insert(key.clone(), due);
            inner.by_time.insert((due, key.clone()));
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// The next object to look at. The caller must end the look with [`Queue::done`].
    pub async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            let first_due = {
                let mut inner = self.lock();
                inner.collect_due(Instant::now());
                if let Some(key) = inner.ready.pop_front() {
                    inner.waiting.remove(&key);
                    inner.running.insert(key.clone());
                    // There may be more, and one permit wakes one waiter only.
                    if !inner.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                inner.by_time.first().map(|(due, _)| *due)
            };
            match first_due {
                Some(due) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Number of objects that could be looked at now.
    pub fn depth(&self) -> usize {
        self.lock().ready.len()
    }
}

impl<K: Clone + Eq + Ord + Hash> Inner<K> {
    /// True if the key became ready.
    fn wake(&mut self, key: K) -> bool {
        if self.running.contains(&key) {
            self.woken_while_running.insert(key);
            return false;
        }
        self.forget_due(&key);
        if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
            return true;
        }
        false
    }

    fn forget_due(&mut self, key: &K) {
        if let Some(due) = self.due.remove(key) {
            self.by_time.remove(&(due, key.clone()));
        }
    }

    fn collect_due(&mut self, now: Instant) {
        while let Some((due, key)) = self.by_time.first().cloned() {
            if due > now {
                break;
            }
            self.wake(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_or_never<K: Clone + Eq + Ord + Hash>(queue: &Queue<K>) -> Option<K> {
        use futures::FutureExt;
        queue.next().now_or_never()
    }

    #[tokio::test]
    async fn a_key_waits_once_and_runs_alone() {
        let queue = Queue::default();
        queue.wake("a");
        queue.wake("a");
        queue.wake("b");
        assert_eq!(now_or_never(&queue), Some("a"));
        queue.wake("a");
        assert_eq!(now_or_never(&queue), Some("b"));
        assert_eq!(now_or_never(&queue), None, "a is being looked at");
        queue.done(&"a", None);
        assert_eq!(now_or_never(&queue), Some("a"), "it changed meanwhile");
        queue.done(&"a", None);
        assert_eq!(now_or_never(&queue), None);
    }

    #[tokio::test]
    async fn a_due_retry_comes_back_and_a_wake_comes_first() {
        let queue = Queue::default();
        let retry = Duration::from_millis(30);
        queue.wake("a");
        let key = queue.next().await;
        let started = Instant::now();
        queue.done(&key, Some(retry));
        assert_eq!(now_or_never(&queue), None);
        assert_eq!(queue.next().await, "a");
        assert!(started.elapsed() >= retry);
        queue.done(&"a", Some(Duration::from_secs(3600)));
        queue.wake("a");
        assert_eq!(now_or_never(&queue), Some("a"));
        assert!(queue.lock().by_time.is_empty(), "the retry it replaced is forgotten");
    }
}
