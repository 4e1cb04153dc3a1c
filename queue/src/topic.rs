//! A topic: the queue of one model, as a handful of streams.
//!
//! | stream | subjects | kind |
//! |---|---|---|
//! | `jobs_<topic>_<p>` | `jobs.<topic>.<p>.<uuid>` | work queue, one message a subject, refuses when full |
//! | `records_<topic>` | `records.<topic>.<uuid>` | the last message of each subject is the job's record |
//! | `dead_<topic>` | `dead.<topic>.<uuid>` | inputs of failed jobs, for some days |
//!
//! The streams are the registry; there is no list beside them. A topic's settings stand in the
//! metadata of its records stream, which is created last: where it exists, the topic is complete.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use serde::{Deserialize, Serialize};

use crate::{JobId, PartitionId, QueueError, TopicName};

/// Name of the consumer that all workers of a topic share.
pub const WORKERS: &str = "workers";

/// Where a topic's settings stand in its stream's metadata.
const METADATA_KEY: &str = "sightline";

/// Jobs of one partition that may be in workers' hands at a time.
const IN_HAND_MAX: i64 = 65_536;

/// Settings of a topic; durations in milliseconds so that they are stored without loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The topic.
    pub topic: TopicName,
    /// The model that its jobs run on.
    pub model: String,
    /// Partitions of normal priority, at least 1.
    pub partitions: u16,
    /// How long a delivery belongs to its worker without a sign of life.
    pub lease_ms: u64,
    /// Deliveries that may begin to run before a job is given up.
    pub attempts_max: u32,
    /// How long one attempt may run when the job does not say.
    pub run_timeout_ms: u64,
    /// How long a finished job's record is kept.
    pub result_ttl_secs: u64,
}

/// What topics are created with when nobody says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// See [`Settings::partitions`].
    pub partitions: u16,
    /// See [`Settings::lease_ms`].
    pub lease: Duration,
    /// See [`Settings::attempts_max`].
    pub attempts_max: u32,
    /// See [`Settings::run_timeout_ms`].
    pub run_timeout: Duration,
    /// See [`Settings::result_ttl_secs`].
    pub result_ttl: Duration,
    /// Bytes that the queued jobs of one topic may take; shared evenly by its partitions.
    pub topic_bytes_max: u64,
    /// Bytes that the dead letters of one topic may take; the oldest go first.
    pub dead_bytes_max: u64,
    /// How long dead letters are kept.
    pub dead_ttl: Duration,
    /// Copies of every stream; more than 1 needs a cluster.
    pub replicas: usize,
}

impl Default for Defaults {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            partitions: 3,
            lease: Duration::from_secs(30),
            attempts_max: 5,
            run_timeout: Duration::from_secs(60),
            result_ttl: 7 * DAY,
            topic_bytes_max: 32 * GIB,
            dead_bytes_max: 4 * GIB,
            dead_ttl: 7 * DAY,
            replicas: 1,
        }
    }
}

impl Defaults {
    /// The settings of a new topic.
    pub fn settings(&self, topic: TopicName, model: &str) -> Settings {
        Settings {
            topic,
            model: model.to_owned(),
            partitions: self.partitions.max(1),
            lease_ms: millis(self.lease),
            attempts_max: self.attempts_max.max(1),
            run_timeout_ms: millis(self.run_timeout),
            result_ttl_secs: self.result_ttl.as_secs().max(1),
        }
    }
}

/// A topic that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// What it was created with.
    pub settings: Settings,
    /// Copies of its streams. With more than one, records are read from the leader.
    pub replicas: usize,
}

impl Topic {
    /// Its name.
    pub fn name(&self) -> &TopicName {
        &self.settings.topic
    }

    /// Its partitions, in order.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.settings.partitions).map(PartitionId::normal)
    }

    /// How long a delivery belongs to its worker without a sign of life.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.settings.lease_ms)
    }

    /// How long one attempt may run when the job does not say.
    pub fn run_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.run_timeout_ms)
    }

    /// Reads the settings back from the records stream.
    pub(crate) fn from_records_stream(config: &stream::Config) -> Result<Self, QueueError> {
        let damaged =
            |problem: String| QueueError::Damaged { what: format!("metadata of stream {}", config.name), problem };
        let text = config.metadata.get(METADATA_KEY).ok_or_else(|| damaged("it has no settings".into()))?;
        let settings: Settings = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        if settings.partitions == 0 {
            return Err(damaged("0 partitions".into()));
        }
        Ok(Self { settings, replicas: config.num_replicas })
    }
}

