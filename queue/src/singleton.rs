//! Work that only one process may do at a time: the one that holds the *lease record*.
//!
//! A lease record is one message per name, changed only by compare-and-set. Its holder renews it;
//! candidates watch it, and may take it over once they have seen the same revision for a whole
//! term. Clocks are never compared: the holder counts its term from *before* it sent the write,
//! a candidate from *after* it saw that write, so the holder's term ends first.
//!
//! [`Candidate`] is pure: what was read and the time in, what to write out.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::client::{Replaced, Revision};

/// Content of a lease record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Its holder; `None` after it was released.
    pub holder: Option<String>,
}

/// A process that wants or holds a lease record.
#[derive(Debug, Clone)]
pub struct Candidate {
    id: String,
    term: Duration,
    /// The revision that was seen last, and since when.
    seen: Option<(Revision, Instant)>,
    /// The revision that we hold, and until when.
    held: Option<(Revision, Instant)>,
}

/// What a candidate does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseAction {
    /// Nothing: it is ours and fresh, or another candidate's.
    Wait,
    /// Write the record with ourselves as its holder over exactly this revision.
    Write(Revision),
}

impl Candidate {
    /// A candidate with this unique id, for terms of this length.
    pub fn new(id: impl Into<String>, term: Duration) -> Self {
        Self { id: id.into(), term, seen: None, held: None }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the lease is ours at `now`, by our own clock.
    pub fn is_held(&self, now: Instant) -> bool {
        self.held.is_some_and(|(_, until)| now < until)
    }

    /// The revision that we hold.
    pub fn revision(&self) -> Option<Revision> {
        self.held.map(|(revision, _)| revision)
    }

    /// Decides what to do with the record that was read; `now` is a moment after the answer arrived.
    pub fn step(&mut self, read: Option<(Revision, LeaseRecord)>, now: Instant) -> LeaseAction {
        let Some((revision, record)) = read else { return LeaseAction::Write(Revision::default()) };
        if let Some((held, until)) = self.held {
            if revision != held && record.holder.as_deref() == Some(&self.id) {
                // Our own write whose answer was lost; it does not extend the term that we know of.
                self.held = Some((revision, until));
            } else if revision != held {
                self.held = None;
            }
        }
        if let Some((_, until)) = self.held.filter(|(_, until)| now < *until) {
            let fresh = until.saturating_duration_since(now) > self.term.mul_f64(2.0 / 3.0);
            return if fresh { LeaseAction::Wait } else { LeaseAction::Write(revision) };
        }
        let since = match self.seen {
            Some((seen, since)) if seen == revision => since,
            _ => {
                self.seen = Some((revision, now));
                now
            }
        };
        // Our own id from an earlier term counts like another process's: what it may still do is unknown.
        let over = now.saturating_duration_since(since) >= self.term.mul_f64(1.1);
        if record.holder.is_none() || over { LeaseAction::Write(revision) } else { LeaseAction::Wait }
    }

    /// Takes the outcome of a write that was sent at `sent_at`.
    pub fn wrote(&mut self, outcome: Replaced, sent_at: Instant) {
        match outcome {
            Replaced::Done(revision) => self.held = Some((revision, sent_at + self.term)),
            Replaced::Refused => self.held = None,
        }
    }
}

#[cfg(test)]
mod tests;
