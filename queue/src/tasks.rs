//! Background tasks of a process: named, watched, and restarted when they end.
//!
//! Such a task has no caller that would notice its end, so this module is its caller. It restarts a task
//! that ends, fails or panics after a pause, which grows while the task keeps failing. Each end is logged
//! once, counted, and shown by [`Tasks::health`] until the task is well again.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio_util::task::AbortOnDropHandle;

/// Pause before a task that has ended is restarted: the first one, and the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A task that has run for this long is well again.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// Consecutive ends after which a process should not report that it is ready.
const FAILURES_MAX: u32 = 3;

/// The background tasks of a process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Mutex<BTreeMap<&'static str, TaskState>>>);

#[derive(Debug, Default)]
struct TaskState {
    /// Restarts in total.
    restarts: u64,
    /// Consecutive ends.
    failures: u32,
    problem: Option<String>,
    started: Option<Instant>,
}

/// State of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its name.
    pub name: &'static str,
    /// Number of restarts.
    pub restarts: u64,
    /// Why it ended last, if it has not run well for a minute since.
    pub problem: Option<String>,
    /// It has ended several times in a row.
    pub is_down: bool,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, TaskState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` until the returned handle is dropped, and restarts it whenever it ends.
    pub fn keep<W, F, E>(&self, name: &'static str, work: W) -> AbortOnDropHandle<()>
    where
        W: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send,
    {
        let tasks = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tasks.started(name);
                // Unwind safe: a run shares no state that an earlier one could have left half-done.
                let ended = std::panic::AssertUnwindSafe(async { work().await }).catch_unwind().await;
                let problem = match ended {
                    Ok(Ok(())) => "it ended".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(panic) => format!("it panicked: {}", words_of(panic.as_ref())),
                };
                let pause = tasks.ended(name, problem);
                tokio::time::sleep(pause).await;
            }
        }))
    }

    fn started(&self, name: &'static str) {
        self.lock().entry(name).or_default().started = Some(Instant::now());
    }

    /// Records an end; returns the pause before the next start.
    fn ended(&self, name: &'static str, problem: String) -> Duration {
        let mut tasks = self.lock();
        let task = tasks.entry(name).or_default();
        if task.started.is_some_and(|started| started.elapsed() >= WELL_AFTER) {
            task.failures = 0;
        }
        task.started = None;
        task.restarts += 1;
        task.failures += 1;
        let pause = PAUSE.saturating_mul(1 << (task.failures - 1).min(5)).min(PAUSE_MAX);
        tracing::error!(task = name, problem, pause_s = pause.as_secs(), "background task ended; restarting it");
        task.problem = Some(problem);
        pause
    }

    /// The state of all tasks.
    pub fn health(&self) -> Vec<Health> {
        let tasks = self.lock();
        let health = tasks.iter().map(|(name, task)| {
            let is_well = task.failures == 0 || task.started.is_some_and(|started| started.elapsed() >= WELL_AFTER);
            let problem = task.problem.clone().filter(|_| !is_well);
            Health { name, restarts: task.restarts, problem, is_down: !is_well && task.failures >= FAILURES_MAX }
        });
        health.collect()
    }
}

/// The message of a panic.
pub fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_fails_or_ends_is_started_again_and_that_shows() {
        let (tasks, runs) = (Tasks::default(), Arc::new(AtomicU32::new(0)));
        let counted = runs.clone();
        let kept = tasks.keep("follower", move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                match run {
                    0 => panic!("once"),
                    1 => Err("no answer"),
                    2 => Ok(()),
                    _ => std::future::pending().await,
                }
            }
        });
        while runs.load(Ordering::Relaxed) < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let expected = Health { name: "follower", restarts: 3, problem: Some("it ended".into()), is_down: true };
        assert_eq!(tasks.health(), [expected]);
        drop(kept);
    }

    #[tokio::test]
    async fn a_task_that_is_no_longer_kept_stops() {
        let (tasks, alive) = (Tasks::default(), Arc::new(()));
        let held = alive.clone();
        let kept = tasks.keep("follower", move || {
            let held = held.clone();
            async move {
                std::future::pending::<()>().await;
                drop(held);
                Ok::<(), String>(())
            }
        });
        tokio::task::yield_now().await;
        drop(kept);
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