/// Subject under which a job is queued.
pub fn job_subject(id: &JobId, partition: PartitionId) -> String {
    format!("jobs.{}.{partition}.{}", id.topic(), id.uuid())
}

/// Subject of a job's record, and of the doorbell that rings when it changes.
pub fn record_subject(id: &JobId) -> String {
    format!("records.{}.{}", id.topic(), id.uuid())
}

/// Subject of a failed job's input.
pub fn dead_subject(id: &JobId) -> String {
    format!("dead.{}.{}", id.topic(), id.uuid())
}

/// Subject on which workers hear that a partition has a new job.
pub fn wake_subject(topic: &TopicName, partition: PartitionId) -> String {
    format!("wake.{topic}.{partition}")
}

/// Name of the stream of one partition.
pub fn jobs_stream(topic: &TopicName, partition: PartitionId) -> String {
    format!("jobs_{topic}_{partition}")
}

/// Name of the stream of a topic's records.
pub fn records_stream(topic: &TopicName) -> String {
    format!("records_{topic}")
}

pub(crate) fn jobs_config(settings: &Settings, partition: PartitionId, defaults: &Defaults) -> stream::Config {
    let topic = &settings.topic;
    let share = defaults.topic_bytes_max / u64::from(settings.partitions);
    stream::Config {
        name: jobs_stream(topic, partition),
        subjects: vec![format!("jobs.{topic}.{partition}.*")],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        // One message an id: a publish that is repeated because its answer was lost is refused.
        max_messages_per_subject: 1,
        discard_new_per_subject: true,
        // 0 would mean no bound.
        max_bytes: bytes(share.max(1)),
        storage: StorageType::File,
        num_replicas: defaults.replicas,
        allow_direct: true,
        ..stream::Config::default()
    }
}

pub(crate) fn records_config(settings: &Settings, defaults: &Defaults) -> stream::Config {
    let topic = &settings.topic;
    let text = serde_json::to_string(settings).expect("settings hold strings and numbers only");
    stream::Config {
        name: records_stream(topic),
        subjects: vec![format!("records.{topic}.*")],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        storage: StorageType::File,
        num_replicas: defaults.replicas,
        allow_direct: true,
        allow_message_ttl: true,
        metadata: HashMap::from([(METADATA_KEY.to_owned(), text)]),
        ..stream::Config::default()
    }
}

pub(crate) fn dead_config(settings: &Settings, defaults: &Defaults) -> stream::Config {
    let topic = &settings.topic;
    stream::Config {
        name: format!("dead_{topic}"),
        subjects: vec![format!("dead.{topic}.*")],
        retention: RetentionPolicy::Limits,
        // Old letters make room. A letter that is written twice replaces itself.
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        max_bytes: bytes(defaults.dead_bytes_max),
        max_age: defaults.dead_ttl,
        storage: StorageType::File,
        num_replicas: defaults.replicas,
        allow_direct: true,
        ..stream::Config::default()
    }
}

pub(crate) fn workers_config(settings: &Settings) -> pull::Config {
    pull::Config {
        durable_name: Some(WORKERS.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(settings.lease_ms),
        // Never by the server: it would leave the message in the stream without a word. We count
        // attempts in the record instead.
        max_deliver: -1,
        max_ack_pending: IN_HAND_MAX,
        ..pull::Config::default()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_metadata_of_their_stream() {
        let defaults = Defaults { lease: Duration::from_millis(1_500), ..Defaults::default() };
        let settings = defaults.settings(TopicName::new("cats").expect("valid"), "cats");
        let topic = Topic::from_records_stream(&records_config(&settings, &defaults)).expect("reads");
        assert_eq!((topic.lease(), &topic.settings), (Duration::from_millis(1_500), &settings));
        let foreign = stream::Config { name: "records_x".into(), ..stream::Config::default() };
        let error = Topic::from_records_stream(&foreign).expect_err("refused").to_string();
        assert!(error.contains("records_x") && error.contains("no settings"), "{error}");
    }
}
