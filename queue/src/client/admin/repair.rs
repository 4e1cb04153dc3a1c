//! Repairs that are safe at any time.

use std::sync::atomic::Ordering;

use async_nats::jetstream::stream::Config;

use super::Admin;
use crate::balance::Move;
use crate::client::connection::UNBOUNDED;
use crate::topic::{jobs_config, jobs_stream};
use crate::{PartitionId, QueueError, TopicError, TopicName};

impl Admin {
    /// Limits each topic without a limit of its own to this many bytes, from now on; `None` if the broker
    /// bounds all topics together.
    ///
    /// # Errors
    /// [`TopicError`]; some topics may already have their new limit.
    pub async fn fit_topics(&self, bytes_max: Option<u64>) -> Result<(), TopicError> {
        self.topic_bytes_max.store(bytes_max.unwrap_or(UNBOUNDED), Ordering::Relaxed);
        for topic in self.topics().await? {
            for partition in topic.settings.partitions_of_all() {
                let bytes_max = self.bytes_max_of(&topic.settings);
                let wanted = jobs_config(&topic.settings, partition, bytes_max, topic.replicas);
                let fitted = match self.stream_config(&wanted.name).await {
                    // Changes nothing else: an `alter` may be in progress.
                    Ok(config) if config.max_bytes != wanted.max_bytes => {
                        self.update_stream(Config { max_bytes: wanted.max_bytes, ..config }).await
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
                match fitted {
                    // It has just been removed, or is being created.
                    Err(TopicError::Unknown(_)) => {}
                    fitted => fitted?,
                }
            }
        }
        Ok(())
    }

    /// Bytes of the inputs in the queues of all topics.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn queued_bytes(&self) -> Result<u64, QueueError> {
        Ok(self.stream_infos("jobs.>").await?.iter().map(|info| info.state.bytes).sum())
    }

    /// Creates a partition's consumer if it is missing, and wakes its workers.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn repair_partition(&self, name: &TopicName, partition: PartitionId) -> Result<(), TopicError> {
        let topic = self.existing_topic(name).await?;
        self.ensure_workers(&jobs_stream(name, partition), &topic.settings).await?;
        self.wake_partition(name, partition).await;
        Ok(())
    }

    /// Makes another server lead a partition; if that one cannot, the cluster chooses. Operations in
    /// progress pause for some milliseconds.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn move_leader(&self, step: &Move) -> Result<(), TopicError> {
        let subject = format!("STREAM.LEADER.STEPDOWN.{}", jobs_stream(&step.topic, step.partition));
        let wish = serde_json::json!({"placement": {"preferred": step.to}});
        self.ask::<serde_json::Value>("move a partition's leader", &subject, &wish).await?;
        Ok(())
    }

    /// Checks that the server can keep the number of replicas that topics need, by creating the stream
    /// of lease records, which every process needs.
    ///
    /// # Errors
    /// [`QueueError`] while it cannot, for example while a cluster has no leader.
    pub async fn ensure_storage(&self) -> Result<(), QueueError> {
        self.ensure_leases().await
    }
}
