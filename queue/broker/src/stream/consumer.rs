//! A consumer: a cursor in a stream, and the messages that are delivered but not settled.
//!
//! ```text
//!            delivery                  ack, term, message removed
//! (cursor) ───────────► awaiting ack ─────────────────────────────► (settled)
//!                         │      ▲
//!    ack_wait elapsed, nak│      │redelivery
//!                         ▼      │
//!                            due
//! ```
//!
//! Pull and push consumers are the same here: other code chooses the receiver of a message. With ack
//! policy `none`, no message awaits an ack; with `all`, an ack also settles earlier deliveries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::consumer_config::{AckPolicy, ConsumerConfig, ReplayPolicy};
use super::flow::Flow;
use super::messages::{Found, Messages};
use super::waiting::{Pin, Waiting};
use crate::nats::{is_literal, matches};

/// Shortest time after which an unused consumer may expire: each check costs time.
const INACTIVE_MIN: Duration = Duration::from_millis(100);

/// A consumer and the requests that wait for its messages.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) config: ConsumerConfig,
    /// Unix time in ns.
    pub(crate) created: i64,
    /// Sequence after the last message that it delivered for the first time.
    pub(super) cursor: u64,
    /// From the cursor up to here, there is nothing that it wants.
    looked: u64,
    /// Up to here it wants only the last message of each subject; 0 is off.
    pub(super) resume: u64,
    /// Deliveries so far.
    pub(super) consumer_sequence: u64,
    /// When it last delivered a message, Unix time in ns; 0 is never.
    pub(super) last_active: i64,
    /// Delivered and not settled.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Pending messages that are not due yet, by when they become due.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Pending messages that are due.
    due: BTreeSet<u64>,
    /// Messages that it wants and has never delivered.
    pub(super) unseen: u64,
    /// Whether `unseen` must be recounted.
    pub(super) is_miscounted: bool,
    /// Waiting requests, served in turn.
    pub(crate) waiting: VecDeque<Waiting>,
    /// The only client that is served, if one is pinned.
    pub(crate) pin: Option<Pin>,
    /// What is in flight to the receiver of a push consumer.
    pub(crate) flow: Flow,
    /// When the next idle heartbeat of a push consumer is due.
    pub(crate) heartbeat_at: Option<Instant>,
    /// Last request or subscription, for consumers that expire when unused.
    pub(crate) asked_at: Instant,
    /// When to retry a delivery that was not possible.
    pub(crate) retry_at: Option<Instant>,
    /// It delivers nothing before this, to keep its rate or the pauses between messages.
    pub(crate) not_before: Option<Instant>,
    /// When the last delivered message was stored, Unix time in ns, and when it was delivered.
    replayed: Option<(i64, Instant)>,
    /// When its timer is set to fire.
    pub(crate) scheduled: Option<Instant>,
}

/// A message that was delivered and is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) consumer_sequence: u64,
    /// How often it was delivered.
    pub(crate) count: u32,
    /// When it was last delivered.
    pub(crate) since: Instant,
    /// When it is redelivered; `None` is now.
    until: Option<Instant>,
    /// The same as Unix time in ns, if a client asked for the delay: it survives a restart.
    pub(super) put_off_until: Option<i64>,
}

impl Pending {
    /// Whether it may be redelivered now.
    pub(super) fn is_due(&self) -> bool {
        self.until.is_none()
    }

    /// Whether a client holds it and has not delayed it.
    pub(super) fn is_in_hand(&self) -> bool {
        self.until.is_some() && self.put_off_until.is_none()
    }

    /// When it is redelivered; `None` is now.
    #[cfg(test)]
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// The next delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handout {
    pub(crate) sequence: u64,
    pub(crate) consumer_sequence: u64,
    pub(crate) count: u32,
    /// Messages still undelivered after this one.
    pub(crate) unseen: u64,
}

/// Where a new consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) cursor: u64,
    /// Up to here only the last message of each subject counts; 0 is off.
    pub(crate) resume: u64,
}

impl Consumer {
    pub(super) fn new(id: u32, config: ConsumerConfig, created: i64, start: Start, now: Instant) -> Self {
        Self {
            id,
            name: config.name.clone().unwrap_or_default(),
            config,
            created,
            cursor: start.cursor,
            looked: start.cursor,
            resume: start.resume,
            consumer_sequence: 0,
            last_active: 0,
            pending: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            due: BTreeSet::new(),
            unseen: 0,
            is_miscounted: false,
            waiting: VecDeque::new(),
            pin: None,
            flow: Flow::default(),
            heartbeat_at: None,
            asked_at: now,
            retry_at: None,
            not_before: None,
            replayed: None,
            scheduled: None,
        }
    }

    /// Whether it survives a restart. The journal does not record other consumers.
    pub(crate) fn is_durable(&self) -> bool {
        self.config.durable_name.is_some()
    }

