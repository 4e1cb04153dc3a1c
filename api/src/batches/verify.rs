//! `GET` and `POST /v1/batches/{id}/verify`: proves that no item of a batch is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use futures::{StreamExt, TryStreamExt};
use queue::State as JobState;
use queue::client::Stored;
use serde::Serialize;
use utoipa::ToSchema;

use super::lookup::{find, item_id};
use super::options::ITEMS_MAX;
use super::room::{Room, Rooms, SMALL_BYTES};
use crate::bodies::BUSY_PATIENCE;
use crate::error::ApiError;
use crate::incoming;
use crate::path::BatchPath;
use crate::schema::NoBatch;
use crate::state::Shared;

/// Jobs looked up at a time.
const WIDTH: usize = 16;
/// Jobs per page.
const PAGE: usize = 1_000;
/// Largest list of custom ids, bytes, and how long it may take to arrive.
const EXPECTED_BYTES_MAX: usize = 32 << 20;
const EXPECTED_PATIENCE: Duration = Duration::from_secs(60);
/// Most custom ids named in each list of an answer.
const NAMED_MAX: usize = 1_000;

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
pub(crate) async fn verify(State(state): State<Shared>, path: BatchPath) -> Result<Json<Verification>, ApiError> {
    let batch = find(&state, path).await?;
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
                queue.find_job(&row.spec.id).await.map(|stored| (name, stored))
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
    path: BatchPath,
    body: Body,
) -> Result<Json<Verification>, ApiError> {
    let batch = find(&state, path).await?;
    // Memory for the list is lent, as for images.
    let rooms = state.batch_bodies.of_one_batch();
    let reading = tokio::time::timeout(EXPECTED_PATIENCE, read_expected(&rooms, body));
    let (body, _room) = reading.await.map_err(|_| ApiError::BodyTimeout("send the names within a minute"))??;
    let text = std::str::from_utf8(&body).map_err(|error| ApiError::BodyBroken(error.to_string()))?;
    let expected: BTreeSet<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if expected.len() > ITEMS_MAX {
        return Err(ApiError::BatchTooLarge { limit: ITEMS_MAX });
    }
    if expected.is_empty() {
        return Err(ApiError::BodyBroken("it names no items; send custom ids, one per line".into()));
    }
    let mut verdict = Verification { total: Some(expected.len() as u64), ..Verification::default() };
    let looks = expected.into_iter().map(|name| {
        let (queue, id) = (state.queue.clone(), item_id(&batch, &name));
        async move { queue.find_job(&id).await.map(|stored| (name, stored)) }
    });
    let mut looks = futures::stream::iter(looks).buffered(WIDTH);
    while let Some((name, stored)) = looks.try_next().await? {
        verdict.count(name, stored.as_ref());
    }
    verdict.complete = verdict.total == Some(verdict.ended);
    Ok(Json(verdict))
}

/// Reads a list into memory that is lent as it arrives: a little at first, then all that it may need.
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
