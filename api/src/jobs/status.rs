//! `GET /v1/jobs/{id}`: a job's state; with `wait`, its state once it has ended.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use queue::client::Waited;
use serde::Deserialize;

use super::wait::{WAIT_MAX, wait_for, whole};
use super::wire::Job;
use super::{explain, position, wire};
use crate::error::ApiError;
use crate::path::JobPath;
use crate::schema::NoJob;
use crate::state::Shared;

/// The query of a status request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusQuery {
    /// Seconds to wait for the job to end, at most 60.
    #[serde(default)]
    wait: Option<String>,
    /// Whether to include the job's history.
    #[serde(default)]
    explain: bool,
}

/// Returns a job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "getJob",
    params(
        JobPath,
        ("wait" = Option<u64>, Query, description = "Seconds to wait for the job to end, at most 60."),
        ("explain" = Option<bool>, Query, description = "Whether to include the job's history in sentences."),
    ),
    responses(
        (status = 200, description = "The job's current state.", body = Job,
            headers(("Retry-After" = u64, description = "If it has not ended: seconds after which to ask again."))),
        (status = 400, description = "`option_invalid`."),
        NoJob,
    ),
)]
pub(crate) async fn status(
    State(state): State<Shared>,
    JobPath { id }: JobPath,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::Option {
        name: "query".into(),
        problem: format!("{}; the options here are wait and explain", rejection.body_text()),
    })?;
    let patience = match query.wait.as_deref() {
        None => Duration::ZERO,
        Some(text) => whole(text).map(Duration::from_secs).ok_or_else(|| ApiError::Option {
            name: "wait".into(),
            problem: "it must be a whole number of seconds".into(),
        })?,
    };
    let stored = match wait_for(&state, &id, patience.min(WAIT_MAX)).await? {
        Waited::Finished(stored) | Waited::StillOpen(stored) => stored,
        Waited::Unknown => return Err(ApiError::JobUnknown(id.to_string())),
    };
    let mut job = Job::from(&stored.record);
    if let Some(place) = position::of(&state, &stored.record) {
        (job.position, job.eta_seconds) = (Some(place.position), place.eta_seconds);
    }
    job.progress = explain::progress(&state, &stored.record);
    if query.explain {
        job.explanation = Some(explain::life(&state, &stored.record).await);
    }
    let mut response = Json(job).into_response();
    wire::set_retry_after(response.headers_mut(), &stored.record);
    Ok(response)
}
