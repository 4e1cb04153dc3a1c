//! How much a key may ask for: requests a second, uploads at a time, jobs that wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Key, Limits};
use crate::error::ApiError;
use crate::index::Index;

/// How long a count of waiting jobs is good for.
const COUNT_AGE: Duration = Duration::from_millis(500);

/// What each key's owner has used; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Limiter(Arc<Mutex<HashMap<String, Usage>>>);

#[derive(Debug)]
struct Usage {
    tokens: f64,
    filled_at: Instant,
    uploads: Arc<Semaphore>,
    uploads_max: u32,
    /// Jobs that waited when they were last counted, and those accepted since.
    queued: u64,
    counted_at: Option<Instant>,
}

impl Usage {
    fn new(limits: &Limits, now: Instant) -> Self {
        let uploads_max = limits.uploads.unwrap_or(0);
        Self {
            tokens: limits.requests_per_second.map_or(0.0, burst),
            filled_at: now,
            uploads: Arc::new(Semaphore::new(uploads_max as usize)),
            uploads_max,
            queued: 0,
            counted_at: None,
        }
    }

    /// Takes a token, or says how long to wait for one.
    fn take(&mut self, rate: f64, now: Instant) -> Result<(), Duration> {
        let filled = now.saturating_duration_since(self.filled_at).as_secs_f64() * rate;
        (self.tokens, self.filled_at) = ((self.tokens + filled).min(burst(rate)), now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }
}

/// Requests at once after a pause.
fn burst(rate: f64) -> f64 {
    (2.0 * rate).max(1.0)
}

impl Limiter {
    fn with<T>(&self, key: &Key, use_it: impl FnOnce(&mut Usage) -> T) -> T {
        let mut usages = self.0.lock().expect("no panic holds this lock");
        let usage = usages.entry(key.name.clone()).or_insert_with(|| Usage::new(&key.limits, Instant::now()));
        if usage.uploads_max != key.limits.uploads.unwrap_or(0) {
            *usage = Usage::new(&key.limits, Instant::now());
        }
        use_it(usage)
    }

    /// Counts a request.
    pub(super) fn request(&self, key: &Key) -> Result<(), ApiError> {
        let Some(rate) = key.limits.requests_per_second else { return Ok(()) };
        let taken = self.with(key, |usage| usage.take(rate, Instant::now()));
        taken.map_err(|wait| ApiError::TooMany {
            what: format!("{rate} requests a second"),
            wait: wait.as_secs_f64().ceil() as u32,
        })
    }

    /// Counts an upload until what is returned is dropped.
    pub(super) async fn upload(&self, key: &Key, index: &Index) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if let Some(limit) = key.limits.queued_jobs {
            let is_old = self.with(key, |usage| usage.counted_at.is_none_or(|at| at.elapsed() > COUNT_AGE));
            if is_old {
                let queued = index.queued_of(&key.name).await?;
                self.with(key, |usage| (usage.queued, usage.counted_at) = (queued, Some(Instant::now())));
            }
            let fits = self.with(key, |usage| {
                usage.queued += 1;
                usage.queued <= limit
            });
            if !fits {
                return Err(ApiError::TooMany { what: format!("{limit} jobs that wait"), wait: 1 });
            }
        }
        let Some(limit) = key.limits.uploads else { return Ok(None) };
        let permit = self.with(key, |usage| usage.uploads.clone()).try_acquire_owned();
        permit.map(Some).map_err(|_| ApiError::TooMany { what: format!("{limit} uploads at a time"), wait: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let start = Instant::now();
        let limits = Limits { requests_per_second: Some(5.0), ..Limits::default() };
        let mut usage = Usage::new(&limits, start);
        let mut take = |millis: u64| usage.take(5.0, start + Duration::from_millis(millis));
        assert_eq!((0..12).filter(|_| take(0).is_ok()).count(), 10);
        assert_eq!(take(100).map_err(|wait| wait.as_millis()), Err(100));
        assert!(take(200).is_ok() && take(210).is_err() && take(400).is_ok());
        assert_eq!((0..12).filter(|_| take(60_000).is_ok()).count(), 10, "a long pause saves no more than a burst");
    }
}
