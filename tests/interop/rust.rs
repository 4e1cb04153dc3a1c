//! The Rust client: what it builds on streams, and what our own queue does not use.

use std::time::Duration;

use async_nats::jetstream::consumer::{
    AckPolicy, DeliverPolicy, OrderedPullConsumer, OrderedPushConsumer, PriorityPolicy, PullConsumer, PushConsumer,
    ReplayPolicy, pull, push,
};
use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::stream::{Config, RetentionPolicy, Stream};
use async_nats::jetstream::{Context, object_store};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;

use super::harness::{Broker, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

async fn stream(context: &Context, retention: RetentionPolicy) -> Stream {
    let config = Config { name: "s".into(), subjects: vec!["s.>".into()], retention, ..Config::default() };
    context.create_stream(config).await.expect("created")
}

async fn publish(context: &Context, subject: &str, payload: impl Into<Bytes>) -> u64 {
    let sent = context.publish(subject.to_owned(), payload.into()).await.expect("sent");
    sent.await.expect("acknowledged").sequence
}

async fn count(stream: &Stream) -> u64 {
    stream.get_info().await.expect("answers").state.messages
}

/// The next of something, which must come.
async fn next<T>(from: &mut (impl futures::Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(PATIENCE, from.next()).await.expect("it comes").expect("there is one")
}

#[tokio::test]
async fn keys_are_put_watched_and_purged() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let config = kv::Config { bucket: "b".into(), history: 5, ..kv::Config::default() };
    let store = context.create_key_value(config).await.expect("created");
    let mut watch = store.watch_all().await.expect("watched");
    assert_eq!(store.put("a.x", "1".into()).await.expect("put"), 1);
    assert_eq!(store.create("b", "2".into()).await.expect("created"), 2);
    store.create("b", "3".into()).await.expect_err("it is there");
    assert_eq!(store.update("a.x", "4".into(), 1).await.expect("updated"), 3);
    store.update("a.x", "5".into(), 1).await.expect_err("it was changed");
    store.delete("b").await.expect("deleted");
    let mut seen = Vec::new();
    for _ in 0..4 {
        let entry = next(&mut watch).await.expect("an entry");
        seen.push((entry.key, entry.revision, entry.operation));
    }
    let put = Operation::Put;
    let expected = [("a.x", 1, put), ("b", 2, put), ("a.x", 3, put), ("b", 4, Operation::Delete)];
    assert_eq!(seen, expected.map(|(key, revision, operation)| (key.to_owned(), revision, operation)));
    assert_eq!(store.get("a.x").await.expect("answers").as_deref(), Some(&b"4"[..]));
    assert_eq!(store.get("b").await.expect("answers"), None);
    let history: Vec<_> = store.history("a.x").await.expect("listed").try_collect().await.expect("all");
    assert_eq!(history.iter().map(|entry| entry.revision).collect::<Vec<_>>(), [1, 3]);
    let keys: Vec<String> = store.keys().await.expect("listed").try_collect().await.expect("all");
    assert_eq!(keys, ["a.x"]);
    store.purge("a.x").await.expect("purged");
    let history: Vec<_> = store.history("a.x").await.expect("listed").try_collect().await.expect("all");
    assert_eq!(history.iter().map(|entry| entry.operation).collect::<Vec<_>>(), [Operation::Purge]);
    // The last of each key, and then what comes.
    let mut later = store.watch_with_history("a.*").await.expect("watched");
    assert_eq!(next(&mut later).await.expect("an entry").operation, Operation::Purge);
    store.put("a.y", "6".into()).await.expect("put");
    assert_eq!(next(&mut later).await.expect("an entry").key, "a.y");
}

#[tokio::test]
async fn a_key_that_grows_old_leaves_a_marker() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let config =
        kv::Config { bucket: "b".into(), limit_markers: Some(Duration::from_secs(1)), ..kv::Config::default() };
    let store = context.create_key_value(config).await.expect("created");
    let mut watch = store.watch_all().await.expect("watched");
    store.create_with_ttl("a", "1".into(), Duration::from_secs(1)).await.expect("created");
    assert_eq!(next(&mut watch).await.expect("an entry").operation, Operation::Put);
    assert_eq!(next(&mut watch).await.expect("an entry").operation, Operation::Purge);
    let stream = context.get_stream("KV_b").await.expect("there");
    eventually("the marker goes too", async || (count(&stream).await == 0).then_some(())).await;
}

