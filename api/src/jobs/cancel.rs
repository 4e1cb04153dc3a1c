//! `DELETE /v1/jobs/{id}`: a job that is canceled never succeeds.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use queue::State as JobState;
use queue::client::Canceled;

use super::wire::Job;
use crate::error::ApiError;
use crate::path::JobPath;
use crate::schema::NoJob;
use crate::state::Shared;

/// Cancels a job. Repeating it changes nothing; a job that has ended otherwise stays unchanged.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "cancelJob",
    params(JobPath),
    responses(
        (status = 200, description = "The job is canceled and will never succeed.", body = Job),
        NoJob,
        (status = 409, description = "`job_ended`: the job has already succeeded or failed."),
    ),
)]
pub(crate) async fn cancel(State(state): State<Shared>, JobPath { id }: JobPath) -> Result<Response, ApiError> {
    match state.queue.jobs.cancel(&id).await? {
        Canceled::Done(stored) => Ok(Json(Job::from(&stored.record)).into_response()),
        Canceled::HadEnded(stored) => match stored.record.state {
            JobState::Canceled { .. } => Ok(Json(Job::from(&stored.record)).into_response()),
            ref ended => Err(ApiError::JobEnded { id, state: ended.name() }),
        },
        Canceled::Unknown => Err(ApiError::JobUnknown(id.to_string())),
    }
}
