//! `POST /v1/batches` and `PUT /v1/batches/{id}`: many images in one body.
//!
//! A job's id follows from the batch's and the item's own. So a body that broke off is sent again
//! under the same id, and what had come is not queued a second time. The batch's record is written
//! first, open; when all has come, it says how many that were.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use models::{Model, ModelVersion};
use queue::client::{Batch, Replaced};
use queue::{ImageFacts, JobError, Record, SubmitError, Timestamp, Topic};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoResponses;

use super::items::{self, Bounds, Files, Item, Line};
use super::options::BatchOptions;
use super::{BatchPath, wire};
use crate::dead::Named;
use crate::digest::sha256;
use crate::error::ApiError;
use crate::jobs::{Options, check_encoding, find_model, find_topic, lane, name_model, spec};
use crate::keys::Caller;
use crate::metrics;
use crate::openapi::Binary;
use crate::state::{Shared, State as Inner};

/// Items that are queued at a time.
const WIDTH: usize = 16;
/// Pause before an item that found no room is offered again; until then the sender waits.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// How often an item is offered to a queue that does not answer.
const TRIES: u32 = 20;
/// How long an item is offered to a queue that is full, or waits for room under its key's limit: the
/// sender may be gone, and what it sent is in memory.
const FULL_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How often to look whether the batch was called off.
const CANCEL_LOOK: Duration = Duration::from_secs(1);
/// Items of one batch.
pub(super) const ITEMS_MAX: usize = 1_000_000;

/// Why a batch is not taken, as the API's description has it.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it only says how answers look")]
enum BatchRefused {
    /// `archive_invalid`, `custom_id_invalid`, `json_invalid`, `option_invalid`, `form_invalid`, `body_broken`, `batch_id_invalid`, `model_missing`, `topic_plain`. What came before the fault is queued: send it again with `PUT`.
    #[response(status = 400)]
    Malformed,
    /// `model_unknown`, `version_unknown`, `topic_unknown`; `batch_unknown`: another owner has this id.
    #[response(status = 404)]
    Unknown,
    /// `batch_canceled`, `batch_model`, `custom_id_twice`, `topic_model`.
    #[response(status = 409)]
    Conflict,
    /// `batch_too_large`, `body_too_large`.
    #[response(status = 413)]
    TooLarge,
    /// `batch_kind`.
    #[response(status = 415)]
    Kind,
    /// `custom_id_changed`: it came before with another image.
    #[response(status = 422)]
    Changed,
}

/// Takes a batch under an id that we give it.
#[utoipa::path(
    post, path = "/v1/batches", tag = "batches", operation_id = "createBatch",
    params(BatchOptions),
    request_body(
        content(
            (Binary = "application/x-tar"), (Binary = "application/zip"), (Line = "application/x-ndjson"),
            (Files = "multipart/form-data"),
        ),
        description = "The images, streamed: nothing is held but the one at hand. Names of files are custom ids. \
            Lines of JSON are `{\"custom_id\": …, \"image\": <base64>, \"metadata\": {…}}`.",
    ),
    responses(
        (status = 202, description = "All of it is durable. What is no image is a failed job of its own.", body = wire::Document,
            headers(("Location" = String, description = "Where the batch is looked at."))),
        BatchRefused,
    ),
)]
pub(crate) async fn create(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = format!("b-{}", uuid::Uuid::now_v7());
    receive(&state, &caller, id, query.as_deref().unwrap_or(""), &headers, body).await
}

/// Takes a batch under the client's own id, as often as it is sent.
#[utoipa::path(
    put, path = "/v1/batches/{id}", tag = "batches", operation_id = "putBatch",
    params(
        BatchPath,
        BatchOptions,
    ),
    request_body(
        content(
            (Binary = "application/x-tar"), (Binary = "application/zip"), (Line = "application/x-ndjson"),
            (Files = "multipart/form-data"),
        ),
        description = "The images, streamed: nothing is held but the one at hand. Names of files are custom ids. \
            Lines of JSON are `{\"custom_id\": …, \"image\": <base64>, \"metadata\": {…}}`.",
    ),
    responses(
        (status = 202, description = "All of it is durable. What is no image is a failed job of its own.", body = wire::Document,
            headers(("Location" = String, description = "Where the batch is looked at."))),
        BatchRefused,
    ),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    id: Named,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = super::named(id)?;
    receive(&state, &caller, id, query.as_deref().unwrap_or(""), &headers, body).await
}

