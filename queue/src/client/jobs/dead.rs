//! Dead letters: the inputs of jobs that failed, kept to be inspected and redriven.
//!
//! A redrive may be interrupted anywhere and requested twice. It first publishes the message, which
//! names the revision of the record to replace, so that a worker can start the job even if the
//! record was not written; then it writes the record, by compare-and-set; then it removes the letter
//! by its position, so that a newer letter of the same job stays.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::ser::Error;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::Jobs;
use super::submit::place;
use crate::client::connection::{Ask, Message, Replaced, Stored};
use crate::record::Attempt;
use crate::topic::{dead_stream, dead_subject};
use crate::{JobId, JobSpec, QueueError, Record, Sequence, State, SubmitError, Timestamp, Topic, TopicName};

/// A dead letter without its input.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeadLetter {
    /// The job.
    pub id: JobId,
    /// When the job failed.
    pub died_at: Timestamp,
    /// Why: a stable code, a colon, words.
    pub error: String,
    /// Every attempt.
    pub attempts: Vec<Attempt>,
    /// Bytes of the input.
    pub bytes: u64,
    /// The job's specification; absent if Sightline did not write the message.
    #[serde(flatten, serialize_with = "without_id")]
    pub spec: Option<JobSpec>,
    #[serde(skip)]
    sequence: Sequence,
}

/// The letter has the job's id already.
fn without_id<S: Serializer>(spec: &Option<JobSpec>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(spec) = spec else { return serializer.serialize_none() };
    let mut fields = serde_json::to_value(spec).map_err(S::Error::custom)?;
    fields.as_object_mut().and_then(|fields| fields.remove("id"));
    fields.serialize(serializer)
}

/// Result of redriving a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redriven {
    /// It is queued.
    Queued,
    /// Another process was faster, or it never ended.
    AlreadyQueued,
}

/// A job cannot be redriven.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// The dead letter does not exist.
    #[error("no dead letter for {0}: the job did not fail, was redriven, or its letter has expired")]
    NoLetter(JobId),
    /// The job's specification is unknown.
    #[error("the message of {0} was not written by Sightline, so its job is unknown")]
    NoSpec(JobId),
    /// Its topic was deleted, or is full.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl From<QueueError> for RedriveError {
    fn from(error: QueueError) -> Self {
        Self::Submit(error.into())
    }
}

impl Jobs {
    /// The dead letters of a topic, oldest first, without their inputs.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn dead_letters(&self, topic: &TopicName, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let letters = self.scan(&dead_stream(topic), true).await?;
        letters.try_filter_map(|message| std::future::ready(Ok(letter(&message)))).take(limit).try_collect().await
    }

    /// One dead letter with its input.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn dead_letter(&self, id: &JobId) -> Result<Option<(DeadLetter, Bytes)>, QueueError> {
        let Some(topic) = self.topic(id.topic()).await? else { return Ok(None) };
        let (stream, from_leader) = (dead_stream(id.topic()), topic.replicas > 1);
        let message = self.last_message("read a dead letter", &stream, dead_subject(id), from_leader).await?;
        Ok(message.and_then(|message| Some((letter(&message)?, message.payload))))
    }

    /// Redrives a job whose input is a dead letter; it gets as many attempts as a new job.
    ///
    /// # Errors
    /// [`RedriveError`]; the letter is kept then.
    pub async fn redrive(&self, id: &JobId) -> Result<Redriven, RedriveError> {
        let (letter, payload) = self.dead_letter(id).await?.ok_or_else(|| RedriveError::NoLetter(id.clone()))?;
        let spec = letter.spec.clone().filter(|spec| spec.id == *id);
        let spec = spec.ok_or_else(|| RedriveError::NoSpec(id.clone()))?;
        let topic = self.topic(id.topic()).await?.ok_or_else(|| SubmitError::NoTopic(id.topic().clone()))?;
        let redriven = self.run_again(&topic, spec, payload).await?;
        // The letter stays if it holds the only copy of the input.
        if redriven == Redriven::Queued || self.has_input(id).await? {
            self.remove_letter(id, letter.sequence).await?;
        }
        Ok(redriven)
    }

    /// Whether a job that has not failed has its input in the queue, or no longer needs it.
    async fn has_input(&self, id: &JobId) -> Result<bool, QueueError> {
        let Some(Stored { record, .. }) = self.find_record(id).await? else { return Ok(false) };
        Ok(match record.state {
            State::Succeeded { .. } => true,
            State::Queued { .. } | State::Running {} => {
                self.message_sequence(id, record.partition).await? == Some(record.sequence)
            }
            State::Failed { .. } | State::Canceled { .. } => false,
        })
    }

    async fn run_again(&self, topic: &Topic, spec: JobSpec, payload: Bytes) -> Result<Redriven, RedriveError> {
        let partition = place(topic, &spec);
        let Some(Stored { record, revision }) = self.find_record(&spec.id).await? else {
            // Its record has expired: it is a new job under its old id.
            let placed = self.publish_job(topic, &spec, &[partition], payload, None).await?;
            let id = spec.id.clone();
            let spec = placed.theirs.map_or(spec, |theirs| *theirs);
            self.create(&Record::queued(spec, partition, placed.sequence)).await?;
            self.wake(&id, partition).await;
            return Ok(Redriven::Queued);
        };
        match record.state {
            State::Failed { .. } | State::Canceled { .. } => {}
            State::Queued { .. } | State::Running {} | State::Succeeded { .. } => return Ok(Redriven::AlreadyQueued),
        }
        let again = Some((revision, record.sequence));
        let placed = self.publish_job(topic, &spec, &[partition], payload, again).await?;
        let queued = record.again(partition, placed.sequence).expect("it has failed or was canceled");
        let written = self.replace(revision, &queued).await?;
        self.wake(&spec.id, partition).await;
        Ok(match written {
            Replaced::Done(_) => Redriven::Queued,
            // A worker or another redrive was faster.
            Replaced::Refused => Redriven::AlreadyQueued,
        })
    }

    async fn remove_letter(&self, id: &JobId, sequence: Sequence) -> Result<(), QueueError> {
        let subject = format!("STREAM.MSG.DELETE.{}", dead_stream(id.topic()));
        let request = serde_json::json!({ "seq": sequence.0, "no_erase": true });
        match self.ask::<serde_json::Value>("remove a dead letter", &subject, &request).await {
            // Already removed, or replaced by a newer one.
            Ok(_) | Err(Ask::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads a dead letter's headers.
fn letter(message: &Message) -> Option<DeadLetter> {
    Some(DeadLetter {
        id: message.job_id()?,
        died_at: message.time,
        error: message.error().unwrap_or_default().to_owned(),
        attempts: message.attempts(),
        bytes: message.payload_bytes(),
        spec: message.spec(),
        sequence: message.sequence,
    })
}
