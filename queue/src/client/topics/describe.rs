//! Settings, partitions and current state of a topic, for people.

use async_nats::jetstream::{consumer, stream};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::Topics;
use crate::client::connection::timestamp;
use crate::topic::{Retention, WORKERS, dead_stream, jobs_stream};
use crate::{PartitionId, Sequence, Timestamp, Topic, TopicError, TopicName};

/// A topic with its settings and all its partitions.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Description {
    /// Its name.
    pub name: TopicName,
    /// Its model; none: a plain log.
    pub model: Option<String>,
    /// `work` or `log:` and an age.
    #[schema(value_type = String)]
    #[serde(serialize_with = "as_text")]
    pub retention: Retention,
    /// Copies of its streams.
    pub replicas: usize,
    /// Whether jobs of one key end in order of arrival.
    pub ordered: bool,
    /// Whether it is paused.
    pub paused: bool,
    /// Lease of a worker on a job, milliseconds.
    pub lease_ms: u64,
    /// Attempts before a job fails.
    pub attempts: u32,
    /// Time limit of one attempt, milliseconds.
    pub run_timeout_ms: u64,
    /// Time that results are kept, seconds.
    pub result_ttl_secs: u64,
    /// Most bytes of its inputs.
    pub max_bytes: Option<u64>,
    /// Delays between attempts.
    pub retry: crate::topic::RetryPolicy,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Number of records kept.
    pub records: u64,
    /// Dead letters.
    pub dead: u64,
}

/// One partition.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Partition {
    /// Which one.
    pub partition: PartitionId,
    /// Its leader; the only server if there is no cluster.
    pub leader: String,
    /// Other servers with a copy.
    pub replicas: Vec<Replica>,
    /// Position of its first message.
    pub first: Sequence,
    /// Last position assigned to a message.
    pub last: Sequence,
    /// Messages in it.
    pub messages: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Messages not yet delivered to a worker.
    pub queued: u64,
    /// Messages delivered to workers and not yet settled.
    pub in_work: u64,
    /// Of these: delivered more than once.
    pub redelivered: u64,
    /// When its oldest message was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_at: Option<Timestamp>,
    /// All messages up to this position are settled.
    pub ack_floor: Sequence,
    /// Its consumer was paused on the server, not by Sightline.
    pub consumer_paused: bool,
    /// Its consumer is missing.
    pub consumer_missing: bool,
}

/// Shown as the leader of a partition that has none.
const NO_LEADER: &str = "none";

impl Partition {
    /// A partition that does not answer.
    fn silent(partition: PartitionId) -> Self {
        Self {
            partition,
            leader: NO_LEADER.into(),
            replicas: Vec::new(),
            first: Sequence(0),
            last: Sequence(0),
            messages: 0,
            bytes: 0,
            queued: 0,
            in_work: 0,
            redelivered: 0,
            oldest_at: None,
            ack_floor: Sequence(0),
            consumer_paused: false,
            consumer_missing: false,
        }
    }
}

/// A copy of a partition that is not the leader.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Replica {
    /// The server.
    pub server: String,
    /// Whether it has all data of the leader.
    pub current: bool,
    /// Number of operations it is behind.
    pub lag: u64,
    /// Whether it is offline.
    pub offline: bool,
}

impl Topics {
    /// Describes a topic.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn describe(&self, name: &TopicName) -> Result<Description, TopicError> {
        let found = self.fresh_topic_and_count(name).await?;
        let (topic, records) = found.ok_or_else(|| TopicError::Unknown(name.clone()))?;
        let partitions = topic.partitions().map(|partition| self.describe_partition(&topic, partition));
        let partitions = futures::future::try_join_all(partitions).await?;
        let settings = &topic.settings;
        Ok(Description {
            name: name.clone(),
            model: settings.model.clone(),
            retention: settings.retention,
            replicas: topic.replicas,
            ordered: settings.ordered,
            paused: settings.paused,
            lease_ms: settings.lease_ms,
            attempts: settings.attempts_max,
            run_timeout_ms: settings.run_timeout_ms,
            result_ttl_secs: settings.result_ttl_secs,
            max_bytes: settings.bytes_max,
            retry: settings.retry,
            partitions,
            records,
            dead: match self.stream_info(&dead_stream(name)).await {
                Err(TopicError::Queue(_)) if topic.replicas > 1 => 0,
                info => info?.state.messages,
            },
        })
    }

    async fn describe_partition(&self, topic: &Topic, partition: PartitionId) -> Result<Partition, TopicError> {
        let stream = jobs_stream(topic.name(), partition);
        let info = match self.stream_info(&stream).await {
            // It has no leader now: show that instead of failing.
            Err(TopicError::Queue(_)) if topic.replicas > 1 => return Ok(Partition::silent(partition)),
            info => info?,
        };
        let (state, cluster) = (&info.state, info.cluster.as_ref());
        let own = || self.client().server_info().server_name;
        let mut described = Partition {
            partition,
            leader: cluster.map_or_else(own, |cluster| cluster.leader.clone().unwrap_or_else(|| NO_LEADER.into())),
            replicas: cluster.map(|cluster| cluster.replicas.iter().map(Replica::from).collect()).unwrap_or_default(),
            first: Sequence(state.first_sequence),
            last: Sequence(state.last_sequence),
            messages: state.messages,
            bytes: state.bytes,
            queued: 0,
            in_work: 0,
            redelivered: 0,
            oldest_at: (state.messages > 0).then(|| timestamp(state.first_timestamp)),
            ack_floor: Sequence(0),
            consumer_paused: false,
            consumer_missing: false,
        };
        if topic.settings.model.is_none() {
            return Ok(described);
        }
        let subject = format!("CONSUMER.INFO.{stream}.{WORKERS}");
        match self.ask::<consumer::Info>("describe a consumer", &subject, &serde_json::json!({})).await {
            Ok(consumer) => {
                described.queued = consumer.num_pending;
                described.in_work = consumer.num_ack_pending as u64;
                described.redelivered = consumer.num_redelivered as u64;
                described.ack_floor = Sequence(consumer.ack_floor.stream_sequence);
                described.consumer_paused = consumer.paused;
            }
            Err(error) if error.is_not_found() => described.consumer_missing = true,
            Err(_) if topic.replicas > 1 => described.leader = NO_LEADER.into(),
            Err(error) => return Err(error.into()),
        }
        Ok(described)
    }
}

impl From<&stream::PeerInfo> for Replica {
    fn from(peer: &stream::PeerInfo) -> Self {
        Self { server: peer.name.clone(), current: peer.current, lag: peer.lag.unwrap_or(0), offline: peer.offline }
    }
}

fn as_text<S: Serializer>(retention: &Retention, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(retention)
}