/// What all items of a batch share.
struct Target<'a> {
    state: &'a Inner,
    caller: &'a Caller,
    batch: &'a Batch,
    topic: &'a Topic,
    model: &'a Model,
    version: &'a ModelVersion,
    options: &'a Options,
}

async fn receive(
    state: &Inner,
    caller: &Caller,
    id: String,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_encoding(headers)?;
    let mut options = BatchOptions::read(query)?;
    name_model(state, &mut options.jobs).await?;
    let (model, version) = find_model(state, &options.jobs)?;
    let topic = find_topic(state, &options.jobs, model).await?;
    options.jobs.settle_priority(|asked| caller.priority(asked))?;
    let bounds = Bounds {
        limit: state.config.upload_bytes_max,
        rooms: state.batch_bodies.of_one_batch(),
        archives: state.archives.clone(),
    };
    let mut items = items::read(headers, body, bounds)?;
    // A body that has nothing in it leaves nothing behind.
    let first = items.recv().await.unwrap_or_else(|| Err(ApiError::Archive("there is no image in it".into())))?;
    let new = Batch {
        id: id.clone(),
        model: model.name().to_owned(),
        topic: topic.name().clone(),
        owner: caller.owner.clone(),
        created_at: Timestamp::now(),
        total: None,
        complete_at: None,
        canceled_at: None,
        error: None,
        failures_max: options.failures_max,
        webhook: options.webhook,
        finished_at: None,
    };
    let batch = open(state, new).await?;
    let target = Target { state, caller, batch: &batch, topic: &topic, model, version, options: &options.jobs };
    let count = tokio::select! {
        count = take_all(&target, first, items) => count?,
        error = interruption(&target) => return Err(error),
    };
    let batch = close(state, &id, count).await?;
    let mut response = (StatusCode::ACCEPTED, Json(wire::document(&state.index, &batch).await?)).into_response();
    let location = HeaderValue::from_str(&wire::batch_url(&id)).expect("ids are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The batch's record, which is there before its first job. One that is there already stays as it is, but
/// for what is said anew.
async fn open(state: &Inner, new: Batch) -> Result<Batch, ApiError> {
    loop {
        if let Some((batch, revision)) = state.queue.batch(&new.id).await? {
            // Two owners may take the same id at the same moment.
            if batch.owner != new.owner {
                return Err(ApiError::BatchUnknown(new.id));
            }
            if batch.canceled_at.is_some() {
                return Err(ApiError::BatchCanceled(new.id));
            }
            if (&batch.model, &batch.topic) != (&new.model, &new.topic) {
                return Err(ApiError::BatchModel { id: new.id, model: batch.model, topic: batch.topic });
            }
            let next = Batch {
                failures_max: new.failures_max.or(batch.failures_max),
                webhook: new.webhook.clone().or(batch.webhook.clone()),
                ..batch.clone()
            };
            if next == batch || state.queue.write_batch(revision, &next).await? != Replaced::Refused {
                return Ok(next);
            }
            continue;
        }
        if let Replaced::Done(_) = state.queue.write_batch(queue::client::Revision::default(), &new).await? {
            return Ok(new);
        }
    }
}

/// Notes that all has come.
async fn close(state: &Inner, id: &str, count: u64) -> Result<Batch, ApiError> {
    state.index.catch_up(&state.queue).await?;
    loop {
        let Some((batch, revision)) = state.queue.batch(id).await? else {
            return Err(ApiError::BatchUnknown(id.to_owned()));
        };
        if batch.canceled_at.is_some() {
            return Err(ApiError::BatchCanceled(id.to_owned()));
        }
        // What was sent before and is not in this body counts as well.
        let known = state.index.counts(id).await?.total();
        let total = Some(count.max(known).max(batch.total.unwrap_or(0)));
        if total == batch.total {
            return Ok(batch);
        }
        // What has grown has not ended.
        let next = Batch { total, complete_at: Some(Timestamp::now()), finished_at: None, ..batch.clone() };
        if let Replaced::Done(_) = state.queue.write_batch(revision, &next).await? {
            return Ok(next);
        }
    }
}

/// Resolves when the batch is to be taken no further: it was called off, or this process ends.
async fn interruption(target: &Target<'_>) -> ApiError {
    let Target { state, batch, .. } = target;
    let canceled = async {
        loop {
            tokio::time::sleep(CANCEL_LOOK).await;
            let seen = state.queue.batch(&batch.id).await;
            if seen.is_ok_and(|seen| seen.is_none_or(|(batch, _)| batch.canceled_at.is_some())) {
                return;
            }
        }
    };
    tokio::select! {
        () = canceled => ApiError::BatchCanceled(batch.id.clone()),
        () = state.stop.cancelled() => ApiError::Stopping,
    }
}

/// Queues all items; returns how many there were.
async fn take_all(
    target: &Target<'_>,
    first: Item,
    items: tokio::sync::mpsc::Receiver<Result<Item, ApiError>>,
) -> Result<u64, ApiError> {
    let mut seen = HashSet::new();
    let new = futures::stream::iter([Ok(first)]).chain(ReceiverStream::new(items)).map(|item| {
        let item = item?;
        if !seen.insert(item.custom_id.clone()) {
            return Err(ApiError::CustomIdTwice(item.custom_id));
        }
        if seen.len() > ITEMS_MAX {
            return Err(ApiError::BatchTooLarge { limit: ITEMS_MAX });
        }
        Ok(item)
    });
    let taken = new.map(|item| async move { take(target, item?).await }).buffer_unordered(WIDTH);
    taken.try_fold(0, async |count, ()| Ok(count + 1)).await
}

/// Queues one item, or notes why it cannot be.
async fn take(target: &Target<'_>, item: Item) -> Result<(), ApiError> {
    let Target { state, caller, batch, topic, model, version, options } = *target;
    let id = super::item_id(batch, &item.custom_id);
    let facts = match &item.content {
        Ok(bytes) => crate::jobs::image_facts(bytes).map_err(|error| JobError::new(error.code(), error.to_string())),
        Err(error) => Err(error.clone()),
    };
    let sha256 = match &facts {
        Ok(facts) => facts.sha256.clone(),
        Err(_) => sha256(item.content.as_ref().unwrap_or(&Bytes::new())),
    };
    let custom_id = item.custom_id.clone();
    let is_same = move |known: &Record| {
        if known.spec.image.sha256 == sha256 { Ok(()) } else { Err(ApiError::CustomIdChanged(custom_id)) }
    };
    if let Some(known) = state.queue.find(&id).await? {
        return is_same(&known.record);
    }
    let mut options = options.clone();
    for (key, value) in &item.metadata {
        options.set(&format!("metadata.{key}"), value)?;
    }
    let bytes = item.content.unwrap_or_default();
    let (facts, problem) = match facts {
        Ok(facts) => (facts, None),
        Err(problem) => (unknown_facts(&bytes), Some(problem)),
    };
    let mut spec = spec(state, caller, model, version, options, id, facts);
    spec.origin.batch = Some(batch.id.clone());
    spec.origin.custom_id = Some(item.custom_id);
    spec.origin.lane = lane::of(state, caller, topic, &spec).await;
    let deadline = Instant::now() + FULL_PATIENCE;
    let mut attempt = 0;
    // The sender waits while its key has enough waiting: its items are not read.
    let charge = loop {
        match caller.charge(state, if problem.is_none() { spec.image.bytes } else { 0 }).await {
            Ok(charge) => break charge,
            Err(ApiError::TooMany { .. }) if Instant::now() < deadline => tokio::time::sleep(FULL_PAUSE).await,
            Err(error) => return Err(error),
        }
    };
    let record = loop {
        attempt += 1;
        let outcome = match &problem {
            Some(problem) => state.queue.reject(topic, spec.clone(), problem.clone()).await,
            None => {
                state
                    .queue
                    .submit(
                        &state
                            .queue
                            .topic(topic.name())
                            .await?
                            .ok_or_else(|| SubmitError::NoTopic(topic.name().clone()))?,
                        spec.clone(),
                        bytes.clone(),
                    )
                    .await
            }
        };
        match outcome {
            Ok(record) => break record,
            // The sender waits meanwhile: its items are not read.
            Err(SubmitError::Full { .. }) if Instant::now() < deadline => tokio::time::sleep(FULL_PAUSE).await,
            Err(SubmitError::Full { .. }) => return Err(ApiError::StayedFull(FULL_PATIENCE.as_secs())),
            Err(SubmitError::Queue(error)) if attempt < TRIES => {
                tracing::warn!(job_id = %spec.id, %error, "an item is offered again");
                tokio::time::sleep(FULL_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    if !record.spec.is_of_request(&spec) {
        // Another sender of this item was faster.
        return is_same(&record);
    }
    if problem.is_none() {
        if let Some(charge) = charge {
            charge.waits();
        }
        metrics::accepted(model.name());
    }
    Ok(())
}

/// Facts of what is no image.
fn unknown_facts(bytes: &Bytes) -> ImageFacts {
    let sha256 = sha256(bytes);
    ImageFacts { width: 0, height: 0, format: "unknown".into(), bytes: bytes.len() as u64, sha256 }
}
