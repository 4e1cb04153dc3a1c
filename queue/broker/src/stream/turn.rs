//! Which of a consumer's waiting requests is served next.

use std::time::Duration;

use super::consumer::Consumer;
use super::consumer_config::PriorityPolicy;
use super::waiting::{Priority, Waiting};

impl Consumer {
    /// Index of the waiting request to serve next.
    pub(crate) fn turn(&self) -> Option<usize> {
        match self.config.priority_policy {
            PriorityPolicy::None => (!self.waiting.is_empty()).then_some(0),
            PriorityPolicy::Overflow => self.waiting.iter().position(|waiting| {
                let Priority { min_pending, min_ack_pending, .. } = waiting.priority;
                // One condition that is met is enough.
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

    /// Removes and returns the requests of clients that are no longer pinned.
    pub(crate) fn wrongly_pinned(&mut self) -> Vec<Waiting> {
        let pin = self.pin.as_ref().map(|pin| &pin.id);
        let is_wrong = |waiting: &Waiting| waiting.priority.pin.is_some() && waiting.priority.pin.as_ref() != pin;
        let wrong: Vec<Waiting> = self.waiting.iter().filter(|waiting| is_wrong(waiting)).cloned().collect();
        self.waiting.retain(|waiting| !is_wrong(waiting));
        wrong
    }

    /// How long a pinned client may be inactive.
    pub(crate) fn pin_timeout(&self) -> Duration {
        Duration::from_nanos(self.config.priority_timeout.unsigned_abs())
    }
}
