//! Requests that wait at a consumer, and whose turn it is.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::consumer::Consumer;
use super::consumer_config::PriorityPolicy;

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
    pub(crate) priority: Priority,
}

/// What a request says of its place among others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Priority {
    /// It helps out only when this many messages wait; 0 is always.
    pub(crate) min_pending: u64,
    /// It helps out only when this many messages are in hand; 0 is always.
    pub(crate) min_ack_pending: u64,
    /// The lowest number is served first.
    pub(crate) number: u8,
    /// It comes from the client that is pinned under this id.
    pub(crate) pin: Option<String>,
}

/// The one client that is served, until it is silent for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) id: String,
    /// Since when, Unix time in ns.
    pub(crate) since: i64,
    pub(crate) until: Instant,
}

impl Consumer {
    /// Whose turn it is among those that wait.
    pub(crate) fn turn(&self) -> Option<usize> {
        match self.config.priority_policy {
            PriorityPolicy::None => (!self.waiting.is_empty()).then_some(0),
            PriorityPolicy::Overflow => self.waiting.iter().position(|waiting| {
                let Priority { min_pending, min_ack_pending, .. } = waiting.priority;
                // One that is met is enough.
                (min_pending == 0 && min_ack_pending == 0)
                    || (min_pending > 0 && self.unseen >= min_pending)
                    || (min_ack_pending > 0 && self.pending.len() as u64 >= min_ack_pending)
            }),
            PriorityPolicy::Prioritized => {
                let lowest = self.waiting.iter().map(|waiting| waiting.priority.number).min()?;
                self.waiting.iter().position(|waiting| waiting.priority.number == lowest)
            }
            PriorityPolicy::PinnedClient => match &self.pin {
                None => self.waiting.iter().position(|waiting| waiting.priority.pin.is_none()),
                Some(pin) => self.waiting.iter().position(|waiting| waiting.priority.pin.as_ref() == Some(&pin.id)),
            },
        }
    }

    /// Takes out the requests of a client that was pinned and no longer is.
    pub(crate) fn wrongly_pinned(&mut self) -> Vec<Waiting> {
        let pin = self.pin.as_ref().map(|pin| &pin.id);
        let is_wrong = |waiting: &Waiting| waiting.priority.pin.is_some() && waiting.priority.pin.as_ref() != pin;
        let wrong: Vec<Waiting> = self.waiting.iter().filter(|waiting| is_wrong(waiting)).cloned().collect();
        self.waiting.retain(|waiting| !is_wrong(waiting));
        wrong
    }

    /// How long a pinned client may be silent.
    pub(crate) fn pin_timeout(&self) -> Duration {
        Duration::from_nanos(self.config.priority_timeout.unsigned_abs())
    }
}
