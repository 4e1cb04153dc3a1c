//! How many jobs are ahead of a queued one, and how long they will take.
//!
//! An estimate from the watchdog's last look and the workers' measurements; exact numbers would be outdated before
//! a client reads them. Workers take from the partitions of a priority in turn: if N jobs are ahead in a job's own
//! partition, up to N jobs of every other partition are ahead as well.

use std::time::Duration;

use queue::client::Description;
use queue::{Record, State};

use crate::state::AppState;

/// A job's position in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// 1 is next.
    pub(super) position: u64,
    /// Seconds until it ends; `None` while the topic is paused, no worker is present or no job was measured.
    pub(super) eta_seconds: Option<u64>,
}

/// The position of a queued job; `None` if it is not queued, or its topic was not looked up yet.
pub(super) fn of(state: &AppState, record: &Record) -> Option<Position> {
    let topics = state.watch.topics();
    let topic = topics.iter().find(|topic| topic.name == *record.spec.id.topic())?;
    let workers = state.roster.workers_of(&record.spec.model);
    estimate(topic, record, workers, state.roster.totals().service(&record.spec.model))
}

fn estimate(topic: &Description, record: &Record, workers: usize, service: Option<Duration>) -> Option<Position> {
    let State::Queued { .. } = record.state else { return None };
    let own = topic.partitions.iter().find(|partition| partition.partition == record.partition)?;
    let behind = own.last.0.saturating_sub(record.sequence.0);
    let ahead = own.queued.saturating_sub(behind + 1);
    let same = topic.partitions.iter().filter(|one| one.partition.priority() == record.partition.priority());
    let others = same.filter(|one| one.partition != own.partition).map(|one| one.queued.min(ahead));
    let position = ahead + others.sum::<u64>() + 1;
    let eta = service.filter(|_| workers > 0 && !topic.paused);
    let eta = eta.map(|service| (position as f64 * service.as_secs_f64() / workers as f64).ceil() as u64);
    Some(Position { position, eta_seconds: eta })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use queue::client::Partition;
    use queue::topic::RetryPolicy;
    use queue::{ImageFacts, JobId, JobOptions, JobSpec, PartitionId, Sequence, Timestamp, TopicName};

    pub(in crate::jobs) fn partition(index: u16, last: u64, queued: u64) -> Partition {
        Partition {
            partition: PartitionId::normal(index),
            leader: "n1".into(),
            replicas: Vec::new(),
            first: Sequence(1),
            last: Sequence(last),
            messages: queued,
            bytes: 0,
            queued,
            in_work: 0,
            redelivered: 0,
            oldest_at: None,
            ack_floor: Sequence(0),
            consumer_paused: false,
            consumer_missing: false,
        }
    }

    pub(in crate::jobs) fn topic(partitions: Vec<Partition>) -> Description {
        Description {
            name: TopicName::new("cats").expect("valid"),
            model: Some("cats".into()),
            retention: queue::topic::Retention::Work,
            replicas: 1,
            ordered: false,
            paused: false,
            lease_ms: 1,
            attempts: 1,
            run_timeout_ms: 1,
            result_ttl_secs: 1,
            max_bytes: None,
            retry: RetryPolicy::default(),
            partitions,
            records: 0,
            dead: 0,
        }
    }

    #[test]
    fn what_is_before_a_job_is_counted_in_all_partitions() {
        // Ten jobs wait in the first partition, and ours is the fifth; two in the second, many in the third.
        let mut topic = topic(vec![partition(0, 100, 10), partition(1, 50, 2), partition(2, 500, 400)]);
        let spec = JobSpec {
            id: JobId::random(topic.name.clone()),
            model: "cats".into(),
            model_version: 1,
            model_digest: "d".into(),
            created_at: Timestamp::now(),
            accepted_by: String::new(),
            image: ImageFacts { width: 1, height: 1, format: "png".into(), bytes: 1, sha256: "s".into() },
            options: JobOptions::default(),
            metadata: Default::default(),
            origin: Default::default(),
        };
        let record = Record::queued(spec, PartitionId::normal(0), Sequence(95));
        let at = |topic: &Description, workers| estimate(topic, &record, workers, Some(Duration::from_millis(500)));
        assert_eq!(at(&topic, 2), Some(Position { position: 4 + 2 + 4 + 1, eta_seconds: Some(3) }));
        assert_eq!(at(&topic, 0).expect("it waits").eta_seconds, None);
        topic.paused = true;
        assert_eq!(at(&topic, 2).expect("it waits").eta_seconds, None);
        let running = record.start("w", Timestamp::now()).expect("starts");
        assert_eq!(estimate(&topic, &running, 2, None), None);
    }
}
