//! What happens as time passes: leases, requests and messages expire.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::consumers;
use super::core::{Core, now};
use super::shared::{Phase, Shared, reached};
use crate::journal::Change;
use crate::nats::status;
use crate::stream::{Message, Now};

/// Runs the timers of streams and consumers when they are due.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut phase = shared.phase.subscribe();
    loop {
        let next = shared.lock().earliest_timer();
        let sleeping = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleeping => {
                let mut core = shared.lock();
                core.tick(now());
                core.finish();
            }
            () = shared.timer_set.notified() => {}
            () = reached(&mut phase, Phase::Stopping) => return,
        }
    }
}

impl Core {
    /// Runs all timers that are due.
    fn tick(&mut self, now: Now) {
        while let Some(Reverse((at, stream, consumer))) = self.timers.peek().copied() {
            if at > now.clock {
                return;
            }
            self.timers.pop();
            if consumer == 0 {
                self.tick_stream(stream, at, now);
            } else {
                self.tick_consumer(stream, consumer, at, now);
            }
        }
    }

    fn tick_stream(&mut self, id: u32, at: Instant, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        // An earlier timer has replaced this one.
        if stream.scheduled != Some(at) {
            return;
        }
        stream.scheduled = None;
        let expired = stream.expired(self.calendar.look(now.wall, now.clock));
        let to_be_marked = stream.to_be_marked(&expired);
        // Checked before they are removed: a message that is itself a marker leaves none.
        let marked: Vec<Message> = to_be_marked.into_iter().filter(|message| !self.is_marker(message)).collect();
        for (from, to) in expired {
            let removed = Change::Removed { stream: id, from, to };
            if self.change(&removed, false, now).is_err() {
                break;
            }
        }
        for message in marked {
            self.store_marker(id, &message.subject, now);
        }
        // Expired messages may have been pending; then the consumer has room for others.
        self.serve_all(id, now);
        self.schedule(id, 0, now);
    }

    fn tick_consumer(&mut self, id: u32, consumer_id: u32, at: Instant, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(consumer) = stream.consumer_by_id(consumer_id) else { return };
        if consumer.scheduled != Some(at) {
            return;
        }
        (consumer.scheduled, consumer.retry_at) = (None, None);
        let given_up = consumer.expire(now.clock);
        let subscriptions = &self.subscriptions;
        consumer.waiting.retain(|waiting| subscriptions.has(&waiting.reply));
        if !consumer.waiting.is_empty() {
            consumer.asked_at = now.clock;
        }
        let lost_pin = consumer.pin.take_if(|pin| pin.until <= now.clock);
        if consumer.config.is_push() {
            self.beat(id, consumer_id, now);
        }
        let ends_at = self.consumer(id, consumer_id).and_then(|consumer| consumer.ends_at());
        if ends_at.is_some_and(|at| at <= now.clock) {
            if consumers::remove(self, (id, consumer_id), now).is_ok() {
                return;
            }
            // No disk space to record it: retried, but not at once.
            if let Some(consumer) = self.consumer(id, consumer_id) {
                consumer.asked_at = now.clock;
            }
        }
        if lost_pin.is_some() {
            self.advise_pin(id, consumer_id, "UNPINNED", ("reason", "timeout"), now);
        }
        self.advise_given_up(id, consumer_id, &given_up, now);
        self.serve(id, consumer_id, now);
        self.end_requests_due(id, consumer_id, now);
        self.schedule(id, consumer_id, now);
    }

    /// Ends requests that have expired, and sends the heartbeats of the others.
    fn end_requests_due(&mut self, id: u32, consumer_id: u32, now: Now) {
        let Some(consumer) = self.consumer(id, consumer_id) else { return };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now.clock);
        let all = std::mem::take(&mut consumer.waiting);
        let (ended, mut staying): (Vec<_>, Vec<_>) = all.into_iter().partition(|waiting| is_due(waiting.expires));
        let mut beats = Vec::new();
        for waiting in &mut staying {
            if let Some((pause, next)) = &mut waiting.heartbeat
                && *next <= now.clock
            {
                *next = now.clock + *pause;
                beats.push(waiting.reply.clone());
            }
        }
        consumer.waiting = staying.into();
        if !ended.is_empty() {
            consumer.asked_at = now.clock;
        }
        let (consumer_sequence, stream_sequence) = consumer.delivered_floor();
        let lines =
            [("Nats-Last-Consumer", consumer_sequence.to_string()), ("Nats-Last-Stream", stream_sequence.to_string())];
        for reply in beats {
            self.tell(&reply, &status("100 Idle Heartbeat", &lines), &Bytes::new());
        }
        for waiting in ended {
            self.end_request(&waiting, "408 Request Timeout");
        }
    }
}
