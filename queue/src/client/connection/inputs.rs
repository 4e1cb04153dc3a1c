//! What happens to a job's input: workers are notified of it, and it is removed or kept as a dead letter.

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::{Ask, Connection};
use crate::client::headers::{ATTEMPTS_HEADER, ERROR_HEADER, SPEC_HEADER, ascii_json};
use crate::record::Attempt;
use crate::topic::{Retention, dead_subject, jobs_stream, wake_subject};
use crate::{JobId, JobSpec, PartitionId, QueueError, Sequence, TopicName};

impl Connection {
    /// Keeps an input as a dead letter. May be repeated.
    pub(in crate::client) async fn keep_input(
        &self,
        id: &JobId,
        spec: Option<&JobSpec>,
        input: Bytes,
        reason: &str,
        attempts: &[Attempt],
    ) -> Result<(), QueueError> {
        let mut message = PublishMessage::build().payload(input);
        if let Some(spec) = spec {
            message = message.header(SPEC_HEADER, ascii_json(spec).as_str());
        }
        // Header values are one line of ASCII.
        let reason: String = reason.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        let message = message.header(ERROR_HEADER, reason.as_str());
        let message = message.header(ATTEMPTS_HEADER, ascii_json(&attempts).as_str());
        let written = self.publish_acked(dead_subject(id), message).await;
        written.map(drop).map_err(QueueError::unavailable("keep the dead letter"))
    }

    /// Removes a job's message, if its topic does not keep messages; returns how many were removed.
    pub(in crate::client) async fn remove_message(
        &self,
        id: &JobId,
        partition: PartitionId,
        sequence: Sequence,
    ) -> Result<u64, QueueError> {
        let is_log = |topic: std::sync::Arc<crate::Topic>| topic.settings.retention != Retention::Work;
        if self.topic(id.topic()).await?.is_none_or(is_log) {
            return Ok(0);
        }
        let subject = format!("STREAM.MSG.DELETE.{}", jobs_stream(id.topic(), partition));
        let request = serde_json::json!({ "seq": sequence.0, "no_erase": true });
        match self.ask::<serde_json::Value>("remove a job's message", &subject, &request).await {
            Ok(_) => Ok(1),
            // Already removed.
            Err(Ask::Refused { error, .. }) if error.code() != 503 => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Notifies idle workers that a partition has a job. They also check by themselves each second.
    pub(in crate::client) async fn wake(&self, job: &JobId, partition: PartitionId) {
        self.wake_partition(job.topic(), partition).await;
    }

    pub(in crate::client) async fn wake_partition(&self, topic: &TopicName, partition: PartitionId) {
        if let Err(error) = self.send(wake_subject(topic, partition), Bytes::new()).await {
            tracing::debug!(%error, "workers not notified");
        }
    }
}
