//! Groups that read a log together: each message is delivered to one member of the group, and the
//! server keeps the group's position. (Like Kafka's consumer groups, but more members than
//! partitions still help.)

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures::TryStreamExt;
use serde::Serialize;

use super::Logs;
use crate::client::connection::{Connection, Message, bounded};
use crate::topic::{Retention, WORKERS, jobs_stream};
use crate::{PartitionId, QueueError, Sequence, Timestamp, Topic, TopicError, TopicName};

/// How long a member may hold a message before another one gets it.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// Where to begin or continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At the first stored message.
    Beginning,
    /// After the last stored message.
    End,
    /// At this one.
    At(Sequence),
    /// At the first one that was stored at this time or later.
    Since(Timestamp),
}

/// Progress of a group in one partition.
#[derive(Debug, Clone, Serialize)]
pub struct GroupOffset {
    /// The group; `workers` are the topic's workers.
    pub group: String,
    /// The last message that was handed out.
    pub delivered: Sequence,
    /// Everything up to this one was acknowledged.
    pub ack_floor: Sequence,
    /// Messages that are not acknowledged.
    pub lag: u64,
}

/// The positions of one partition.
#[derive(Debug, Clone, Serialize)]
pub struct Offsets {
    /// Which one.
    pub partition: PartitionId,
    /// Position of its first message.
    pub first: Sequence,
    /// Last position assigned to a message.
    pub last: Sequence,
    /// All groups that read it.
    pub groups: Vec<GroupOffset>,
}

/// The part of a group that reads one partition.
pub struct GroupReader {
    consumer: async_nats::jetstream::consumer::PullConsumer,
}

