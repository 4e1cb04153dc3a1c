//! Looking at batches, calling them off, and proving that none of their jobs is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::{StreamExt, TryStreamExt};
use queue::client::{Batch, Canceled, Replaced, Revision, Stored};
use queue::{JobId, Queue, State as JobState, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use super::receive::ITEMS_MAX;
use super::room::{Room, Rooms, SMALL_BYTES};
use super::{BatchPath, NoBatch, item_id, named, wire};
use crate::bodies::BUSY_PATIENCE;
use crate::dead::IdPath;
use crate::error::ApiError;
use crate::incoming;
use crate::index::{Index, IndexError};
use crate::keys::Caller;
use crate::state::{AppState, Shared};

/// Batches that are listed.
const LISTED_MAX: usize = 100;
/// Jobs that are canceled or looked at, at a time.
const WIDTH: usize = 16;
/// Jobs of a page.
const PAGE: usize = 1_000;
/// Bytes of a list of custom ids, and how long it may take.
const EXPECTED_BYTES_MAX: usize = 32 << 20;
const EXPECTED_PATIENCE: Duration = Duration::from_secs(60);
/// Jobs that are named.
const NAMED_MAX: usize = 1_000;

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
    let all = state.queue.batches_after(Revision::default()).await?;
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
        (status = 200, description = "The job's current state.", body = wire::Document),
        NoBatch,
    ),
)]
pub(crate) async fn show(State(state): State<Shared>, id: IdPath) -> Result<Json<wire::Document>, ApiError> {
    Ok(Json(wire::shown(&state, &find(&state, id).await?).await?))
}

