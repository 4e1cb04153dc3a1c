//! How fast batches progress, to estimate the time that they still need.
//!
//! The pace is a mean over the last looks, weighted by their age, since clients want the current pace: one long
//! job, or an index that lags, changes it only a little. A batch has no pace until enough of its jobs have ended.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most batches remembered; the one that was looked at longest ago is dropped first.
const BATCHES_MAX: usize = 1_000;
/// After this time, a look weighs a third of a new one.
const MEMORY: Duration = Duration::from_secs(15);
/// Looks closer together than this count as one.
const LOOK_MIN: Duration = Duration::from_millis(500);
/// Longest estimate that is reported, seconds.
const SECONDS_MAX: f64 = 30.0 * 86_400.0;
/// Jobs that must have ended since a batch began before it gets its first pace.
const ENDED_MIN: u64 = 5;

/// The paces of the batches that clients look at.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<String, Rate>>);

#[derive(Debug, Clone, Copy)]
struct Rate {
    at: Instant,
    ended: u64,
    /// Jobs per second; `None` while too few have ended.
    pace: Option<f64>,
}

impl Rates {
    /// Seconds until `left` more jobs have ended, of a batch that began `age` ago.
    pub(super) fn look(&self, batch: &str, ended: u64, left: u64, age: Duration, now: Instant) -> Option<u64> {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = match rates.get(batch) {
            Some(rate) => rate.next(ended, age, now),
            None => Rate { at: now, ended, pace: first(ended, age) },
        };
        if rates.len() >= BATCHES_MAX
            && !rates.contains_key(batch)
            && let Some(oldest) = rates.iter().min_by_key(|(_, rate)| rate.at).map(|(id, _)| id.clone())
        {
            rates.remove(&oldest);
        }
        rates.insert(batch.to_owned(), rate);
        let seconds = (left as f64 / rate.pace?).ceil();
        // A stalled batch has no known end.
        (seconds <= SECONDS_MAX).then_some(seconds as u64)
    }
}

/// The pace over the batch's whole life so far.
fn first(ended: u64, age: Duration) -> Option<f64> {
    (ended >= ENDED_MIN && age >= LOOK_MIN).then(|| ended as f64 / age.as_secs_f64())
}

impl Rate {
    fn next(self, ended: u64, age: Duration, now: Instant) -> Self {
        let since = now.saturating_duration_since(self.at);
        if since < LOOK_MIN {
            return self;
        }
        let Some(pace) = self.pace else { return Self { at: now, ended, pace: first(ended, age) } };
        let seen = ended.saturating_sub(self.ended) as f64 / since.as_secs_f64();
        let weight = 1.0 - (-since.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        Self { at: now, ended, pace: Some(pace + weight * (seen - pace)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_batch_counts_down_and_an_uneven_one_does_not_jump() {
        let (rates, begun) = (Rates::default(), Instant::now());
        let look = |second: u64, ended: u64| {
            let age = Duration::from_secs(second);
            rates.look("b", ended, 1_000 - ended, age, begun + age)
        };
        assert_eq!(look(1, 2), None, "two of a thousand are no pace");
        assert_eq!(look(2, 20), Some(98));
        assert_eq!(look(10, 100), Some(90));
        // An index that lags shows nothing new for a second, and then twice as much.
        let paused = look(11, 100).expect("a pace");
        assert!((90..=97).contains(&paused), "{paused}");
        let caught_up = look(12, 120).expect("a pace");
        assert!((84..=92).contains(&caught_up), "{caught_up}");
        // A batch that stalls for long has no known end.
        assert!(look(120, 120) > Some(10_000));
        assert_eq!(look(900, 120), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (rates, begun) = (Rates::default(), Instant::now());
        for number in 0..2 * BATCHES_MAX {
            rates.look(
                &number.to_string(),
                10,
                10,
                Duration::from_secs(1),
                begun + Duration::from_millis(number as u64),
            );
        }
        assert_eq!(rates.0.lock().expect("no panic").len(), BATCHES_MAX);
    }
}
