//! Jobs are submitted, run and settled while the broker is killed, again and again. In the end
//! every accepted job has exactly one result, and no message is left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use queue::client::{Fetcher, Replaced};
use queue::topic::Defaults;
use queue::{ImageFacts, JobId, JobOptions, JobSpec, Queue, State, Timestamp, Topic, TopicName};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::harness::{Broker, eventually};
use super::rounds;

/// The image of a job follows from its id, so that a mix-up would be seen.
fn image(id: &JobId) -> Bytes {
    let uuid = id.uuid();
    let bytes = uuid.as_bytes();
    let count = 10 + usize::from(bytes[15]) * 8;
    bytes.repeat(count).into()
}

fn spec() -> JobSpec {
    let id = JobId::random(TopicName::new("cats").expect("valid"));
    let image = ImageFacts { width: 1, height: 1, format: "png".into(), bytes: 1, sha256: "sum".into() };
    let created_at = Timestamp::now();
    let (model, model_digest) = ("cats".into(), "digest".into());
    let (options, metadata) = (JobOptions::default(), BTreeMap::default());
    JobSpec {
        origin: queue::Origin::default(),
        id,
        model,
        model_version: 1,
        model_digest,
        created_at,
        accepted_by: String::new(),
        image,
        options,
        metadata,
    }
}

/// Jobs that are accepted between two kills, at least: a machine that is busy with something else takes
/// its time, and a kill before anything was accepted proves nothing.
const ACCEPTED_BETWEEN: usize = 11;

/// Submits until told to stop; returns what was accepted, and counts it.
async fn submit(queue: Queue, topic: Arc<Topic>, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) -> Vec<JobId> {
    let mut accepted = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let spec = spec();
        let (id, bytes) = (spec.id.clone(), image(&spec.id));
        // Not accepted is not a promise.
        if queue.jobs.submit(&topic, spec, bytes).await.is_ok() {
            accepted.push(id);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    accepted
}

/// Runs jobs as a worker does, until told to stop.
async fn work(queue: Queue, topic: Arc<Topic>, stop: Arc<AtomicBool>, ends: Arc<Mutex<BTreeMap<JobId, u32>>>) {
    let mut fetcher = Fetcher::new(queue.work.clone()).await.expect("listens");
    while !stop.load(Ordering::Relaxed) {
        for partition in topic.partitions() {
            let Ok(Some(delivery)) = fetcher.fetch(&topic, partition).await else { continue };
            assert_eq!(delivery.payload, image(&delivery.id), "another job's image");
            let Ok(Some(stored)) = queue.find_record(&delivery.id).await else { continue };
            if stored.record.is_terminal() {
                drop(delivery.ack().await);
                continue;
            }
            let Ok(running) = stored.record.start("test", Timestamp::now()) else { continue };
            let Ok(Replaced::Done(revision)) = queue.work.replace(stored.revision, &running).await else { continue };
            let done = running.succeed(serde_json::json!({"n": 1}), Default::default(), Timestamp::now());
            let done = done.expect("it runs");
            if let Ok(Replaced::Done(_)) = queue.work.replace(revision, &done).await {
                *ends.lock().expect("no panic").entry(delivery.id.clone()).or_default() += 1;
                drop(delivery.ack().await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_often_the_broker_is_killed_every_accepted_job_ends_once() {
    let mut broker = Broker::start().await;
    let defaults = Defaults { lease: Duration::from_secs(2), ..Defaults::default() };
    let queue = broker.queue(defaults).await;
    let topic = queue.topics.ensure(&TopicName::new("cats").expect("valid"), "cats").await.expect("created");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let ends = Arc::new(Mutex::new(BTreeMap::new()));
    let count = Arc::new(AtomicUsize::new(0));
    let submit = || submit(queue.clone(), topic.clone(), stop.clone(), count.clone());
    let submitters: Vec<_> = (0..8).map(|_| tokio::spawn(submit())).collect();
    let workers: Vec<_> =
        (0..2).map(|_| tokio::spawn(work(queue.clone(), topic.clone(), done.clone(), ends.clone()))).collect();
    let mut dice = StdRng::seed_from_u64(std::process::id().into());
    for _ in 0..rounds(10, 200) {
        let before = count.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20 + dice.random_range(0..400))).await;
        eventually("some are accepted", async || {
            (count.load(Ordering::Relaxed) >= before + ACCEPTED_BETWEEN).then_some(())
        })
        .await;
        broker.kill();
        broker.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut accepted = Vec::new();
    for submitter in submitters {
        accepted.extend(submitter.await.expect("no panic"));
    }
    assert!(accepted.len() > 100, "hardly anything was accepted: {}", accepted.len());
    for id in &accepted {
        eventually("an accepted job ends", async || {
            let stored = queue.find_record(id).await.expect("answers").expect("an accepted job has a record");
            matches!(stored.record.state, State::Succeeded { .. }).then_some(())
        })
        .await;
    }
    eventually("every message is gone", async || {
        let depths = queue.topics.depth(&topic).await.ok()?;
        depths.iter().all(|depth| depth.queued + depth.in_hand == 0).then_some(())
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.expect("no panic");
    }
    let ends = ends.lock().expect("no panic");
    assert!(ends.values().all(|count| *count == 1), "a job ended twice");
    println!("{} jobs accepted, {} ends seen", accepted.len(), ends.len());
}