impl Logs {
    /// First and last position of each partition, and the progress of each group.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn offsets(&self, name: &TopicName) -> Result<Vec<Offsets>, TopicError> {
        let topic = self.existing_topic(name).await?;
        futures::future::try_join_all(topic.partitions().map(async |partition| {
            const ACTION: &str = "list consumers";
            let bounds = self.bounds(name, partition).await?;
            let stream = self.handle(&jobs_stream(name, partition)).await?;
            let consumers =
                bounded(stream.consumers().try_collect::<Vec<_>>()).await.map_err(QueueError::unavailable(ACTION))?;
            let mut consumers = consumers.map_err(QueueError::unavailable(ACTION))?;
            // Scans and other short-lived readers have no durable name.
            consumers.retain(|info| info.config.durable_name.is_some());
            consumers.sort_by(|a, b| a.name.cmp(&b.name));
            let groups = consumers.into_iter().map(|info| GroupOffset {
                group: info.name,
                delivered: Sequence(info.delivered.stream_sequence),
                ack_floor: Sequence(info.ack_floor.stream_sequence),
                lag: info.num_pending + info.num_ack_pending as u64,
            });
            Ok(Offsets { partition, first: bounds.first, last: bounds.last, groups: groups.collect() })
        }))
        .await
    }

    /// Joins a group that reads one partition of a log. A new group begins at `from`.
    ///
    /// # Errors
    /// [`TopicError::Invalid`] for a name that cannot be a group's, and on a work topic, whose
    /// messages go to its workers.
    pub async fn join_group(
        &self,
        topic: &Topic,
        partition: PartitionId,
        group: &TopicName,
        from: Position,
    ) -> Result<GroupReader, TopicError> {
        check_group(topic, group)?;
        let stream = self.handle(&jobs_stream(topic.name(), partition)).await?;
        let found = bounded(stream.get_consumer::<pull::Config>(group.as_str())).await;
        if let Ok(consumer) = found.map_err(QueueError::unavailable("find the group"))? {
            return Ok(GroupReader { consumer });
        }
        let first = self.resolve(topic.name(), partition, from).await?;
        let config = pull::Config {
            durable_name: Some(group.to_string()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            deliver_policy: DeliverPolicy::All,
            ..pull::Config::default()
        };
        let created = bounded(stream.create_consumer(config)).await;
        let created = created.map_err(QueueError::unavailable("create the group"))?;
        let consumer = created.map_err(|error| TopicError::Refused(error.to_string()))?;
        // The position is set afterwards, because a group cannot later be moved back behind a
        // position in its configuration.
        if first.0 > 1
            && let Err(error) = self.move_group(topic.name(), partition, group, first).await
        {
            // So that the next call creates the group again instead of finding it at the beginning.
            drop(bounded(stream.delete_consumer(group.as_str())).await);
            return Err(error);
        }
        Ok(GroupReader { consumer })
    }

    /// Moves a group, in one partition or in all.
    ///
    /// # Errors
    /// [`TopicError`]; `Refused` by servers older than 2.14.
    pub async fn reset_group(
        &self,
        name: &TopicName,
        partition: Option<PartitionId>,
        group: &TopicName,
        to: Position,
    ) -> Result<(), TopicError> {
        let topic = self.existing_topic(name).await?;
        check_group(&topic, group)?;
        let chosen = |one: &PartitionId| partition.is_none_or(|wanted| wanted == *one);
        for partition in topic.partitions().filter(chosen) {
            let first = self.resolve(name, partition, to).await?;
            self.move_group(name, partition, group, first).await?;
        }
        Ok(())
    }

    async fn move_group(
        &self,
        name: &TopicName,
        partition: PartitionId,
        group: &TopicName,
        first: Sequence,
    ) -> Result<(), TopicError> {
        let subject = format!("CONSUMER.RESET.{}.{group}", jobs_stream(name, partition));
        let request = serde_json::json!({ "seq": first.0 });
        Ok(self.ask::<serde_json::Value>("move the group", &subject, &request).await.map(drop)?)
    }

    /// The position of the message that a reader begins with.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn resolve(
        &self,
        name: &TopicName,
        partition: PartitionId,
        position: Position,
    ) -> Result<Sequence, QueueError> {
        Ok(match position {
            Position::Beginning => Sequence(1),
            Position::At(sequence) => sequence,
            Position::End => Sequence(self.bounds(name, partition).await?.last.0 + 1),
            Position::Since(time) => self.sequence_since(name, partition, time).await?,
        })
    }
}

impl GroupReader {
    /// The group's next message of this partition, if one waits. Another member may get it after half
    /// a minute, unless [`GroupMessage::ack`] acknowledges it.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn next(&self) -> Result<Option<GroupMessage>, QueueError> {
        let Some(raw) = Connection::fetch_one("read a log", &self.consumer).await? else { return Ok(None) };
        let message = Message::delivered(&raw)?;
        Ok(Some(GroupMessage { message, raw }))
    }
}

/// A message that this member holds for half a minute.
pub struct GroupMessage {
    /// What was read.
    pub message: Message,
    raw: async_nats::jetstream::Message,
}

impl GroupMessage {
    /// Acknowledges the message, and waits until the server has confirmed.
    ///
    /// # Errors
    /// [`QueueError`]; another member may get it then.
    pub async fn ack(&self) -> Result<(), QueueError> {
        let acked = bounded(self.raw.double_ack()).await.map_err(QueueError::unavailable("note what was read"))?;
        acked.map_err(|error| QueueError::Unavailable { action: "note what was read", problem: error.to_string() })
    }
}

fn check_group(topic: &Topic, group: &TopicName) -> Result<(), TopicError> {
    if topic.settings.retention == Retention::Work {
        let name = topic.name();
        return Err(TopicError::Invalid(format!(
            "{name} is a work topic: its messages go to its workers, groups read logs"
        )));
    }
    if group.as_str() == WORKERS {
        let words =
            "`workers` are the topic's own: what they have run is in the records; run it again with topics replay";
        return Err(TopicError::Invalid(words.into()));
    }
    Ok(())
}
