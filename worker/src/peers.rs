//! The other workers, as they announce themselves.
//!
//! A job is promised the answers of certain files. A worker that has others must not run it, and hands it back;
//! for how long it leaves the job's partition alone follows from whether somebody else has these files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use queue::members::Table;
use queue::{JobSpec, Queue, QueueError};
use tokio::time::Instant;

use crate::rounds::Place;

/// The first pause of a partition, and of a job; each doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest of a partition whose jobs others can run.
const PLACE_PAUSE_MAX: Duration = Duration::from_secs(8);
/// The longest of a job that nobody can run: whoever comes for it finds it after that at the latest.
const JOB_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Who else is there, kept up to date in the background; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<Mutex<Table>>);

impl Peers {
    /// Listens for as long as this process lives.
    pub(crate) async fn keep(self, queue: Queue) -> Result<(), QueueError> {
        let mut heard = queue.announcements().await?;
        while let Some(announcement) = heard.next().await {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).hear(announcement, std::time::Instant::now());
        }
        Ok(())
    }

    /// Whether some worker has the files that a job was promised.
    pub(crate) fn can_run(&self, spec: &JobSpec) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.expire(std::time::Instant::now());
        table.members().any(|member| member.state == "ready" && member.can_run(spec))
    }
}

/// How long a job that nobody can run waits until somebody looks at it again. Meanwhile those behind it come.
pub(crate) fn job_pause(deliveries: u64) -> Duration {
    PAUSE.saturating_mul(1 << deliveries.saturating_sub(1).min(10)).min(JOB_PAUSE_MAX)
}

/// Partitions whose jobs are for others at the moment.
#[derive(Debug, Default)]
pub(crate) struct Avoided(HashMap<Place, (Instant, Duration)>);

impl Avoided {
    /// Another job there was for others.
    pub(crate) fn add(&mut self, place: Place, now: Instant) {
        let pause = self.0.get(&place).map_or(PAUSE, |(_, pause)| (*pause * 2).min(PLACE_PAUSE_MAX));
        self.0.insert(place, (now + pause, pause));
    }

    /// A job there was for this worker.
    pub(crate) fn remove(&mut self, place: &Place) {
        self.0.remove(place);
    }

    /// Whether to leave it alone for now.
    pub(crate) fn holds(&self, place: &Place, now: Instant) -> bool {
        self.0.get(place).is_some_and(|(until, _)| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::{PartitionId, Priority};

    #[test]
    fn pauses_double_and_end() {
        let (mut avoided, mut now) = (Avoided::default(), Instant::now());
        let place: Place = ("cats".parse().expect("a name"), PartitionId::new(0, Priority::Normal));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            avoided.add(place.clone(), now);
            let begun = now;
            while avoided.holds(&place, now) {
                now += Duration::from_millis(100);
            }
            pauses.push((now - begun).as_millis());
        }
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 8_000]);
        avoided.add(place.clone(), now);
        avoided.remove(&place);
        assert!(!avoided.holds(&place, now), "a job of its own ends it");
        assert_eq!([1, 2, 7, 8, 1_000].map(|count| job_pause(count).as_millis()), [500, 1_000, 30_000, 30_000, 30_000]);
    }
}
