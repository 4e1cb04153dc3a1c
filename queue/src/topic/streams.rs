//! The streams of a topic: names, subjects, configurations.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};

use super::{Defaults, Retention, Settings, Topic};
use crate::{JobId, PartitionId, QueueError, TopicName};

/// Name of the consumer that all workers of a topic share.
pub const WORKERS: &str = "workers";

/// Key of a topic's settings in the metadata of its records stream.
const METADATA_KEY: &str = "sightline";

/// Jobs of one partition that workers may hold at a time.
const IN_HAND_MAX: i64 = 65_536;

/// Subject under which a job is queued.
pub fn job_subject(id: &JobId, partition: PartitionId) -> String {
    format!("jobs.{}.{partition}.{}", id.topic(), id.uuid())
}

/// Subject of a job's record, and of the notification that it has changed.
pub fn record_subject(id: &JobId) -> String {
    format!("records.{}.{}", id.topic(), id.uuid())
}

/// Subject of a failed job's input.
pub fn dead_subject(id: &JobId) -> String {
    format!("dead.{}.{}", id.topic(), id.uuid())
}

/// Subject on which workers are notified that a partition has a new job.
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

/// Name of the stream of a topic's dead letters.
pub fn dead_stream(topic: &TopicName) -> String {
    format!("dead_{topic}")
}

/// Subject that announces that a topic's settings have changed, or that it was deleted.
pub fn topic_subject(topic: &TopicName) -> String {
    format!("topics.{topic}")
}

/// All jobs of a partition.
pub(crate) fn job_filter(topic: &TopicName, partition: PartitionId) -> String {
    format!("jobs.{topic}.{partition}.*")
}

/// A test of whether a stream belongs to a topic, including streams of partitions that the topic does not know.
pub(crate) fn streams_of(topic: &TopicName) -> impl Fn(&str) -> bool + use<> {
    let (records, dead, jobs) = (records_stream(topic), dead_stream(topic), format!("jobs_{topic}_"));
    move |stream| {
        stream == records
            || stream == dead
            || stream.strip_prefix(&jobs).is_some_and(|p| p.parse::<PartitionId>().is_ok())
    }
}

/// Bytes that a log keeps by default before it drops the oldest messages.
const LOG_BYTES_MAX: u64 = 32 << 30;

/// The stream of one partition; all partitions together take at most `bytes_max` bytes.
pub(crate) fn jobs_config(
    settings: &Settings,
    partition: PartitionId,
    bytes_max: Option<u64>,
    replicas: usize,
) -> stream::Config {
    let topic = &settings.topic;
    let of_log = settings.bytes_max_before.unwrap_or(LOG_BYTES_MAX);
    let bytes_max = bytes_max.or((settings.retention != Retention::Work).then_some(of_log));
    let common = stream::Config {
        name: jobs_stream(topic, partition),
        subjects: vec![job_filter(topic, partition)],
        max_bytes: bytes_max.map_or(-1, |bytes_max| bytes(settings.partition_share(bytes_max))),
        storage: StorageType::File,
        num_replicas: replicas,
        allow_direct: true,
        ..stream::Config::default()
    };
    match settings.retention {
        Retention::Work => stream::Config {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            // One message per id: the server refuses a publish that is repeated because its answer was lost.
            max_messages_per_subject: 1,
            discard_new_per_subject: true,
            ..common
        },
        // Against duplicates, publishers name the subject's last sequence instead.
        Retention::Log { age_secs } => stream::Config {
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_age: Duration::from_secs(age_secs),
            ..common
        },
    }
}

pub(crate) fn records_config(settings: &Settings, replicas: usize) -> stream::Config {
    let topic = &settings.topic;
    let mut config = stream::Config {
        name: records_stream(topic),
        subjects: vec![format!("records.{topic}.*")],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        storage: StorageType::File,
        num_replicas: replicas,
        allow_direct: true,
        allow_message_ttl: true,
        ..stream::Config::default()
    };
    set_settings(&mut config, settings);
    config
}

/// Writes the settings where [`Topic::from_records_stream`] reads them.
pub(crate) fn set_settings(config: &mut stream::Config, settings: &Settings) {
    let text = serde_json::to_string(settings).expect("settings hold strings and numbers only");
    config.metadata.insert(METADATA_KEY.to_owned(), text);
}

pub(crate) fn dead_config(settings: &Settings, defaults: &Defaults, replicas: usize) -> stream::Config {
    let topic = &settings.topic;
    stream::Config {
        name: dead_stream(topic),
        subjects: vec![format!("dead.{topic}.*")],
        retention: RetentionPolicy::Limits,
        // Old letters are dropped to make room. A letter that is written twice replaces itself.
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        max_bytes: bytes(defaults.dead_bytes_max),
        max_age: defaults.dead_ttl,
        storage: StorageType::File,
        num_replicas: replicas,
        allow_direct: true,
        ..stream::Config::default()
    }
}

pub(crate) fn workers_config(settings: &Settings) -> pull::Config {
    pull::Config {
        durable_name: Some(WORKERS.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(settings.lease_ms),
        // No limit by the server: it would silently leave the message in the stream. We count
        // attempts in the record instead.
        max_deliver: -1,
        max_ack_pending: if settings.ordered { 1 } else { IN_HAND_MAX },
        ..pull::Config::default()
    }
}

impl Topic {
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

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_metadata_of_their_stream() {
        let defaults = Defaults { lease: Duration::from_millis(1_500), ..Defaults::default() };
        let settings = defaults.settings(TopicName::new("cats").expect("valid"), Some("cats"));
        let topic = Topic::from_records_stream(&records_config(&settings, 1)).expect("reads");
        assert_eq!((topic.lease(), &topic.settings), (Duration::from_millis(1_500), &settings));
        let foreign = stream::Config { name: "records_x".into(), ..stream::Config::default() };
        let error = Topic::from_records_stream(&foreign).expect_err("refused").to_string();
        assert!(error.contains("records_x") && error.contains("no settings"), "{error}");
    }

    #[test]
    fn a_topic_does_not_take_the_streams_of_another_for_its_own() {
        let own = streams_of(&TopicName::new("cats").expect("valid"));
        for stream in ["records_cats", "dead_cats", "jobs_cats_0", "jobs_cats_11l"] {
            assert!(own(stream), "{stream}");
        }
        for stream in ["records_cats-2", "jobs_cats-2_0", "jobs_cat_0", "jobs_cats_x", "dead_cat", "leases"] {
            assert!(!own(stream), "{stream}");
        }
    }
}
