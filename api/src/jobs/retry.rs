//! `POST /v1/jobs/{id}/retry`: retries a failed or canceled job, under its id and with its history.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use queue::State as JobState;
use queue::client::{RedriveError, Redriven};

use super::wire;
use super::wire::Job;
use crate::error::ApiError;
use crate::path::JobPath;
use crate::schema::NoJob;
use crate::state::Shared;

/// How often, and how far apart, to look for the input of a job that has just failed: its worker stores the dead
/// letter after it has recorded the failure.
const LETTER_LOOKS: u32 = 10;
const LETTER_PAUSE: Duration = Duration::from_millis(100);

/// Runs a failed job again under the same id.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/retry", tag = "jobs", operation_id = "retryJob",
    params(JobPath),
    responses(
        (status = 202, description = "The job is queued again and keeps its earlier attempts.", body = Job,
            headers(("Location" = String, description = "URL of the job."))),
        NoJob,
        (status = 409, description = "`job_not_failed`; `input_gone`: upload it again."),
    ),
)]
pub(crate) async fn retry(State(state): State<Shared>, JobPath { id }: JobPath) -> Result<Response, ApiError> {
    let unknown = || ApiError::JobUnknown(id.to_string());
    let stored = state.queue.find_job(&id).await?.ok_or_else(unknown)?;
    match stored.record.state {
        JobState::Failed { .. } | JobState::Canceled { .. } => {}
        ref other => return Err(ApiError::JobNotFailed { id, state: other.name() }),
    }
    for look in 1.. {
        match state.queue.jobs.redrive(&id).await {
            Ok(Redriven::Queued | Redriven::AlreadyQueued) => break,
            Err(RedriveError::NoLetter(_)) if look < LETTER_LOOKS && is_failed(&stored.record.state) => {
                tokio::time::sleep(LETTER_PAUSE).await;
            }
            Err(RedriveError::NoLetter(_)) => return Err(ApiError::InputGone(id)),
            Err(error) => return Err(error.into()),
        }
    }
    let stored = state.queue.find_job(&id).await?.ok_or_else(unknown)?;
    let mut response = (StatusCode::ACCEPTED, Json(Job::from(&stored.record))).into_response();
    let location = HeaderValue::from_str(&wire::job_url(&id)).expect("ids are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    wire::set_retry_after(response.headers_mut(), &stored.record);
    Ok(response)
}

fn is_failed(state: &JobState) -> bool {
    matches!(state, JobState::Failed { .. })
}
