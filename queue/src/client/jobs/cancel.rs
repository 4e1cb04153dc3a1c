//! Canceling a job, and reading its input while that is kept.
//!
//! The record decides: once it is `canceled`, no result is written any more. The rest only saves
//! work: the message is removed, and a worker that runs the job is notified so that it stops.

use bytes::Bytes;

use super::Jobs;
use crate::client::connection::{Replaced, Stored};
use crate::topic::{job_subject, jobs_stream};
use crate::{JobId, JobSpec, QueueError, Record, State, Timestamp};

/// Outcome of canceling a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Canceled {
    /// It is canceled; this is its record.
    Done(Stored),
    /// It had already ended, canceled or otherwise.
    HadEnded(Stored),
    /// The job does not exist.
    Unknown,
}

impl Jobs {
    /// Cancels a job, queued or running. May be repeated.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn cancel(&self, id: &JobId) -> Result<Canceled, QueueError> {
        loop {
            let Some(stored) = self.find_job(id).await? else { return Ok(Canceled::Unknown) };
            let Ok(next) = stored.record.cancel(Timestamp::now()) else {
                // An earlier cancel may have been interrupted here.
                if matches!(stored.record.state, State::Canceled { .. }) {
                    self.let_go(&stored.record).await;
                }
                return Ok(Canceled::HadEnded(stored));
            };
            if let Replaced::Done(revision) = self.replace(stored.revision, &next).await? {
                self.let_go(&next).await;
                return Ok(Canceled::Done(Stored { record: next, revision }));
            }
        }
    }

    /// Notifies the worker of a canceled job, and removes its message. If that fails, the worker that gets
    /// the message does the rest.
    async fn let_go(&self, record: &Record) {
        let id = &record.spec.id;
        if let Err(problem) = self.send(cancel_subject(id), Bytes::new()).await {
            tracing::debug!(job_id = %id, problem, "worker not notified");
        }
        if let Err(error) = self.remove_message(id, record.partition, record.sequence).await {
            tracing::warn!(job_id = %id, %error, "message left for a worker");
        }
    }

    /// A job's input, if it is kept: in its partition, or as a dead letter.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn input(&self, stored: &Stored) -> Result<Option<Bytes>, QueueError> {
        let (id, partition) = (&stored.record.spec.id, stored.record.partition);
        let subject = job_subject(id, partition);
        let message =
            self.last_message("read a job's input", &jobs_stream(id.topic(), partition), subject, true).await?;
        // A message that another request left behind is not this job's.
        if let Some(message) = message.filter(|message| message.sequence == stored.record.sequence) {
            return Ok(Some(message.payload));
        }
        let sha256 = &stored.record.spec.image.sha256;
        let is_its = |spec: Option<&JobSpec>| spec.is_none_or(|spec| spec.image.sha256 == *sha256);
        let letter = self.dead_letter(id).await?.filter(|(letter, _)| is_its(letter.spec.as_ref()));
        Ok(letter.map(|(_, payload)| payload))
    }
}

fn cancel_subject(id: &JobId) -> String {
    format!("cancels.{}.{}", id.topic(), id.uuid())
}
