//! The time-bounded right that comes with a delivery.
//!
//! It is measured on the worker's monotonic clock from *before* the request was sent, so it ends
//! here no later than at the server. After that, a worker sends no ack, nak or term: a stale ack
//! would remove the job while the next worker runs it.

use std::time::{Duration, Instant};

/// A lease by its holder's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    until: Instant,
    length: Duration,
}

impl Lease {
    /// A lease of `length` that the holder requested at `asked_at`.
    pub fn new(asked_at: Instant, length: Duration) -> Self {
        Self { until: asked_at + length, length }
    }

    /// Whether it is still held at `now`.
    pub fn is_held(&self, now: Instant) -> bool {
        now < self.until
    }

    /// The server has confirmed a renewal that was sent at `sent_at`.
    ///
    /// A lease that has already expired stays lost: the server may have given the job to another
    /// worker and still confirm.
    pub fn renew(&mut self, sent_at: Instant) {
        if self.is_held(sent_at) {
            self.until = self.until.max(sent_at + self.length);
        }
    }

    /// Time between renewals: a third of the lease, so that one lost message does no harm.
    pub fn renewal_interval(&self) -> Duration {
        self.length / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_runs_out_unless_renewed_in_time() {
        let start = Instant::now();
        let mut lease = Lease::new(start, 30 * SECOND);
        assert!(lease.is_held(start + 29 * SECOND) && !lease.is_held(start + 30 * SECOND));
        lease.renew(start + 10 * SECOND);
        assert!(lease.is_held(start + 39 * SECOND));
        lease.renew(start + 5 * SECOND);
        assert!(lease.is_held(start + 39 * SECOND), "an older answer does not shorten it");
        lease.renew(start + 41 * SECOND);
        assert!(!lease.is_held(start + 41 * SECOND), "once lost it stays lost");
    }
}
