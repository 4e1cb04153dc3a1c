//! A stream and its consumers, and how changes apply to them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Refusal;
use super::config::{Retention, StreamConfig};
use super::consumer::{Consumer, Handout, Start};
use super::consumer_config::{ConsumerConfig, DeliverPolicy};
use super::dedupe::Dedupe;
use super::messages::{Arrival, Found, Messages};
use crate::journal::{Change, Indexed, LogPlace, Stored};
use crate::nats::{HeaderBlock, matches, overlaps};

/// Header with the id that identifies a repeated publish.
pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";

/// A point in time: on the calendar, and on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Unix time in ns.
    pub(crate) wall: i64,
    pub(crate) clock: Instant,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) config: StreamConfig,
    /// Unix time in ns.
    pub(crate) created: i64,
    pub(crate) messages: Messages,
    /// The last assigned sequence, 0 for none.
    pub(crate) last: u64,
    /// When it was assigned, Unix time in ns.
    pub(crate) last_time: i64,
    pub(super) dedupe: Dedupe,
    consumers: BTreeMap<u32, Consumer>,
    names: BTreeMap<String, u32>,
    next_consumer: u32,
    /// When its timer is set to fire.
    pub(crate) scheduled: Option<Instant>,
}

impl Stream {
    pub(crate) fn new(id: u32, config: StreamConfig, created: i64) -> Self {
        let last = config.first_seq.saturating_sub(1);
        Self {
            id,
            config,
            created,
            messages: Messages::default(),
            last,
            last_time: 0,
            dedupe: Dedupe::default(),
            consumers: BTreeMap::new(),
            names: BTreeMap::new(),
            next_consumer: 1,
            scheduled: None,
        }
    }

    /// The sequence of the first message, or of the next one if the stream is empty.
    pub(crate) fn first(&self) -> u64 {
        match self.messages.first() {
            Some(message) => message.sequence(),
            None if self.last == 0 => 0,
            None => self.last + 1,
        }
    }

    /// Applies a change. Adds places that are no longer needed to `freed`.
    ///
    /// # Errors
    /// What is wrong with a change that this program cannot have written.
    pub(crate) fn apply(
        &mut self,
        change: &Change<'_>,
        place: Option<LogPlace>,
        now: Now,
        freed: &mut Vec<LogPlace>,
    ) -> Result<(), String> {
        match *change {
            Change::Stored(ref stored) => {
                let place = place.ok_or("a message without a place")?;
                self.store(stored, place, freed)?;
            }
            Change::Indexed(ref indexed) => self.index(indexed, freed)?,
            Change::Removed { from, to, .. } => {
                let sequences: Vec<u64> =
                    self.messages.from(from).map(Found::sequence).take_while(|s| *s <= to).collect();
                sequences.into_iter().for_each(|sequence| self.remove(sequence, freed));
            }
            Change::ConsumerPut { consumer, created, start, resume, config, .. } => {
                let config: ConsumerConfig = serde_json::from_slice(config).map_err(|error| error.to_string())?;
                self.put_consumer(consumer, config, created, Start { cursor: start, resume }, now);
            }
            Change::ConsumerReset { consumer, start, .. } => {
                if let Some(consumer) = self.consumers.get_mut(&consumer) {
                    consumer.reset(start);
                    consumer.recount(&self.messages);
                }
            }
            Change::ConsumerDeleted { consumer, .. } => {
                self.next_consumer = self.next_consumer.max(consumer + 1);
                self.drop_consumer(consumer);
            }
            Change::Delivered { consumer, sequence, consumer_sequence, count, time, .. } => {
                let is_there = self.messages.get(sequence).is_some();
                if let Some(consumer) = self.consumers.get_mut(&consumer) {
                    consumer.delivered(sequence, consumer_sequence, count, time, now.clock);
                    // Only in recovery: a snapshot that is ahead already includes its later removal.
                    if !is_there {
                        consumer.settle(sequence);
                    }
                }
            }
            Change::Acked { consumer, sequence, .. } => {
                if let Some(consumer) = self.consumers.get_mut(&consumer) {
                    consumer.acked(sequence);
                }
                if self.config.retention == Retention::WorkQueue {
                    self.remove(sequence, freed);
                }
            }
            Change::Nakked { consumer, sequence, until, .. } => {
                let delay = u64::try_from(until.saturating_sub(now.wall)).ok().filter(|delay| *delay > 0);
                if let Some(consumer) = self.consumers.get_mut(&consumer) {
                    let at = delay.map(|delay| now.clock + Duration::from_nanos(delay));
                    consumer.postpone(sequence, at, at.map(|_| until));
                }
            }
            Change::Counted { last, last_time, .. } => {
                self.last = self.last.max(last);
                self.last_time = self.last_time.max(last_time);
            }
            Change::Registered { sequence, time, id, .. } => {
                let id = std::str::from_utf8(id).map_err(|error| error.to_string())?;
                self.dedupe.register(id, sequence, time, self.config.duplicate_window);
            }
            Change::Cursor { consumer, cursor, consumer_sequence, time, .. } => {
                if let Some(consumer) = self.consumers.get_mut(&consumer) {
                    consumer.cursor = consumer.cursor.max(cursor);
                    consumer.consumer_sequence = consumer.consumer_sequence.max(consumer_sequence);
                    consumer.last_active = consumer.last_active.max(time);
                }
            }
            Change::StreamPut { config, .. } => {
                self.config = serde_json::from_slice(config).map_err(|error| error.to_string())?;
            }
            Change::StreamDeleted { .. } => {
                let all: Vec<u64> = self.messages.from(0).map(Found::sequence).collect();
                all.into_iter().for_each(|sequence| self.remove(sequence, freed));
            }
        }
        // Once for all messages that were removed together.
        for consumer in self.consumers.values_mut().filter(|consumer| consumer.is_miscounted) {
            consumer.recount(&self.messages);
        }
        Ok(())
    }

