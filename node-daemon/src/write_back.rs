//! Writes a VM's reports, on a task of its own: the latest wins, and a worker never waits for the API server.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt;
use node_plan::step::{ActReport, EventNote, VmReport};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use vireo_crds::{
    condition::{self, kind},
    reasons,
    v1alpha1::VirtualMachine,
};

use crate::{
    backoff,
    error::RetryClass,
    objects::Objects,
    report::{Reporter, WriteError},
    resolve,
};

/// How long a state that will pass by itself is kept back.
const PASSING: Duration = Duration::from_millis(1500);

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Post {
    /// The object it was decided from.
    pub object: Arc<VirtualMachine>,
    /// The VM's status; none: not ours to write.
    pub report: Option<VmReport>,
    /// Outcomes of acts.
    pub acts: Vec<ActReport>,
    /// When it was decided.
    pub now: Timestamp,
    /// Steps are being run: what comes of them may be known in a moment.
    pub passing: bool,
}

/// The writer of one VM. It ends when this is dropped.
pub struct WriteBack {
    posts: watch::Sender<Option<Post>>,
}

impl WriteBack {
    /// Starts the writer of one VM.
    pub fn start(reporter: Arc<Reporter>, objects: Arc<Objects>, wake: Arc<Notify>, uid: String) -> Self {
        let posts = watch::Sender::new(None);
        let writer = Writer { posts: posts.subscribe(), reporter, objects, wake, uid };
        tokio::spawn(writer.run());
        Self { posts }
    }

    /// Replaces what is to be written.
    pub fn post(&self, post: Post) {
        self.posts.send_replace(Some(post));
    }
}

/// A guest that stands still although nobody here asked for it is worth an Event; everything else that is comes from
/// the ledger's steps.
fn paused(before: &VirtualMachine, after: &VirtualMachine) -> Option<EventNote> {
    let running = |vm: &VirtualMachine| {
        condition::get(&vm.status.as_ref()?.conditions, kind::RUNNING)
            .map(|c| (c.reason.clone(), c.message.clone()))
    };
    let (reason, message) = running(after)?;
    let is_news = running(before).is_none_or(|(old, _)| old != reason);
    let is_pause = [reasons::PAUSED_IO_ERROR, reasons::PAUSED_OUTSIDE].contains(&reason.as_str());
    (is_news && is_pause).then_some(EventNote { reason, warning: true, message })
}

struct Writer {
    posts: watch::Receiver<Option<Post>>,
    reporter: Arc<Reporter>,
    objects: Arc<Objects>,
    wake: Arc<Notify>,
    uid: String,
}

impl Writer {
    async fn run(mut self) {
        let mut failures = 0;
        let mut kept_back: Option<Instant> = None;
        while self.posts.changed().await.is_ok() {
            let Some(post) = self.posts.borrow_and_update().clone() else { continue };
            let is_passing = post.passing || post.report.as_ref().is_some_and(|report| report.passing);
            if is_passing {
                let since = *kept_back.get_or_insert_with(Instant::now);
                // One passing state after the other is told of as late as a single one.
                if self.overtaken(PASSING.saturating_sub(since.elapsed())).await {
                    continue;
                }
            }
            kept_back = None;
            match self.write(&post).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    self.recover(error, failures).await;
                }
            }
        }
    }

    /// Waits a moment; true if a newer post came meanwhile.
    async fn overtaken(&self, moment: Duration) -> bool {
        let mut posts = self.posts.clone();
        tokio::time::timeout(moment, posts.changed()).await.is_ok()
    }

    async fn write(&self, post: &Post) -> Result<(), WriteError> {
        // The API server would refuse it: something newer is known here already.
        if post.report.is_some() && self.objects.is_outdated(&post.object) {
            return Err(WriteError::Conflict(format!("VirtualMachine {}", post.object.name_any())));
        }
        if let Some(report) = &post.report
            && let Some(written) = self.reporter.vm(&post.object, report, post.now).await?
        {
            tracing::info!(object = %format!("{}/{}", written.namespace().unwrap_or_default(), written.name_any()), state = ?report.state, "reported");
            let note = paused(&post.object, &written);
            self.objects.learn_vm(written);
            if let (Some(note), Some(vm)) = (note, resolve::vm_ref(&post.object)) {
                self.reporter.event(&vm, &note).await;
            }
        }
        for outcome in &post.acts {
            let Some(act) = self.objects.act(&outcome.uid) else { continue };
            match self.reporter.act(&act, outcome, post.now).await {
                Ok(Some(written)) => self.objects.learn_act(written),
                Ok(None) | Err(WriteError::Gone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn recover(&self, error: WriteError, failures: u32) {
        let class = match &error {
            // The echo of what changed wakes the worker; should it have come already, this does.
            WriteError::Conflict(_) => RetryClass::Transient,
            WriteError::Gone(_) => return,
            WriteError::Refused { .. } | WriteError::Failed { .. } => RetryClass::Transient,
        };
        if !matches!(error, WriteError::Conflict(_)) {
            tracing::warn!(%error, "a report was not written; trying again");
        }
        if !self.overtaken(backoff::pause(class, failures, backoff::seed(&self.uid))).await {
            self.wake.notify_one();
        }
    }
}