    /// Whether it wants messages with this subject.
    pub(super) fn wants_subject(&self, subject: &str) -> bool {
        let mut filters = self.config.filters().peekable();
        filters.peek().is_none() || filters.any(|filter| matches(filter.as_bytes(), subject.as_bytes()))
    }

    /// Whether it wants this message.
    fn wants(&self, message: Found<'_>, messages: &Messages) -> bool {
        let (sequence, subject) = (message.sequence(), message.subject());
        let is_last = || messages.sequences(&subject, sequence + 1).next().is_none_or(|next| next > self.resume);
        self.wants_subject(&subject) && (sequence > self.resume || is_last())
    }

    /// The next delivery: due messages before new ones, in the order of the stream.
    pub(super) fn next(&mut self, messages: &Messages) -> Option<Handout> {
        let consumer_sequence = self.consumer_sequence + 1;
        if let Some(sequence) = self.due.first() {
            let count = self.pending.get(sequence).map_or(1, |pending| pending.count + 1);
            return Some(Handout { sequence: *sequence, consumer_sequence, count, unseen: self.unseen });
        }
        if self.is_at_limit() || self.unseen == 0 {
            return None;
        }
        let from = self.looked.max(self.cursor);
        let mut filters = self.config.filters();
        let sequence = match (filters.next(), filters.next()) {
            // Look up a single subject, without reading the others.
            (Some(subject), None) if self.resume == 0 && is_literal(subject.as_bytes()) => {
                messages.sequences(subject, from).next()
            }
            _ => messages.from(from).find(|message| self.wants(*message, messages)).map(Found::sequence),
        };
        self.looked = sequence.unwrap_or(from);
        Some(Handout { sequence: sequence?, consumer_sequence, count: 1, unseen: self.unseen - 1 })
    }

    /// Whether as many messages are pending as `max_ack_pending` allows.
    pub(crate) fn is_at_limit(&self) -> bool {
        let limit = self.config.max_ack_pending;
        limit > 0 && self.pending.len() as u64 >= limit as u64
    }

    /// Whether it has a message to deliver, regardless of its limit.
    pub(crate) fn has_more(&self) -> bool {
        self.unseen > 0 || !self.due.is_empty()
    }

    pub(super) fn delivered(&mut self, sequence: u64, consumer_sequence: u64, count: u32, time: i64, now: Instant) {
        self.consumer_sequence = self.consumer_sequence.max(consumer_sequence);
        self.last_active = time;
        if sequence >= self.cursor {
            self.cursor = sequence + 1;
            self.unseen = self.unseen.saturating_sub(1);
        }
        if self.config.ack_policy == AckPolicy::None {
            return;
        }
        self.settle(sequence);
        let until = now + self.config.ack_wait(count);
        let pending = Pending { consumer_sequence, count, since: now, until: Some(until), put_off_until: None };
        self.pending.insert(sequence, pending);
        self.deadlines.insert((until, sequence));
    }

    /// Until when the next message must wait to keep the original pauses, if at all.
    pub(crate) fn replay_pause(&mut self, stored: i64, now: Instant) -> Option<Instant> {
        if self.config.replay_policy == ReplayPolicy::Instant {
            return None;
        }
        let (before, handed_out) = self.replayed?;
        let at = handed_out + Duration::from_nanos(stored.saturating_sub(before).max(0).unsigned_abs());
        (at > now).then_some(at)
    }

    /// Records a delivery, for the next pause.
    pub(crate) fn replayed(&mut self, stored: i64, now: Instant) {
        self.replayed = Some((stored, now));
    }

    /// The messages that an ack settles.
    pub(crate) fn settled_by(&self, sequence: u64) -> Vec<u64> {
        match self.config.ack_policy {
            AckPolicy::All => self.pending.range(..=sequence).map(|(sequence, _)| *sequence).collect(),
            AckPolicy::Explicit | AckPolicy::None => vec![sequence],
        }
    }

    pub(super) fn acked(&mut self, sequence: u64) {
        for sequence in self.settled_by(sequence) {
            self.settle(sequence);
        }
    }

    /// Ends deliveries of a message. Returns whether it was pending.
    pub(super) fn settle(&mut self, sequence: u64) -> bool {
        let Some(pending) = self.pending.remove(&sequence) else { return false };
        match pending.until {
            Some(until) => self.deadlines.remove(&(until, sequence)),
            None => self.due.remove(&sequence),
        }
    }

    /// Ends deliveries of a message that used up `max_deliver`.
    pub(crate) fn give_up(&mut self, sequence: u64) {
        self.settle(sequence);
    }

    /// Sets when a pending message is redelivered; `None` is at once.
    pub(super) fn postpone(&mut self, sequence: u64, until: Option<Instant>, put_off_until: Option<i64>) {
        let Some(pending) = self.pending.get(&sequence).copied() else { return };
        self.settle(sequence);
        match until {
            Some(until) => self.deadlines.insert((until, sequence)),
            None => self.due.insert(sequence),
        };
        self.pending.insert(sequence, Pending { until, put_off_until, ..pending });
    }

