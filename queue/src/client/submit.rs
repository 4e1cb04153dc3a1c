//! From an image to a job that cannot be lost.
//!
//! Two durable writes, in this order: the message that holds the image and, in a header, all that
//! the record needs; then the record. A crash between them leaves a job that a worker can begin by
//! itself; the other order would leave a record whose image is nowhere.

use std::time::Instant;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::{LIMIT_REACHED, PATIENCE, Queue, RETRY_PAUSE, Replaced, server_error};
use crate::topic::{job_subject, jobs_stream};
use crate::{JobSpec, PartitionId, QueueError, Record, Sequence, SubmitError, Topic};

/// The header that holds the job's [`JobSpec`] as JSON.
pub(crate) const SPEC_HEADER: &str = "Sl-Job";

impl Queue {
    /// Queues a job. When this returns a record, image and record are durable.
    ///
    /// # Errors
    /// [`SubmitError::Full`] and [`SubmitError::TooLarge`] queue nothing. After
    /// [`SubmitError::Queue`] it is not known whether the job will run.
    pub async fn submit(&self, topic: &Topic, spec: JobSpec, image: Bytes) -> Result<Record, SubmitError> {
        let key = spec.options.partition_key.as_deref();
        let partition = PartitionId::of_job(&spec.id, key, topic.settings.partitions);
        let sequence = self.publish_job(&spec, partition, image).await?;
        let record = Record::queued(spec, partition, sequence);
        let record = match self.create(&record).await? {
            Replaced::Done(_) => record,
            // A worker was faster than we were: the job is known.
            Replaced::Refused => match self.record(&record.spec.id).await? {
                Some(stored) => stored.record,
                None => record,
            },
        };
        self.wake(&record.spec.id, partition).await;
        Ok(record)
    }

    async fn publish_job(&self, spec: &JobSpec, partition: PartitionId, image: Bytes) -> Result<Sequence, SubmitError> {
        let subject = job_subject(&spec.id, partition);
        let header = ascii_json(spec);
        let started = Instant::now();
        loop {
            let message = PublishMessage::build().header(SPEC_HEADER, header.as_str()).payload(image.clone());
            let error = match self.publish_acked(subject.clone(), message).await {
                Ok(sequence) => return Ok(sequence),
                Err(error) => error,
            };
            match refusal(&error) {
                // An earlier try was stored, only its answer was lost.
                Some(Refusal::AlreadyThere) => return self.queued_sequence(spec, partition).await,
                Some(Refusal::Full) => return Err(SubmitError::Full { topic: spec.id.topic().to_string() }),
                Some(Refusal::TooLarge) => {
                    return Err(SubmitError::TooLarge { bytes: image.len(), max_payload: self.max_payload() });
                }
                None if started.elapsed() > PATIENCE => {
                    return Err(QueueError::unavailable("take the job")(error).into());
                }
                None => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Publishes and waits for the acknowledgement, which means that the message is durable.
    pub(super) async fn publish_acked(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Result<Sequence, PublishError> {
        let ack = self.jetstream.send_publish(subject, message).await?.await?;
        Ok(Sequence(ack.sequence))
    }

    /// Where a job lies whose publish was acknowledged to nobody.
    async fn queued_sequence(&self, spec: &JobSpec, partition: PartitionId) -> Result<Sequence, SubmitError> {
        let unavailable = QueueError::unavailable("say where the job lies");
        let stream = self.jetstream.get_stream_no_info(jobs_stream(spec.id.topic(), partition)).await;
        let stream = stream.map_err(QueueError::unavailable("find a stream"))?;
        let message = stream.get_last_raw_message_by_subject(&job_subject(&spec.id, partition)).await;
        Ok(Sequence(message.map_err(unavailable)?.sequence))
    }
}

enum Refusal {
    AlreadyThere,
    Full,
    TooLarge,
}

/// What a failed publish says, if it is a verdict and not only a lost answer.
fn refusal(error: &PublishError) -> Option<Refusal> {
    if error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return Some(Refusal::TooLarge);
    }
    let refused = server_error(error).filter(|refusal| refusal.error_code() == LIMIT_REACHED)?;
    // One code for all limits; the text tells them apart.
    let per_subject = refused.to_string().contains("per subject");
    Some(if per_subject { Refusal::AlreadyThere } else { Refusal::Full })
}

/// JSON with every character above ASCII escaped, since headers are not meant for others.
pub(super) fn ascii_json(spec: &JobSpec) -> String {
    let json = serde_json::to_string(spec).expect("a spec holds strings and numbers only");
    let mut ascii = String::with_capacity(json.len());
    for unit in json.chars() {
        if unit.is_ascii() {
            ascii.push(unit);
        } else {
            let mut units = [0; 2];
            unit.encode_utf16(&mut units).iter().for_each(|unit| ascii.push_str(&format!("\\u{unit:04x}")));
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_header_is_plain_ascii_and_reads_back() {
        let mut spec: crate::JobSpec = serde_json::from_value(serde_json::json!({
            "id": "cats.0199d2a4-0000-7000-8000-000000000000", "model": "cats", "model_version": 1,
            "model_digest": "d", "created_at": "2026-11-23T17:00:00Z",
            "image": {"width": 1, "height": 1, "format": "png", "bytes": 1, "sha256": "s"},
        }))
        .expect("reads");
        spec.metadata.insert("Käse".into(), "\u{1F431}\r\nNats-Rollup: all".into());
        let header = super::ascii_json(&spec);
        assert!(header.is_ascii() && !header.contains(['\r', '\n']), "{header}");
        assert_eq!(serde_json::from_str::<crate::JobSpec>(&header).expect("reads"), spec);
    }
}
