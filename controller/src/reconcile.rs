//! Drives every kind alike: look at the world, plan, write, tell. It never looks inside a step.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use controller_plan::{
    plan::{EventRecord, EventType, Plan},
    step::Step,
};
use fail_points::Moment;
use futures::FutureExt;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::{task::JoinSet, time::Instant};
use tracing::Instrument;

use crate::{
    apply::{Chain, apply, in_time},
    certificates,
    error::{Error, RetryClass, chain, retry_after},
    kinds::{self, Item},
    session::{Session, Work, lock},
};

/// After so many plans in a row that all had something to write, the planner contradicts itself or somebody else.
const UNSETTLED: u32 = 12;
/// A timer further away than this is asked for again when it fires: clocks of people and machines differ.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Looks at objects until the session has ended; at most `workers` at a time, each object by one.
pub async fn run(session: &Arc<Session>, workers: usize) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let session = Arc::clone(session);
        tasks.spawn(async move {
            let work = async {
                loop {
                    let work = session.queue.next().await;
                    let again = look(&session, &work).await;
                    session.queue.done(&work, again);
                }
            };
            session.until_ended(work).await;
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// One look. Gives the time of the next if nothing wakes the object earlier.
async fn look(session: &Session, work: &Work) -> Option<Duration> {
    let started = Instant::now();
    let kind = match work {
        Work::Object(item) => item.kind.as_str(),
        Work::Certificate(_) => "CertificateSigningRequest",
    };
    let span = match work {
        Work::Object(item) => tracing::info_span!("look", object = %item),
        Work::Certificate(name) => {
            tracing::info_span!("look", object = %format_args!("CertificateSigningRequest {name}"))
        }
    };
    // A panic is a bug in one look; it must not take the others with it.
    let outcome =
        std::panic::AssertUnwindSafe(act(session, work).instrument(span.clone())).catch_unwind().await;
    let _entered = span.enter();
    let metrics = &session.context().metrics;
    let outcome = outcome.unwrap_or_else(|_| {
        Err(Error::Document { what: "look".into(), cause: "a panic, whose place was printed above".into() })
    });
    match outcome {
        Ok(again) => {
            metrics.looked(kind, "success", started.elapsed());
            again
        }
        Err(error) => {
            let class = error.class();
            metrics.looked(kind, class.label(), started.elapsed());
            match class {
                RetryClass::WaitFor => tracing::debug!(error = %chain(&error), "waiting"),
                RetryClass::Transient => tracing::info!(error = %chain(&error), "will be tried again"),
                RetryClass::Rejected => tracing::warn!(error = %chain(&error), "refused"),
                RetryClass::Bug => {
                    tracing::error!(error = %chain(&error), "refused, and that is our mistake")
                }
            }
            let mut backoffs = lock(&session.backoffs);
            Some(retry_after(class, backoffs.entry(work.clone()).or_default()))
        }
    }
}

async fn act(session: &Session, work: &Work) -> Result<Option<Duration>, Error> {
    session.check()?;
    match work {
        Work::Object(item) => reconcile(session, item).await,
        Work::Certificate(name) => {
            if let Some(request) = session.request(name) {
                let what = format!("answer CertificateSigningRequest {name}");
                in_time(what, certificates::act(&session.client(), &request)).await?;
            }
            lock(&session.backoffs).remove(work);
            Ok(None)
        }
    }
}

async fn reconcile(session: &Session, item: &Item) -> Result<Option<Duration>, Error> {
    let now = jiff::Timestamp::now();
    let Some((plan, mut chain)) = plan(session, item, now) else {
        session.set_waits(item, BTreeSet::new());
        lock(&session.backoffs).remove(&Work::Object(item.clone()));
        return Ok(None);
    };
    session.set_waits(item, plan.waits.iter().map(|wait| wait.on.clone()).collect());
    let mut left = plan.steps.as_slice();
    while let Some((step, rest)) = left.split_first() {
        match carry_out(session, step, &mut chain).await {
            Ok(()) => left = rest,
            Err(error) => {
                session.unreserve(left);
                return Err(error);
            }
        }
    }
    for event in &plan.events {
        publish(session, event);
    }
    let key = Work::Object(item.clone());
    let mut backoffs = lock(&session.backoffs);
    if plan.steps.is_empty() {
        backoffs.remove(&key);
        return Ok(next_look(&plan, now));
    }
    // The same again from what is known now: normally there is nothing left to write.
    let unsettled = backoffs.entry(key).or_default();
    if unsettled.failures() >= UNSETTLED {
        let steps: Vec<&str> = plan.steps.iter().map(Step::name).collect();
        tracing::error!(?steps, "planning again does not come to rest");
        return Ok(Some(unsettled.failed()));
    }
    unsettled.count();
    Ok(Some(Duration::ZERO))
}

/// Plans one object, and sets room aside for what the plan promises, in one breath.
fn plan(session: &Session, item: &Item, now: jiff::Timestamp) -> Option<(Plan, Chain)> {
    let started = Instant::now();
    let mut world = lock(&session.world);
    let plan = kinds::plan(&world, item, now)?;
    let mut chain = Chain::default();
    for object in plan.steps.iter().filter_map(Step::object) {
        let namespace = object.namespace.as_deref().unwrap_or_default();
        if let Some(held) = kinds::held(&world, object.kind, namespace, &object.name)
            && held.metadata.uid.as_deref() == Some(object.uid.as_str())
        {
            chain.begin(object, held);
        }
    }
    Session::reserve(&mut world, &plan.steps);
    drop(world);
    let label = crate::metrics::KindLabel { kind: item.kind.as_str() };
    session.context().metrics.plan_time.get_or_create(&label).observe(started.elapsed().as_secs_f64());
    Some((plan, chain))
}

async fn carry_out(session: &Session, step: &Step, chain: &mut Chain) -> Result<(), Error> {
    let metrics = &session.context().metrics;
    fail_points::step(step.name(), Moment::Before);
    match apply(session, step, chain).await {
        Ok(outcome) => {
            fail_points::step(step.name(), Moment::After);
            tracing::debug!(step = step.name(), "done");
            metrics.wrote(step.name(), "success");
            session.settle(step, outcome);
            Ok(())
        }
        Err(error) => {
            metrics.wrote(step.name(), error.class().label());
            Err(error)
        }
    }
}

fn next_look(plan: &Plan, now: jiff::Timestamp) -> Option<Duration> {
    let wait = now.until(plan.next_wakeup?).ok()?.total(jiff::Unit::Second).ok()?;
    Some(Duration::try_from_secs_f64(wait.max(0.0)).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT))
}

fn publish(session: &Session, event: &EventRecord) {
    let object = &event.object;
    let regarding = ObjectReference {
        api_version: Some(format!("{}/{}", vireo_crds::meta::GROUP, vireo_crds::meta::VERSION)),
        kind: Some(object.kind.as_str().to_owned()),
        namespace: object.namespace.clone(),
        name: Some(object.name.clone()),
        uid: Some(object.uid.clone()),
        resource_version: Some(object.resource_version.clone()),
        field_path: None,
    };
    session.context().events.publish(
        regarding,
        event.type_ == EventType::Warning,
        &event.reason,
        &event.message,
    );
}