    /// Renews the lease of the client that holds a message.
    pub(crate) fn progress(&mut self, sequence: u64, now: Instant) {
        if let Some(Pending { count, until: Some(_), .. }) = self.pending.get(&sequence) {
            let until = now + self.config.ack_wait(*count);
            self.postpone(sequence, Some(until), None);
        }
    }

    /// Makes messages due whose deadline has passed. Returns those that it gives up because they used up
    /// `max_deliver`, with their delivery counts.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(u64, u32)> {
        let mut given_up = Vec::new();
        while let Some((until, sequence)) = self.deadlines.first().copied().filter(|(until, _)| *until <= now) {
            self.deadlines.remove(&(until, sequence));
            let Some(pending) = self.pending.get_mut(&sequence) else { continue };
            pending.until = None;
            self.due.insert(sequence);
            let count = pending.count;
            if self.is_used_up(count) {
                self.settle(sequence);
                given_up.push((sequence, count));
            }
        }
        given_up
    }

    /// Whether a message that was delivered `count` times has used up `max_deliver`.
    pub(crate) fn is_used_up(&self, count: u32) -> bool {
        self.config.max_deliver > 0 && i64::from(count) >= self.config.max_deliver
    }

    /// Restarts at a sequence and forgets pending deliveries.
    pub(super) fn reset(&mut self, cursor: u64) {
        (self.cursor, self.looked, self.consumer_sequence) = (cursor, cursor, 0);
        self.pending.clear();
        self.deadlines.clear();
        self.due.clear();
        self.replayed = None;
    }

    pub(super) fn removed(&mut self, sequence: u64, subject: &str) {
        if self.settle(sequence) || sequence < self.cursor || !self.wants_subject(subject) {
            return;
        }
        self.unseen = self.unseen.saturating_sub(1);
        // An earlier message of the subject may be its last one now.
        self.is_miscounted |= sequence <= self.resume;
    }

    pub(super) fn stored(&mut self, sequence: u64, subject: &str) {
        if sequence >= self.cursor && self.wants_subject(subject) {
            self.unseen += 1;
        }
    }

    /// Recounts `unseen` from the messages themselves.
    pub(super) fn recount(&mut self, messages: &Messages) {
        (self.looked, self.is_miscounted) = (self.cursor, false);
        let unseen = messages.from(self.cursor).filter(|message| self.wants(*message, messages)).count();
        self.unseen = unseen as u64;
    }

    /// Whether it still has to deliver the message, or waits for its ack.
    pub(super) fn needs(&self, message: Found<'_>, messages: &Messages) -> bool {
        let sequence = message.sequence();
        self.pending.contains_key(&sequence) || (sequence >= self.cursor && self.wants(message, messages))
    }

    /// A pending message that an ack of this one settles: itself or, with ack policy `all`, an earlier one.
    pub(crate) fn pending_at(&self, sequence: u64) -> Option<&Pending> {
        match self.config.ack_policy {
            AckPolicy::All => self.pending.range(..=sequence).next_back().map(|(_, pending)| pending),
            AckPolicy::Explicit | AckPolicy::None => self.pending.get(&sequence),
        }
    }

    pub(crate) fn pending_of(&self, sequence: u64) -> Option<&Pending> {
        self.pending.get(&sequence)
    }

    /// Messages that it wants and has never delivered.
    pub(crate) fn unseen(&self) -> u64 {
        self.unseen
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn redelivered(&self) -> usize {
        self.pending.values().filter(|pending| pending.count > 1).count()
    }

    /// The last delivery: consumer sequence and stream sequence.
    pub(crate) fn delivered_floor(&self) -> (u64, u64) {
        (self.consumer_sequence, self.cursor.saturating_sub(1))
    }

    /// Everything up to here is settled: consumer sequence and stream sequence.
    pub(crate) fn ack_floor(&self) -> (u64, u64) {
        match self.pending.first_key_value() {
            None => self.delivered_floor(),
            Some((sequence, _)) => {
                let first = self.pending.values().map(|pending| pending.consumer_sequence).min();
                (first.unwrap_or(1) - 1, sequence - 1)
            }
        }
    }

    /// When it last delivered a message, Unix time in ns; 0 is never.
    pub(crate) fn last_active(&self) -> i64 {
        self.last_active
    }

    /// When it must be checked again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let due = self.deadlines.first().map(|(until, _)| *until);
        let waiting = self
            .waiting
            .iter()
            .flat_map(|waiting| waiting.expires.into_iter().chain(waiting.heartbeat.map(|(_, next)| next)));
        let own = [due, self.ends_at(), self.retry_at, self.not_before, self.heartbeat_at];
        let pin = self.pin.as_ref().map(|pin| pin.until);
        own.into_iter().flatten().chain(waiting).chain(pin).min()
    }

    /// When it expires if it stays unused, if ever.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        let threshold = u64::try_from(self.config.inactive_threshold).ok().filter(|threshold| *threshold > 0)?;
        Some(self.asked_at + Duration::from_nanos(threshold).max(INACTIVE_MIN))
    }
}
