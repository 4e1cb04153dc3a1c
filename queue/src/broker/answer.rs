//! How things look in answers.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::core::Core;
use crate::stream::{Consumer, Now, Refusal, Stream, StreamConfig};

/// A time as JSON has it; 0 is the zero time of Go.
pub(super) fn rfc3339(nanos: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).ok().filter(|_| nanos != 0);
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "0001-01-01T00:00:00Z".into())
}

/// A refusal.
pub(super) fn error(refusal: &Refusal) -> Value {
    json!({"code": refusal.code, "err_code": refusal.error, "description": refusal.text})
}

/// A stream's configuration.
pub(super) fn config(config: &StreamConfig) -> Value {
    serde_json::to_value(config).expect("a configuration holds strings and numbers only")
}

/// A stream: configuration, state.
pub(super) fn stream(stream: &Stream, now: Now) -> Map<String, Value> {
    let first_time = stream.messages.first().map_or(0, |(_, message)| message.time);
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
        "config": config(&stream.config),
        "created": rfc3339(stream.created),
        "state": state,
        "cluster": {"leader": "sightline"},
        "ts": rfc3339(now.wall),
    }))
}

/// Sequences between first and last that are gone.
fn gaps(stream: &Stream) -> u64 {
    let span = stream.messages.first().map_or(0, |(first, _)| stream.last - first + 1);
    span.saturating_sub(stream.messages.len() as u64)
}

/// A consumer: configuration, state.
pub(super) fn consumer(stream: &Stream, consumer: &Consumer, now: Now) -> Map<String, Value> {
    let side = |(consumer_sequence, stream_sequence): (u64, u64)| {
        let mut side = json!({"consumer_seq": consumer_sequence, "stream_seq": stream_sequence});
        if consumer.last_active() != 0 {
            side["last_active"] = rfc3339(consumer.last_active()).into();
        }
        side
    };
    object(json!({
        "stream_name": stream.config.name,
        "name": consumer.name,
        "created": rfc3339(consumer.created),
        "config": serde_json::to_value(&consumer.config).expect("a configuration holds strings and numbers only"),
        "delivered": side(consumer.delivered_floor()),
        "ack_floor": side(consumer.ack_floor()),
        "num_ack_pending": consumer.in_hand(),
        "num_redelivered": consumer.redelivered(),
        "num_waiting": consumer.waiting.len(),
        "num_pending": consumer.unseen(),
        "cluster": {"leader": "sightline"},
        "ts": rfc3339(now.wall),
    }))
}

/// The fields of a JSON object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

/// Tells whoever listens that something happened. Nobody may rely on it.
pub(super) fn advisory(core: &mut Core, subject: &str, kind: &str, fields: Value, now: Now) {
    if !core.subscriptions.has(subject.as_bytes()) {
        return;
    }
    let mut fields = object(fields);
    fields.insert("type".into(), kind.into());
    fields.insert("id".into(), uuid::Uuid::new_v4().simple().to_string().into());
    fields.insert("timestamp".into(), rfc3339(now.wall).into());
    core.tell(subject.as_bytes(), &[], &Bytes::from(Value::Object(fields).to_string()));
}
