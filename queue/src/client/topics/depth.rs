//! How much is in the queue.

use serde::{Deserialize, Serialize};

use super::Topics;
use crate::client::connection::bounded;
use crate::topic::{WORKERS, jobs_stream};
use crate::{PartitionId, QueueError, Topic};

/// Number of jobs in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionDepth {
    /// Which one.
    pub partition: PartitionId,
    /// Jobs not yet delivered to a worker.
    pub queued: u64,
    /// Jobs that workers hold, or that wait to be redelivered.
    pub in_hand: u64,
}

impl Topics {
    /// The depth of each partition of a topic; empty for a plain log, which has no workers.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn depth(&self, topic: &Topic) -> Result<Vec<PartitionDepth>, QueueError> {
        if topic.settings.model.is_none() {
            return Ok(Vec::new());
        }
        let asked = topic.partitions().map(|partition| async move {
            let stream = self.jetstream.get_stream_no_info(jobs_stream(topic.name(), partition)).await;
            let stream = stream.map_err(QueueError::unavailable("find a partition"))?;
            let info = stream.consumer_info(WORKERS).await.map_err(QueueError::unavailable("report its depth"))?;
            Ok(PartitionDepth { partition, queued: info.num_pending, in_hand: info.num_ack_pending as u64 })
        });
        let answers = bounded(futures::future::try_join_all(asked)).await;
        answers.unwrap_or_else(|error| Err(QueueError::unavailable("report its depth")(error)))
    }
}
