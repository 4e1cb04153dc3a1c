//! What streams and consumers do for a client that is not ours: the same on both engines.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, Stream};
use async_nats::jetstream::{AckKind, Context, Message};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::harness::{Broker, Engine, engine, eventually};

fn config() -> Config {
    Config { name: "s".into(), subjects: vec!["s.>".into()], allow_direct: true, ..Config::default() }
}

async fn stream(context: &Context, config: Config) -> Stream {
    context.create_stream(config).await.expect("created")
}

async fn publish(context: &Context, subject: &str, payload: &'static str) -> u64 {
    let sent = context.publish(subject.to_owned(), payload.into()).await.expect("sent");
    sent.await.expect("acknowledged").sequence
}

async fn publish_with(context: &Context, subject: &str, headers: &[(&str, &str)]) -> Result<(u64, bool), String> {
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    let sent = context.publish_with_headers(subject.to_owned(), map, "x".into()).await.expect("sent");
    let ack = sent.await.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", source.unwrap_or_default())
    })?;
    Ok((ack.sequence, ack.duplicate))
}

async fn count(stream: &Stream) -> u64 {
    stream.get_info().await.expect("answers").state.messages
}

async fn consumer(stream: &Stream, config: pull::Config) -> PullConsumer {
    stream.create_consumer(pull::Config { ack_policy: AckPolicy::Explicit, ..config }).await.expect("created")
}

fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.into()), ..pull::Config::default() }
}

/// What there is to have now, at most `count`.
async fn fetch(consumer: &PullConsumer, count: usize) -> Vec<Message> {
    let batch = consumer.batch().max_messages(count).expires(Duration::from_millis(300)).messages().await;
    batch.expect("asked").map(|message| message.expect("a message")).collect().await
}

/// A request to the API as it goes over the wire.
async fn api(broker: &Broker, operation: &str, body: Value) -> Value {
    let client = broker.client().await;
    let answer = client.request(format!("$JS.API.{operation}"), body.to_string().into()).await.expect("answers");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

/// One pull request and the first thing that comes back: status and description.
async fn pull_status(client: &async_nats::Client, target: &str, body: Value) -> Option<(u16, String)> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribed");
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{target}");
    client.publish_with_reply(subject, inbox, body.to_string().into()).await.expect("sent");
    let answer = tokio::time::timeout(Duration::from_secs(5), answers.next()).await.expect("an answer").expect("open");
    answer.status.map(|status| (status.as_u16(), answer.description.unwrap_or_default().to_string()))
}

