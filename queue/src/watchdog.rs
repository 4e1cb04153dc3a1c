//! Partitions that have work but make no progress: since when, and why.
//!
//! [`Watchdog`] is pure: descriptions of topics, members and the time in, stalls out.
//! [`Stall::can_repair`] decides what can be repaired without asking.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use crate::client::{Description, Partition};
use crate::members::{Announcement, Role};
use crate::{PartitionId, TopicName};

/// How long jobs may wait, while no worker holds one, before a stall is reported.
const UNTOUCHED_MAX: Duration = Duration::from_secs(5);
/// How long a worker may hold a job on top of its lease and its run timeout.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// A partition with work that makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Stall {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// Jobs not yet delivered to a worker.
    pub queued: u64,
    /// Jobs delivered to workers and not yet settled.
    pub in_work: u64,
    /// Seconds since a job was settled, or since watching began.
    pub seconds: u64,
    /// The likely reason.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Why a partition makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[schema(as = StallReason)]
pub enum Reason {
    /// The topic is paused.
    Paused,
    /// Its consumer was paused on the server, not by Sightline.
    ConsumerPaused,
    /// Its consumer was removed.
    ConsumerMissing,
    /// The partition has no leader: too many of its servers are down.
    NoLeader,
    /// No worker has the model.
    NoMember,
    /// Workers have held jobs for longer than lease and time limit together.
    StuckLease {
        /// Workers that hold jobs of this topic.
        workers: Vec<String>,
    },
    /// None of these. Workers check each second, so this should not happen.
    Unknown,
}

impl Stall {
    /// Whether it can be repaired without losing a job or running one twice.
    pub fn can_repair(&self) -> bool {
        // A new consumer hands out everything that is still in the queue, and the records show
        // which of those jobs are already done.
        matches!(self.reason, Reason::ConsumerMissing | Reason::Unknown)
    }
}

/// Watches topics from one check to the next.
#[derive(Debug, Default)]
pub struct Watchdog {
    /// For each partition: how many messages were settled, and since when this number has not changed.
    seen: BTreeMap<(TopicName, PartitionId), (u64, Instant)>,
}

impl Watchdog {
    /// Checks all topics; partitions that are not among them are forgotten.
    pub fn look(&mut self, topics: &[Description], members: &[Announcement], now: Instant) -> Vec<Stall> {
        let is_there = |topic: &TopicName, partition: &PartitionId| {
            let same = |described: &&Description| described.name == *topic;
            topics.iter().find(same).is_some_and(|d| d.partitions.iter().any(|p| p.partition == *partition))
        };
        self.seen.retain(|(topic, partition), _| is_there(topic, partition));
        let mut stalls = Vec::new();
        for topic in topics.iter().filter(|topic| topic.model.is_some()) {
            for partition in &topic.partitions {
                stalls.extend(self.look_at(topic, partition, members, now));
            }
        }
        stalls
    }

    fn look_at(
        &mut self,
        topic: &Description,
        partition: &Partition,
        members: &[Announcement],
        now: Instant,
    ) -> Option<Stall> {
        // The progress of a partition without a consumer is unknown.
        let waiting =
            if partition.consumer_missing { partition.messages } else { partition.queued + partition.in_work };
        let done = partition.last.0.saturating_sub(waiting);
        let key = (topic.name.clone(), partition.partition);
        // The depth of a partition without a leader is unknown.
        let is_silent = partition.leader == "none";
        let since = match self.seen.get(&key) {
            Some((_, since)) if is_silent => *since,
            Some((seen, since)) if *seen == done && waiting > 0 => *since,
            _ => {
                self.seen.insert(key, (done, now));
                now
            }
        };
        let quiet = now.saturating_duration_since(since);
        let busy_max = Duration::from_millis(topic.lease_ms + topic.run_timeout_ms) + SETTLE_MAX;
        let patience = if partition.in_work > 0 { busy_max } else { UNTOUCHED_MAX };
        ((waiting > 0 || is_silent) && quiet >= patience).then(|| Stall {
            topic: topic.name.clone(),
            partition: partition.partition,
            queued: if partition.consumer_missing { waiting } else { partition.queued },
            in_work: partition.in_work,
            seconds: quiet.as_secs(),
            reason: reason(topic, partition, members),
        })
    }
}

