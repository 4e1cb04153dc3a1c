//! Pull requests: clients that ask a consumer for messages.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::core::Core;
use crate::nats::status;
use crate::stream::{ConsumerConfig, Now, Pin, Priority, PriorityPolicy, Waiting};

/// The largest priority number of a request; the lowest number is served first.
const PRIORITY_MAX: i64 = 9;
/// The shortest pause between two heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// The fields of a request; null and 0 count as unset.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pull {
    batch: Option<i64>,
    expires: Option<i64>,
    no_wait: Option<bool>,
    max_bytes: Option<i64>,
    idle_heartbeat: Option<i64>,
    group: Option<String>,
    min_pending: Option<i64>,
    min_ack_pending: Option<i64>,
    id: Option<String>,
    priority: Option<i64>,
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
        if !text.starts_with(b"{") {
            return Err("a number or an object is expected".into());
        }
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// Its priority among other requests, or the status that explains why it is invalid.
    fn priority(&self, config: &ConsumerConfig, pin: Option<&Pin>) -> Result<Priority, String> {
        let Self { min_pending, min_ack_pending, .. } = self;
        let bad = |problem: &str| Err(format!("400 Bad Request - {problem}"));
        let policy = config.priority_policy;
        if policy != PriorityPolicy::None {
            match self.group.as_deref().filter(|group| !group.is_empty()) {
                None => return bad("Priority Group missing"),
                Some(group) if !config.priority_groups.iter().any(|known| known == group) => {
                    return bad("Invalid Priority Group");
                }
                Some(_) => {}
            }
        }
        if policy != PriorityPolicy::Overflow && positive(*min_pending).or(positive(*min_ack_pending)).is_some() {
            return bad("Not a Overflow Priority consumer");
        }
        let said = self.id.clone().filter(|id| !id.is_empty());
        if said.is_some() && policy != PriorityPolicy::PinnedClient {
            return bad("Not a Pinned Client Priority consumer");
        }
        let number = self.priority.unwrap_or(0);
        if policy == PriorityPolicy::Prioritized && !(0..=PRIORITY_MAX).contains(&number) {
            return bad("Priority must be between 0 and 9");
        }
        if said.is_some() && said.as_ref() != pin.map(|pin| &pin.id) {
            return Err("423 Nats-Pin-Id mismatch".into());
        }
        Ok(Priority {
            min_pending: positive(*min_pending).unwrap_or(0),
            min_ack_pending: positive(*min_ack_pending).unwrap_or(0),
            number: number.clamp(0, PRIORITY_MAX) as u8,
            pin: said,
        })
    }
}

fn positive(value: Option<i64>) -> Option<u64> {
    value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0)
}

fn nanos(value: Option<i64>) -> Option<Duration> {
    positive(value).map(Duration::from_nanos)
}

impl Core {
    /// Handles a request to a consumer's `MSG.NEXT`. `false`: the consumer does not exist.
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
        if let Some(heartbeat) = heartbeat
            && expires.is_none_or(|expires| heartbeat * 2 > expires)
        {
            return Err("400 Bad Request - heartbeat value too large".into());
        }
        let subscriptions = &self.subscriptions;
        let Some(consumer) = self.streams.get_mut(&id).and_then(|s| s.consumer_by_id(consumer_id)) else {
            return Ok(());
        };
        if consumer.config.is_push() {
            return Err("409 Consumer is push based".into());
        }
        consumer.waiting.retain(|waiting| subscriptions.has(&waiting.reply));
        consumer.asked_at = now.clock;
        let priority = pull.priority(&consumer.config, consumer.pin.as_ref())?;
        let timeout = consumer.pin_timeout();
        if let Some(pin) = consumer.pin.as_mut().filter(|_| priority.pin.is_some()) {
            pin.until = now.clock + timeout;
        }
        let config = &consumer.config;
        let policy_is_plain = config.priority_policy == PriorityPolicy::None;
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
        if no_wait && policy_is_plain && !consumer.waiting.is_empty() {
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
            priority,
        };
        consumer.waiting.push_back(waiting);
        self.serve(id, consumer_id, now);
        let Some(consumer) = self.consumer(id, consumer_id) else {
            return Ok(());
        };
        // A no-wait request ends with what was available. One that gets nothing only because the consumer
        // is at its limit of pending acks waits for its expiry, if it has one, as on nats-server.
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
}

/// A duration in Go's notation.
fn go_text(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{}ms", seconds * 1e3) } else { format!("{seconds}s") }
}