#[tokio::test]
async fn requests_are_answered_by_one_of_a_group_or_refused_at_once() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(client.queue_subscribe("work.*", "group".into()).await.expect("subscribed"));
    }
    let mut all = client.subscribe("work.>").await.expect("subscribed");
    client.flush().await.expect("flushed");
    for turn in 0..30 {
        client.publish(format!("work.{turn}"), "x".into()).await.expect("sent");
    }
    client.flush().await.expect("flushed");
    for turn in 0..30 {
        assert_eq!(all.next().await.expect("a message").subject.as_str(), format!("work.{turn}"));
    }
    let mut taken = 0;
    for member in &mut members {
        while tokio::time::timeout(Duration::from_millis(100), member.next()).await.is_ok() {
            taken += 1;
        }
    }
    assert_eq!(taken, 30, "each once in the group");
    let error = client.request("nobody.home", Bytes::new()).await.expect_err("nobody answers");
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn a_stream_is_made_once_shown_changed_and_removed() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, Config { max_messages: 3, ..config() }).await;
    assert_eq!((made.cached_info().config.max_messages, made.cached_info().config.max_bytes), (3, -1));
    stream(&context, Config { max_messages: 3, ..config() }).await;
    for (operation, body, code) in [
        ("CONSUMER.INFO.s.c", Value::Null, 10038),
        ("CONSUMER.DELETE.s.c", json!({"x": 1}), 10038),
        ("STREAM.DELETE.s", Value::Null, 10038),
        ("STREAM.CREATE.s", json!({"name": "s", "subjects": ["s.>"], "max_msgs": 4}), 10058),
        ("STREAM.CREATE.t", json!({"name": "t", "subjects": ["s.x"]}), 10065),
        ("STREAM.CREATE.t", json!({"name": "u", "subjects": ["u"]}), 10056),
        ("STREAM.CREATE.t", json!({"name": "t", "subjects": ["t"], "nonsense": 1}), 10025),
        ("STREAM.CREATE.t", json!({"name": "t", "subjects": ["a..b"]}), 10052),
        ("STREAM.CREATE.t", json!({"name": "t", "subjects": ["t"], "num_replicas": 3}), 10074),
        ("STREAM.CREATE.t", json!({"name": "t", "subjects": ["t"], "discard_new_per_subject": true}), 10052),
        ("STREAM.INFO.t", json!({}), 10059),
        ("STREAM.UPDATE.t", json!({"name": "t", "subjects": ["t"]}), 10059),
        ("STREAM.PURGE.s", json!({"keep": 1, "seq": 1}), 10003),
        ("STREAM.MSG.GET.s", json!({"seq": 9}), 10037),
        ("CONSUMER.INFO.s.c", json!({}), 10014),
        ("CONSUMER.DELETE.s.c", json!({}), 10014),
        ("CONSUMER.CREATE.s.c", json!({"stream_name": "s", "config": {"name": "c"}, "action": "update"}), 10149),
        ("STREAM.LEADER.STEPDOWN.s", json!({}), 10010),
    ] {
        let answer = api(&broker, operation, body.clone()).await;
        assert_eq!(answer["error"]["err_code"], code, "{operation} {body}: {answer}");
    }
    for turn in 0..5 {
        publish(&context, &format!("s.{turn}"), "x").await;
    }
    let state = made.get_info().await.expect("answers").state;
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (3, 3, 5));
    context.update_stream(Config { max_messages: 2, ..config() }).await.expect("updated");
    assert_eq!(count(&made).await, 2, "a lowered limit holds at once");
    let subjects: Vec<_> = made.info_with_subjects("s.>").await.expect("answers").try_collect().await.expect("all");
    assert_eq!(subjects.len(), 2);
    let names: Vec<String> = context.stream_names().try_collect().await.expect("listed");
    assert_eq!(names, ["s"]);
    context.delete_stream("s").await.expect("removed");
    assert_eq!(api(&broker, "STREAM.INFO.s", json!({})).await["error"]["code"], 404);
}

#[tokio::test]
async fn a_publish_is_checked_against_what_it_expects() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, Config { allow_message_ttl: false, ..config() }).await;
    assert_eq!(publish_with(&context, "s.a", &[("Nats-Msg-Id", "1")]).await, Ok((1, false)));
    assert_eq!(publish_with(&context, "s.b", &[("Nats-Msg-Id", "1")]).await, Ok((1, true)));
    let subject_sequence = "Nats-Expected-Last-Subject-Sequence";
    assert_eq!(publish_with(&context, "s.a", &[(subject_sequence, "1")]).await, Ok((2, false)));
    assert_eq!(publish_with(&context, "s.new", &[(subject_sequence, "0")]).await, Ok((3, false)));
    for (headers, text) in [
        (&[(subject_sequence, "1")][..], "10071"),
        (&[("Nats-Expected-Last-Sequence", "7")], "10071"),
        (&[("Nats-Expected-Stream", "t")], "10060"),
        (&[("Nats-Expected-Last-Msg-Id", "9")], "10070"),
        (&[("Nats-TTL", "5")], "10166"),
        (&[("Nats-Rollup", "all")], "10111"),
    ] {
        let refused = publish_with(&context, "s.a", headers).await.expect_err(text);
        let known = [("10071", "wrong last sequence"), ("10060", "does not match"), ("10070", "last msg")];
        let words = known.iter().find(|(code, _)| *code == text).map_or(text, |(_, words)| words);
        assert!(refused.contains(text) || refused.contains(words), "{headers:?}: {refused}");
    }
    assert_eq!(count(&made).await, 3, "what was refused is not there");
}

#[tokio::test]
async fn limits_refuse_or_make_room_as_the_stream_says() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, Config { max_messages_per_subject: 2, ..config() }).await;
    for _ in 0..3 {
        publish(&context, "s.a", "x").await;
    }
    assert_eq!(count(&made).await, 2);
    let first = made.get_info().await.expect("answers").state.first_sequence;
    assert_eq!(first, 2, "the oldest of the subject made room");
    context.delete_stream("s").await.expect("removed");

    let refusing = Config {
        discard: DiscardPolicy::New,
        max_messages_per_subject: 1,
        discard_new_per_subject: true,
        max_bytes: 400,
        ..config()
    };
    let made = stream(&context, refusing).await;
    publish(&context, "s.a", "x").await;
    let twice = publish_with(&context, "s.a", &[]).await.expect_err("refused");
    assert!(twice.contains("maximum messages per subject exceeded"), "{twice}");
    let mut stored = 1;
    let full = loop {
        match publish_with(&context, &format!("s.{stored}"), &[]).await {
            Ok(_) => stored += 1,
            Err(full) => break full,
        }
    };
    assert!(full.contains("maximum bytes exceeded") && stored > 5, "{full} after {stored}");
    // What a message counts is part of the protocol: 30 bytes, subject, payload.
    let subjects = ["s.a".to_owned()].into_iter().chain((1..stored).map(|number| format!("s.{number}")));
    let expected: usize = subjects.map(|subject| 30 + subject.len() + 1).sum();
    assert_eq!(made.get_info().await.expect("answers").state.bytes, expected as u64);
    made.purge().filter("s.a").await.expect("purged");
    publish(&context, "s.b", "x").await;
}

