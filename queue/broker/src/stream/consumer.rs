//! A consumer: a cursor in a stream, and what was handed out and is not settled.
//!
//! ```text
//!            handout             ack, term, message removed
//! (cursor) ──────────► in hand ─────────────────────────────► (gone)
//!                      │     ▲
//!    ack_wait over, nak│     │handout again
//!                      ▼     │
//!                        due
//! ```
//!
//! Pulled or pushed, it is the same: who gets a message is decided elsewhere. With ack policy `none`
//! nothing is ever in hand; with `all` an ack settles what was handed out before as well.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::consumer_config::{AckPolicy, ConsumerConfig, ReplayPolicy};
use super::flow::Flow;
use super::messages::{Found, Messages};
use super::waiting::{Pin, Waiting};
use crate::nats::{is_literal, matches};

/// The shortest time after which an unused consumer may end: each check costs time.
const INACTIVE_MIN: Duration = Duration::from_millis(100);

/// A consumer and the requests that wait for its messages.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) config: ConsumerConfig,
    /// Unix time in ns.
    pub(crate) created: i64,
    /// Behind the last message that it has handed out for the first time.
    pub(super) cursor: u64,
    /// Between the cursor and here is nothing that it wants.
    looked: u64,
    /// Up to here it wants only the last message of each subject; 0 is nowhere.
    pub(super) resume: u64,
    /// Deliveries so far.
    pub(super) consumer_sequence: u64,
    /// When it last handed something out, Unix time in ns; 0 is never.
    pub(super) last_active: i64,
    /// Handed out and not settled.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// The pending ones that are in hand, by when they become due.
    deadlines: BTreeSet<(Instant, u64)>,
    /// The pending ones that are due.
    due: BTreeSet<u64>,
    /// Messages that it wants and has never handed out.
    pub(super) unseen: u64,
    /// They have to be counted anew.
    pub(super) is_miscounted: bool,
    /// Requests that wait, served in turn.
    pub(crate) waiting: VecDeque<Waiting>,
    /// The client that alone is served, where one is.
    pub(crate) pin: Option<Pin>,
    /// What is on its way to the receiver of a push consumer.
    pub(crate) flow: Flow,
    /// When the receiver of a push consumer hears from it at the latest.
    pub(crate) heartbeat_at: Option<Instant>,
    /// Last request or subscription, for consumers that end when they are unused.
    pub(crate) asked_at: Instant,
    /// When to try again what could not be handed out just now.
    pub(crate) retry_at: Option<Instant>,
    /// Not before this may it go on, to keep its rate or the pauses of its messages.
    pub(crate) not_before: Option<Instant>,
    /// When the message that was handed out last was stored, Unix time in ns, and when it was handed out.
    replayed: Option<(i64, Instant)>,
    /// The timer that is set for it.
    pub(crate) scheduled: Option<Instant>,
}

/// A message that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) consumer_sequence: u64,
    /// How often it was handed out.
    pub(crate) count: u32,
    /// When it was handed out last.
    pub(crate) since: Instant,
    /// When it comes again; `None` is now.
    until: Option<Instant>,
    /// The same as a date, if a client asked for the delay: it outlives a restart.
    pub(super) put_off_until: Option<i64>,
}

impl Pending {
    /// Whether it comes again now.
    pub(super) fn is_due(&self) -> bool {
        self.until.is_none()
    }

    /// Whether a client has it, rather than having put it off.
    pub(super) fn is_in_hand(&self) -> bool {
        self.until.is_some() && self.put_off_until.is_none()
    }

    /// When it comes again; `None` is now.
    #[cfg(test)]
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// What to hand out next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handout {
    pub(crate) sequence: u64,
    pub(crate) consumer_sequence: u64,
    pub(crate) count: u32,
    /// Messages that were never handed out, after this one.
    pub(crate) unseen: u64,
}