#[tokio::test]
async fn objects_are_put_read_listed_and_removed() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let config = object_store::Config { bucket: "o".into(), ..object_store::Config::default() };
    let store = context.create_object_store(config).await.expect("created");
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| number.wrapping_mul(2_654_435_761) as u8).collect();
    let info = store.put("large", &mut &bytes[..]).await.expect("put");
    assert_eq!((info.size, info.chunks), (300_000, 3));
    let mut read = Vec::new();
    store.get("large").await.expect("there").read_to_end(&mut read).await.expect("read");
    assert_eq!(read, bytes);
    store.put("small", &mut &b"x"[..]).await.expect("put");
    let names: Vec<String> =
        store.list().await.expect("listed").map_ok(|info| info.name).try_collect().await.expect("all");
    assert_eq!(names, ["large", "small"]);
    store.delete("large").await.expect("removed");
    assert!(store.get("large").await.is_err());
    assert_eq!(store.info("small").await.expect("there").size, 1);
}

#[tokio::test]
async fn messages_are_pushed_to_who_listens_and_again_if_not_acked() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    for number in 0..3 {
        publish(&context, "s.a", format!("{number}")).await;
    }
    let config = push::Config {
        durable_name: Some("p".into()),
        deliver_subject: broker.client().await.new_inbox(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(500),
        flow_control: true,
        idle_heartbeat: Duration::from_millis(200),
        ..push::Config::default()
    };
    let mut consumer: PushConsumer = stream.create_consumer(config).await.expect("created");
    let mut messages = consumer.messages().await.expect("listens");
    let mut order = Vec::new();
    for turn in 0..4 {
        let message = next(&mut messages).await.expect("a message");
        order.push((message.payload.clone(), message.info().expect("JetStream").delivered));
        // The first is left alone once, and comes again.
        if turn > 0 {
            message.ack().await.expect("sent");
        }
    }
    let expected = [("0", 1), ("1", 1), ("2", 1), ("0", 2)];
    assert_eq!(order, expected.map(|(payload, count)| (Bytes::from(payload), count)));
    eventually("all are settled", async || {
        let info = consumer.info().await.expect("answers").clone();
        (info.num_ack_pending == 0 && info.push_bound && info.ack_floor.stream_sequence == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ordered_consumers_see_every_message_once_in_order() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    for number in 0..500 {
        publish(&context, "s.a", format!("{number}")).await;
    }
    let config =
        push::OrderedConfig { deliver_subject: broker.client().await.new_inbox(), ..push::OrderedConfig::default() };
    let pushed: OrderedPushConsumer = stream.create_consumer(config).await.expect("created");
    let pulled: OrderedPullConsumer = stream.create_consumer(pull::OrderedConfig::default()).await.expect("created");
    let (mut pushed, mut pulled) =
        (pushed.messages().await.expect("listens"), pulled.messages().await.expect("listens"));
    for number in 0..500 {
        assert_eq!(next(&mut pushed).await.expect("a message").payload, format!("{number}"));
        assert_eq!(next(&mut pulled).await.expect("a message").payload, format!("{number}"));
    }
}

#[tokio::test]
async fn consumers_begin_where_they_are_told() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    for subject in ["s.a", "s.b", "s.a", "s.c", "s.b"] {
        publish(&context, subject, "x").await;
    }
    let cases: [(&str, DeliverPolicy, &[&str], &[u64]); 7] = [
        ("all", DeliverPolicy::All, &[], &[1, 2, 3, 4, 5]),
        ("last", DeliverPolicy::Last, &[], &[5]),
        ("last-a", DeliverPolicy::Last, &["s.a"], &[3]),
        ("new", DeliverPolicy::New, &[], &[]),
        ("from", DeliverPolicy::ByStartSequence { start_sequence: 4 }, &[], &[4, 5]),
        ("each", DeliverPolicy::LastPerSubject, &["s.>"], &[3, 4, 5]),
        ("two", DeliverPolicy::All, &["s.a", "s.c"], &[1, 3, 4]),
    ];
    for (name, deliver_policy, filters, expected) in cases {
        let config = pull::Config {
            durable_name: Some(name.into()),
            deliver_policy,
            filter_subjects: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let mut consumer: PullConsumer = stream.create_consumer(config).await.expect(name);
        assert_eq!(consumer.cached_info().num_pending, expected.len() as u64, "{name}");
        let batch = consumer.batch().max_messages(10).expires(Duration::from_millis(300)).messages().await;
        let messages: Vec<_> = batch.expect("asked").try_collect().await.expect("messages");
        let found: Vec<u64> = messages.iter().map(|m| m.info().expect("JetStream").stream_sequence).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(consumer.info().await.expect("answers").num_ack_pending, 0, "{name}");
    }
}

#[tokio::test]
async fn an_ack_of_one_is_an_ack_of_all_before_it() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    for _ in 0..5 {
        publish(&context, "s.a", "x").await;
    }
    let config = pull::Config { durable_name: Some("c".into()), ack_policy: AckPolicy::All, ..pull::Config::default() };
    let mut consumer: PullConsumer = stream.create_consumer(config).await.expect("created");
    let batch = consumer.batch().max_messages(5).expires(Duration::from_secs(5)).messages().await.expect("asked");
    let messages: Vec<_> = batch.try_collect().await.expect("messages");
    messages[3].double_ack().await.expect("acked");
    let info = consumer.info().await.expect("answers");
    assert_eq!((info.num_ack_pending, info.ack_floor.stream_sequence), (1, 4));
}

#[tokio::test]
async fn with_interest_a_message_stays_until_all_who_want_it_are_done() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Interest).await;
    assert_eq!(publish(&context, "s.a", "x").await, 1, "counted");
    assert_eq!(count(&stream).await, 0, "and not kept without a consumer");
    let durable = |name: &str, filter: &str| pull::Config {
        durable_name: Some(name.into()),
        filter_subject: filter.into(),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let one: PullConsumer = stream.create_consumer(durable("one", "s.a")).await.expect("created");
    let two: PullConsumer = stream.create_consumer(durable("two", "s.>")).await.expect("created");
    publish(&context, "s.a", "both").await;
    publish(&context, "s.b", "two").await;
    for (consumer, messages, left) in [(&one, 1, 2), (&two, 1, 1)] {
        let batch = consumer.batch().max_messages(messages).expires(Duration::from_secs(5)).messages().await;
        let messages: Vec<_> = batch.expect("asked").try_collect().await.expect("messages");
        messages[0].double_ack().await.expect("acked");
        eventually("what all have acked is gone", async || (count(&stream).await == left).then_some(())).await;
    }
    stream.delete_consumer("two").await.expect("removed");
    eventually("what only it wanted is gone", async || (count(&stream).await == 0).then_some(())).await;
}

#[tokio::test]
async fn who_has_priority_is_served_first() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    let config = pull::Config {
        durable_name: Some("c".into()),
        ack_policy: AckPolicy::Explicit,
        priority_policy: PriorityPolicy::Overflow,
        priority_groups: vec!["g".into()],
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await.expect("created");
    publish(&context, "s.a", "x").await;
    let ask = async |min_pending: usize, expires| {
        let batch = consumer.batch().group("g").min_pending(min_pending).max_messages(1).expires(expires);
        let messages: Vec<_> = batch.messages().await.expect("asked").try_collect().await.expect("messages");
        messages.len()
    };
    assert_eq!(ask(2, Duration::from_millis(300)).await, 0, "not enough to do for it");
    publish(&context, "s.a", "x").await;
    assert_eq!(ask(2, Duration::from_secs(5)).await, 1);
}

#[tokio::test]
async fn old_messages_keep_their_pauses_if_asked() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    publish(&context, "s.a", "x").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    publish(&context, "s.a", "x").await;
    let config = pull::Config {
        durable_name: Some("c".into()),
        ack_policy: AckPolicy::Explicit,
        replay_policy: ReplayPolicy::Original,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await.expect("created");
    let mut batch = consumer.batch().max_messages(2).expires(Duration::from_secs(10)).messages().await.expect("asked");
    next(&mut batch).await.expect("a message");
    let first = std::time::Instant::now();
    next(&mut batch).await.expect("a message");
    // Never sooner; how much later depends on the machine.
    assert!(first.elapsed() > Duration::from_millis(200), "{:?}", first.elapsed());
}

#[tokio::test]
async fn a_pause_outlives_a_client_that_creates_the_consumer_again() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let stream = stream(&context, RetentionPolicy::Limits).await;
    let config =
        || pull::Config { durable_name: Some("c".into()), ack_policy: AckPolicy::Explicit, ..pull::Config::default() };
    let mut consumer: PullConsumer = stream.create_consumer(config()).await.expect("created");
    let until = time::OffsetDateTime::now_utc() + Duration::from_secs(3600);
    assert!(stream.pause_consumer("c", until).await.expect("paused").paused);
    let again: PullConsumer = stream.create_consumer(config()).await.expect("it is there");
    assert!(again.cached_info().paused && consumer.info().await.expect("answers").paused);
    publish(&context, "s.a", "x").await;
    let ask = async || {
        let batch = consumer.batch().max_messages(1).expires(Duration::from_millis(300)).messages().await;
        batch.expect("asked").try_collect::<Vec<_>>().await.expect("messages").len()
    };
    assert_eq!(ask().await, 0);
    stream.resume_consumer("c").await.expect("resumed");
    assert_eq!(ask().await, 1);
}