#[tokio::test]
async fn messages_grow_old_each_by_its_own_and_all_by_the_streams_age() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, Config { allow_message_ttl: true, ..config() }).await;
    publish_with(&context, "s.a", &[("Nats-TTL", "1")]).await.expect("stored");
    publish_with(&context, "s.b", &[("Nats-TTL", "1h")]).await.expect("stored");
    publish(&context, "s.c", "x").await;
    assert!(publish_with(&context, "s.c", &[("Nats-TTL", "soon")]).await.is_err());
    eventually("the first one goes", async || (count(&made).await == 2).then_some(())).await;
    let aged = Config {
        name: "t".into(),
        subjects: vec!["t".into()],
        max_age: Duration::from_secs(1),
        duplicate_window: Duration::from_secs(1),
        ..Config::default()
    };
    let aged = stream(&context, aged).await;
    publish(&context, "t", "x").await;
    eventually("it is too old", async || (count(&aged).await == 0).then_some(())).await;
    assert_eq!(publish(&context, "t", "x").await, 2, "sequences go on");
}

#[tokio::test]
async fn a_message_is_looked_at_by_sequence_and_by_subject_and_removed() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, config()).await;
    publish(&context, "s.a", "one").await;
    publish_with(&context, "s.b", &[("X-Own", "value")]).await.expect("stored");
    publish(&context, "s.a", "three").await;
    let last = made.direct_get_last_for_subject("s.a").await.expect("there");
    assert_eq!((last.sequence, &last.payload[..], last.subject.as_str()), (3, &b"three"[..], "s.a"));
    let second = made.direct_get(2).await.expect("there");
    assert_eq!(second.headers.get("X-Own").map(|value| value.as_str()), Some("value"));
    let raw = made.get_last_raw_message_by_subject("s.b").await.expect("there");
    assert_eq!((raw.sequence, &raw.payload[..]), (2, &b"x"[..]));
    assert_eq!(raw.headers.get("X-Own").map(|value| value.as_str()), Some("value"));
    assert!(made.direct_get(9).await.is_err() && made.direct_get_last_for_subject("s.z").await.is_err());
    made.delete_message(2).await.expect("removed");
    assert!(made.delete_message(2).await.is_err() && made.direct_get(2).await.is_err());
    let state = made.get_info().await.expect("answers").state;
    assert_eq!((state.messages, state.deleted_count), (2, Some(1)));
    assert_eq!(made.purge().await.expect("purged").purged, 2);
    let state = made.get_info().await.expect("answers").state;
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (0, 4, 3));
}

#[tokio::test]
async fn a_work_queue_has_one_consumer_and_lets_go_what_is_acked() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, Config { retention: RetentionPolicy::WorkQueue, ..config() }).await;
    let workers = consumer(&made, durable("workers")).await;
    for (config, code) in [
        (json!({"durable_name": "other", "ack_policy": "explicit", "deliver_policy": "all"}), 10099),
        (json!({"durable_name": "other", "ack_policy": "explicit", "filter_subject": "s.a"}), 10100),
        (json!({"durable_name": "other", "ack_policy": "explicit", "deliver_policy": "new"}), 10101),
    ] {
        let body = json!({"stream_name": "s", "config": config});
        let answer = api(&broker, "CONSUMER.DURABLE.CREATE.s.other", body).await;
        assert_eq!(answer["error"]["err_code"], code, "{config}: {answer}");
    }
    for turn in 0..4 {
        publish(&context, &format!("s.{turn}"), "x").await;
    }
    let messages = fetch(&workers, 4).await;
    assert_eq!(messages.len(), 4);
    let info = workers.get_info().await.expect("answers");
    assert_eq!((info.num_pending, info.num_ack_pending), (0, 4));
    messages[0].double_ack().await.expect("acked");
    messages[1].ack_with(AckKind::Term).await.expect("ended");
    messages[2].ack_with(AckKind::Nak(None)).await.expect("given back");
    let again = fetch(&workers, 1).await;
    assert_eq!(again[0].info().expect("parses").delivered, 2);
    assert_eq!(again[0].subject, messages[2].subject);
    eventually("two are left", async || (count(&made).await == 2).then_some(())).await;
    let info = workers.get_info().await.expect("answers");
    assert_eq!((info.num_ack_pending, info.num_redelivered), (2, 1));
}