    fn store(&mut self, stored: &Stored<'_>, place: LogPlace, freed: &mut Vec<LogPlace>) -> Result<(), String> {
        if !stored.moved
            && let Some(id) = HeaderBlock(stored.header).get(MESSAGE_ID).filter(|id| !id.is_empty())
        {
            self.dedupe.register(id, stored.sequence, stored.time, self.config.duplicate_window);
        }
        let indexed = Indexed {
            stream: self.id,
            sequence: stored.sequence,
            time: stored.time,
            expires: stored.expires,
            place,
            header_bytes: stored.header.len() as u32,
            payload_bytes: stored.payload.len() as u32,
            subject: stored.subject,
        };
        self.index(&indexed, freed)?;
        if stored.replaces != 0 {
            self.remove(stored.replaces, freed);
        }
        Ok(())
    }

    fn index(&mut self, indexed: &Indexed<'_>, freed: &mut Vec<LogPlace>) -> Result<(), String> {
        let Indexed { sequence, time, expires, place, header_bytes, payload_bytes, .. } = *indexed;
        let subject = std::str::from_utf8(indexed.subject).map_err(|error| error.to_string())?;
        if sequence > self.last {
            (self.last, self.last_time) = (sequence, time);
        }
        let position = place.position;
        if let Some(before) = self.messages.relocate(sequence, position) {
            freed.push(before);
            return Ok(());
        }
        self.messages.insert(&Arrival { sequence, position, time, expires, header_bytes, payload_bytes, subject });
        self.consumers.values_mut().for_each(|consumer| consumer.stored(sequence, subject));
        Ok(())
    }

    fn remove(&mut self, sequence: u64, freed: &mut Vec<LogPlace>) {
        if let Some(gone) = self.messages.remove(sequence) {
            self.consumers.values_mut().for_each(|consumer| consumer.removed(sequence, &gone.subject));
            freed.push(gone.place);
        }
    }

    fn drop_consumer(&mut self, id: u32) {
        // In recovery, another consumer may have the name: the snapshot may include later changes.
        if let Some(gone) = self.consumers.remove(&id)
            && self.names.get(&gone.name) == Some(&id)
        {
            self.names.remove(&gone.name);
        }
    }

    fn put_consumer(&mut self, id: u32, config: ConsumerConfig, created: i64, start: Start, now: Now) {
        self.next_consumer = self.next_consumer.max(id + 1);
        match self.consumers.get_mut(&id) {
            Some(consumer) => consumer.config = config,
            None => {
                self.consumers.insert(id, Consumer::new(id, config, created, start, now.clock));
            }
        }
        if let Some(consumer) = self.consumers.get_mut(&id) {
            self.names.insert(consumer.name.clone(), id);
            consumer.recount(&self.messages);
        }
    }

