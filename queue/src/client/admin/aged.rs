//! Jobs that are too late: those of a log whose inputs were dropped by age or size before they ran,
//! and those that no worker started before their deadline.

use std::collections::HashMap;
use std::time::Duration;

use futures::TryStreamExt;

use super::Admin;
use crate::client::connection::{Replaced, Revision};
use crate::topic::{Retention, job_subject, jobs_stream, records_stream};
use crate::{JobError, JobId, PartitionId, QueueError, Record, Sequence, State, Timestamp, Topic, TopicError};

/// How long a worker may take to settle a job, on top of its lease and its run.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// Result of a search for such jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aged {
    /// Jobs that have now failed, with `input_gone`.
    pub failed: u64,
    /// Jobs without an input that were not failed now: a worker may still be running them.
    pub left: u64,
}

impl Admin {
    /// Fails a job that should have started by now, and returns whether it did. Its input becomes a dead
    /// letter. If this is interrupted, the worker that gets the message does the rest.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn fail_overdue(&self, id: &JobId) -> Result<bool, QueueError> {
        let Some(stored) = self.find_record(id).await? else { return Ok(false) };
        let now = Timestamp::now();
        let Some(error) = stored.record.overdue(now) else { return Ok(false) };
        let reason = format!("{}: {}", error.code, error.message);
        let failed = stored.record.fail(error, now).expect("it has not ended");
        if self.replace(stored.revision, &failed).await? == Replaced::Refused {
            // A worker was faster, or it was canceled.
            return Ok(false);
        }
        let (spec, stream) = (&failed.spec, jobs_stream(id.topic(), failed.partition));
        let message = self.last_message("keep an input", &stream, job_subject(id, failed.partition), true).await?;
        if let Some(message) = message.filter(|message| message.sequence == failed.sequence) {
            self.keep_input(id, Some(spec), message.payload, &reason, &failed.attempts).await?;
            self.remove_message(id, failed.partition, failed.sequence).await?;
        }
        Ok(true)
    }

    /// Fails the jobs of a log that have not finished and whose input was dropped. Other topics keep
    /// every input until its job has ended.
    ///
    /// # Errors
    /// [`TopicError`]; a repeated call continues.
    pub async fn fail_aged(&self, topic: &Topic) -> Result<Aged, TopicError> {
        let mut aged = Aged::default();
        if topic.settings.retention == Retention::Work || topic.settings.model.is_none() {
            return Ok(aged);
        }
        let mut firsts = HashMap::new();
        for partition in topic.partitions() {
            let state = self.stream_info(&jobs_stream(topic.name(), partition)).await?.state;
            firsts.insert(partition, Sequence(state.first_sequence));
        }
        let mut records = std::pin::pin!(self.scan(&records_stream(topic.name()), false).await?);
        while let Some(message) = records.try_next().await? {
            let Ok(record) = serde_json::from_slice::<Record>(&message.payload) else { continue };
            if !is_input_gone(&record, &firsts) {
                continue;
            }
            let now = Timestamp::now();
            if may_be_in_hand(&record, topic, now) {
                aged.left += 1;
                continue;
            }
            let text = "its input left the log, by age or by size, before it was run; submit it again";
            let failed = record.fail(JobError::new("input_gone", text), now).expect("it has not ended");
            // A record that cannot be written now does not hold up the others.
            match self.replace(Revision::from(message.sequence.0), &failed).await {
                Ok(Replaced::Done(_)) => aged.failed += 1,
                Ok(Replaced::Refused) => aged.left += 1,
                Err(error) => {
                    tracing::warn!(job_id = %failed.spec.id, %error, "job without input not marked as failed");
                    aged.left += 1;
                }
            }
        }
        Ok(aged)
    }
}

/// Whether a job has not finished, and its input was before the first message of its partition. Pure.
fn is_input_gone(record: &Record, firsts: &HashMap<PartitionId, Sequence>) -> bool {
    matches!(record.state, State::Queued { .. } | State::Running {})
        && firsts.get(&record.partition).is_some_and(|first| record.sequence < *first)
}

/// Whether a worker may still be running a job, with the input in memory. Pure.
fn may_be_in_hand(record: &Record, topic: &Topic, now: Timestamp) -> bool {
    let run = record.spec.options.timeout_ms.map(Duration::from_millis).unwrap_or(topic.run_timeout());
    let longest = Duration::from_millis(topic.settings.lease_ms) + run + SETTLE_MAX;
    let is_running = matches!(record.state, State::Running {});
    let started = record.attempts.last().map(|attempt| attempt.started_at);
    is_running && started.is_some_and(|started| u128::from(now.millis_since(started)) < longest.as_millis())
}
