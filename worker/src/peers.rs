//! The other workers, and what they have.
//!
//! A job is promised the answers of certain files. A worker that has others must not run it, and gives it back for a
//! while, so that those behind it come. If somebody else has these files, it also leaves the partition alone after
//! a few such jobs in a row, or it would hold up all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use queue::members::Table;
use queue::{JobSpec, Queue};
use tokio::time::Instant;

use crate::rounds::Place;

/// How long a job is given back: the first time, and at most. So whoever comes for it finds it after that.
const JOB_PAUSE: Duration = Duration::from_millis(500);
const JOB_PAUSE_MAX: Duration = Duration::from_secs(8);
/// Jobs for others in a row, after which a partition is left alone for a while.
const FOREIGN_MAX: u32 = 8;
const PLACE_PAUSE: Duration = Duration::from_secs(1);
/// How long an answer to the question who is there is good for.
const FRESH: Duration = Duration::from_secs(5);

/// Who else is there. They are asked when it matters, since all of them hear each question.
#[derive(Default)]
pub(crate) struct Peers {
    known: Arc<Mutex<Option<(Instant, Table)>>>,
    is_asking: Arc<AtomicBool>,
}

impl Peers {
    /// Whether some worker had the files that a job was promised, when they were asked last. Asks again in the
    /// background if that was long ago.
    pub(crate) fn can_run(&self, queue: &Queue, spec: &JobSpec) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) && !self.is_asking.swap(true, Ordering::Relaxed) {
            let (queue, known, is_asking) = (queue.clone(), self.known.clone(), self.is_asking.clone());
            tokio::spawn(async move {
                match queue.ask_members().await {
                    Ok(table) => *known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), table)),
                    Err(error) => tracing::debug!(%error, "the other workers were not asked"),
                }
                is_asking.store(false, Ordering::Relaxed);
            });
        }
        known.as_ref().is_some_and(|(_, table)| table.members().any(|one| one.state == "ready" && one.can_run(spec)))
    }
}

/// How long a job is given back that was handed out so many times. `chance` is a random number in 0..1: workers look
/// at fixed intervals, and without it the same one could find the job each time.
pub(crate) fn job_pause(deliveries: u64, chance: f64) -> Duration {
    let pause = JOB_PAUSE.saturating_mul(1 << deliveries.saturating_sub(1).min(10)).min(JOB_PAUSE_MAX);
    pause.mul_f64(0.5 + chance)
}

/// Partitions whose jobs are for others at the moment.
#[derive(Debug, Default)]
pub(crate) struct Avoided(HashMap<Place, (u32, Option<Instant>)>);

impl Avoided {
    /// Another job there was for others.
    pub(crate) fn add(&mut self, place: Place, now: Instant) {
        let (count, until) = self.0.entry(place).or_default();
        *count += 1;
        if *count >= FOREIGN_MAX {
            (*count, *until) = (0, Some(now + PLACE_PAUSE));
        }
    }

    /// A job there was for this worker.
    pub(crate) fn remove(&mut self, place: &Place) {
        self.0.remove(place);
    }

    /// Whether to leave it alone for now.
    pub(crate) fn holds(&self, place: &Place, now: Instant) -> bool {
        self.0.get(place).is_some_and(|(_, until)| until.is_some_and(|until| now < until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::{PartitionId, Priority};

    #[test]
    fn a_partition_is_left_alone_after_some_jobs_for_others_in_a_row() {
        let (mut avoided, now) = (Avoided::default(), Instant::now());
        let place: Place = ("cats".parse().expect("a name"), PartitionId::new(0, Priority::Normal));
        for _ in 1..FOREIGN_MAX {
            avoided.add(place.clone(), now);
            assert!(!avoided.holds(&place, now), "a few are passed by");
        }
        avoided.add(place.clone(), now);
        assert!(avoided.holds(&place, now) && !avoided.holds(&place, now + PLACE_PAUSE));
        avoided.remove(&place);
        assert!(!avoided.holds(&place, now), "a job of its own ends it");
    }

    #[test]
    fn a_job_is_given_back_for_longer_each_time() {
        assert_eq!([1, 2, 5, 1_000].map(|count| job_pause(count, 0.5).as_millis()), [500, 1_000, 8_000, 8_000]);
        assert_eq!(job_pause(1, 0.0), JOB_PAUSE / 2);
    }
}
