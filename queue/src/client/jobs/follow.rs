//! Following the records of all jobs, as the job index does.

use futures::{Stream, StreamExt, TryStreamExt};

use super::Jobs;
use crate::client::connection::Revision;
use crate::topic::records_stream;
use crate::{QueueError, Record, Sequence, TopicError, TopicName};

impl Jobs {
    /// The newest record of each job of a topic that was written after `after`, oldest first; `None`
    /// in place of a record that cannot be read.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer; an item is an error when it stops answering.
    pub async fn records_after(
        &self,
        topic: &TopicName,
        after: Revision,
    ) -> Result<impl Stream<Item = Result<(Revision, Option<Record>), QueueError>> + use<>, QueueError> {
        let messages = self.scan_from(&records_stream(topic), Sequence(u64::from(after) + 1), false).await?;
        Ok(messages
            .map_ok(|message| (Revision::from(message.sequence.0), serde_json::from_slice(&message.payload).ok())))
    }

    /// Which stream holds a topic's records, identified by its creation time, and its last revision.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn records_end(&self, topic: &TopicName) -> Result<Option<(String, Revision)>, QueueError> {
        match self.stream_info(&records_stream(topic)).await {
            Ok(info) => Ok(Some((info.created.to_string(), Revision::from(info.state.last_sequence)))),
            Err(TopicError::Queue(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Yields an item whenever a process writes a record or tries to.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn record_rings(&self) -> Result<impl Stream<Item = ()> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for records", problem };
        let messages = self.listen("records.*.*".into()).await.map_err(unavailable)?;
        Ok(messages.map(drop))
    }
}
