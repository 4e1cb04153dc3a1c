//! `GET /v1/jobs/{id}`: how a job stands; with `wait`, how it stands once it is finished.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use queue::JobId;
use queue::client::Waited;
use serde::Deserialize;

use super::submit::{WAIT_MAX, wait_for};
use super::wire::Job;
use super::{JobPath, NoJob};
use super::{explain, position, wire};
use crate::error::ApiError;
use crate::state::Shared;

/// The query of a status request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusQuery {
    /// Seconds to wait for the job to end, at most 60.
    #[serde(default)]
    wait: Option<String>,
    /// Whether to tell the job's life.
    #[serde(default)]
    explain: bool,
}

/// A whole number; one that is beyond all bounds is the greatest.
pub(super) fn whole(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
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
    id: Result<Path<String>, PathRejection>,
    wish: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(wish) = wish.map_err(|rejection| ApiError::Option {
        name: "query".into(),
        problem: format!("{}; the options here are wait and explain", rejection.body_text()),
    })?;
    // Not even text: no job can have such an id.
    let id = id.map_or_else(|_| "?".to_owned(), |Path(id)| id);
    let unknown = || ApiError::JobUnknown(id.chars().take(128).collect());
    let job: JobId = id.parse().map_err(|_| unknown())?;
    let patience = match wish.wait.as_deref() {
        None => Duration::ZERO,
        Some(text) => whole(text).map(Duration::from_secs).ok_or_else(|| ApiError::Option {
            name: "wait".into(),
            problem: "it must be a whole number of seconds".into(),
        })?,
    };
    let stored = match wait_for(&state, &job, patience.min(WAIT_MAX)).await? {
        Waited::Finished(stored) | Waited::StillOpen(stored) => stored,
        Waited::Unknown => return Err(unknown()),
    };
    let mut job = wire::Job::from(&stored.record);
    if let Some(place) = position::of(&state, &stored.record) {
        (job.position, job.eta_seconds) = (Some(place.position), place.eta_seconds);
    }
    job.progress = explain::progress(&state, &stored.record);
    if wish.explain {
        job.explanation = Some(explain::life(&state, &stored.record).await);
    }
    let mut response = Json(job).into_response();
    wire::set_retry_after(response.headers_mut(), &stored.record);
    Ok(response)
}
