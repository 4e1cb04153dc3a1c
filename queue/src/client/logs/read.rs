//! Reading the messages of a partition without taking them: for people, audits and replays.

use async_nats::jetstream::stream::DirectGetErrorKind;
use futures::{Stream, StreamExt};
use serde::Serialize;

use super::Logs;
use crate::client::connection::{Message, bounded};
use crate::topic::jobs_stream;
use crate::{PartitionId, QueueError, Sequence, Timestamp, TopicName};

/// The first and the last position of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// Of the first message; after `last` if the partition is empty.
    pub first: Sequence,
    /// The last position assigned to a message; 0 if there never was one.
    pub last: Sequence,
}

impl Logs {
    /// The first message of a partition at or after `from`, or `None` if there is none yet.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn peek(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        from: Sequence,
    ) -> Result<Option<Message>, QueueError> {
        let stream = self.handle(&jobs_stream(topic, partition)).await?;
        let read = bounded(stream.direct_get_next_for_subject(">", Some(from.0.max(1)))).await;
        match read.map_err(QueueError::unavailable("read a message"))? {
            Ok(message) => Ok(Some(message.into())),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(QueueError::unavailable("read a message")(error)),
        }
    }

    /// The position of the first message of a partition that was stored at `since` or later; one after
    /// the last message if there is none.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn sequence_since(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        since: Timestamp,
    ) -> Result<Sequence, QueueError> {
        let bounds = self.bounds(topic, partition).await?;
        let (mut low, mut high) = (bounds.first.0, bounds.last.0 + 1);
        // Invariant: messages before `low` are older, messages at or after `high` are not.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.peek(topic, partition, Sequence(middle)).await? {
                Some(message) if message.time < since => low = message.sequence.0 + 1,
                Some(_) | None => high = middle,
            }
        }
        Ok(Sequence(low))
    }

    /// The first and the last position of a partition.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn bounds(&self, topic: &TopicName, partition: PartitionId) -> Result<Bounds, QueueError> {
        let info = self.stream_info(&jobs_stream(topic, partition)).await;
        let state = info
            .map_err(|error| QueueError::Unavailable { action: "find a partition", problem: error.to_string() })?
            .state;
        Ok(Bounds { first: Sequence(state.first_sequence.max(1)), last: Sequence(state.last_sequence) })
    }

    /// Yields an item when a partition of the topic has a new message.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn rings(&self, topic: &TopicName) -> Result<impl Stream<Item = ()> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for new messages", problem };
        let any = format!("wake.{topic}.*");
        let messages = self.listen(any).await.map_err(unavailable)?;
        Ok(messages.map(|_| ()))
    }
}
