//! Delivering messages: to pull requests in turn, or to subscribers of a push subject.

use std::time::Duration;

use bytes::Bytes;

use super::client::{Body, Stored};
use super::core::Core;
use crate::journal::Change;
use crate::journal::change::stored_header_start;
use crate::journal::frame::FRAME_BYTES;
use crate::nats::{HEADER_START, block, status};
use crate::stream::config::Retention;
use crate::stream::{Found, Handout, Message, Now, Pin, PriorityPolicy, Waiting};

/// Pause before delivering more to a client whose outbox is rather full.
const CONGESTION_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a delivery is retried that there was no disk space to record.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// The receiver of the next message.
#[derive(Debug, Clone, Copy)]
enum Receiver {
    /// The waiting request at this index.
    Request(usize),
    /// Subscribers of the consumer's push subject.
    Listener,
}

impl Core {
    /// Serves all consumers of a stream that push or have waiting requests.
    pub(super) fn serve_all(&mut self, id: u32, now: Now) {
        let awaited = self.streams.get(&id).map(crate::stream::Stream::awaited).unwrap_or_default();
        for consumer in awaited {
            self.serve(id, consumer, now);
            self.schedule(id, consumer, now);
        }
    }

    /// Delivers available messages to waiting receivers in turn, one message at a time.
    pub(super) fn serve(&mut self, id: u32, consumer: u32, now: Now) {
        while let Some(receiver) = self.receiver(id, consumer, now)
            && self.hand_out(id, consumer, receiver, now).is_some()
        {}
    }

    /// The receiver of the next message; none if it has to wait or does not exist.
    fn receiver(&mut self, id: u32, consumer_id: u32, now: Now) -> Option<Receiver> {
        let Self { subscriptions, streams, outgoing, .. } = self;
        let consumer = streams.get_mut(&id)?.consumer_by_id(consumer_id)?;
        consumer.retry_at = None;
        consumer.not_before = consumer.not_before.filter(|at| *at > now.clock);
        let paused_for = consumer.config.paused_until().saturating_sub(now.wall);
        if paused_for > 0 {
            consumer.retry_at = Some(now.clock + Duration::from_nanos(paused_for.unsigned_abs()));
            return None;
        }
        if consumer.not_before.is_some() || !consumer.has_more() {
            return None;
        }
        let deserted = consumer.wrongly_pinned();
        if !deserted.is_empty() {
            deserted.iter().for_each(|waiting| self.end_request(waiting, "423 Nats-Wrong-Pin-Id"));
            return self.receiver(id, consumer_id, now);
        }
        loop {
            let (receiver, subject) = if consumer.config.is_push() {
                if consumer.flow.stalled_by().is_some() {
                    return None;
                }
                (Receiver::Listener, consumer.config.deliver_subject.as_bytes())
            } else {
                let turn = consumer.turn()?;
                (Receiver::Request(turn), &consumer.waiting[turn].reply[..])
            };
            let group = consumer.config.group();
            let (mut is_heard, mut is_congested) = (false, false);
            subscriptions.find(subject, &mut |handle| {
                let client = &handle.0.client;
                is_heard |= matches!(receiver, Receiver::Request(_)) || handle.0.queue.as_deref() == group;
                is_congested |= client.is_congested(outgoing.to(client).bytes());
            });
            if is_heard && is_congested {
                consumer.retry_at = Some(now.clock + CONGESTION_PAUSE);
                return None;
            }
            match receiver {
                _ if is_heard => return Some(receiver),
                // No subscriber: a message sent there would be lost until its lease expires.
                Receiver::Request(turn) => drop(consumer.waiting.remove(turn)),
                Receiver::Listener => return None,
            }
        }
    }

    /// Delivers one message; `None` if no more can be delivered for now.
    fn hand_out(&mut self, id: u32, consumer_id: u32, receiver: Receiver, now: Now) -> Option<()> {
        let stream = self.streams.get_mut(&id)?;
        let handout = stream.next_handout(consumer_id)?;
        let message = stream.messages.get(handout.sequence)?.take_out();
        let stream_name = stream.config.name.clone();
        let consumer = stream.consumer_by_id(consumer_id)?;
        if handout.count == 1
            && let Some(at) = consumer.replay_pause(message.time, now.clock)
        {
            consumer.not_before = Some(at);
            return None;
        }
        let reply = ack_subject(&stream_name, &consumer.name, &handout, &message);
        let headers_only = consumer.config.headers_only;
        let payload_bytes = if headers_only { 0 } else { message.payload_bytes };
        let size =
            (message.subject.len() + reply.len()) as u64 + u64::from(message.header_bytes) + u64::from(payload_bytes);
        let mut waiting = match receiver {
            Receiver::Request(turn) => consumer.waiting.remove(turn),
            Receiver::Listener => None,
        };
        if let Some(waiting) = waiting.take_if(|waiting| waiting.bytes.is_some_and(|left| size > left)) {
            self.end_request(&waiting, "409 Message Size Exceeds MaxBytes");
            return Some(());
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
            // No disk space even to record that: the request keeps waiting.
            let consumer = self.consumer(id, consumer_id)?;
            consumer.waiting.extend(waiting);
            consumer.waiting.rotate_right(usize::from(matches!(receiver, Receiver::Request(_))));
            consumer.retry_at = Some(now.clock + FULL_PAUSE);
            return None;
        }
        self.consumer(id, consumer_id)?.replayed(message.time, now.clock);
        if let Some(waiting) = &mut waiting {
            self.pin(id, consumer_id, waiting, now);
        }
        let pin = waiting.as_ref().and_then(|waiting| waiting.priority.pin.clone());
        let payload_text = message.payload_bytes.to_string();
        let mut lines = Vec::new();
        if headers_only {
            lines.push(("Nats-Msg-Size", payload_text.as_str()));
        }
        if let Some(pin) = &pin {
            lines.push(("Nats-Pin-Id", pin.as_str()));
        }
        let mut stored = self.stored(id, &message, &lines);
        stored.payload_bytes = payload_bytes as usize;
        let body = Body::Stored(stored);
        // The receiver sees the message's own subject.
        let subject = match &waiting {
            Some(waiting) => waiting.reply.clone(),
            None => Bytes::from(self.consumer(id, consumer_id)?.config.deliver_subject.clone()),
        };
        self.route_as(&subject, message.subject.as_bytes(), Some(reply.as_bytes()), &body, None);
        match waiting {
            Some(waiting) => self.requeue(id, consumer_id, waiting, size, now),
            None => self.pushed(id, consumer_id, size, now),
        }
        // Without acks, a message that all consumers have seen can be removed now.
        self.remove_unneeded(id, &[handout.sequence], now);
        Some(())
    }

