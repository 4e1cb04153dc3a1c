//! `DELETE /v1/jobs/{id}`, `POST …/retry`, `GET …/image`: what can be done with a job that is there.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use models::decode::without_metadata;
use queue::client::{Canceled, RedriveError, Redriven};
use queue::{JobId, State as JobState};
use serde::Deserialize;
use utoipa::IntoParams;

use super::wire;
use super::wire::Job;
use super::{JobPath, NoJob};
use crate::dead::{IdPath, named};
use crate::error::ApiError;
use crate::keys::Caller;
use crate::openapi::Binary;
use crate::state::Shared;

/// How often, and how far apart, to look for the input of a job that has failed just now: its worker
/// keeps it after it has said so.
const LETTER_LOOKS: u32 = 10;
const LETTER_PAUSE: Duration = Duration::from_millis(100);

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
pub(crate) async fn cancel(State(state): State<Shared>, id: IdPath) -> Result<Response, ApiError> {
    let id = named(id)?;
    match state.queue.cancel(&id).await? {
        Canceled::Done(stored) => Ok(Json(wire::Job::from(&stored.record)).into_response()),
        Canceled::HadEnded(stored) => match stored.record.state {
            JobState::Canceled { .. } => Ok(Json(wire::Job::from(&stored.record)).into_response()),
            ref ended => Err(ApiError::JobEnded { id, state: ended.name() }),
        },
        Canceled::Unknown => Err(ApiError::JobUnknown(id.to_string())),
    }
}

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
pub(crate) async fn retry(State(state): State<Shared>, id: IdPath) -> Result<Response, ApiError> {
    let id = named(id)?;
    let unknown = || ApiError::JobUnknown(id.to_string());
    let stored = state.queue.find(&id).await?.ok_or_else(unknown)?;
    match stored.record.state {
        JobState::Failed { .. } | JobState::Canceled { .. } => {}
        ref other => return Err(ApiError::JobNotFailed { id, state: other.name() }),
    }
    for look in 1.. {
        match state.queue.redrive(&id).await {
            Ok(Redriven::Queued | Redriven::AlreadyQueued) => break,
            Err(RedriveError::NoLetter(_)) if look < LETTER_LOOKS && is_failed(&stored.record.state) => {
                tokio::time::sleep(LETTER_PAUSE).await;
            }
            Err(RedriveError::NoLetter(_)) => return Err(ApiError::InputGone(id)),
            Err(error) => return Err(error.into()),
        }
    }
    let stored = state.queue.find(&id).await?.ok_or_else(unknown)?;
    let mut response = (StatusCode::ACCEPTED, Json(wire::Job::from(&stored.record))).into_response();
    let location = HeaderValue::from_str(&wire::job_url(&id)).expect("ids are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    wire::set_retry_after(response.headers_mut(), &stored.record);
    Ok(response)
}

fn is_failed(state: &JobState) -> bool {
    matches!(state, JobState::Failed { .. })
}

/// How an input is given back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Copy {
    /// Return the original file with its metadata, such as GPS positions. For the job's owner only.
    #[serde(default)]
    original: bool,
}

/// Returns a job's input while it is kept.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/image", tag = "jobs", operation_id = "getJobImage",
    params(JobPath, Copy),
    responses(
        (status = 200, description = "The image, without metadata unless its owner asks for the original.", content(
            (Binary = "image/jpeg"), (Binary = "image/png"), (Binary = "image/webp"), (Binary = "image/gif"),
            (Binary = "image/bmp"), (Binary = "application/octet-stream"),
        )),
        NoJob,
        (status = 400, description = "`option_invalid`."),
        (status = 403, description = "`owner_only`: only the job's owner may read the original."),
        (status = 409, description = "`input_gone`."),
        (status = 422, description = "`image_truncated`: ask for the original."),
    ),
)]
pub(crate) async fn image(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    id: IdPath,
    copy: Result<Query<Copy>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(copy) = copy.map_err(|_| ApiError::Option {
        name: "original".into(),
        problem: "it must be true or false, and is the only option here".into(),
    })?;
    let id: JobId = named(id)?;
    let stored = state.queue.find(&id).await?.ok_or_else(|| ApiError::JobUnknown(id.to_string()))?;
    if copy.original && caller.owner != stored.record.spec.origin.owner {
        return Err(ApiError::NotOwner);
    }
    let mut input = state.queue.input(&stored).await?.ok_or(ApiError::InputGone(id))?;
    if !copy.original {
        input = without_metadata(&input)?.into();
    }
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_str(&format!("image/{}", stored.record.spec.image.format));
    headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    // It is what a client uploaded: no browser may take it for a page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok((headers, input).into_response())
}