fn reason(topic: &Description, partition: &Partition, members: &[Announcement]) -> Reason {
    let serves = |member: &&Announcement| {
        member.role == Role::Worker && topic.model.as_ref().is_some_and(|model| member.models.contains(model))
    };
    if partition.leader == "none" {
        return Reason::NoLeader;
    }
    if partition.consumer_missing {
        return Reason::ConsumerMissing;
    }
    if topic.paused {
        return Reason::Paused;
    }
    if partition.consumer_paused {
        return Reason::ConsumerPaused;
    }
    if !members.iter().any(|member| serves(&member)) {
        return Reason::NoMember;
    }
    if partition.in_work > 0 {
        let holds = |member: &&Announcement| member.work.iter().any(|work| *work.job.topic() == topic.name);
        let workers = members.iter().filter(holds).map(|member| member.id.clone()).collect();
        return Reason::StuckLease { workers };
    }
    Reason::Unknown
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Paused => f.write_str("the topic is paused; sightline topics resume continues it"),
            Self::ConsumerPaused => f.write_str("its consumer `workers` is paused on the server"),
            Self::ConsumerMissing => f.write_str("its consumer `workers` is missing"),
            Self::NoLeader => f.write_str("the partition has no leader: too many of its servers are down"),
            Self::NoMember => f.write_str("no worker has the model; start one with sightline worker"),
            Self::StuckLease { workers } if workers.is_empty() => f.write_str(
                "jobs are leased to workers that no longer answer, or wait for a retry; they are redelivered when their leases expire",
            ),
            Self::StuckLease { workers } => {
                write!(f, "jobs are stuck on {}; stop these workers to redeliver them", workers.join(", "))
            }
            Self::Unknown => f.write_str("no reason can be seen"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Sequence;
    use crate::members::{Stage, Work};

    pub(crate) fn topic() -> Description {
        let partition = Partition {
            partition: PartitionId::normal(0),
            leader: "n1".into(),
            replicas: Vec::new(),
            first: Sequence(1),
            last: Sequence(10),
            messages: 4,
            bytes: 4,
            queued: 4,
            in_work: 0,
            redelivered: 0,
            oldest_at: None,
            ack_floor: Sequence(6),
            consumer_paused: false,
            consumer_missing: false,
        };
        Description {
            name: TopicName::new("cats").expect("valid"),
            model: Some("cats".into()),
            retention: crate::topic::Retention::Work,
            replicas: 1,
            ordered: false,
            paused: false,
            lease_ms: 30_000,
            attempts: 5,
            run_timeout_ms: 60_000,
            result_ttl_secs: 1,
            max_bytes: None,
            retry: crate::topic::RetryPolicy::default(),
            partitions: vec![partition],
            records: 0,
            dead: 0,
        }
    }

    fn worker() -> Announcement {
        Announcement::new(Role::Worker, &["cats".into()])
    }

    /// The reasons that the second of two checks reports, this many seconds apart.
    fn after(seconds: u64, topic: &Description, members: &[Announcement]) -> Vec<Reason> {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        assert_eq!(watchdog.look(std::slice::from_ref(topic), members, start), []);
        let stalls = watchdog.look(std::slice::from_ref(topic), members, start + Duration::from_secs(seconds));
        stalls.into_iter().map(|stall| stall.reason).collect()
    }

    fn with(change: impl FnOnce(&mut Partition)) -> Description {
        let mut topic = topic();
        change(&mut topic.partitions[0]);
        topic
    }

    #[test]
    fn each_reason_is_told_from_the_others() {
        let workers = [worker()];
        assert_eq!(after(4, &topic(), &[]), []);
        assert_eq!(after(5, &topic(), &[]), [Reason::NoMember]);
        assert_eq!(after(5, &topic(), &workers), [Reason::Unknown]);
        assert_eq!(after(5, &Description { paused: true, ..topic() }, &workers), [Reason::Paused]);
        assert_eq!(after(5, &with(|p| p.consumer_paused = true), &workers), [Reason::ConsumerPaused]);
        assert_eq!(after(5, &with(|p| p.consumer_missing = true), &workers), [Reason::ConsumerMissing]);
        assert_eq!(after(5, &with(|p| p.leader = "none".into()), &workers), [Reason::NoLeader]);
        assert_eq!(after(999, &Description { model: None, ..topic() }, &[]), [], "a plain log has no workers");
    }

    #[test]
    fn a_job_in_hand_has_its_lease_and_its_run() {
        let busy = with(|partition| partition.in_work = 1);
        let job = crate::JobId::random(busy.name.clone());
        let holder = Announcement { work: vec![Work { job, stage: Stage::Running }], ..worker() };
        assert_eq!(after(104, &busy, std::slice::from_ref(&holder)), []);
        let workers = vec![holder.id.clone()];
        assert_eq!(after(105, &busy, &[holder, worker()]), [Reason::StuckLease { workers }]);
    }

    #[test]
    fn a_partition_that_makes_progress_is_not_stalled() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        for second in 0..60 {
            let moving = with(|partition| {
                partition.last = Sequence(10 + second);
                partition.queued = 4;
            });
            assert_eq!(watchdog.look(&[moving], &[], start + Duration::from_secs(second)), []);
        }
    }
}
