//! Purging a topic.

use futures::{StreamExt, TryStreamExt};

use super::Topics;
use crate::client::connection::Replaced;
use crate::topic::jobs_stream;
use crate::{JobId, PartitionId, QueueError, State, Timestamp, TopicError, TopicName};

/// Jobs that are canceled at a time.
const PURGE_WIDTH: usize = 32;

/// Result of a purge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Purged {
    /// Canceled jobs.
    pub canceled: u64,
    /// Removed messages.
    pub messages: u64,
}

impl Topics {
    /// Cancels every queued job, or empties a plain log. Running jobs continue. Returns how many jobs
    /// were canceled, and how many messages were removed.
    ///
    /// # Errors
    /// [`TopicError`]; a repeated call continues.
    pub async fn purge(&self, name: &TopicName) -> Result<Purged, TopicError> {
        let topic = self.existing_topic(name).await?;
        let mut purged = Purged::default();
        for partition in topic.partitions() {
            if topic.settings.model.is_none() {
                let stream = self.handle(&jobs_stream(name, partition)).await?;
                let answer = stream.purge().await.map_err(QueueError::unavailable("empty a stream"))?;
                purged.messages += answer.purged;
                continue;
            }
            let ids = self.queued_ids(name, partition).await?;
            let mut ends = futures::stream::iter(ids.into_iter().map(|id| self.purge_job(id, partition)))
                .buffer_unordered(PURGE_WIDTH);
            while let Some((canceled, messages)) = ends.try_next().await? {
                purged.canceled += u64::from(canceled);
                purged.messages += messages;
            }
        }
        Ok(purged)
    }

    /// Cancels one queued job and removes its message. Both may be repeated.
    async fn purge_job(&self, id: JobId, partition: PartitionId) -> Result<(bool, u64), QueueError> {
        loop {
            // A job without a record is just being accepted.
            let Some(stored) = self.find_job(&id).await? else { return Ok((false, 0)) };
            let record = match &stored.record.state {
                // Its worker settles its message.
                State::Running {} => return Ok((false, 0)),
                State::Succeeded { .. } | State::Failed { .. } | State::Canceled { .. } => {
                    let removed = self.remove_message(&id, partition, stored.record.sequence).await?;
                    return Ok((false, removed));
                }
                State::Queued { .. } => stored.record.cancel(Timestamp::now()).expect("it is queued"),
            };
            if let Replaced::Done(_) = self.replace(stored.revision, &record).await? {
                return Ok((true, self.remove_message(&id, partition, record.sequence).await?));
            }
        }
    }
}
