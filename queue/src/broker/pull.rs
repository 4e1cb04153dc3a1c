//! Requests for messages, and handing messages out.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::client::Body;
use super::core::Core;
use crate::journal::Change;
use crate::journal::change::stored_header_start;
use crate::journal::entry::FRAME_BYTES;
use crate::nats::status;
use crate::stream::{Handout, Message, Now, Waiting};

/// Pause before a client that has much on its way is given more.
const CONGESTION_PAUSE: Duration = Duration::from_millis(5);
/// Pause before handing out is tried again when there was no room to note it.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// The shortest pause between two signs of life.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// What a request may say; null and 0 are as if it was not said.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pull {
    batch: Option<i64>,
    expires: Option<i64>,
    no_wait: Option<bool>,
    max_bytes: Option<i64>,
    idle_heartbeat: Option<i64>,
}

impl Pull {
    /// Reads a body: nothing, a bare number of messages, or JSON.
    fn read(body: &[u8]) -> Result<Self, String> {
        let text = body.trim_ascii();
        if text.is_empty() {
            return Ok(Self::default());
        }
        if let Some(batch) = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
            return Ok(Self { batch: Some(batch), ..Self::default() });
        }
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }
}

fn positive(value: Option<i64>) -> Option<u64> {
    value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0)
}

fn nanos(value: Option<i64>) -> Option<Duration> {
    positive(value).map(Duration::from_nanos)
}

impl Core {
    /// A request to a consumer's `MSG.NEXT`. `false`: there is no such consumer.
    pub(super) fn pull(&mut self, stream: &str, consumer: &str, reply: Option<&Bytes>, body: &[u8], now: Now) -> bool {
        let Some(id) = self.id_of(stream) else { return false };
        let Some(consumer_id) = self.stream(stream).and_then(|s| s.consumer(consumer)).map(|c| c.id) else {
            return false;
        };
        let Some(reply) = reply else { return true };
        // Copied: a slice would keep the whole read buffer for as long as the request waits.
        let reply = Bytes::copy_from_slice(reply);
        if let Err(line) = self.ask(id, consumer_id, &reply, body, now) {
            self.tell(&reply, &status(&line, &[]), &Bytes::new());
        }
        self.schedule(id, consumer_id, now);
        true
    }

    /// Serves a request or lets it wait; an error is the status to answer.
    fn ask(&mut self, id: u32, consumer_id: u32, reply: &Bytes, body: &[u8], now: Now) -> Result<(), String> {
        let pull = Pull::read(body).map_err(|problem| format!("400 Bad Request - {problem}"))?;
        let expires = nanos(pull.expires);
        let heartbeat = nanos(pull.idle_heartbeat).map(|pause| pause.max(HEARTBEAT_MIN));
        if let (Some(heartbeat), Some(expires)) = (heartbeat, expires)
            && heartbeat * 2 > expires
        {
            return Err("400 Bad Request - heartbeat value too large".into());
        }
        let subscriptions = &self.subscriptions;
        let Some(consumer) = self.streams.get_mut(&id).and_then(|s| s.consumer_by_id(consumer_id)) else {
            return Ok(());
        };
        consumer.waiting.retain(|waiting| subscriptions.has(&waiting.reply));
        consumer.asked_at = now.clock;
        let config = &consumer.config;
        let over = |limit: i64, value: Option<u64>| value.filter(|value| limit > 0 && *value > limit.unsigned_abs());
        if over(config.max_batch, positive(pull.batch)).is_some() {
            return Err(format!("409 Exceeded MaxRequestBatch of {}", config.max_batch));
        }
        if over(config.max_expires, positive(pull.expires)).is_some() {
            let limit = Duration::from_nanos(config.max_expires.unsigned_abs());
            return Err(format!("409 Exceeded MaxRequestExpires of {}", go_text(limit)));
        }
        if over(config.max_bytes, positive(pull.max_bytes)).is_some() {
            return Err(format!("409 Exceeded MaxRequestMaxBytes of {}", config.max_bytes));
        }
        let no_wait = pull.no_wait == Some(true);
        if no_wait && !consumer.waiting.is_empty() {
            return Err("408 Requests Pending".into());
        }
        if consumer.waiting.len() as i64 >= consumer.config.max_waiting {
            return if heartbeat.is_none() { Err("409 Exceeded MaxWaiting".into()) } else { Ok(()) };
        }
        let waiting = Waiting {
            reply: reply.clone(),
            batch: positive(pull.batch).unwrap_or(1).min(u64::from(u32::MAX)) as u32,
            bytes: positive(pull.max_bytes),
            expires: expires.map(|expires| now.clock + expires),
            heartbeat: heartbeat.map(|pause| (pause, now.clock + pause)),
        };
        consumer.waiting.push_back(waiting);
        self.serve(id, consumer_id, now);
        let Some(consumer) = self.consumer(id, consumer_id) else {
            return Ok(());
        };
        // A request that must not wait ends with what there was. One that has nothing only because
        // too much is in hand waits for its expiry, if it has one, as on nats-server.
        let may_stay = consumer.is_at_limit() && consumer.has_more() && expires.is_some();
        if no_wait && !may_stay {
            let before = consumer.waiting.len();
            consumer.waiting.retain(|waiting| waiting.reply != reply);
            if consumer.waiting.len() < before {
                return Err("404 No Messages".into());
            }
        }
        Ok(())
    }

