//! Repairs that are safe at any time.

use std::sync::atomic::Ordering;

use async_nats::jetstream::stream::Config;

use super::Admin;
use crate::balance::Move;
use crate::client::connection::UNBOUNDED;
use crate::topic::{jobs_config, jobs_stream};
use crate::{PartitionId, QueueError, TopicError, TopicName};

impl Admin {
    /// Gives each topic that asked for no bound of its own this many bytes, from now on; `None` where the
    /// broker bounds all together.
    ///
    /// # Errors
    /// [`TopicError`]; some topics may have their new bound already.
    pub async fn fit_topics(&self, bytes_max: Option<u64>) -> Result<(), TopicError> {
        self.topic_bytes_max.store(bytes_max.unwrap_or(UNBOUNDED), Ordering::Relaxed);
        for topic in self.topics().await? {
            for partition in topic.settings.partitions_of_all() {
                let bytes_max = self.bytes_max_of(&topic.settings);
                let wanted = jobs_config(&topic.settings, partition, bytes_max, topic.replicas);
                let fitted = match self.stream_config(&wanted.name).await {
                    // Nothing else of it: an `alter` may be under way.
                    Ok(config) if config.max_bytes != wanted.max_bytes => {
                        self.update_stream(Config { max_bytes: wanted.max_bytes, ..config }).await
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
                match fitted {
                    // It was removed just now, or is being made.
                    Err(TopicError::Unknown(_)) => {}
                    fitted => fitted?,
                }
            }
        }
        Ok(())
    }

    /// Bytes of inputs that wait in all topics.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn queued_bytes(&self) -> Result<u64, QueueError> {
        Ok(self.stream_infos("jobs.>").await?.iter().map(|info| info.state.bytes).sum())
    }

    /// Makes a partition's consumer if it is missing, and wakes its workers.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn repair_partition(&self, name: &TopicName, partition: PartitionId) -> Result<(), TopicError> {
        let topic = self.existing_topic(name).await?;
        self.ensure_workers(&jobs_stream(name, partition), &topic.settings).await?;
        self.wake_partition(name, partition).await;
        Ok(())
    }

    /// Lets another server lead a partition, as the cluster sees fit if that one cannot. What is
    /// under way pauses for some milliseconds.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn move_leader(&self, step: &Move) -> Result<(), TopicError> {
        let subject = format!("STREAM.LEADER.STEPDOWN.{}", jobs_stream(&step.topic, step.partition));
        let wish = serde_json::json!({"placement": {"preferred": step.to}});
        self.ask::<serde_json::Value>("move a partition's leader", &subject, &wish).await?;
        Ok(())
    }

    /// Whether the server stores with as many copies as topics are to have: makes the stream of lease
    /// records, which every process needs.
    ///
    /// # Errors
    /// [`QueueError`] while it cannot, such as a cluster that has no leader yet.
    pub async fn ensure_storage(&self) -> Result<(), QueueError> {
        self.ensure_leases().await
    }
}
