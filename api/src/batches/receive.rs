//! `POST /v1/batches` and `PUT /v1/batches/{id}`: many images in one body.
//!
//! A job's id is derived from the batch's id and the item's own. So a client can send a body that broke off again
//! under the same batch id, and items that had arrived are not queued twice. The batch's record is written first,
//! without a total; the total is added once all items have arrived.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use queue::client::{Batch, Replaced, Skipped, Submitted};
use queue::{ImageFacts, JobError, JobSpec, Record, SubmitError, Timestamp};
use tokio::sync::mpsc::Receiver;
use utoipa::IntoResponses;

use super::items::{self, BodyEntry, Bounds, Files, Item, Line};
use super::lookup::item_id;
use super::options::{BatchOptions, ITEMS_MAX};
use super::wire;
use crate::admit::{Input, Target, admit, image_facts};
use crate::digest::sha256;
use crate::error::ApiError;
use crate::jobs::check_encoding;
use crate::keys::Caller;
use crate::metrics;
use crate::path::BatchPath;
use crate::schema::Binary;
use crate::state::{AppState, Shared};
use crate::webhooks;

/// Items queued at a time.
const WIDTH: usize = 16;
/// Pause before retrying an item that found no room; the sender waits until then.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// Retries of an item while the queue does not answer.
const TRIES: u32 = 20;
/// How long to retry an item while the queue is full or the key's limit is reached; bounded, because the item is in
/// memory and its sender may have disconnected.
const FULL_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How often to check whether the batch was canceled.
const CANCEL_LOOK: Duration = Duration::from_secs(1);

/// Why a batch is not taken, as the API's description has it.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it only says how answers look")]
enum BatchRefused {
    /// `archive_invalid`, `option_invalid`, `form_invalid`, `body_broken`, `batch_id_invalid`,
    /// `model_missing`, `topic_plain`. Images before the error are queued; `batch_id` and `items_taken`
    /// identify them. Send the body again with `PUT`.
    #[response(status = 400)]
    Malformed,
    /// `model_unknown`, `version_unknown`, `topic_unknown`; `batch_unknown`: this id belongs to another owner.
    #[response(status = 404)]
    Unknown,
    /// `batch_canceled`, `batch_model`, `topic_model`.
    #[response(status = 409)]
    Conflict,
    /// `batch_too_large`, `body_too_large`.
    #[response(status = 413)]
    TooLarge,
    /// `batch_kind`.
    #[response(status = 415)]
    Kind,
    /// `custom_id_changed`: the id already exists with another image. All other items are queued.
    #[response(status = 422)]
    Changed,
}

/// Accepts a batch and gives it an id.
#[utoipa::path(
    post, path = "/v1/batches", tag = "batches", operation_id = "createBatch",
    params(BatchOptions),
    request_body(
        content(
            (Binary = "application/x-tar"), (Binary = "application/zip"), (Line = "application/x-ndjson"),
            (Files = "multipart/form-data"),
        ),
        description = "The images, streamed: only the current one is held in memory. File names are custom ids. \
            Lines of JSON are `{\"custom_id\": …, \"image\": <base64>, \"metadata\": {…}}`.",
    ),
    responses(
        (status = 202, description = "All of it is durable. Files that are not images become failed jobs.", body = wire::Document,
            headers(("Location" = String, description = "URL of the batch."))),
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
    receive(&state, &caller, id, query.as_deref().unwrap_or(""), &headers, body)
        .await
        .inspect_err(|error| metrics::refused(error.code()))
}

/// Accepts a batch under the client's own id; it may be sent repeatedly.
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
        description = "The images, streamed: only the current one is held in memory. File names are custom ids. \
            Lines of JSON are `{\"custom_id\": …, \"image\": <base64>, \"metadata\": {…}}`.",
    ),
    responses(
        (status = 202, description = "All of it is durable. Files that are not images become failed jobs.", body = wire::Document,
            headers(("Location" = String, description = "URL of the batch."))),
        BatchRefused,
    ),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    BatchPath { id }: BatchPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    receive(&state, &caller, id, query.as_deref().unwrap_or(""), &headers, body)
        .await
        .inspect_err(|error| metrics::refused(error.code()))
}

