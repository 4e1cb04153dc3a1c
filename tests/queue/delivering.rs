//! Deliveries, leases, settlement.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use queue::SettleError;
use queue::client::Fetcher;

use super::harness::{Broker, eventually};
use super::{LEASE, defaults, is_drained, next, spec, with_topic};

#[tokio::test]
async fn a_job_whose_lease_ends_comes_again_and_the_first_holder_may_not_settle_it() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    queue.jobs.submit(&topic, spec(), Bytes::from_static(b"image")).await.expect("accepted");
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    let first = next(&mut fetcher, &topic).await;
    let second = next(&mut fetcher, &topic).await;
    assert_eq!((first.id.clone(), first.sequence), (second.id.clone(), second.sequence));
    for stale in [first.ack().await, first.nak(Duration::ZERO).await, first.term().await, first.renew().await] {
        assert!(matches!(stale, Err(SettleError::LeaseLost)), "{stale:?}");
    }
    second.ack().await.expect("settled");
    eventually("drained", async || is_drained(&mut fetcher, &topic).await.then_some(())).await;
}

#[tokio::test]
async fn a_renewed_lease_holds() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    queue.jobs.submit(&topic, spec(), Bytes::from_static(b"image")).await.expect("accepted");
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    let delivery = next(&mut fetcher, &topic).await;
    let end = Instant::now() + 3 * LEASE;
    while Instant::now() < end {
        delivery.renew().await.expect("confirmed");
        assert!(is_drained(&mut fetcher, &topic).await, "it was given to another worker");
        tokio::time::sleep(LEASE / 5).await;
    }
    delivery.ack().await.expect("still ours");
}

#[tokio::test]
async fn a_hand_back_comes_at_once_with_a_wake_up_and_a_nak_after_its_delay() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    queue.jobs.submit(&topic, spec(), Bytes::from_static(b"image")).await.expect("accepted");
    let mut wakes = queue.wakes().await.expect("listens");
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    next(&mut fetcher, &topic).await.nak(Duration::ZERO).await.expect("handed back");
    let (woken, _) = wakes.next().await.expect("a wake-up");
    assert_eq!(&woken, topic.name());

    let again = next(&mut fetcher, &topic).await;
    let pause = Duration::from_millis(400);
    let started = Instant::now();
    again.nak(pause).await.expect("put off");
    next(&mut fetcher, &topic).await.ack().await.expect("settled");
    assert!(started.elapsed() >= pause, "it came back too early");
}

#[tokio::test]
async fn jobs_are_shared_by_all_who_ask_and_none_goes_to_two() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, queue::topic::Defaults { lease: 30 * LEASE, ..defaults() }).await;
    for _ in 0..60 {
        queue.jobs.submit(&topic, spec(), Bytes::from_static(b"image")).await.expect("accepted");
    }
    let workers = (0..4).map(|_| {
        let (queue, topic) = (queue.clone(), topic.clone());
        tokio::spawn(async move {
            let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
            let mut taken = Vec::new();
            for _ in 0..15 {
                let delivery = next(&mut fetcher, &topic).await;
                delivery.ack().await.expect("settled");
                taken.push(delivery.id);
            }
            taken
        })
    });
    let taken: Vec<_> =
        futures::future::join_all(workers).await.into_iter().flat_map(|t| t.expect("no panic")).collect();
    let distinct: std::collections::BTreeSet<_> = taken.iter().collect();
    assert_eq!((taken.len(), distinct.len()), (60, 60));
}

#[tokio::test]
async fn a_dead_letter_may_be_written_twice_and_is_there_once() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    queue.jobs.submit(&topic, spec(), Bytes::from_static(b"image")).await.expect("accepted");
    let mut fetcher = Fetcher::new(queue.work).await.expect("listens");
    let delivery = next(&mut fetcher, &topic).await;
    for _ in 0..2 {
        delivery.write_dead_letter("image_corrupt: Käse\r\nNats-Rollup: all", &[]).await.expect("written");
    }
    delivery.term().await.expect("settled");
    let stream = broker.bare().await.get_stream("dead_cats").await.expect("there");
    assert_eq!(stream.cached_info().state.messages, 1);
    let letter = stream.get_raw_message(stream.cached_info().state.last_sequence).await.expect("there");
    assert_eq!(&letter.payload[..], b"image");
    let reason = letter.headers.get("Sl-Error").map(|value| value.as_str().to_owned());
    assert_eq!(reason.as_deref(), Some("image_corrupt: K?se??Nats-Rollup: all"), "one line of ASCII");
    assert!(letter.headers.get("Nats-Rollup").is_none());
}
