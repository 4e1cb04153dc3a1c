//! A job as clients see it.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, HeaderValue, header};
use queue::record::Attempt;
use queue::{ImageFacts, JobError, JobId, PartitionId, Priority, Record, State, Timestamp, Timings, TopicName};
use serde::Serialize;
use utoipa::ToSchema;

use super::explain::Event;

use crate::links;

/// The job document. Absent fields do not apply (yet).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Job<'a> {
    id: &'a JobId,
    model: &'a str,
    model_version: u32,
    /// Equal digests give equal answers.
    model_digest: &'a str,
    state: JobState,
    /// Number of attempts started.
    attempt: usize,
    attempts: &'a [Attempt],
    #[schema(value_type = TopicName)]
    topic: &'a str,
    partition: PartitionId,
    /// Absent: normal.
    #[serde(skip_serializing_if = "is_normal")]
    #[schema(required = false)]
    priority: Priority,
    created_at: Timestamp,
    /// When the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Earliest time of the next attempt, after a failed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<Timestamp>,
    /// Estimated position in the queue, 1 is next; only while it is queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Seconds until it ends, at the rate of the present workers.
    pub(super) eta_seconds: Option<u64>,
    /// What it waits for, or which worker runs it; only while it has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) progress: Option<String>,
    image: &'a ImageFacts,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<models::Output>)]
    result: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a JobError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Worker of the last attempt.
    worker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_id: Option<&'a str>,
    metadata: &'a BTreeMap<String, String>,
    /// The job's history in sentences, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) explanation: Option<Vec<Event>>,
    urls: Urls,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    /// Waits for a worker.
    Queued,
    /// A worker has it.
    Running,
    /// Has a result.
    Succeeded,
    /// Has an error.
    Failed,
    /// Was canceled.
    Canceled,
}

impl From<&State> for JobState {
    fn from(state: &State) -> Self {
        match state {
            State::Queued { .. } => Self::Queued,
            State::Running {} => Self::Running,
            State::Succeeded { .. } => Self::Succeeded,
            State::Failed { .. } => Self::Failed,
            State::Canceled { .. } => Self::Canceled,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobUrls)]
struct Urls {
    #[serde(rename = "self")]
    this: String,
}

fn is_normal(priority: &Priority) -> bool {
    *priority == Priority::Normal
}

/// The URL of a job.
pub(crate) fn job_url(id: &JobId) -> String {
    links::to(&format!("/v1/jobs/{id}"))
}

/// Sets `Retry-After` while the job has not ended.
pub(crate) fn set_retry_after(headers: &mut HeaderMap, record: &Record) {
    if !record.is_terminal() {
        let seconds = match &record.state {
            State::Queued { retry_at: Some(at) } => at.millis_since(Timestamp::now()).div_ceil(1000).max(1),
            _ => 1,
        };
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

impl<'a> From<&'a Record> for Job<'a> {
    fn from(record: &'a Record) -> Self {
        let spec = &record.spec;
        let mut job = Self {
            id: &spec.id,
            model: &spec.model,
            model_version: spec.model_version,
            model_digest: &spec.model_digest,
            state: JobState::from(&record.state),
            attempt: record.attempts.len(),
            attempts: &record.attempts,
            topic: spec.id.topic().as_str(),
            partition: record.partition,
            priority: spec.options.priority,
            created_at: spec.created_at,
            started_at: record.started_at(),
            finished_at: None,
            retry_at: None,
            position: None,
            eta_seconds: None,
            progress: None,
            image: &spec.image,
            result: None,
            error: None,
            timings: None,
            worker: record.attempts.last().map(|attempt| attempt.worker.as_str()),
            batch: spec.origin.batch.as_deref(),
            custom_id: spec.origin.custom_id.as_deref(),
            metadata: &spec.metadata,
            explanation: None,
            urls: Urls { this: job_url(&spec.id) },
        };
        match &record.state {
            State::Queued { retry_at } => job.retry_at = *retry_at,
            State::Running {} => {}
            State::Succeeded { result, timings, finished_at } => {
                (job.result, job.timings, job.finished_at) = (Some(result), Some(*timings), Some(*finished_at));
            }
            State::Failed { error, finished_at } => {
                (job.error, job.finished_at) = (Some(error), Some(*finished_at));
            }
            State::Canceled { finished_at } => job.finished_at = Some(*finished_at),
        }
        job
    }
}
