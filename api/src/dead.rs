//! `/v1/dead`: dead letters, the inputs of failed jobs, to inspect and redrive.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use queue::client::{DeadLetter, RedriveError, Redriven};
use queue::{JobId, TopicError, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::path::JobPath;
use crate::schema::Binary;
use crate::state::{AppState, Shared};

/// Default and largest number of letters in a list.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// Which dead letters to list or redrive.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Only dead letters of this topic.
    topic: Option<TopicName>,
    /// Upper bound.
    limit: Option<usize>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Letters {
    dead: Vec<DeadLetter>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Redrive {
    id: JobId,
    outcome: Redriven,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RedriveAll {
    redriven: Vec<Redrive>,
    /// Dead letters that could not be redriven, and why.
    left: Vec<Left>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Left {
    id: JobId,
    problem: String,
}

/// Lists dead letters, oldest first.
#[utoipa::path(
    get, path = "/v1/dead", tag = "dead", operation_id = "listDeadLetters",
    params(
        ("topic" = Option<TopicName>, Query, description = "Only dead letters of this topic."),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "Most entries to return; default 100."),
    ),
    responses(
        (status = 200, description = "The letters.", body = Letters),
        (status = 400, description = "`option_invalid`."),
        (status = 404, description = "`topic_unknown`."),
    ),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    wish: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Letters>, ApiError> {
    Ok(Json(Letters { dead: letters(&state, wish).await? }))
}

/// Returns a dead letter.
#[utoipa::path(
    get, path = "/v1/dead/{id}", tag = "dead", operation_id = "getDeadLetter",
    params(JobPath),
    responses(
        (status = 200, description = "The dead letter with all attempts.", body = DeadLetter),
        (status = 404, description = "`dead_letter_unknown`, `job_unknown`."),
    ),
)]
pub(crate) async fn show(State(state): State<Shared>, JobPath { id }: JobPath) -> Result<Json<DeadLetter>, ApiError> {
    let letter = state.queue.jobs.dead_letter(&id).await?;
    Ok(Json(letter.ok_or(RedriveError::NoLetter(id))?.0))
}

/// Returns the input of a dead letter.
#[utoipa::path(
    get, path = "/v1/dead/{id}/image", tag = "dead", operation_id = "getDeadLetterImage",
    params(JobPath),
    responses(
        (status = 200, description = "The bytes as received.", body = Binary, content_type = "application/octet-stream"),
        (status = 404, description = "`dead_letter_unknown`, `job_unknown`."),
    ),
)]
pub(crate) async fn image(State(state): State<Shared>, JobPath { id }: JobPath) -> Result<Response, ApiError> {
    let (_, payload) = state.queue.jobs.dead_letter(&id).await?.ok_or(RedriveError::NoLetter(id))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], payload).into_response())
}

/// Redrives a dead letter.
#[utoipa::path(
    post, path = "/v1/dead/{id}/redrive", tag = "dead", operation_id = "redrive",
    params(JobPath),
    responses(
        (status = 200, description = "It is queued.", body = Redrive),
        (status = 404, description = "`dead_letter_unknown`, `job_unknown`."),
        (status = 409, description = "`dead_letter_unreadable`."),
    ),
)]
pub(crate) async fn redrive(State(state): State<Shared>, JobPath { id }: JobPath) -> Result<Json<Redrive>, ApiError> {
    let outcome = state.queue.jobs.redrive(&id).await?;
    Ok(Json(Redrive { id, outcome }))
}

/// Redrives dead letters.
#[utoipa::path(
    post, path = "/v1/dead/redrive", tag = "dead", operation_id = "redriveAll",
    params(
        ("topic" = Option<TopicName>, Query, description = "Only dead letters of this topic."),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "Most entries to return; default 100."),
    ),
    responses(
        (status = 200, description = "The result for each dead letter.", body = RedriveAll),
        (status = 400, description = "`option_invalid`."),
        (status = 404, description = "`topic_unknown`."),
    ),
)]
pub(crate) async fn redrive_all(
    State(state): State<Shared>,
    wish: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<RedriveAll>, ApiError> {
    let mut all = RedriveAll { redriven: Vec::new(), left: Vec::new() };
    for letter in letters(&state, wish).await? {
        match state.queue.jobs.redrive(&letter.id).await {
            Ok(outcome) => all.redriven.push(Redrive { id: letter.id, outcome }),
            Err(error) => all.left.push(Left { id: letter.id, problem: error.to_string() }),
        }
    }
    Ok(Json(all))
}

async fn letters(
    state: &AppState,
    wish: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Vec<DeadLetter>, ApiError> {
    let Query(wish) = wish.map_err(|rejection| ApiError::Option {
        name: "query".into(),
        problem: format!("{}; the options here are topic and limit", rejection.body_text()),
    })?;
    let limit = wish.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let problem = format!("it must be a number from 1 to {LIMIT_MAX}");
        return Err(ApiError::Option { name: "limit".into(), problem });
    }
    let topics = match wish.topic {
        Some(name) => vec![state.queue.topic(&name).await?.ok_or(TopicError::Unknown(name))?],
        None => state.queue.topics().await?,
    };
    let mut letters = Vec::new();
    for topic in topics {
        letters.extend(state.queue.jobs.dead_letters(topic.name(), limit - letters.len().min(limit)).await?);
    }
    Ok(letters)
}
