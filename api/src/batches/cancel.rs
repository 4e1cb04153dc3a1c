//! `DELETE /v1/batches/{id}`: cancels the jobs of a batch that have not ended.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use queue::client::{Batch, Canceled, Replaced};
use queue::{JobId, Queue, Timestamp};

use super::wire;
use crate::error::ApiError;
use crate::index::{Index, IndexError};
use crate::path::BatchPath;
use crate::schema::NoBatch;
use crate::state::Shared;

/// Jobs canceled at a time.
const WIDTH: usize = 16;
/// Jobs per page.
const PAGE: usize = 1_000;

/// Cancels the jobs that have not ended.
#[utoipa::path(
    delete, path = "/v1/batches/{id}", tag = "batches", operation_id = "cancelBatch",
    params(BatchPath),
    responses(
        (status = 202, description = "Its jobs are being canceled.", body = wire::Document),
        (status = 409, description = "`batch_finished`."),
        NoBatch,
    ),
)]
pub(crate) async fn cancel(State(state): State<Shared>, BatchPath { id }: BatchPath) -> Result<Response, ApiError> {
    let batch = loop {
        let Some((batch, revision)) = state.queue.batches.get(&id).await? else {
            return Err(ApiError::BatchUnknown(id));
        };
        if wire::document(&state.index, &batch).await?.is_finished() {
            return Err(ApiError::BatchFinished(id));
        }
        let next = Batch { canceled_at: Some(batch.canceled_at.unwrap_or(Timestamp::now())), ..batch.clone() };
        if next == batch || state.queue.batches.write(revision, &next).await? != Replaced::Refused {
            break next;
        }
    };
    let (queue, index) = (state.queue.clone(), state.index.clone());
    tokio::spawn(async move {
        if let Err(error) = cancel_jobs(&queue, &index, &id).await {
            tracing::warn!(batch = id, %error, "batch not fully canceled yet");
        }
    });
    Ok((StatusCode::ACCEPTED, Json(wire::shown(&state, &batch).await?)).into_response())
}

/// Cancels all jobs of a batch that have not ended.
pub(super) async fn cancel_jobs(queue: &Queue, index: &Index, id: &str) -> Result<(), IndexError> {
    // Twice: jobs may have arrived during the first pass.
    for _ in 0..2 {
        index.catch_up(queue).await?;
        let open = open_jobs(index, id).await?;
        let cancels = open.into_iter().map(|job| async move { queue.jobs.cancel(&job).await });
        let _: Vec<Canceled> = futures::stream::iter(cancels).buffer_unordered(WIDTH).try_collect().await?;
    }
    Ok(())
}

async fn open_jobs(index: &Index, id: &str) -> Result<Vec<JobId>, IndexError> {
    let (mut open, mut after) = (Vec::new(), None);
    loop {
        let page = index.batch_page(id, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(open) };
        after = last.spec.origin.custom_id.clone();
        open.extend(page.iter().filter(|record| !record.is_terminal()).map(|record| record.spec.id.clone()));
    }
}
