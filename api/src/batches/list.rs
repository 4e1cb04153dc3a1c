//! `GET /v1/batches` and `GET /v1/batches/{id}`.

use axum::extract::State;
use axum::{Extension, Json};
use queue::client::{Batch, Revision};
use serde::Serialize;
use utoipa::ToSchema;

use super::lookup::find;
use super::wire;
use crate::error::ApiError;
use crate::keys::Caller;
use crate::path::BatchPath;
use crate::schema::NoBatch;
use crate::state::Shared;

/// Most batches listed.
const LISTED_MAX: usize = 100;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Batches {
    batches: Vec<wire::Document>,
}

/// Lists the newest batches.
#[utoipa::path(
    get, path = "/v1/batches", tag = "batches", operation_id = "listBatches",
    responses((status = 200, description = "The newest 100.", body = Batches)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Batches>, ApiError> {
    let all = state.queue.batches.after(Revision::default()).await?;
    let mut batches: Vec<Batch> = all.into_iter().map(|(batch, _)| batch).collect();
    batches.retain(|batch| caller.sees(batch.owner.as_ref()));
    batches.sort_by_key(|batch| std::cmp::Reverse(batch.created_at));
    batches.truncate(LISTED_MAX);
    let mut documents = Vec::new();
    for batch in &batches {
        documents.push(wire::shown(&state, batch).await?);
    }
    Ok(Json(Batches { batches: documents }))
}

/// Shows one.
#[utoipa::path(
    get, path = "/v1/batches/{id}", tag = "batches", operation_id = "getBatch",
    params(BatchPath),
    responses(
        (status = 200, description = "The batch.", body = wire::Document),
        NoBatch,
    ),
)]
pub(crate) async fn show(State(state): State<Shared>, path: BatchPath) -> Result<Json<wire::Document>, ApiError> {
    Ok(Json(wire::shown(&state, &find(&state, path).await?).await?))
}