#[tokio::test]
async fn what_is_not_acked_comes_again_and_not_too_often() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let context = broker.bare().await;
    let made = stream(&context, config()).await;
    let ack_wait = Duration::from_millis(500);
    let twice = consumer(&made, pull::Config { ack_wait, max_deliver: 2, ..durable("twice") }).await;
    let mut given_up =
        client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.s.twice").await.expect("subscribed");
    publish(&context, "s.a", "x").await;
    for delivery in 1..=2 {
        let message = eventually("a delivery", async || fetch(&twice, 1).await.pop()).await;
        assert_eq!(message.info().expect("parses").delivered, delivery);
    }
    let advisory = eventually("it is told", async || {
        // A NATS server may notice only when a client asks.
        assert!(fetch(&twice, 1).await.is_empty(), "a third delivery");
        let told = tokio::time::timeout(Duration::from_millis(100), given_up.next()).await.ok()??;
        serde_json::from_slice::<Value>(&told.payload).ok()
    })
    .await;
    assert_eq!((&advisory["stream_seq"], &advisory["deliveries"]), (&json!(1), &json!(2)));
    assert_eq!(count(&made).await, 1, "it stays in the stream");

    let held = consumer(&made, pull::Config { ack_wait, ..durable("held") }).await;
    let message = fetch(&held, 1).await.pop().expect("a message");
    for _ in 0..5 {
        tokio::time::sleep(ack_wait / 2).await;
        message.ack_with(AckKind::Progress).await.expect("sent");
    }
    assert!(fetch(&held, 1).await.is_empty(), "progress holds it");
    message.double_ack().await.expect("acked");
}

