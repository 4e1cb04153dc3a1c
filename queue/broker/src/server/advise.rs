//! Advisories: plain messages about what happened. They may be lost.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{object, rfc3339};
use super::core::Core;
use crate::stream::{Now, Pending};

const PREFIX: &str = "$JS.EVENT.ADVISORY";

/// How a delivery was refused.
#[derive(Debug, Clone, Copy)]
pub(super) enum DeliveryEnd<'a> {
    Naked,
    Terminated(&'a str),
}

impl Core {
    /// Publishes an advisory, if it has subscribers.
    fn advise(&mut self, subject: &str, kind: &str, fields: impl FnOnce() -> Value, now: Now) {
        if !self.subscriptions.has(subject.as_bytes()) {
            return;
        }
        let mut fields = object(fields());
        fields.insert("type".into(), format!("io.nats.jetstream.{kind}").into());
        fields.insert("id".into(), uuid::Uuid::new_v4().simple().to_string().into());
        fields.insert("timestamp".into(), rfc3339(now.wall).into());
        self.tell(subject.as_bytes(), &[], &Bytes::from(Value::Object(fields).to_string()));
    }

    /// Names of a consumer's stream and of the consumer.
    fn names_of(&self, stream: u32, consumer: u32) -> Option<(String, String)> {
        let found = self.streams.get(&stream)?;
        Some((found.config.name.clone(), found.consumer_of(consumer)?.name.clone()))
    }

    /// A stream was created, updated or deleted: `("CREATED", "create")` and so on.
    pub(super) fn advise_stream(&mut self, stream: &str, (event, action): (&str, &str), now: Now) {
        let subject = format!("{PREFIX}.STREAM.{event}.{stream}");
        self.advise(&subject, "advisory.v1.stream_action", || json!({"stream": stream, "action": action}), now);
    }

    /// A consumer was created or deleted.
    pub(super) fn advise_consumer(&mut self, stream: &str, consumer: &str, (event, action): (&str, &str), now: Now) {
        let subject = format!("{PREFIX}.CONSUMER.{event}.{stream}.{consumer}");
        let fields = || json!({"stream": stream, "consumer": consumer, "action": action});
        self.advise(&subject, "advisory.v1.consumer_action", fields, now);
    }

    /// A consumer was paused or resumed.
    pub(super) fn advise_pause(&mut self, stream: &str, consumer: &str, pause: &Value, now: Now) {
        let subject = format!("{PREFIX}.CONSUMER.PAUSE.{stream}.{consumer}");
        let fields = || {
            json!({
                "stream": stream, "consumer": consumer,
                "paused": pause["paused"], "pause_until": pause["pause_until"],
            })
        };
        self.advise(&subject, "advisory.v1.consumer_pause", fields, now);
    }

    /// A consumer was pinned to a client (`PINNED`), or is no longer (`UNPINNED`).
    pub(super) fn advise_pin(
        &mut self,
        stream: u32,
        consumer: u32,
        event: &str,
        (field, value): (&str, &str),
        now: Now,
    ) {
        let Some((stream_name, consumer_name)) = self.names_of(stream, consumer) else { return };
        let found = self.consumer(stream, consumer);
        let group = found.and_then(|consumer| consumer.config.priority_groups.first().cloned());
        let subject = format!("{PREFIX}.CONSUMER.{event}.{stream_name}.{consumer_name}");
        let kind = format!("advisory.v1.consumer_group_{}", event.to_lowercase());
        let fields = || {
            json!({
                "account": "$G", "stream": stream_name, "consumer": consumer_name,
                "group": group.unwrap_or_default(), field: value,
            })
        };
        self.advise(&subject, &kind, fields, now);
    }

    /// A delivery was refused for now, or for good.
    pub(super) fn advise_delivery(
        &mut self,
        (stream, consumer): (u32, u32),
        fate: DeliveryEnd<'_>,
        sequence: u64,
        pending: &Pending,
        now: Now,
    ) {
        let Some((stream, consumer)) = self.names_of(stream, consumer) else { return };
        let (event, kind, reason) = match fate {
            DeliveryEnd::Naked => ("MSG_NAKED", "advisory.v1.nak", ""),
            DeliveryEnd::Terminated(reason) => ("MSG_TERMINATED", "advisory.v1.terminated", reason),
        };
        let subject = format!("{PREFIX}.CONSUMER.{event}.{stream}.{consumer}");
        let fields = || {
            let mut fields = json!({
                "stream": stream, "consumer": consumer, "consumer_seq": pending.consumer_sequence,
                "stream_seq": sequence, "deliveries": pending.count,
            });
            if !reason.is_empty() {
                fields["reason"] = reason.into();
            }
            fields
        };
        self.advise(&subject, kind, fields, now);
    }

    /// Messages have used up their deliveries; they stay in the stream.
    pub(super) fn advise_given_up(&mut self, stream: u32, consumer: u32, given_up: &[(u64, u32)], now: Now) {
        let Some((stream, consumer)) = self.names_of(stream, consumer) else { return };
        for (sequence, count) in given_up {
            let subject = format!("{PREFIX}.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}");
            let fields =
                || json!({"stream": stream, "consumer": consumer, "stream_seq": sequence, "deliveries": count});
            self.advise(&subject, "advisory.v1.max_deliver", fields, now);
        }
    }

    /// Reports an ack, if the consumer samples acks and this one is in the sample.
    pub(super) fn sample_ack(&mut self, ids: (u32, u32), sequence: u64, pending: &Pending, now: Now) {
        let percent = self.consumer(ids.0, ids.1).and_then(|consumer| consumer.config.sample_percent());
        // By its number, so that the share is exact and needs no random numbers.
        if pending.consumer_sequence % 100 >= u64::from(percent.unwrap_or(0)) {
            return;
        }
        let Some((stream, consumer)) = self.names_of(ids.0, ids.1) else { return };
        let subject = format!("$JS.EVENT.METRIC.CONSUMER.ACK.{stream}.{consumer}");
        let fields = || {
            json!({
                "stream": stream, "consumer": consumer, "consumer_seq": pending.consumer_sequence,
                "stream_seq": sequence, "deliveries": pending.count,
                "ack_time": now.clock.saturating_duration_since(pending.since).as_nanos() as u64,
            })
        };
        self.advise(&subject, "metric.v1.consumer_ack", fields, now);
    }

    /// A client made an API request.
    pub(super) fn audit(&mut self, client: &str, subject: &[u8], request: &[u8], response: &str, now: Now) {
        let fields = || {
            json!({
                "server": "sightline", "client": {"name": client, "acc": "$G", "kind": "Client"},
                "subject": String::from_utf8_lossy(subject),
                "request": String::from_utf8_lossy(request), "response": response,
            })
        };
        self.advise(&format!("{PREFIX}.API"), "advisory.v1.api_audit", fields, now);
    }
}