/// The batch in a path.
pub(crate) async fn find(state: &AppState, id: IdPath) -> Result<Batch, ApiError> {
    let id = named(id)?;
    let found = state.queue.batch(&id).await?;
    found.map(|(batch, _)| batch).ok_or(ApiError::BatchUnknown(id))
}

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
pub(crate) async fn cancel(State(state): State<Shared>, id: IdPath) -> Result<Response, ApiError> {
    let id = named(id)?;
    let batch = loop {
        let Some((batch, revision)) = state.queue.batch(&id).await? else { return Err(ApiError::BatchUnknown(id)) };
        if wire::document(&state.index, &batch).await?.is_finished() {
            return Err(ApiError::BatchFinished(id));
        }
        let next = Batch { canceled_at: Some(batch.canceled_at.unwrap_or(Timestamp::now())), ..batch.clone() };
        if next == batch || state.queue.write_batch(revision, &next).await? != Replaced::Refused {
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
    // Once more after the last one: some may have come while we were at it.
    for _ in 0..2 {
        index.catch_up(queue).await?;
        let open = open_jobs(index, id).await?;
        let cancels = open.into_iter().map(|job| async move { queue.cancel(&job).await });
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

/// Whether each item of a batch has ended, by its record.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = Verdict)]
pub(crate) struct Verification {
    /// Whether each item has exactly one final record.
    complete: bool,
    /// Number of items, once all have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// Items with a final record.
    ended: u64,
    /// Those of them that have failed.
    failed: u64,
    /// Those of them that were canceled.
    canceled: u64,
    /// Items that have not ended, by their custom ids; the first thousand.
    open: Vec<String>,
    /// Items whose record is missing, by their custom ids; the first thousand.
    missing: Vec<String>,
}

/// Checks the record of each item.
#[utoipa::path(
    get, path = "/v1/batches/{id}/verify", tag = "batches", operation_id = "verifyBatch",
    params(BatchPath),
    responses(
        (status = 200, description = "Whether each item has exactly one final record, and which items do not.", body = Verification),
        NoBatch,
    ),
)]
pub(crate) async fn verify(State(state): State<Shared>, id: IdPath) -> Result<Json<Verification>, ApiError> {
    let batch = find(&state, id).await?;
    state.index.catch_up(&state.queue).await?;
    let mut verdict = Verification { total: batch.total, ..Verification::default() };
    let mut after: Option<String> = None;
    loop {
        let page = state.index.batch_page(&batch.id, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.spec.origin.custom_id.clone();
        let looks = page.into_iter().map(|row| {
            let queue = state.queue.clone();
            async move {
                let name = row.spec.origin.custom_id.unwrap_or_default();
                queue.find(&row.spec.id).await.map(|stored| (name, stored))
            }
        });
        let mut looks = futures::stream::iter(looks).buffered(WIDTH);
        while let Some((name, stored)) = looks.try_next().await? {
            verdict.count(name, stored.as_ref());
        }
    }
    verdict.complete = verdict.total == Some(verdict.ended) && verdict.open.is_empty() && verdict.missing.is_empty();
    Ok(Json(verdict))
}

/// Custom ids, one per line.
#[derive(ToSchema)]
#[schema(pattern = "^[^\\r\\n]+$", example = "cam7/0001.jpg")]
#[expect(dead_code, reason = "it only says how a body looks")]
struct Names(String);

/// Checks the records of the items that the body names.
///
/// It also finds items that never arrived: an item's id follows from its name, so its record can be looked up.
#[utoipa::path(
    post, path = "/v1/batches/{id}/verify", tag = "batches", operation_id = "verifyExpected",
    params(BatchPath),
    request_body(content = Names, content_type = "text/plain", description = "Custom ids, one per line."),
    responses(
        (status = 200, description = "Whether each of them has exactly one final record, and which do not.", body = Verification),
        (status = 400, description = "`batch_id_invalid`, `body_broken`: the body is not UTF-8, or names no items."),
        (status = 404, description = "`batch_unknown`: the batch does not exist, or belongs to another owner."),
        (status = 408, description = "`body_timeout`."),
        (status = 413, description = "`list_too_large`, `batch_too_large`."),
    ),
)]
pub(crate) async fn verify_expected(
    State(state): State<Shared>,
    id: IdPath,
    body: Body,
) -> Result<Json<Verification>, ApiError> {
    let batch = find(&state, id).await?;
    // What is in memory is lent, as for images.
    let rooms = state.batch_bodies.of_one_batch();
    let reading = tokio::time::timeout(EXPECTED_PATIENCE, read_expected(&rooms, body));
    let (body, _room) = reading.await.map_err(|_| ApiError::BodyTimeout("send the names within a minute"))??;
    let text = std::str::from_utf8(&body).map_err(|error| ApiError::BodyBroken(error.to_string()))?;
    let expected: BTreeSet<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if expected.len() > ITEMS_MAX {
        return Err(ApiError::BatchTooLarge { limit: ITEMS_MAX });
    }
    if expected.is_empty() {
        return Err(ApiError::BodyBroken("it names no item: send custom ids, one a line".into()));
    }
    let mut verdict = Verification { total: Some(expected.len() as u64), ..Verification::default() };
    let looks = expected.into_iter().map(|name| {
        let (queue, id) = (state.queue.clone(), item_id(&batch, &name));
        async move { queue.find(&id).await.map(|stored| (name, stored)) }
    });
    let mut looks = futures::stream::iter(looks).buffered(WIDTH);
    while let Some((name, stored)) = looks.try_next().await? {
        verdict.count(name, stored.as_ref());
    }
    verdict.complete = verdict.total == Some(verdict.ended);
    Ok(Json(verdict))
}

/// Reads a list, in memory that is lent as it comes: a little at first, then all that it may need.
async fn read_expected(rooms: &Rooms, body: Body) -> Result<(Vec<u8>, Room), ApiError> {
    let (mut list, mut room) = (Vec::new(), soon(rooms.lend(SMALL_BYTES)).await?);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(incoming::error_of)?;
        if list.len() + chunk.len() > EXPECTED_BYTES_MAX {
            return Err(ApiError::ListTooLarge { limit: EXPECTED_BYTES_MAX });
        }
        if list.len() + chunk.len() > room.bytes() {
            room = soon(rooms.grow(room, EXPECTED_BYTES_MAX)).await?;
        }
        list.extend_from_slice(&chunk);
    }
    Ok((list, room))
}

/// Waits for memory, but not for long.
async fn soon(room: impl Future<Output = Room>) -> Result<Room, ApiError> {
    tokio::time::timeout(BUSY_PATIENCE, room).await.map_err(|_| ApiError::UploadsBusy)
}

impl Verification {
    fn count(&mut self, name: String, stored: Option<&Stored>) {
        match stored {
            Some(stored) if stored.record.is_terminal() => {
                self.ended += 1;
                self.failed += u64::from(matches!(stored.record.state, JobState::Failed { .. }));
                self.canceled += u64::from(matches!(stored.record.state, JobState::Canceled { .. }));
            }
            Some(_) if self.open.len() < NAMED_MAX => self.open.push(name),
            None if self.missing.len() < NAMED_MAX => self.missing.push(name),
            Some(_) | None => {}
        }
    }
}