#[tokio::test]
async fn consumers_begin_where_they_are_told_and_see_what_they_filter() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, config()).await;
    for turn in 0..4 {
        publish(&context, ["s.a", "s.b"][turn % 2], "x").await;
    }
    let sequences = async |config: pull::Config| {
        let consumer = consumer(&made, config).await;
        let messages = fetch(&consumer, 9).await;
        messages.iter().map(|message| message.info().expect("parses").stream_sequence).collect::<Vec<_>>()
    };
    assert_eq!(sequences(durable("all")).await, [1, 2, 3, 4]);
    assert_eq!(sequences(pull::Config { filter_subject: "s.b".into(), ..durable("b") }).await, [2, 4]);
    assert_eq!(sequences(pull::Config { deliver_policy: DeliverPolicy::Last, ..durable("last") }).await, [4]);
    assert!(sequences(pull::Config { deliver_policy: DeliverPolicy::New, ..durable("new") }).await.is_empty());
    let from = DeliverPolicy::ByStartSequence { start_sequence: 3 };
    assert_eq!(sequences(pull::Config { deliver_policy: from, ..durable("from") }).await, [3, 4]);
    // A NATS server takes a minute to notice.
    if engine() != Engine::Own {
        return;
    }
    let ephemeral =
        consumer(&made, pull::Config { inactive_threshold: Duration::from_secs(1), ..pull::Config::default() }).await;
    assert_eq!(fetch(&ephemeral, 9).await.len(), 4);
    let name = ephemeral.cached_info().name.clone();
    eventually("it ends when it is unused", async || {
        let names: Vec<String> = made.consumer_names().try_collect().await.ok()?;
        (!names.contains(&name)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_pull_is_answered_with_what_it_came_to() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let context = broker.bare().await;
    let made = stream(&context, config()).await;
    consumer(&made, pull::Config { max_batch: 5, max_expires: Duration::from_secs(60), ..durable("c") }).await;
    let at = async |body: Value| pull_status(&client, "s.c", body).await;
    assert_eq!(at(json!({"no_wait": true})).await, Some((404, "No Messages".into())));
    let (code, text) = at(json!({"expires": 200_000_000})).await.expect("a status");
    assert_eq!((code, text.as_str()), (408, "Request Timeout"));
    assert_eq!(at(json!({"batch": 6})).await, Some((409, "Exceeded MaxRequestBatch of 5".into())));
    let heartbeat = json!({"expires": 1_000_000_000, "idle_heartbeat": 900_000_000});
    assert_eq!(at(heartbeat).await, Some((400, "Bad Request - heartbeat value too large".into())));
    let beating = json!({"expires": 2_000_000_000, "idle_heartbeat": 300_000_000});
    assert_eq!(at(beating).await, Some((100, "Idle Heartbeat".into())));
    assert_eq!(pull_status(&client, "s.nobody", json!({})).await.map(|status| status.0), Some(503));
    publish(&context, "s.a", "a payload that is longer than twenty bytes").await;
    let small = json!({"batch": 1, "max_bytes": 20, "expires": 500_000_000});
    assert_eq!(at(small).await, Some((409, "Message Size Exceeds MaxBytes".into())));
    assert_eq!(at(json!({"no_wait": true})).await, None, "that is a message");

    // A request ends with its inbox: the message goes to the one who is still there.
    let gone = client.new_inbox();
    let inbox = client.subscribe(gone.clone()).await.expect("subscribed");
    client.publish_with_reply("$JS.API.CONSUMER.MSG.NEXT.s.c", gone, Bytes::new()).await.expect("sent");
    client.flush().await.expect("flushed");
    drop(inbox);
    eventually("the request is gone", async || {
        publish(&context, "s.b", "x").await;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.expect("subscribed");
        let body = json!({"expires": 500_000_000}).to_string();
        client.publish_with_reply("$JS.API.CONSUMER.MSG.NEXT.s.c", inbox, body.into()).await.expect("sent");
        answers.next().await.filter(|answer| answer.status.is_none()).map(drop)
    })
    .await;
}

#[tokio::test]
async fn waiting_workers_are_served_in_turn() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, Config { retention: RetentionPolicy::WorkQueue, ..config() }).await;
    let workers = consumer(&made, durable("workers")).await;
    let client = broker.client().await;
    let mut inboxes = Vec::new();
    for _ in 0..4 {
        let inbox = client.new_inbox();
        inboxes.push(client.subscribe(inbox.clone()).await.expect("subscribed"));
        let body = json!({"batch": 10, "expires": 5_000_000_000_i64}).to_string();
        let subject = "$JS.API.CONSUMER.MSG.NEXT.s.workers";
        client.publish_with_reply(subject, inbox, body.into()).await.expect("sent");
    }
    client.flush().await.expect("flushed");
    eventually("all four wait", async || (workers.get_info().await.ok()?.num_waiting == 4).then_some(())).await;
    for turn in 0..8 {
        publish(&context, &format!("s.{turn}"), "x").await;
    }
    for inbox in &mut inboxes {
        for _ in 0..2 {
            assert!(inbox.next().await.expect("a message").status.is_none());
        }
    }
}

#[tokio::test]
async fn a_subscriber_to_everything_takes_no_job() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let monitor = broker.client().await;
    let mut all = monitor.subscribe(">").await.expect("subscribed");
    monitor.flush().await.expect("flushed");
    let made = stream(&context, Config { retention: RetentionPolicy::WorkQueue, ..config() }).await;
    let workers = consumer(&made, durable("workers")).await;
    publish(&context, "s.a", "x").await;
    let job = fetch(&workers, 1).await.pop().expect("the worker gets it");
    job.double_ack().await.expect("acked");
    assert_eq!(count(&made).await, 0);
    assert!(all.next().await.is_some(), "and the listener hears of it");
}

#[tokio::test]
async fn a_batch_that_is_larger_than_any_buffer_arrives_whole() {
    // A NATS server cuts such a client, however fast it reads.
    if engine() != Engine::Own {
        return;
    }
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let made = stream(&context, config()).await;
    let consumer = consumer(&made, durable("c")).await;
    let payload = Bytes::from(vec![5; 4 << 20]);
    for number in 0..40 {
        let sent = context.publish(format!("s.{number}"), payload.clone()).await.expect("sent");
        sent.await.expect("acknowledged");
    }
    let batch = consumer.batch().max_messages(40).expires(Duration::from_secs(30)).messages().await;
    let mut batch = batch.expect("asked");
    for _ in 0..40 {
        let message = batch.next().await.expect("the next one").expect("a message");
        assert_eq!((message.payload.len(), message.info().expect("parses").delivered), (4 << 20, 1));
        message.double_ack().await.expect("acked");
    }
}