    /// Serves everybody who waits at a stream's consumers.
    pub(super) fn serve_all(&mut self, id: u32, now: Now) {
        let awaited = self.streams.get(&id).map(crate::stream::Stream::awaited).unwrap_or_default();
        for consumer in awaited {
            self.serve(id, consumer, now);
            self.schedule(id, consumer, now);
        }
    }

    /// Hands out what there is, to those who wait in turn: one message each, then the next.
    pub(super) fn serve(&mut self, id: u32, consumer_id: u32, now: Now) {
        loop {
            self.drop_deserted(id, consumer_id);
            let congested = self.is_congested(id, consumer_id);
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let Some(consumer) = stream.consumer_by_id(consumer_id) else { return };
            if consumer.waiting.is_empty() {
                return;
            }
            if congested {
                consumer.retry_at = Some(now.clock + CONGESTION_PAUSE);
                return;
            }
            consumer.retry_at = None;
            let Some(handout) = stream.next_handout(consumer_id) else { return };
            let Some(message) = stream.messages.get(handout.sequence).cloned() else { return };
            let stream_name = stream.config.name.clone();
            let Some(consumer) = stream.consumer_by_id(consumer_id) else { return };
            let Some(mut waiting) = consumer.waiting.pop_front() else { return };
            let reply = ack_subject(&stream_name, &consumer.name, &handout, &message);
            let size = (message.subject.len() + reply.len()) as u64
                + u64::from(message.header_bytes)
                + u64::from(message.payload_bytes);
            if waiting.bytes.is_some_and(|left| size > left) {
                self.end_request(&waiting, "409 Message Size Exceeds MaxBytes");
                continue;
            }
            let delivered = Change::Delivered {
                stream: id,
                consumer: consumer_id,
                sequence: handout.sequence,
                consumer_sequence: handout.consumer_sequence,
                count: handout.count,
                time: now.wall,
            };
            if self.change(&delivered, false, now).is_err() {
                // No room even to note it: whoever asked waits on.
                if let Some(consumer) = self.consumer(id, consumer_id) {
                    consumer.waiting.push_front(waiting);
                    consumer.retry_at = Some(now.clock + FULL_PAUSE);
                }
                return;
            }
            let body = self.stored_body(&message, None);
            // It keeps its own subject on its way to the inbox.
            self.route_as(&waiting.reply, message.subject.as_bytes(), Some(reply.as_bytes()), &body, None);
            waiting.batch -= 1;
            if let Some(left) = &mut waiting.bytes {
                *left -= size;
                if *left == 0 && waiting.batch > 0 {
                    self.end_request(&waiting, "409 Batch Completed");
                    continue;
                }
            }
            if let Some((pause, next)) = &mut waiting.heartbeat {
                *next = now.clock + *pause;
            }
            if waiting.batch > 0
                && let Some(consumer) = self.consumer(id, consumer_id)
            {
                consumer.waiting.push_back(waiting);
            }
        }
    }

    /// What a stored message carries. `extra` are further header lines with the block's end.
    pub(super) fn stored_body(&mut self, message: &Message, extra: Option<Bytes>) -> Body<'static> {
        Body::Stored {
            source: self.journal.read(message.place),
            start: FRAME_BYTES + stored_header_start(message.subject.len()),
            header_bytes: message.header_bytes as usize,
            payload_bytes: message.payload_bytes as usize,
            extra,
        }
    }

    /// Ends a request with a status that says how much of it was not used.
    pub(super) fn end_request(&mut self, waiting: &Waiting, line: &str) {
        let rest = [
            ("Nats-Pending-Messages", waiting.batch.to_string()),
            ("Nats-Pending-Bytes", waiting.bytes.unwrap_or(0).to_string()),
        ];
        self.tell(&waiting.reply, &status(line, &rest), &Bytes::new());
    }

    /// Whether the client whose turn it is has more on its way already than it should.
    fn is_congested(&mut self, id: u32, consumer_id: u32) -> bool {
        let consumer = self.consumer(id, consumer_id);
        let Some(reply) = consumer.and_then(|consumer| consumer.waiting.front()).map(|w| w.reply.clone()) else {
            return false;
        };
        let mut clients = Vec::new();
        self.subscriptions.find(&reply, &mut |handle| clients.push(handle.0.client.clone()));
        clients.iter().any(|client| client.is_congested(self.outgoing.to(client).bytes()))
    }

    /// Forgets requests whose inbox nobody listens to any more: what went there would be lost until
    /// its lease ends.
    fn drop_deserted(&mut self, id: u32, consumer_id: u32) {
        let subscriptions = &self.subscriptions;
        if let Some(consumer) = self.streams.get_mut(&id).and_then(|s| s.consumer_by_id(consumer_id)) {
            while consumer.waiting.front().is_some_and(|waiting| !subscriptions.has(&waiting.reply)) {
                consumer.waiting.pop_front();
            }
        }
    }
}

/// The subject on which a delivery is settled.
fn ack_subject(stream: &str, consumer: &str, handout: &Handout, message: &Message) -> String {
    let Handout { sequence, consumer_sequence, count, unseen } = handout;
    format!("$JS.ACK.{stream}.{consumer}.{count}.{sequence}.{consumer_sequence}.{}.{unseen}", message.time)
}

/// A duration as Go writes it.
fn go_text(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{}ms", seconds * 1e3) } else { format!("{seconds}s") }
}
