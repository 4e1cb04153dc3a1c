//! From an image to a durable job.

use bytes::Bytes;
use queue::client::Fetcher;
use queue::topic::Defaults;
use queue::{PartitionId, State, SubmitError};

use super::harness::Broker;
use super::{defaults, is_drained, name, next, spec, with_topic};

#[tokio::test]
async fn a_job_is_found_by_its_id_and_delivered_with_its_image() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let spec = spec();
    let record =
        queue.jobs.submit(&topic, spec.clone(), Bytes::from_static(b"image")).await.expect("accepted").into_record();
    assert_eq!((record.sequence.0, &record.spec), (1, &spec));
    // Another process, which has never heard of the topic.
    let other = broker.queue(defaults()).await;
    let stored = other.find_record(&spec.id).await.expect("answered").expect("known");
    assert_eq!((stored.record.state.name(), &stored.record), ("queued", &record));

    let mut fetcher = Fetcher::new(other.work).await.expect("listens");
    let delivery = next(&mut fetcher, &topic).await;
    assert_eq!((&delivery.id, delivery.sequence, &delivery.payload[..]), (&spec.id, record.sequence, &b"image"[..]));
    assert_eq!(delivery.spec, Ok(spec), "the message alone is enough to begin");
    delivery.ack().await.expect("settled");
    assert!(is_drained(&mut fetcher, &topic).await);
}

#[tokio::test]
async fn a_submit_that_is_repeated_because_its_answer_was_lost_queues_once() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let spec = spec();
    let first =
        queue.jobs.submit(&topic, spec.clone(), Bytes::from_static(b"image")).await.expect("accepted").into_record();
    let again = queue.jobs.submit(&topic, spec, Bytes::from_static(b"image")).await.expect("accepted").into_record();
    assert_eq!(first, again);
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    next(&mut fetcher, &topic).await.ack().await.expect("settled");
    assert!(is_drained(&mut fetcher, &topic).await);
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_when_it_has_drained() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, Defaults { topic_bytes_max: Some(100_000), ..defaults() }).await;
    let image = Bytes::from(vec![7; 30_000]);
    let mut accepted = 0;
    let refused = loop {
        match queue.jobs.submit(&topic, spec(), image.clone()).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SubmitError::Full { .. }), "{refused}");
    assert_eq!(accepted, 3);
    let mut fetcher = Fetcher::new(queue.work.clone()).await.expect("listens");
    // Records are not refused: the workers can drain.
    let delivery = next(&mut fetcher, &topic).await;
    let stored = queue.find_record(&delivery.id).await.expect("answered").expect("known");
    let running = stored.record.start("w", queue::Timestamp::now()).expect("starts");
    queue.work.replace(stored.revision, &running).await.expect("written");
    delivery.ack().await.expect("settled");
    queue.flush().await;
    super::harness::eventually("there is room again", async || {
        queue.jobs.submit(&topic, spec(), image.clone()).await.ok()
    })
    .await;
}

#[tokio::test]
async fn an_image_above_the_servers_limit_is_refused_here() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let refused = queue.jobs.submit(&topic, spec(), Bytes::from(vec![7; 33 << 20])).await;
    assert!(matches!(refused, Err(SubmitError::TooLarge { bytes: 34_603_008, .. })), "{refused:?}");
    assert!(queue.jobs.submit(&topic, spec(), Bytes::from(vec![7; 31 << 20])).await.is_ok(), "the connection lives on");
}

#[tokio::test]
async fn many_make_one_topic_and_agree_on_it() {
    let broker = Broker::start().await;
    let queues = futures::future::join_all((1..=8).map(|n| {
        let broker = &broker;
        async move { broker.queue(Defaults { partitions: n, ..defaults() }).await }
    }))
    .await;
    let name = name();
    let made = futures::future::join_all(queues.iter().map(|queue| queue.topics.ensure(&name, "cats"))).await;
    let made: Vec<_> = made.into_iter().map(|topic| topic.expect("made")).collect();
    assert!(made.iter().all(|topic| topic.settings == made[0].settings), "{made:?}");
    // Every partition that the settings name is there.
    let mut fetcher = Fetcher::new(queues[0].work.clone()).await.expect("listens");
    for partition in made[0].partitions() {
        assert!(fetcher.fetch(&made[0], partition).await.expect("answered").is_none());
    }
    let unmade = fetcher.fetch(&made[0], PartitionId::normal(99)).await;
    assert!(matches!(unmade, Err(queue::FetchError::NoPartition)), "{unmade:?}");
}

#[tokio::test]
async fn what_was_accepted_survives_the_kill_of_the_server() {
    let mut broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(
            queue
                .jobs
                .submit(&topic, spec(), Bytes::from_static(b"image"))
                .await
                .expect("accepted")
                .into_record()
                .spec
                .id,
        );
    }
    broker.kill();
    broker.restart().await;
    for id in &ids {
        let stored = queue.find_record(id).await.expect("answered").expect("known");
        assert_eq!(stored.record.state, State::Queued { retry_at: None });
    }
    let queue = broker.queue(defaults()).await;
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    let mut delivered = Vec::new();
    while delivered.len() < ids.len() {
        let delivery = next(&mut fetcher, &topic).await;
        delivery.ack().await.expect("settled");
        delivered.push(delivery.id);
    }
    assert_eq!(delivered, ids, "all of them, in order");
}
