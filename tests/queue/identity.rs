//! Two requests for one job: what was written says whose it is. And what the queue keeps beside jobs.

use bytes::Bytes;
use queue::client::{Fetcher, Replaced, Revision};
use queue::{JobSpec, Queue, Topic};
use serde_json::json;

use super::harness::Broker;
use super::{defaults, name, next, spec, with_topic};

/// A request of its own for a job, whose image says which one it is.
fn request(of: &JobSpec, image: &str) -> (JobSpec, Bytes) {
    let mut spec = of.clone();
    spec.origin.request = Some(format!("request for {image}"));
    spec.image.sha256 = image.to_owned();
    (spec, Bytes::copy_from_slice(image.as_bytes()))
}

#[tokio::test]
async fn of_two_images_for_one_job_at_once_the_record_is_of_the_one_that_runs() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let mut fetcher = Fetcher::new(queue.work.clone()).await.expect("listens");
    for round in 0..100 {
        let of = spec();
        let [one, other] = ["one", "other"].map(|which| request(&of, &format!("{which} {round}")));
        let submit = async |(spec, image): (JobSpec, Bytes)| {
            let record = queue.jobs.submit(&topic, spec.clone(), image).await.expect("answered").into_record();
            (record.spec.is_of_request(&spec), record)
        };
        let (first, second) = tokio::join!(submit(one), submit(other));
        assert_ne!(first.0, second.0, "round {round}: one of them, and only one, is told that it is its own");
        assert_eq!(first.1.spec, second.1.spec);
        let delivery = next(&mut fetcher, &topic).await;
        assert_eq!(delivery.payload, first.1.spec.image.sha256.as_bytes(), "round {round}: another image would run");
        delivery.ack().await.expect("settled");
    }
}

/// What a crash leaves between the message and the record of a request.
async fn publish_message(broker: &Broker, topic: &Topic, (spec, image): &(JobSpec, Bytes)) {
    let partition = topic.partitions().next().expect("one partition");
    let subject = format!("jobs.{}.{partition}.{}", spec.id.topic(), spec.id.uuid());
    let mut headers = async_nats::HeaderMap::new();
    // In ASCII, as ours are.
    let json = serde_json::to_string(&JobSpec { metadata: Default::default(), ..spec.clone() }).expect("JSON");
    headers.insert("Sl-Job", json.as_str());
    let context = broker.bare().await;
    let sent = context.publish_with_headers(subject, headers, image.clone()).await.expect("sent");
    sent.await.expect("acknowledged");
}

#[tokio::test]
async fn after_a_crash_between_message_and_record_another_request_does_not_relabel_the_image() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let of = spec();
    let (crashed, later) = (request(&of, "crashed"), request(&of, "later"));
    publish_message(&broker, &topic, &crashed).await;
    let record = queue.jobs.submit(&topic, later.0.clone(), later.1).await.expect("answered").into_record();
    assert!(record.spec.is_of_request(&crashed.0) && !record.spec.is_of_request(&later.0));
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    let delivery = next(&mut fetcher, &topic).await;
    assert_eq!((&delivery.payload[..], record.spec.image.sha256.as_str()), (&b"crashed"[..], "crashed"));
}

async fn keys(queue: &Queue) -> Option<(serde_json::Value, Revision)> {
    queue.keys.read().await.expect("answered")
}

#[tokio::test]
async fn keys_change_whole_and_only_over_what_was_read() {
    let broker = Broker::start().await;
    let queue = broker.queue(defaults()).await;
    assert_eq!(keys(&queue).await, None);
    assert!(matches!(queue.keys.write(Revision::default(), &json!([1])).await, Ok(Replaced::Done(_))));
    assert_eq!(queue.keys.write(Revision::default(), &json!([2])).await.ok(), Some(Replaced::Refused));
    let (known, revision) = keys(&queue).await.expect("written");
    assert_eq!(known, json!([1]));
    assert!(matches!(queue.keys.write(revision, &json!([1, 2])).await, Ok(Replaced::Done(_))));
    let other = broker.queue(defaults()).await;
    assert_eq!(keys(&other).await.expect("written").0, json!([1, 2]));
}

#[tokio::test]
async fn how_far_calls_are_noted_never_goes_back_and_begins_with_a_topic() {
    let broker = Broker::start().await;
    let (queue, _) = with_topic(&broker, defaults()).await;
    let told = async || queue.hooks.told(&name()).await.expect("answered").map(u64::from);
    assert_eq!(told().await, Some(0));
    for (noted, expected) in [(5, 5), (3, 5), (9, 9)] {
        queue.hooks.note_told(&name(), Revision::from(noted)).await.expect("noted");
        assert_eq!(told().await, Some(expected));
    }
    queue.topics.delete(&name()).await.expect("deleted");
    queue.topics.ensure(&name(), "cats").await.expect("made anew");
    assert_eq!(told().await, Some(0));
}