/// Where a new consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) cursor: u64,
    /// Up to here only the last message of each subject counts; 0 is nowhere.
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

    /// Whether it outlives the process. What others do is not written down.
    pub(crate) fn is_durable(&self) -> bool {
        self.config.durable_name.is_some()
    }

    /// Whether a subject is one of its.
    pub(super) fn wants_subject(&self, subject: &str) -> bool {
        let mut filters = self.config.filters().peekable();
        filters.peek().is_none() || filters.any(|filter| matches(filter.as_bytes(), subject.as_bytes()))
    }

    /// Whether a message is one of its.
    fn wants(&self, message: Found<'_>, messages: &Messages) -> bool {
        let (sequence, subject) = (message.sequence(), message.subject());
        let is_last = || messages.sequences(&subject, sequence + 1).next().is_none_or(|next| next > self.resume);
        self.wants_subject(&subject) && (sequence > self.resume || is_last())
    }

    /// What comes next: what is due before what is new, in the order of the stream.
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
            // One subject is looked up; the others need not be read for it.
            (Some(subject), None) if self.resume == 0 && is_literal(subject.as_bytes()) => {
                messages.sequences(subject, from).next()
            }
            _ => messages.from(from).find(|message| self.wants(*message, messages)).map(Found::sequence),
        };
        self.looked = sequence.unwrap_or(from);
        Some(Handout { sequence: sequence?, consumer_sequence, count: 1, unseen: self.unseen - 1 })
    }

    /// Whether as much is in hand as may be.
    pub(crate) fn is_at_limit(&self) -> bool {
        let limit = self.config.max_ack_pending;
        limit > 0 && self.pending.len() as u64 >= limit as u64
    }

    /// Whether there is anything that it could hand out if it were not at its limit.
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

    /// How long the message that comes next has to wait so that the old pauses are kept.
    pub(crate) fn replay_pause(&mut self, stored: i64, now: Instant) -> Option<Instant> {
        if self.config.replay_policy == ReplayPolicy::Instant {
            return None;
        }
        let (before, handed_out) = self.replayed?;
        let at = handed_out + Duration::from_nanos(stored.saturating_sub(before).max(0).unsigned_abs());
        (at > now).then_some(at)
    }

    /// Remembers what was handed out for the next pause.
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

    /// No more deliveries of a message. Whether it was pending.
    pub(super) fn settle(&mut self, sequence: u64) -> bool {
        let Some(pending) = self.pending.remove(&sequence) else { return false };
        match pending.until {
            Some(until) => self.deadlines.remove(&(until, sequence)),
            None => self.due.remove(&sequence),
        }
    }

    /// No more deliveries of a message that was handed out as often as it may be.
    pub(crate) fn give_up(&mut self, sequence: u64) {
        self.settle(sequence);
    }

    /// Puts off when a pending message comes again; `None` is at once.
    pub(super) fn postpone(&mut self, sequence: u64, until: Option<Instant>, put_off_until: Option<i64>) {
        let Some(pending) = self.pending.get(&sequence).copied() else { return };
        self.settle(sequence);
        match until {
            Some(until) => self.deadlines.insert((until, sequence)),
            None => self.due.insert(sequence),
        };
        self.pending.insert(sequence, Pending { until, put_off_until, ..pending });
    }

    /// The holder of a message needs more time.
    pub(crate) fn progress(&mut self, sequence: u64, now: Instant) {
        if let Some(Pending { count, until: Some(_), .. }) = self.pending.get(&sequence) {
            let until = now + self.config.ack_wait(*count);
            self.postpone(sequence, Some(until), None);
        }
    }

    /// Makes due what was in hand for too long. Returns the messages that are given up, because they
    /// were handed out as often as they may be, with that count.
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

    /// Whether a message that was handed out so often may not be handed out again.
    pub(crate) fn is_used_up(&self, count: u32) -> bool {
        self.config.max_deliver > 0 && i64::from(count) >= self.config.max_deliver
    }

    /// Begins anew at a sequence; what was in hand is forgotten.
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

    /// Counts what it has never handed out, from the messages themselves.
    pub(super) fn recount(&mut self, messages: &Messages) {
        (self.looked, self.is_miscounted) = (self.cursor, false);
        let unseen = messages.from(self.cursor).filter(|message| self.wants(*message, messages)).count();
        self.unseen = unseen as u64;
    }

    /// Whether it has still to hand out a message, or to hear what became of it.
    pub(super) fn needs(&self, message: Found<'_>, messages: &Messages) -> bool {
        let sequence = message.sequence();
        self.pending.contains_key(&sequence) || (sequence >= self.cursor && self.wants(message, messages))
    }

    /// A pending message that an ack of this one settles: itself, or with ack policy `all` one before.
    pub(crate) fn pending_at(&self, sequence: u64) -> Option<&Pending> {
        match self.config.ack_policy {
            AckPolicy::All => self.pending.range(..=sequence).next_back().map(|(_, pending)| pending),
            AckPolicy::Explicit | AckPolicy::None => self.pending.get(&sequence),
        }
    }

    pub(crate) fn pending_of(&self, sequence: u64) -> Option<&Pending> {
        self.pending.get(&sequence)
    }

    /// Messages that it has never handed out.
    pub(crate) fn unseen(&self) -> u64 {
        self.unseen
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn redelivered(&self) -> usize {
        self.pending.values().filter(|pending| pending.count > 1).count()
    }

    /// The last delivery: consumer's sequence and stream's sequence.
    pub(crate) fn delivered_floor(&self) -> (u64, u64) {
        (self.consumer_sequence, self.cursor.saturating_sub(1))
    }

    /// Everything up to here is settled: consumer's sequence and stream's sequence.
    pub(crate) fn ack_floor(&self) -> (u64, u64) {
        match self.pending.first_key_value() {
            None => self.delivered_floor(),
            Some((sequence, _)) => {
                let first = self.pending.values().map(|pending| pending.consumer_sequence).min();
                (first.unwrap_or(1) - 1, sequence - 1)
            }
        }
    }

    /// When it last handed something out, Unix time in ns; 0 is never.
    pub(crate) fn last_active(&self) -> i64 {
        self.last_active
    }

    /// When it has to be checked again.
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

    /// When it ends if it stays unused, if it ever does.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        let threshold = u64::try_from(self.config.inactive_threshold).ok().filter(|threshold| *threshold > 0)?;
        Some(self.asked_at + Duration::from_nanos(threshold).max(INACTIVE_MIN))
    }
}