/// What all items of a batch share.
struct Receiving<'a> {
    state: &'a AppState,
    caller: &'a Caller,
    batch: &'a Batch,
    target: &'a Target<'a>,
}

async fn receive(
    state: &AppState,
    caller: &Caller,
    id: String,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_encoding(headers)?;
    let BatchOptions { jobs, failures_max, webhook } = BatchOptions::read(query)?;
    if let Some(url) = &webhook {
        webhooks::check_target(url, &state.config.webhook_allow)?;
    }
    let target = Target::of(state, caller, jobs).await?;
    let bounds = Bounds {
        limit: state.config.upload_bytes_max,
        rooms: state.batch_bodies.of_one_batch(),
        archives: state.archives.clone(),
    };
    let mut items = items::read(headers, body, bounds)?;
    // A body without items leaves no record.
    let mut skipped = Skipped::default();
    let first = loop {
        match items.recv().await {
            Some(Ok(BodyEntry::Item(item))) => break item,
            Some(Ok(BodyEntry::Skipped(name))) => skipped.note(name),
            Some(Err(error)) => return Err(error),
            None => {
                return Err(ApiError::Archive(format!(
                    "the archive contains no images; {} files skipped",
                    skipped.count
                )));
            }
        }
    };
    let new = Batch {
        id: id.clone(),
        model: target.model().to_owned(),
        topic: target.topic.name().clone(),
        owner: caller.owner.clone(),
        created_at: Timestamp::now(),
        total: None,
        complete_at: None,
        skipped: Skipped::default(),
        canceled_at: None,
        error: None,
        failures_max,
        webhook,
        finished_at: None,
    };
    let batch = open(state, new).await?;
    let receiving = Receiving { state, caller, batch: &batch, target: &target };
    let tally = Mutex::new(Tally { skipped, ..Tally::default() });
    let taken = tokio::select! {
        taken = take_all(&receiving, first, items, &tally) => taken,
        error = interruption(&receiving) => Err(error),
    };
    let Tally { taken: count, are_new, skipped, changed } = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let broken = |error| ApiError::Batch { id: id.clone(), taken: count, error: Box::new(error) };
    taken.map_err(broken)?;
    let batch = close(state, &id, count, are_new, skipped).await?;
    if let Some((custom_id, count)) = changed {
        return Err(broken(ApiError::CustomIdChanged { custom_id, others: count - 1 }));
    }
    let mut response = (StatusCode::ACCEPTED, Json(wire::shown(state, &batch).await?)).into_response();
    let location = HeaderValue::from_str(&wire::batch_url(&id)).expect("ids are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Writes the batch's record before its first job. An existing record keeps everything except the options that this
/// request sets again.
async fn open(state: &AppState, new: Batch) -> Result<Batch, ApiError> {
    loop {
        if let Some((batch, revision)) = state.queue.batches.get(&new.id).await? {
            // Two owners may use the same id at the same moment.
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
            if next == batch || state.queue.batches.write(revision, &next).await? != Replaced::Refused {
                return Ok(next);
            }
            continue;
        }
        if let Replaced::Done(_) = state.queue.batches.write(queue::client::Revision::default(), &new).await? {
            return Ok(new);
        }
    }
}

/// Records that all items have arrived.
async fn close(state: &AppState, id: &str, count: u64, are_new: bool, skipped: Skipped) -> Result<Batch, ApiError> {
    state.index.catch_up(&state.queue).await?;
    loop {
        let Some((batch, revision)) = state.queue.batches.get(id).await? else {
            return Err(ApiError::BatchUnknown(id.to_owned()));
        };
        if batch.canceled_at.is_some() {
            return Err(ApiError::BatchCanceled(id.to_owned()));
        }
        // Items that were sent before and are not in this body count too.
        let known = state.index.counts(id).await?.total();
        let total = Some(count.max(known).max(batch.total.unwrap_or(0)));
        let mut next = Batch { total, skipped: skipped.clone(), ..batch.clone() };
        // A batch that has grown, or whose expired items are queued again, has not ended.
        if total != batch.total || are_new && batch.finished_at.is_some() {
            next = Batch { complete_at: Some(Timestamp::now()), finished_at: None, ..next };
        }
        if next == batch {
            return Ok(batch);
        }
        if let Replaced::Done(_) = state.queue.batches.write(revision, &next).await? {
            return Ok(next);
        }
    }
}

/// Resolves when receiving must stop: the batch was canceled, or this process is stopping.
async fn interruption(receiving: &Receiving<'_>) -> ApiError {
    let Receiving { state, batch, .. } = receiving;
    let canceled = async {
        loop {
            tokio::time::sleep(CANCEL_LOOK).await;
            let seen = state.queue.batches.get(&batch.id).await;
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

/// Progress of receiving a batch.
#[derive(Default)]
struct Tally {
    /// Items that were queued or recorded as failed.
    taken: u64,
    /// Whether some of them are new.
    are_new: bool,
    skipped: Skipped,
    /// The first custom id that already exists with another image, and the number of such ids.
    changed: Option<(String, u64)>,
}

impl Tally {
    fn note(&mut self, taken: Result<bool, ApiError>) -> Result<(), ApiError> {
        match taken {
            Ok(is_new) => {
                self.taken += 1;
                self.are_new |= is_new;
            }
            Err(ApiError::CustomIdChanged { custom_id, .. }) => self.changed.get_or_insert((custom_id, 0)).1 += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Queues all items. An error ends the reading, but items that were read before it are still queued.
async fn take_all(
    receiving: &Receiving<'_>,
    first: Item,
    mut entries: Receiver<Result<BodyEntry, ApiError>>,
    tally: &Mutex<Tally>,
) -> Result<(), ApiError> {
    let tally = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names = Names::default();
    let mut taking = FuturesUnordered::new();
    let mut next = Some(first);
    let (mut is_whole, mut fault) = (false, None);
    loop {
        if let Some(mut item) = next.take() {
            item.custom_id = names.unused(item.custom_id);
            taking.push(take(receiving, item));
        }
        tokio::select! {
            entry = entries.recv(), if !is_whole && taking.len() < WIDTH => match entry {
                Some(Ok(BodyEntry::Item(item))) if names.len() < ITEMS_MAX => next = Some(item),
                Some(Ok(BodyEntry::Item(_))) => {
                    fault = Some(ApiError::BatchTooLarge { limit: ITEMS_MAX });
                    is_whole = true;
                }
                Some(Ok(BodyEntry::Skipped(name))) => tally().skipped.note(name),
                Some(Err(error)) => {
                    fault.get_or_insert(error);
                    is_whole = true;
                }
                None => is_whole = true,
            },
            Some(taken) = taking.next() => {
                if let Err(error) = tally().note(taken) {
                    fault.get_or_insert(error);
                    is_whole = true;
                }
            },
            else => return fault.map_or(Ok(()), Err),
        }
    }
}

/// The custom ids of one body. A duplicate gets a number, so that no item is lost; the same body always gives the
/// same ids.
#[derive(Default)]
struct Names {
    /// Each id, with the number for its next duplicate.
    taken: HashMap<String, u32>,
}

impl Names {
    fn unused(&mut self, name: String) -> String {
        let Some(mut number) = self.taken.get(&name).copied() else {
            self.taken.insert(name.clone(), 2);
            return name;
        };
        let unused = loop {
            let numbered = format!("{name} ({number})");
            number += 1;
            if !self.taken.contains_key(&numbered) {
                break numbered;
            }
        };
        self.taken.insert(name, number);
        self.taken.insert(unused.clone(), 2);
        unused
    }

    fn len(&self) -> usize {
        self.taken.len()
    }
}

/// Queues one item, or records it as failed; returns whether it is new.
async fn take(receiving: &Receiving<'_>, item: Item) -> Result<bool, ApiError> {
    let Receiving { state, caller, batch, target } = *receiving;
    let id = item_id(batch, &item.custom_id);
    let facts = match &item.content {
        Ok(bytes) => image_facts(bytes).map_err(|error| JobError::new(error.code(), error.to_string())),
        Err(error) => Err(error.clone()),
    };
    let sha256 = match &facts {
        Ok(facts) => facts.sha256.clone(),
        Err(_) => sha256(item.content.as_ref().unwrap_or(&Bytes::new())),
    };
    let custom_id = item.custom_id.clone();
    let is_same = move |known: &Record| {
        if known.spec.image.sha256 == sha256 {
            Ok(false)
        } else {
            Err(ApiError::CustomIdChanged { custom_id, others: 0 })
        }
    };
    if let Some(known) = state.queue.find_job(&id).await? {
        return is_same(&known.record);
    }
    let mut options = target.options.clone();
    let mut refused = None;
    for (key, value) in &item.metadata {
        if let Err(error) = options.set(&format!("metadata.{key}"), value) {
            refused.get_or_insert(JobError::new(error.code(), error.to_string()));
        }
    }
    let bytes = item.content.unwrap_or_default();
    let (facts, problem) = match facts {
        Ok(facts) => (facts, refused),
        Err(problem) => (unknown_facts(&bytes), Some(problem)),
    };
    let mut spec = target.spec(state, caller, options, id, facts);
    spec.origin.batch = Some(batch.id.clone());
    spec.origin.custom_id = Some(item.custom_id);
    match offer(receiving, spec, problem.map_or(Input::Image(bytes), Input::Refused)).await? {
        Submitted::New(_) => Ok(true),
        // Another sender of this item was faster.
        Submitted::Existing(record) => is_same(&record),
    }
}

/// Submits an item, and retries while there is no room for it. The sender waits meanwhile, since its items are not
/// read.
async fn offer(receiving: &Receiving<'_>, spec: JobSpec, input: Input) -> Result<Submitted, ApiError> {
    let Receiving { state, caller, batch, .. } = *receiving;
    let deadline = Instant::now() + FULL_PATIENCE;
    let mut silences = 0;
    loop {
        // Looked up each time: the topic may get more partitions meanwhile, or be deleted.
        let topic = state.queue.topic(&batch.topic).await?;
        let topic = topic.ok_or_else(|| SubmitError::NoTopic(batch.topic.clone()))?;
        match admit(state, caller, &topic, spec.clone(), input.clone()).await {
            Err(ApiError::TooMany { .. } | ApiError::Submit(SubmitError::Full { .. })) if Instant::now() < deadline => {
            }
            Err(ApiError::Submit(SubmitError::Full { .. })) => {
                return Err(ApiError::StayedFull(FULL_PATIENCE.as_secs()));
            }
            Err(ApiError::Submit(SubmitError::Queue(error))) if silences < TRIES => {
                silences += 1;
                tracing::warn!(job_id = %spec.id, %error, "retrying a batch item");
            }
            outcome => return outcome,
        }
        tokio::time::sleep(FULL_PAUSE).await;
    }
}

/// Facts about bytes that are not an image.
fn unknown_facts(bytes: &Bytes) -> ImageFacts {
    let sha256 = sha256(bytes);
    ImageFacts { width: 0, height: 0, format: "unknown".into(), bytes: bytes.len() as u64, sha256 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_comes_again_gets_a_number_and_meets_no_other() {
        let mut names = Names::default();
        let given = ["a", "a (2)", "a", "a", "a (2)", "b"].map(|name| names.unused(name.to_owned()));
        assert_eq!(given, ["a", "a (2)", "a (3)", "a (4)", "a (2) (2)", "b"]);
        assert_eq!(names.len(), 6);
    }
}
