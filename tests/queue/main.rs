//! The queue's client against a real server: what it promises, and what a crash may leave.

#[path = "../harness/mod.rs"]
mod harness;

/// Deliveries, leases, settlement.
mod delivering;
/// Streams and consumers, for any client.
mod protocol;
/// Whose a job is, and what is kept beside jobs.
mod identity;
/// Records, compare-and-set, waiting.
mod recording;
/// From an image to a durable job.
mod submitting;

use std::sync::Arc;
use std::time::Duration;

use queue::client::{Delivery, Fetcher};
use queue::topic::Defaults;
use queue::{ImageFacts, JobId, JobOptions, JobSpec, Queue, Timestamp, Topic, TopicName};

/// A lease that tests can outlive.
const LEASE: Duration = Duration::from_secs(1);

fn name() -> TopicName {
    TopicName::new("cats").expect("valid")
}

fn spec() -> JobSpec {
    JobSpec {
        origin: queue::Origin::default(),
        id: JobId::random(name()),
        model: "cats".into(),
        model_version: 1,
        model_digest: "digest".into(),
        created_at: Timestamp::now(),
        accepted_by: String::new(),
        image: ImageFacts { width: 1, height: 1, format: "png".into(), bytes: 5, sha256: "sum".into() },
        options: JobOptions::default(),
        metadata: [("note".to_owned(), "Käse \u{1F431}".to_owned())].into(),
    }
}

fn defaults() -> Defaults {
    Defaults { partitions: 1, lease: LEASE, ..Defaults::default() }
}

/// A queue with one topic.
async fn with_topic(broker: &harness::Broker, defaults: Defaults) -> (Queue, Arc<Topic>) {
    let queue = broker.queue(defaults).await;
    let topic = queue.topics.ensure(&name(), "cats").await.expect("created");
    (queue, topic)
}

/// The next job of the topic's first partition; waits until there is one.
async fn next(fetcher: &mut Fetcher, topic: &Topic) -> Delivery {
    let partition = topic.partitions().next().expect("one partition");
    loop {
        if let Some(delivery) = fetcher.fetch(topic, partition).await.expect("answered") {
            return delivery;
        }
    }
}

/// Whether the topic's first partition has nothing to give now.
async fn is_drained(fetcher: &mut Fetcher, topic: &Topic) -> bool {
    let partition = topic.partitions().next().expect("one partition");
    fetcher.fetch(topic, partition).await.expect("answered").is_none()
}