    /// After recovery: recounts what the changes only counted in passing, and drops consumers that do
    /// not survive a restart.
    pub(crate) fn recovered(&mut self) {
        let ephemeral: Vec<u32> =
            self.consumers.values().filter(|c| c.config.durable_name.is_none()).map(|c| c.id).collect();
        for id in ephemeral {
            self.drop_consumer(id);
        }
        for consumer in self.consumers.values_mut() {
            let gone: Vec<u64> =
                consumer.pending.keys().copied().filter(|sequence| self.messages.get(*sequence).is_none()).collect();
            for sequence in gone {
                consumer.settle(sequence);
            }
            consumer.recount(&self.messages);
        }
        // The journal may have the last ack of a message without the removal that followed.
        for (from, to) in self.unneeded(self.messages.from(0).map(Found::sequence)) {
            let gone: Vec<u64> = self.messages.from(from).map(Found::sequence).take_while(|s| *s <= to).collect();
            gone.into_iter().for_each(|sequence| self.remove(sequence, &mut Vec::new()));
        }
    }

    /// After recovery: no delay is longer than the client asked for, even if the clock has been set back
    /// since. `newest` is the latest date known to have passed.
    pub(crate) fn cap_delays(&mut self, newest: i64, now: Now) {
        let wall = now.wall.max(newest);
        for consumer in self.consumers.values_mut() {
            let put_off: Vec<(u64, i64)> =
                consumer.pending.iter().filter_map(|(s, pending)| Some((*s, pending.put_off_until?))).collect();
            for (sequence, until) in put_off {
                let left = u64::try_from(until.saturating_sub(wall)).ok().filter(|left| *left > 0);
                let at = left.map(|left| now.clock + Duration::from_nanos(left));
                consumer.postpone(sequence, at, at.map(|_| until));
            }
        }
    }

    /// After recovery, if the clients that held messages are known to have ended: redelivers their messages
    /// at once, not when the leases expire.
    pub(crate) fn release_in_hand(&mut self, now: Instant) {
        for consumer in self.consumers.values_mut() {
            let in_hand: Vec<u64> = consumer.pending.iter().filter(|(_, p)| p.is_in_hand()).map(|(s, _)| *s).collect();
            // By a deadline, so that messages that used up their deliveries are still given up.
            in_hand.into_iter().for_each(|sequence| consumer.postpone(sequence, Some(now), None));
        }
    }

    /// The messages among `sequences` that no consumer needs any more, as ranges; none unless retention
    /// is by interest.
    pub(crate) fn unneeded(&self, sequences: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
        if self.config.retention != Retention::Interest {
            return Vec::new();
        }
        let is_needed = |sequence| {
            self.messages
                .get(sequence)
                .is_none_or(|message| self.consumers.values().any(|consumer| consumer.needs(message, &self.messages)))
        };
        sequences.into_iter().filter(|sequence| !is_needed(*sequence)).map(|s| (s, s)).collect()
    }

    /// Whether a new message must be kept: with retention by interest, only if a consumer wants it.
    pub(crate) fn has_interest(&self, subject: &str) -> bool {
        self.config.retention != Retention::Interest || self.consumers.values().any(|c| c.wants_subject(subject))
    }

    pub(crate) fn consumer(&self, name: &str) -> Option<&Consumer> {
        self.consumers.get(self.names.get(name)?)
    }

    pub(crate) fn consumer_mut(&mut self, name: &str) -> Option<&mut Consumer> {
        self.consumers.get_mut(self.names.get(name)?)
    }

    pub(crate) fn consumer_of(&self, id: u32) -> Option<&Consumer> {
        self.consumers.get(&id)
    }

    pub(crate) fn consumer_by_id(&mut self, id: u32) -> Option<&mut Consumer> {
        self.consumers.get_mut(&id)
    }

    /// All consumers, by name.
    pub(crate) fn consumers(&self) -> impl Iterator<Item = &Consumer> {
        self.names.values().filter_map(|id| self.consumers.get(id))
    }

    /// All consumers, mutable.
    pub(crate) fn consumers_mut(&mut self) -> impl Iterator<Item = &mut Consumer> {
        self.consumers.values_mut()
    }

    /// Push consumers, and pull consumers with waiting requests.
    pub(crate) fn awaited(&self) -> Vec<u32> {
        let is_awaited = |consumer: &&Consumer| consumer.config.is_push() || !consumer.waiting.is_empty();
        self.consumers.values().filter(is_awaited).map(|consumer| consumer.id).collect()
    }

