//! What a key is limited to: requests per second, uploads at a time, queued jobs and their bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use queue::{Priority, Queue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::key::{Key, Limits};
use crate::error::ApiError;
use crate::index::{Index, IndexError};

/// How long a count of queued jobs stays valid.
const COUNT_AGE: Duration = Duration::from_millis(500);

/// What each key's owner has used; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Limiter(Arc<Mutex<Used>>);

#[derive(Debug, Default)]
struct Used {
    /// By owner.
    owners: HashMap<String, Usage>,
    /// Uploads at a time, by key.
    uploads: HashMap<String, Arc<Semaphore>>,
}

#[derive(Debug)]
struct Usage {
    tokens: f64,
    filled_at: Instant,
    /// What was queued at the last count.
    counted: Load,
    counted_at: Option<Instant>,
    /// What is being submitted now.
    arriving: Load,
    /// Everything that was ever submitted.
    submitted: Load,
    /// The same when the last count began.
    submitted_then: Load,
    /// Only one task counts at a time.
    counting: Arc<tokio::sync::Mutex<()>>,
}

/// Jobs, and the bytes of their images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    jobs: u64,
    bytes: u64,
}

impl Usage {
    fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            tokens: limits.requests_per_second.map_or(0.0, burst),
            filled_at: now,
            counted: Load::default(),
            counted_at: None,
            arriving: Load::default(),
            submitted: Load::default(),
            submitted_then: Load::default(),
            counting: Arc::default(),
        }
    }

    /// Takes a token, or returns how long to wait for one.
    fn take(&mut self, rate: f64, now: Instant) -> Result<(), Duration> {
        let filled = now.saturating_duration_since(self.filled_at).as_secs_f64() * rate;
        (self.tokens, self.filled_at) = ((self.tokens + filled).min(burst(rate)), now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }

    /// The most that can be queued: what was counted, what was submitted since, and what is being submitted now.
    fn waiting(&self) -> Load {
        let sum = |of: fn(&Load) -> u64| {
            of(&self.counted) + of(&self.arriving) + of(&self.submitted) - of(&self.submitted_then)
        };
        Load { jobs: sum(|load| load.jobs), bytes: sum(|load| load.bytes) }
    }

    /// Counts one more job, or returns the limit that it would exceed. A single job may always be queued, whatever
    /// its size.
    fn charge(&mut self, limits: &Limits, bytes: u64) -> Result<(), String> {
        let waiting = self.waiting();
        if let Some(limit) = limits.queued_jobs.filter(|limit| waiting.jobs >= *limit) {
            return Err(format!("{limit} queued jobs"));
        }
        if let Some(limit) = limits.queued_bytes.filter(|limit| waiting.jobs > 0 && waiting.bytes + bytes > *limit) {
            return Err(format!("{limit} bytes of queued images"));
        }
        self.arriving.add(bytes);
        Ok(())
    }
}

impl Load {
    fn add(&mut self, bytes: u64) {
        (self.jobs, self.bytes) = (self.jobs + 1, self.bytes + bytes);
    }

    fn remove(&mut self, bytes: u64) {
        (self.jobs, self.bytes) = (self.jobs - 1, self.bytes - bytes);
    }
}

/// Requests allowed at once after a pause.
fn burst(rate: f64) -> f64 {
    (2.0 * rate).max(1.0)
}

impl Limiter {
    fn with<T>(&self, key: &Key, use_it: impl FnOnce(&mut Usage) -> T) -> T {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Usage::new(&key.limits, Instant::now());
        use_it(used.owners.entry(key.name.clone()).or_insert_with(new))
    }

    /// Counts a request.
    pub(super) fn request(&self, key: &Key) -> Result<(), ApiError> {
        let Some(rate) = key.limits.requests_per_second else { return Ok(()) };
        let taken = self.with(key, |usage| usage.take(rate, Instant::now()));
        taken.map_err(|wait| ApiError::TooMany {
            what: format!("{rate} requests per second"),
            wait: wait.as_secs_f64().ceil() as u32,
        })
    }

