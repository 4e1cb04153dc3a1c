//! A minimum pace for what clients send and for what they read.
//!
//! A client spends credit while it keeps us waiting, and earns credit with bytes that move. Credit is capped, so a
//! client that was fast for a while cannot hold its resources for minutes afterwards. Time in which we keep the
//! client waiting costs it nothing. While memory is short, the cap is low: memory is for clients that make
//! progress.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Initial and highest credit of a client, unless it may be silent for longer.
const CREDIT_MAX: Duration = Duration::from_secs(20);
/// The same while memory is short.
const CREDIT_SHORT: Duration = Duration::from_secs(1);
/// Bytes that earn one second of credit, normally and while memory is short.
const PACE_MIN: u64 = 16 * 1024;
const PACE_SHORT: u64 = 256 * 1024;
/// How often a client that keeps us waiting is checked again.
const LOOK: Duration = Duration::from_millis(250);

/// The pace of one client in one direction.
#[derive(Debug)]
pub(crate) struct Pace {
    credit: Duration,
    credit_max: Duration,
    /// How long it may be silent at a time.
    pause_max: Duration,
    waiting_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Pace {
    pub(crate) fn new(pause_max: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(LOOK));
        let credit_max = CREDIT_MAX.max(pause_max);
        Self { credit: credit_max, credit_max, pause_max, waiting_since: None, timer }
    }

    /// The client keeps us waiting: ready once it has done so for too long.
    pub(crate) fn poll_waiting(&mut self, is_short: bool, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let since = *self.waiting_since.get_or_insert(now);
        if is_short {
            // Credit saved before memory was short no longer counts.
            self.credit = self.credit.min(now - since + CREDIT_SHORT);
        }
        let left = self.credit.min(self.pause_max).saturating_sub(now - since);
        if left.is_zero() {
            return Poll::Ready(());
        }
        self.timer.as_mut().reset(now + left.min(LOOK));
        // Registers the waker; the timer is not due yet.
        let _ = self.timer.as_mut().poll(context);
        Poll::Pending
    }

    /// Bytes have moved.
    pub(crate) fn moved(&mut self, bytes: usize, is_short: bool) {
        let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let pace = if is_short { PACE_SHORT } else { PACE_MIN };
        let earned = Duration::from_secs_f64(bytes as f64 / pace as f64);
        let most = if is_short { CREDIT_SHORT } else { self.credit_max };
        self.credit = self.credit.saturating_sub(waited).saturating_add(earned).min(most);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn wait(pace: &mut Pace, is_short: bool) -> Duration {
        let started = Instant::now();
        poll_fn(|context| pace.poll_waiting(is_short, context)).await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_after_the_pause_and_dripping_after_the_credit() {
        let mut pace = Pace::new(Duration::from_secs(10));
        assert_eq!(wait(&mut pace, false).await, Duration::from_secs(10));
        let (mut pace, started) = (Pace::new(Duration::from_secs(10)), Instant::now());
        // A byte every three seconds, after 20 MB at once: nothing is earned in advance.
        pace.moved(20 << 20, false);
        loop {
            let dripping = tokio::time::timeout(Duration::from_secs(3), wait(&mut pace, false)).await;
            if dripping.is_ok() {
                break;
            }
            pace.moved(1, false);
        }
        assert_eq!(started.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_pace_goes_on_and_one_that_we_keep_waiting_pays_nothing() {
        let mut pace = Pace::new(Duration::from_secs(10));
        for _ in 0..100 {
            let waiting = tokio::time::timeout(Duration::from_secs(1), wait(&mut pace, false)).await;
            assert!(waiting.is_err(), "16 KiB a second is enough");
            pace.moved(16 * 1024, false);
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(wait(&mut pace, true).await, CREDIT_SHORT, "while memory is short");
        // Sending a byte now and then does not help in that case.
        let (mut pace, started) = (Pace::new(Duration::from_secs(10)), Instant::now());
        while tokio::time::timeout(Duration::from_millis(400), wait(&mut pace, true)).await.is_err() {
            pace.moved(1, true);
        }
        assert!(started.elapsed() <= 2 * CREDIT_SHORT, "{:?}", started.elapsed());
    }
}
