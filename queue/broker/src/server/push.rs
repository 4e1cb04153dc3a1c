//! Push consumers: subscribers, flow control and heartbeats.

use std::time::Duration;

use bytes::Bytes;

use super::core::Core;
use crate::nats::{matches, status};
use crate::stream::Now;

/// Prefix of the subjects on which receivers answer flow control requests.
const FLOW_PREFIX: &str = "$JS.FC";

impl Core {
    /// Whether a consumer's push subject has subscribers.
    pub(super) fn is_bound(&self, stream: u32, consumer: u32) -> bool {
        let Some(found) = self.streams.get(&stream).and_then(|stream| stream.consumer_of(consumer)) else {
            return false;
        };
        let config = &found.config;
        let group = config.group();
        let mut is_heard = false;
        self.subscriptions.find(config.deliver_subject.as_bytes(), &mut |handle| {
            is_heard |= handle.0.queue.as_deref() == group;
        });
        config.is_push() && is_heard
    }

    /// Handles a new subscription to `filter`: a consumer may have waited for it.
    pub(super) fn listened(&mut self, filter: &[u8], now: Now) {
        let wanted = self.push_targets.iter().filter(|(_, subject)| matches(filter, subject.as_bytes()));
        let consumers: Vec<(u32, u32)> = wanted.map(|(consumer, _)| *consumer).collect();
        for (stream, consumer) in consumers {
            // After a restart, no heartbeat is scheduled yet.
            self.begin_to_beat(stream, consumer, now);
            self.serve(stream, consumer, now);
            self.schedule(stream, consumer, now);
        }
    }

    /// Schedules heartbeats from now on, if the consumer is a push consumer that sends them.
    pub(super) fn begin_to_beat(&mut self, stream: u32, consumer: u32, now: Now) {
        let Some(found) = self.consumer(stream, consumer).filter(|found| found.config.is_push()) else { return };
        let pause = heartbeat(found.config.idle_heartbeat);
        found.heartbeat_at = found.heartbeat_at.or(pause.map(|pause| now.clock + pause));
    }

    /// Counts a pushed message, and regularly asks the receiver whether it keeps up.
    pub(super) fn pushed(&mut self, id: u32, consumer_id: u32, size: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let stream_name = stream.config.name.clone();
        let Some(consumer) = stream.consumer_by_id(consumer_id) else { return };
        let config = &consumer.config;
        consumer.asked_at = now.clock;
        if let Some(nanos) = size.saturating_mul(8_000_000_000).checked_div(config.rate_limit_bps) {
            consumer.not_before = Some(now.clock + Duration::from_nanos(nanos));
        }
        consumer.heartbeat_at = heartbeat(config.idle_heartbeat).map(|pause| now.clock + pause);
        if config.flow_control && consumer.flow.sent(size) {
            let token = uuid::Uuid::new_v4().simple();
            let answer = format!("{FLOW_PREFIX}.{stream_name}.{}.{token}", consumer.name);
            let subject = Bytes::from(config.deliver_subject.clone());
            consumer.flow.ask(answer.clone());
            let body =
                super::client::Body::Given { header: &status("100 FlowControl Request", &[]), payload: &Bytes::new() };
            self.route(&subject, Some(answer.as_bytes()), &body, None);
        }
    }

    /// Handles a receiver's answer that it has received what was sent. `false`: the subject is not a flow
    /// control subject.
    pub(super) fn flow_answered(&mut self, tokens: &[u8], now: Now) -> bool {
        let Ok(tokens) = std::str::from_utf8(tokens) else { return false };
        let mut names = tokens.split('.');
        let (Some(stream), Some(consumer), Some(_)) = (names.next(), names.next(), names.next()) else { return false };
        let Some(id) = self.id_of(stream) else { return true };
        let found = self.streams.get_mut(&id).and_then(|stream| stream.consumer_mut(consumer));
        let subject = format!("{FLOW_PREFIX}.{tokens}");
        if let Some(consumer) = found
            && consumer.flow.answered(&subject)
        {
            let consumer = consumer.id;
            self.serve(id, consumer, now);
            self.schedule(id, consumer, now);
        }
        true
    }

    /// Sends a heartbeat to the receiver, if one is due.
    pub(super) fn beat(&mut self, id: u32, consumer_id: u32, now: Now) {
        let is_bound = self.is_bound(id, consumer_id);
        let Some(consumer) = self.consumer(id, consumer_id) else { return };
        if is_bound {
            consumer.asked_at = now.clock;
        }
        if consumer.heartbeat_at.is_none_or(|at| at > now.clock) {
            return;
        }
        consumer.heartbeat_at = heartbeat(consumer.config.idle_heartbeat).map(|pause| now.clock + pause);
        if !is_bound {
            return;
        }
        let (consumer_sequence, stream_sequence) = consumer.delivered_floor();
        let mut lines = vec![
            ("Nats-Last-Consumer", consumer_sequence.to_string()),
            ("Nats-Last-Stream", stream_sequence.to_string()),
        ];
        if let Some(asked) = consumer.flow.stalled_by() {
            lines.push(("Nats-Consumer-Stalled", asked.to_owned()));
        }
        let subject = consumer.config.deliver_subject.clone();
        self.tell(subject.as_bytes(), &status("100 Idle Heartbeat", &lines), &Bytes::new());
    }
}

/// The pause between two heartbeats.
fn heartbeat(nanos: i64) -> Option<Duration> {
    u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
}