    /// Counts an upload until the returned permit is dropped.
    pub(super) fn upload(&self, key: &Key) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let Some(limit) = key.limits.uploads else { return Ok(None) };
        let room = {
            let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(limit as usize));
            used.uploads.entry(key.id.clone()).or_insert_with(new).clone()
        };
        room.try_acquire_owned()
            .map(Some)
            .map_err(|_| ApiError::TooMany { what: format!("{limit} uploads at a time"), wait: 1 })
    }

    /// What a key may have queued.
    pub(super) fn allowance(&self, key: &Key) -> Allowance {
        Allowance { limiter: self.clone(), key: key.clone() }
    }
}

/// What one key may have queued.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    limiter: Limiter,
    key: Key,
}

impl Allowance {
    /// The highest priority that the key's jobs may have, if it is limited.
    pub(super) fn priority_max(&self) -> Option<Priority> {
        self.key.limits.priority
    }

    pub(super) async fn charge(&self, index: &Index, queue: &Queue, bytes: u64) -> Result<Charge, ApiError> {
        let limits = &self.key.limits;
        let mut charge = Charge { allowance: self.clone(), bytes: None };
        if limits.queued_jobs.is_none() && limits.queued_bytes.is_none() {
            return Ok(charge);
        }
        self.count(index, queue).await?;
        let charged = self.limiter.with(&self.key, |usage| usage.charge(limits, bytes));
        charged.map_err(|what| ApiError::TooMany { what, wait: 1 })?;
        charge.bytes = Some(bytes);
        Ok(charge)
    }

    pub(super) async fn waiting(&self, index: &Index, queue: &Queue) -> Result<u64, IndexError> {
        self.count(index, queue).await?;
        Ok(self.limiter.with(&self.key, |usage| usage.waiting().jobs))
    }

    /// Counts the queued jobs again, unless the last count is recent.
    async fn count(&self, index: &Index, queue: &Queue) -> Result<(), IndexError> {
        let is_old = |usage: &mut Usage| usage.counted_at.is_none_or(|at| at.elapsed() > COUNT_AGE);
        if !self.limiter.with(&self.key, is_old) {
            return Ok(());
        }
        let counting = self.limiter.with(&self.key, |usage| usage.counting.clone());
        let _turn = counting.lock().await;
        if !self.limiter.with(&self.key, is_old) {
            return Ok(());
        }
        let submitted = self.limiter.with(&self.key, |usage| usage.submitted);
        // Jobs that were just accepted must count.
        index.catch_up(queue).await?;
        let (jobs, bytes) = index.waiting_of(&self.key.name).await?;
        self.limiter.with(&self.key, |usage| {
            (usage.counted, usage.submitted_then) = (Load { jobs, bytes }, submitted);
            usage.counted_at = Some(Instant::now());
        });
        Ok(())
    }
}

/// A job that counts while it is being submitted, whether or not that succeeds.
#[derive(Debug)]
pub(crate) struct Charge {
    allowance: Allowance,
    /// Bytes of its image; `None`: this key has no limits that need a count.
    bytes: Option<u64>,
}

impl Charge {
    /// The job was submitted and is now queued.
    pub(crate) fn waits(self) {
        if let Some(bytes) = self.bytes {
            self.allowance.limiter.with(&self.allowance.key, |usage| usage.submitted.add(bytes));
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes {
            self.allowance.limiter.with(&self.allowance.key, |usage| usage.arriving.remove(bytes));
        }
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

    #[test]
    fn what_waits_is_bounded_in_jobs_and_in_bytes() {
        let limits = Limits { queued_jobs: Some(3), queued_bytes: Some(1_000), ..Limits::default() };
        let mut usage = Usage::new(&limits, Instant::now());
        // Larger than the limit, but the only one.
        assert_eq!(usage.charge(&limits, 1_500), Ok(()));
        assert_eq!(usage.charge(&limits, 1), Err("1000 bytes of queued images".into()));
        usage.arriving.remove(1_500);
        // One is counted while another is submitted: neither is forgotten.
        (usage.counted, usage.submitted_then) = (Load { jobs: 1, bytes: 50 }, usage.submitted);
        usage.submitted.add(50);
        assert_eq!(usage.charge(&limits, 901), Err("1000 bytes of queued images".into()));
        assert_eq!(usage.charge(&limits, 900), Ok(()));
        assert_eq!(usage.charge(&limits, 0), Err("3 queued jobs".into()));
    }
}