    /// The next delivery of a consumer.
    pub(crate) fn next_handout(&mut self, consumer: u32) -> Option<Handout> {
        self.consumers.get_mut(&consumer)?.next(&self.messages)
    }

    /// Id and start of a new consumer, if it is allowed.
    pub(crate) fn admit_consumer(&self, config: &ConsumerConfig) -> Result<(u32, Start), Refusal> {
        if StreamConfig::limit(self.config.max_consumers).is_some_and(|max| self.consumers.len() as u64 >= max) {
            return Err(Refusal::consumers_reached());
        }
        self.check_share(config, None)?;
        Ok((self.next_consumer, self.start_of(config)))
    }

    /// Checks that no message of a work queue is for two consumers; `own` is the one being updated.
    pub(crate) fn check_share(&self, config: &ConsumerConfig, own: Option<u32>) -> Result<(), Refusal> {
        if self.config.retention == Retention::WorkQueue {
            let others: Vec<_> = self.consumers.iter().filter(|(id, _)| Some(**id) != own).collect();
            if config.filters().next().is_none() && !others.is_empty() {
                return Err(Refusal::work_queue_one());
            }
            let mut others = others.into_iter().map(|(_, consumer)| &consumer.config);
            let meets = |other: &ConsumerConfig| {
                let mut pairs = other.filters().flat_map(|one| config.filters().map(move |two| (one, two)));
                other.filters().next().is_none() || pairs.any(|(one, two)| overlaps(one.as_bytes(), two.as_bytes()))
            };
            if others.any(meets) {
                return Err(Refusal::work_queue_overlap());
            }
        }
        Ok(())
    }

    /// Where a consumer with this configuration would begin now.
    fn start_of(&self, config: &ConsumerConfig) -> Start {
        let next = self.last + 1;
        let at = |cursor| Start { cursor, resume: 0 };
        match config.deliver_policy {
            DeliverPolicy::All => at(1),
            DeliverPolicy::LastPerSubject => {
                let wants =
                    |subject: &str| config.filters().any(|filter| matches(filter.as_bytes(), subject.as_bytes()));
                let wanted = self.messages.all_ends().filter(|(subject, _)| wants(subject));
                let first = wanted.map(|(_, (_, last))| last).min();
                Start { cursor: first.unwrap_or(next), resume: self.last }
            }
            DeliverPolicy::New => at(next),
            DeliverPolicy::Last => {
                let mut filters = config.filters().peekable();
                let last = match filters.peek() {
                    None => self.messages.last().map_or(0, Found::sequence),
                    Some(_) => filters.map(|filter| self.last_of(filter)).max().unwrap_or(0),
                };
                at(if last == 0 { next } else { last })
            }
            DeliverPolicy::ByStartSequence => at(config.opt_start_seq),
            DeliverPolicy::ByStartTime => {
                let from = config.start_time().unwrap_or_default();
                at(self.messages.from(0).find(|message| message.time() >= from).map_or(next, Found::sequence))
            }
        }
    }

    /// The messages that a purge removes, as ranges of sequences.
    pub(crate) fn purged(&self, filter: Option<&str>, before: Option<u64>, keep: Option<u64>) -> Vec<(u64, u64)> {
        let wants = |subject: &str| filter.is_none_or(|filter| matches(filter.as_bytes(), subject.as_bytes()));
        let mut sequences: Vec<u64> = match filter {
            // Look up a single subject: a purge of one job must not read the whole queue.
            Some(subject) if crate::nats::is_literal(subject.as_bytes()) => {
                self.messages.sequences(subject, 0).collect()
            }
            _ => self.messages.from(0).filter(|message| wants(&message.subject())).map(Found::sequence).collect(),
        };
        if let Some(before) = before {
            sequences.retain(|sequence| *sequence < before);
        }
        if let Some(keep) = keep {
            sequences.truncate(sequences.len().saturating_sub(keep as usize));
        }
        // Two sequences are in one range if no message between them stays.
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for sequence in sequences {
            match ranges.last_mut() {
                Some((_, to)) if self.messages.from(*to + 1).next().is_some_and(|next| next.sequence() == sequence) => {
                    *to = sequence;
                }
                _ => ranges.push((sequence, sequence)),
            }
        }
        ranges
    }
}