    /// Pins the consumer to the client whose request is served, or extends its pin.
    fn pin(&mut self, id: u32, consumer_id: u32, waiting: &mut Waiting, now: Now) {
        let Some(consumer) = self.consumer(id, consumer_id) else { return };
        if consumer.config.priority_policy != PriorityPolicy::PinnedClient {
            return;
        }
        let until = now.clock + consumer.pin_timeout();
        if let Some(pin) = &mut consumer.pin {
            pin.until = until;
            return;
        }
        let pin = Pin { id: uuid::Uuid::new_v4().simple().to_string(), since: now.wall, until };
        waiting.priority.pin = Some(pin.id.clone());
        consumer.pin = Some(pin.clone());
        self.advise_pin(id, consumer_id, "PINNED", ("pinned_id", &pin.id), now);
    }

    /// Puts a served request back into the queue, if it wants more.
    fn requeue(&mut self, id: u32, consumer_id: u32, mut waiting: Waiting, size: u64, now: Now) {
        waiting.batch -= 1;
        if let Some(left) = &mut waiting.bytes {
            *left -= size;
            if *left == 0 && waiting.batch > 0 {
                return self.end_request(&waiting, "409 Batch Completed");
            }
        }
        if let Some((pause, next)) = &mut waiting.heartbeat {
            *next = now.clock + *pause;
        }
        let Some(consumer) = self.consumer(id, consumer_id) else { return };
        if waiting.batch > 0 {
            consumer.waiting.push_back(waiting);
        } else {
            consumer.asked_at = now.clock;
        }
    }

    /// Removes those of the given messages that are kept only for consumers and that none needs any more.
    pub(super) fn remove_unneeded(&mut self, id: u32, sequences: &[u64], now: Now) {
        let unneeded = self.streams.get(&id).map(|stream| stream.unneeded(sequences.iter().copied()));
        for (from, to) in unneeded.unwrap_or_default() {
            if self.change(&Change::Removed { stream: id, from, to }, false, now).is_err() {
                tracing::warn!(stream = id, "disk full: removal not written; the next start repeats it");
            }
        }
    }

    /// Like `remove_unneeded`, for all messages of a stream: a consumer was deleted or changed.
    pub(super) fn remove_all_unneeded(&mut self, id: u32, now: Now) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.config.retention == Retention::Interest) else {
            return;
        };
        let all: Vec<u64> = stream.messages.from(0).map(Found::sequence).collect();
        self.remove_unneeded(id, &all, now);
    }

    /// A stored message's contents, with further header lines.
    pub(super) fn stored(&mut self, stream: u32, message: &Message, lines: &[(&str, &str)]) -> Stored {
        let extra = (!lines.is_empty()).then(|| {
            let block = block(lines);
            // After the message's own lines, if it has any.
            if message.header_bytes == 0 { block } else { block.slice(HEADER_START.len()..) }
        });
        Stored {
            source: self.journal.read(message.place),
            of: (stream, message.sequence),
            place: message.place,
            start: FRAME_BYTES + stored_header_start(message.subject.len()),
            header_bytes: message.header_bytes as usize,
            payload_bytes: message.payload_bytes as usize,
            extra,
        }
    }

    /// Ends a request with a status that states how much of it is unused.
    pub(super) fn end_request(&mut self, waiting: &Waiting, line: &str) {
        let rest = [
            ("Nats-Pending-Messages", waiting.batch.to_string()),
            ("Nats-Pending-Bytes", waiting.bytes.unwrap_or(0).to_string()),
        ];
        self.tell(&waiting.reply, &status(line, &rest), &Bytes::new());
    }
}

/// The subject on which a delivery is settled.
fn ack_subject(stream: &str, consumer: &str, handout: &Handout, message: &Message) -> String {
    let Handout { sequence, consumer_sequence, count, unseen } = handout;
    format!("$JS.ACK.{stream}.{consumer}.{count}.{sequence}.{consumer_sequence}.{}.{unseen}", message.time)
}
