//! Writing to a log.

use std::time::Instant;

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::Logs;
use crate::client::connection::{PATIENCE, RETRY_PAUSE, Refusal, refusal};
use crate::client::headers::{KEY_HEADER, ascii_json};
use crate::topic::job_subject;
use crate::{JobId, PartitionId, Priority, QueueError, Sequence, SubmitError, Topic};

impl Logs {
    /// Writes one message to a plain log. Messages with the same key are in one partition, in order.
    ///
    /// # Errors
    /// [`SubmitError`]. After [`SubmitError::Queue`] it is not known whether the message was written.
    pub async fn append(
        &self,
        topic: &Topic,
        key: Option<&str>,
        payload: Bytes,
    ) -> Result<(JobId, PartitionId, Sequence), SubmitError> {
        let id = JobId::random(topic.name().clone());
        let partition = PartitionId::of_job(&id, key, topic.settings.partitions, Priority::Normal);
        let bytes = payload.len();
        let started = Instant::now();
        let sequence = loop {
            let mut message = PublishMessage::build().payload(payload.clone()).expected_last_subject_sequence(0);
            if let Some(key) = key {
                message = message.header(KEY_HEADER, ascii_json(&key).as_str());
            }
            let error = match self.publish_acked(job_subject(&id, partition), message).await {
                Ok(sequence) => break sequence,
                Err(error) => error,
            };
            match refusal(&error) {
                Some(Refusal::NoStream) if matches!(self.fresh_topic(topic.name()).await, Ok(None)) => {
                    return Err(SubmitError::NoTopic(topic.name().clone()));
                }
                // In a cluster: retry until the stream has a leader, or until all servers know the new stream.
                Some(Refusal::NoStream) if started.elapsed() < PATIENCE => tokio::time::sleep(RETRY_PAUSE).await,
                Some(Refusal::TooLarge) => {
                    return Err(SubmitError::TooLarge { bytes, max_payload: self.max_payload() });
                }
                Some(Refusal::Full) => return Err(SubmitError::Full { topic: topic.name().to_string() }),
                _ => return Err(QueueError::unavailable("write the message")(error).into()),
            }
        };
        self.wake(&id, partition).await;
        Ok((id, partition, sequence))
    }
}
