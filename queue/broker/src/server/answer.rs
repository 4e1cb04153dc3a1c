//! Streams, consumers, times and errors as they appear in answers.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::shared::PROTOCOL_VERSION;
use crate::stream::{Consumer, ConsumerConfig, Found, Now, PriorityPolicy, Refusal, Stream, StreamConfig};

/// The API level that the broker supports.
pub(super) const API_LEVEL: u64 = 1;

/// A time in RFC 3339; 0 becomes Go's zero time.
pub(super) fn rfc3339(nanos: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).ok().filter(|_| nanos != 0);
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "0001-01-01T00:00:00Z".into())
}

/// A refusal, as an error object.
pub(super) fn error(refusal: &Refusal) -> Value {
    json!({"code": refusal.code, "err_code": refusal.error, "description": refusal.text})
}

/// A stream's configuration.
fn stream_config(config: &StreamConfig) -> Value {
    let needs = u64::from(config.allow_msg_ttl || config.subject_delete_marker_ttl > 0);
    with_level(serde_json::to_value(config).expect("a configuration holds strings and numbers only"), needs)
}

/// A consumer's configuration.
fn consumer_config(config: &ConsumerConfig) -> Value {
    let needs = u64::from(config.pause_until.is_some() || config.priority_policy != PriorityPolicy::None);
    with_level(serde_json::to_value(config).expect("a configuration holds strings and numbers only"), needs)
}

/// Adds to the metadata, as nats-server does, the server's version and API level, and the level that this needs.
fn with_level(mut config: Value, needs: u64) -> Value {
    let mut metadata = object(config["metadata"].take());
    metadata.remove("value");
    metadata.insert("_nats.ver".into(), PROTOCOL_VERSION.into());
    metadata.insert("_nats.level".into(), API_LEVEL.to_string().into());
    metadata.insert("_nats.req.level".into(), needs.to_string().into());
    config["metadata"] = Value::Object(metadata);
    config
}

/// A stream: configuration and state.
pub(super) fn stream(stream: &Stream, now: Now) -> Map<String, Value> {
    let first_time = stream.messages.first().map_or(0, Found::time);
    let mut state = json!({
        "messages": stream.messages.len(),
        "bytes": stream.messages.bytes(),
        "first_seq": stream.first(),
        "first_ts": rfc3339(first_time),
        "last_seq": stream.last,
        "last_ts": rfc3339(stream.last_time),
        "consumer_count": stream.consumers().count(),
    });
    if stream.messages.subjects() > 0 {
        state["num_subjects"] = stream.messages.subjects().into();
    }
    let deleted = gaps(stream);
    if deleted > 0 {
        state["num_deleted"] = deleted.into();
    }
    object(json!({
        "config": stream_config(&stream.config),
        "created": rfc3339(stream.created),
        "state": state,
        "cluster": {"leader": "sightline"},
        "ts": rfc3339(now.wall),
    }))
}

/// Number of sequences between first and last whose messages were removed.
fn gaps(stream: &Stream) -> u64 {
    let span = stream.messages.first().map_or(0, |first| stream.last - first.sequence() + 1);
    span.saturating_sub(stream.messages.len() as u64)
}

/// A consumer: configuration and state. `is_bound`: its push subject has subscribers.
pub(super) fn consumer(stream: &Stream, consumer: &Consumer, is_bound: bool, now: Now) -> Map<String, Value> {
    let side = |(consumer_sequence, stream_sequence): (u64, u64)| {
        let mut side = json!({"consumer_seq": consumer_sequence, "stream_seq": stream_sequence});
        if consumer.last_active() != 0 {
            side["last_active"] = rfc3339(consumer.last_active()).into();
        }
        side
    };
    let mut answer = object(json!({
        "stream_name": stream.config.name,
        "name": consumer.name,
        "created": rfc3339(consumer.created),
        "config": consumer_config(&consumer.config),
        "delivered": side(consumer.delivered_floor()),
        "ack_floor": side(consumer.ack_floor()),
        "num_ack_pending": consumer.in_hand(),
        "num_redelivered": consumer.redelivered(),
        "num_waiting": consumer.waiting.len(),
        "num_pending": consumer.unseen(),
        "cluster": {"leader": "sightline"},
        "ts": rfc3339(now.wall),
    }));
    if is_bound {
        answer.insert("push_bound".into(), true.into());
    }
    let left = consumer.config.paused_until().saturating_sub(now.wall);
    if left > 0 {
        answer.insert("paused".into(), true.into());
        answer.insert("pause_remaining".into(), left.into());
    }
    let groups = consumer.config.priority_groups.iter().map(|group| match &consumer.pin {
        Some(pin) => json!({"group": group, "pinned_client_id": pin.id, "pinned_ts": rfc3339(pin.since)}),
        None => json!({"group": group, "pinned_ts": rfc3339(0)}),
    });
    let groups: Vec<Value> = groups.collect();
    if !groups.is_empty() {
        answer.insert("priority_groups".into(), groups.into());
    }
    answer
}

/// The fields of a JSON object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}
