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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::config::{AckPolicy, ConsumerConfig};
use super::messages::Messages;
use crate::nats::matches;

/// A consumer and whoever waits for its messages.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) config: ConsumerConfig,
    /// Unix time in ns.
    pub(crate) created: i64,
    /// Where it looks for messages that it has never handed out.
    pub(super) cursor: u64,
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
    /// Messages that match and were never handed out.
    pub(super) unseen: u64,
    /// Requests that wait, served in turn.
    pub(crate) waiting: VecDeque<Waiting>,
    /// When somebody last asked, for consumers that end when nobody does.
    pub(crate) asked_at: Instant,
    /// When to try again what could not be handed out just now.
    pub(crate) retry_at: Option<Instant>,
    /// The timer that is set for it.
    pub(crate) scheduled: Option<Instant>,
}

/// A message that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) consumer_sequence: u64,
    /// How often it was handed out.
    pub(crate) count: u32,
    /// When it comes again; `None` is now.
    until: Option<Instant>,
    /// The same on the calendar, if somebody asked for the delay: it outlives a restart.
    pub(super) put_off_until: Option<i64>,
}

impl Pending {
    /// Whether it comes again now.
    pub(super) fn is_due(&self) -> bool {
        self.until.is_none()
    }

    /// When it comes again; `None` is now.
    #[cfg(test)]
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// A request for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Where messages and statuses go.
    pub(crate) reply: Bytes,
    /// Messages that it still takes.
    pub(crate) batch: u32,
    /// Bytes that it still takes, if that is bounded.
    pub(crate) bytes: Option<u64>,
    pub(crate) expires: Option<Instant>,
    /// The pause after which a sign of life is due, and when the next one is.
    pub(crate) heartbeat: Option<(Duration, Instant)>,
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

impl Consumer {
    pub(super) fn new(id: u32, config: ConsumerConfig, created: i64, start: u64, now: Instant) -> Self {
        Self {
            id,
            name: config.name.clone().unwrap_or_default(),
            config,
            created,
            cursor: start,
            consumer_sequence: 0,
            last_active: 0,
            pending: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            due: BTreeSet::new(),
            unseen: 0,
            waiting: VecDeque::new(),
            asked_at: now,
            retry_at: None,
            scheduled: None,
        }
    }

    /// Whether a subject is one of its.
    pub(super) fn wants(&self, subject: &str) -> bool {
        let mut filters = self.config.filters().peekable();
        filters.peek().is_none() || filters.any(|filter| matches(filter.as_bytes(), subject.as_bytes()))
    }

    /// What comes next: what is due before what is new, in the order of the stream.
    pub(super) fn next(&self, messages: &Messages) -> Option<Handout> {
        let consumer_sequence = self.consumer_sequence + 1;
        if let Some(sequence) = self.due.first() {
            let count = self.pending.get(sequence).map_or(1, |pending| pending.count + 1);
            return Some(Handout { sequence: *sequence, consumer_sequence, count, unseen: self.unseen });
        }
        if self.is_at_limit() || self.unseen == 0 {
            return None;
        }
        let (sequence, _) = messages.from(self.cursor).find(|(_, message)| self.wants(&message.subject))?;
        Some(Handout { sequence, consumer_sequence, count: 1, unseen: self.unseen - 1 })
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
        let pending = Pending { consumer_sequence, count, until: Some(until), put_off_until: None };
        self.pending.insert(sequence, pending);
        self.deadlines.insert((until, sequence));
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

    pub(super) fn removed(&mut self, sequence: u64, subject: &str) {
        if !self.settle(sequence) && sequence >= self.cursor && self.wants(subject) {
            self.unseen = self.unseen.saturating_sub(1);
        }
    }

    pub(super) fn stored(&mut self, sequence: u64, subject: &str) {
        if sequence >= self.cursor && self.wants(subject) {
            self.unseen += 1;
        }
    }

    /// Counts what it has never handed out, from the messages themselves.
    pub(super) fn recount(&mut self, messages: &Messages) {
        let unseen = messages.from(self.cursor).filter(|(_, message)| self.wants(&message.subject)).count();
        self.unseen = unseen as u64;
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
        (self.consumer_sequence, if self.consumer_sequence == 0 { 0 } else { self.cursor - 1 })
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

    /// When somebody has to look at it again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let due = self.deadlines.first().map(|(until, _)| *until);
        let waiting = self
            .waiting
            .iter()
            .flat_map(|waiting| waiting.expires.into_iter().chain(waiting.heartbeat.map(|(_, next)| next)));
        due.into_iter().chain(waiting).chain(self.ends_at()).chain(self.retry_at).min()
    }

    /// When it ends because nobody asks, if it ever does.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        let threshold = u64::try_from(self.config.inactive_threshold).ok().filter(|threshold| *threshold > 0)?;
        self.waiting.is_empty().then(|| self.asked_at + Duration::from_nanos(threshold))
    }
}
