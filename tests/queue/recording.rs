//! Records, compare-and-set, waiting.

use std::time::Duration;

use bytes::Bytes;
use queue::client::{Replaced, Waited};
use queue::topic::Defaults;
use queue::{Record, Timestamp, Timings};

use super::harness::{Broker, eventually};
use super::{defaults, name, spec, with_topic};

fn finished(record: &Record) -> Record {
    let now = Timestamp::now();
    record.start("w", now).and_then(|r| r.succeed(1.into(), Timings::default(), now)).expect("finishes")
}

#[tokio::test]
async fn of_many_writers_one_wins_and_its_record_stands() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    for _ in 0..30 {
        let id = queue.jobs.submit(&topic, spec(), Bytes::new()).await.expect("accepted").into_record().spec.id;
        let stored = queue.find_record(&id).await.expect("answered").expect("known");
        let writers = (0..4).map(|n| stored.record.start(&format!("w{n}"), Timestamp::now()).expect("starts"));
        let writers: Vec<Record> = writers.collect();
        let results =
            futures::future::join_all(writers.iter().map(|record| queue.work.replace(stored.revision, record))).await;
        let results: Vec<Replaced> = results.into_iter().map(|result| result.expect("answered")).collect();
        let won: Vec<usize> = (0..4).filter(|n| results[*n] != Replaced::Refused).collect();
        assert_eq!(won.len(), 1, "{results:?}");
        let after = queue.find_record(&id).await.expect("answered").expect("known");
        assert_eq!((after.record, Replaced::Done(after.revision)), (writers[won[0]].clone(), results[won[0]]));
    }
}

#[tokio::test]
async fn writing_the_same_twice_is_done_once() {
    // What a writer does whose first answer was lost.
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let id = queue.jobs.submit(&topic, spec(), Bytes::new()).await.expect("accepted").into_record().spec.id;
    let stored = queue.find_record(&id).await.expect("answered").expect("known");
    let running = stored.record.start("w", Timestamp::now()).expect("starts");
    let first = queue.work.replace(stored.revision, &running).await.expect("answered");
    assert_eq!(queue.work.replace(stored.revision, &running).await.expect("answered"), first);
    assert_eq!(queue.work.create(&running).await.expect("answered"), first);
    assert_eq!(queue.work.create(&stored.record).await.expect("answered"), Replaced::Refused);
}

#[tokio::test]
async fn finished_records_expire_and_open_ones_do_not() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, Defaults { result_ttl: Duration::from_secs(1), ..defaults() }).await;
    let open = queue.jobs.submit(&topic, spec(), Bytes::new()).await.expect("accepted").into_record().spec.id;
    let done = queue.jobs.submit(&topic, spec(), Bytes::new()).await.expect("accepted").into_record().spec.id;
    let stored = queue.find_record(&done).await.expect("answered").expect("known");
    queue.work.replace(stored.revision, &finished(&stored.record)).await.expect("written");
    eventually("it expires", async || queue.find_record(&done).await.expect("answered").is_none().then_some(())).await;
    assert!(queue.find_record(&open).await.expect("answered").is_some());
}

#[tokio::test]
async fn a_waiting_client_receives_the_end_and_only_the_end() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let id = queue.jobs.submit(&topic, spec(), Bytes::new()).await.expect("accepted").into_record().spec.id;
    let waits = (0..8).map(|_| {
        let (queue, id) = (queue.clone(), id.clone());
        tokio::spawn(async move { queue.jobs.wait(&id, Duration::from_secs(60)).await.expect("answered") })
    });
    let waits: Vec<_> = waits.collect();
    let stored = queue.find_record(&id).await.expect("answered").expect("known");
    let running = stored.record.start("w", Timestamp::now()).expect("starts");
    queue.work.replace(stored.revision, &running).await.expect("written");
    // A refused write notifies too; its content must not be taken for the result.
    let false_end = finished(&stored.record);
    assert_eq!(queue.work.replace(stored.revision, &false_end).await.expect("answered"), Replaced::Refused);
    let stored = queue.find_record(&id).await.expect("answered").expect("known");
    let end = stored.record.succeed(42.into(), Timings::default(), Timestamp::now()).expect("succeeds");
    queue.work.replace(stored.revision, &end).await.expect("written");
    for wait in waits {
        let Waited::Finished(heard) = wait.await.expect("no panic") else { panic!("not finished") };
        assert_eq!(heard.record, end);
    }
}

#[tokio::test]
async fn waiting_ends_with_patience_and_at_once_for_what_is_not_there() {
    let broker = Broker::start().await;
    let (queue, topic) = with_topic(&broker, defaults()).await;
    let id = queue.jobs.submit(&topic, spec(), Bytes::new()).await.expect("accepted").into_record().spec.id;
    let waited = queue.jobs.wait(&id, Duration::from_millis(50)).await.expect("answered");
    assert!(matches!(waited, Waited::StillOpen(_)), "{waited:?}");
    let long = Duration::from_secs(600);
    assert_eq!(queue.jobs.wait(&spec().id, long).await.expect("answered"), Waited::Unknown);
    let elsewhere = format!("nothing.{}", id.uuid()).parse().expect("valid");
    assert_eq!(queue.jobs.wait(&elsewhere, long).await.expect("answered"), Waited::Unknown);
    assert_eq!(queue.topics().await.expect("answered")[0].name(), &name());
}
