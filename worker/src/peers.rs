//! The other workers, and the model files that they have.
//!
//! A job is promised the answers of certain model files. A worker that has other files must not run it, and returns it
//! for a while, so that the jobs behind it are reached. A worker that has the right files must get its chance: all
//! workers look at fixed intervals, and without a rule a wrong one might find the job each time. So a worker that finds
//! nothing behind such jobs leaves the partition alone until they are back and all workers have looked.

use std::collections::HashMap;
use std::time::Duration;

use queue::members::{MemberState, Table};
use queue::{JobSpec, WorkerQueue};
use tokio::time::Instant;

use crate::rounds::TopicPartition;

/// How long a job is returned for: the first time, and at most.
const JOB_PAUSE: Duration = Duration::from_millis(500);
const JOB_PAUSE_MAX: Duration = Duration::from_secs(15);
/// After this many jobs for others in a row, a partition is left alone for a while, whatever is behind them.
const FOREIGN_MAX: u32 = 8;
/// Longer than the interval at which every worker looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long a list of the members stays valid.
const FRESH: Duration = Duration::from_secs(10);

/// The other workers as they announced themselves. They are asked only when it matters, since each question
/// reaches all of them.
#[derive(Default)]
pub(crate) struct Peers(Option<(Instant, Table)>);

impl Peers {
    /// Whether some worker has the files that a job was promised.
    pub(crate) async fn can_run(&mut self, queue: &WorkerQueue, spec: &JobSpec) -> bool {
        if self.0.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            match queue.ask_members().await {
                Ok(table) => self.0 = Some((Instant::now(), table)),
                Err(error) => tracing::debug!(%error, "other workers not asked"),
            }
        }
        self.0
            .as_ref()
            .is_some_and(|(_, table)| table.members().any(|one| one.state == MemberState::Ready && one.can_run(spec)))
    }
}

/// How long to return a job for that was delivered this many times.
pub(crate) fn job_pause(deliveries: u64) -> Duration {
    JOB_PAUSE.saturating_mul(1 << deliveries.saturating_sub(1).min(10)).min(JOB_PAUSE_MAX)
}

/// Partitions whose jobs are for other workers at the moment.
#[derive(Debug, Default)]
pub(crate) struct Avoided(HashMap<TopicPartition, Foreign>);

#[derive(Debug, Default)]
struct Foreign {
    /// Jobs for others in a row.
    count: u32,
    /// When the last of them is available again.
    back: Option<Instant>,
    /// Until when the partition is left alone.
    until: Option<Instant>,
}

impl Avoided {
    /// Notes another job for others, which is returned for this long.
    pub(crate) fn add(&mut self, place: TopicPartition, pause: Duration, now: Instant) {
        let foreign = self.0.entry(place).or_default();
        foreign.count += 1;
        foreign.back = foreign.back.max(Some(now + pause));
        if foreign.count >= FOREIGN_MAX {
            *foreign = Foreign { until: Some(now + LOOK), ..Foreign::default() };
        }
    }

    /// Notes that there are no jobs behind them.
    pub(crate) fn emptied(&mut self, place: &TopicPartition) {
        if let Some(foreign) = self.0.get_mut(place)
            && let Some(back) = foreign.back
        {
            *foreign = Foreign { until: Some(back + LOOK), ..Foreign::default() };
        }
    }

    /// Notes that a job was for this worker.
    pub(crate) fn remove(&mut self, place: &TopicPartition) {
        self.0.remove(place);
    }

    /// Whether to leave the partition alone for now.
    pub(crate) fn holds(&self, place: &TopicPartition, now: Instant) -> bool {
        self.0.get(place).is_some_and(|foreign| foreign.until.is_some_and(|until| now < until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::{PartitionId, Priority};

    fn place() -> TopicPartition {
        ("cats".parse().expect("a name"), PartitionId::new(0, Priority::Normal))
    }

    #[test]
    fn a_partition_is_left_alone_after_some_jobs_for_others_in_a_row() {
        let (mut avoided, now) = (Avoided::default(), Instant::now());
        for _ in 1..FOREIGN_MAX {
            avoided.add(place(), JOB_PAUSE, now);
            assert!(!avoided.holds(&place(), now), "a few are passed by");
        }
        avoided.add(place(), JOB_PAUSE, now);
        assert!(avoided.holds(&place(), now) && !avoided.holds(&place(), now + LOOK));
        avoided.remove(&place());
        assert!(!avoided.holds(&place(), now), "a job of its own ends it");
    }

    #[test]
    fn with_nothing_behind_them_all_workers_look_before_this_one_does_again() {
        let (mut avoided, now) = (Avoided::default(), Instant::now());
        avoided.emptied(&place());
        assert!(!avoided.holds(&place(), now), "an empty partition is an ordinary one");
        for pause in [JOB_PAUSE_MAX, JOB_PAUSE] {
            avoided.add(place(), pause, now);
        }
        avoided.emptied(&place());
        let back = now + JOB_PAUSE_MAX;
        assert!(avoided.holds(&place(), back) && !avoided.holds(&place(), back + LOOK));
    }

    #[test]
    fn a_job_is_given_back_for_longer_each_time() {
        assert_eq!([1, 2, 6, 1_000].map(|count| job_pause(count).as_millis()), [500, 1_000, 15_000, 15_000]);
    }
}
