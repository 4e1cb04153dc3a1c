//! `/v1/dead`: the inputs of jobs that failed, to be looked at and run again.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use queue::client::{DeadLetter, RedriveError, Redriven};
use queue::{JobId, TopicError, TopicName};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::state::{Shared, State as Inner};

/// Letters that one list shows when nobody says otherwise, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// Which letters are meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// Those of one topic; else of all.
    topic: Option<TopicName>,
    /// At most so many.
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Letters {
    dead: Vec<DeadLetter>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Redrive {
    id: JobId,
    outcome: Redriven,
}

#[derive(Debug, Serialize)]
pub(crate) struct RedriveAll {
    redriven: Vec<Redrive>,
    /// Letters that could not be run again, and why.
    left: Vec<Left>,
}

#[derive(Debug, Serialize)]
struct Left {
    id: JobId,
    problem: String,
}

/// Lists dead letters, oldest first.
pub(crate) async fn list(
    State(state): State<Shared>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Json<Letters>, ApiError> {
    Ok(Json(Letters { dead: letters(&state, wish).await? }))
}

/// Shows one dead letter.
pub(crate) async fn show(State(state): State<Shared>, id: Named) -> Result<Json<DeadLetter>, ApiError> {
    let id = named(id)?;
    let letter = state.queue.dead_letter(&id).await?;
    Ok(Json(letter.ok_or(RedriveError::NoLetter(id))?.0))
}

/// Gives back the input of one.
pub(crate) async fn image(State(state): State<Shared>, id: Named) -> Result<Response, ApiError> {
    let id = named(id)?;
    let (_, payload) = state.queue.dead_letter(&id).await?.ok_or(RedriveError::NoLetter(id))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], payload).into_response())
}

/// Runs one again.
pub(crate) async fn redrive(State(state): State<Shared>, id: Named) -> Result<Json<Redrive>, ApiError> {
    let id = named(id)?;
    let outcome = state.queue.redrive(&id).await?;
    Ok(Json(Redrive { id, outcome }))
}

/// Runs all again that are meant.
pub(crate) async fn redrive_all(
    State(state): State<Shared>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Json<RedriveAll>, ApiError> {
    let mut all = RedriveAll { redriven: Vec::new(), left: Vec::new() };
    for letter in letters(&state, wish).await? {
        match state.queue.redrive(&letter.id).await {
            Ok(outcome) => all.redriven.push(Redrive { id: letter.id, outcome }),
            Err(error) => all.left.push(Left { id: letter.id, problem: error.to_string() }),
        }
    }
    Ok(Json(all))
}

async fn letters(state: &Inner, wish: Result<Query<Wish>, QueryRejection>) -> Result<Vec<DeadLetter>, ApiError> {
    let Query(wish) = wish.map_err(|rejection| ApiError::Option {
        name: "query".into(),
        problem: format!("{}; the options here are topic and limit", rejection.body_text()),
    })?;
    let limit = wish.limit.unwrap_or(LIMIT).min(LIMIT_MAX);
    let topics = match wish.topic {
        Some(name) => vec![state.queue.topic(&name).await?.ok_or(TopicError::Unknown(name))?],
        None => state.queue.topics().await?,
    };
    let mut letters = Vec::new();
    for topic in topics {
        letters.extend(state.queue.dead_letters(topic.name(), limit - letters.len().min(limit)).await?);
    }
    Ok(letters)
}

/// The id in a path.
pub(crate) type Named = Result<Path<String>, PathRejection>;

pub(crate) fn named(id: Named) -> Result<JobId, ApiError> {
    let id = id.map_or_else(|_| "?".to_owned(), |Path(id)| id);
    id.parse().map_err(|_| ApiError::JobUnknown(id.chars().take(128).collect()))
}
