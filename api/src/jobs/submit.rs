//! `POST /v1/jobs`: check, queue, answer.
//!
//! Everything that can be checked without decoding is checked here, so that the client gets the error at once; what
//! only the decoder finds becomes a `failed` job. `202` is sent only when image and record are durable.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use queue::client::{Submitted, Waited};
use queue::{JobId, JobOptions, JobSpec, QueueError, Record, SubmitError};

use super::body::check_encoding;
use super::options::{Form, Options};
use super::wait::wait_for;
use super::wire::Job;
use super::{body, form, wait, wire};
use crate::admit::{Input, Target, admit, check, image_facts};
use crate::error::ApiError;
use crate::keys::Caller;
use crate::metrics;
use crate::schema::Binary;
use crate::state::{AppState, Shared};

/// How long a received upload waits for the queue before it checks that the server is alive, and how long that
/// check may take.
const QUEUE_PATIENCE: Duration = Duration::from_millis(1_500);
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_MAX: usize = 255;
/// Marks an answer about a job that already existed.
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Accepts one image.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", operation_id = "submitJob",
    params(
        Options,
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[\\t -~]+$",
            description = "Repeated requests with the same key return the same job while its result is kept."),
        ("Prefer" = Option<String>, Header, example = "wait=10",
            description = "`wait=N`: answer when the job ends, after at most N seconds; N is at most 60."),
    ),
    request_body(
        content(
            (Binary = "image/jpeg"), (Binary = "image/png"), (Binary = "image/webp"), (Binary = "image/gif"),
            (Binary = "image/bmp"), (Binary = "application/octet-stream"), (Form = "multipart/form-data"),
        ),
        description = "The image; in a form, the field `image`, with options in the other fields.",
    ),
    responses(
        (status = 202, description = "The job is durable and will end even if processes fail.", body = Job,
            headers(
                ("Location" = String, description = "URL of the job."),
                ("Retry-After" = u64, description = "Seconds after which to ask."),
                ("Idempotency-Replayed" = String, description = "`true`: an earlier request had the same key."),
                ("Preference-Applied" = String, description = "The `wait` that was applied."),
            )),
        (status = 200, description = "The job has ended, within the wait or in an earlier request with the same key.", body = Job,
            headers(("Location" = String, description = "URL of the job."))),
        (status = 400, description = "`option_invalid`, `model_missing`, `image_empty`, `form_invalid`, `body_broken`, `topic_plain`."),
        (status = 404, description = "`model_unknown`, `version_unknown`, `topic_unknown`."),
        (status = 408, description = "`body_timeout`: the body arrived too slowly."),
        (status = 409, description = "`topic_model`: the topic runs another model."),
        (status = 413, description = "`body_too_large`."),
        (status = 415, description = "`image_unsupported`, `content_encoding`."),
        (status = 422, description = "`image_truncated`, `image_too_large`, `image_corrupt`, `idempotency_key_reused`."),
        (status = 503, description = "`queue_full`, `uploads_busy`, `queue_unavailable`: nothing was accepted; send the request again."),
    ),
)]
pub(crate) async fn submit(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match take(&state, &caller, query.as_deref().unwrap_or(""), &headers, body).await {
        Ok(taken) => {
            let wait = taken.wait.or_else(|| wait::preferred(&headers));
            answer(&state, taken, wait).await
        }
        Err(error) => {
            metrics::refused(error.code());
            error.into_response()
        }
    }
}

async fn take(
    state: &AppState,
    caller: &Caller,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Taken, ApiError> {
    let key = idempotency_key(headers)?;
    check_encoding(headers)?;
    let mut options = Options::default();
    options.read_query(query)?;
    // Errors in the query alone are reported before the upload.
    if !form::is_form(headers) {
        check(state, &mut options).await?;
    }
    let upload = body::read(state, caller, headers, body).await?;
    let image = match form::boundary(headers)? {
        Some(boundary) => form::read(upload.bytes.clone(), boundary, &mut options).await?,
        None => upload.bytes.clone(),
    };
    let limit = state.config.upload_bytes_max;
    if image.len() > limit {
        return Err(ApiError::BodyTooLarge { limit });
    }
    tokio::select! {
        queued = queue_image(state, caller, key, options, image) => queued,
        () = queue_is_dead(state) => {
            let problem = "it does not answer".to_owned();
            Err(SubmitError::Queue(QueueError::Unavailable { action: "take the job", problem }).into())
        }
    }
}

/// Resolves when an upload has waited for some time and the queue's server is not alive. A live server may only be
/// waiting for its disk or for an election, and will then confirm.
async fn queue_is_dead(state: &AppState) {
    loop {
        tokio::time::sleep(QUEUE_PATIENCE).await;
        if !state.queue.is_alive(SIGN_OF_LIFE).await {
            return;
        }
    }
}

/// Queues a received image. Dropping the future at any point leaves what a crash would: a job that a worker
/// completes, or nothing.
async fn queue_image(
    state: &AppState,
    caller: &Caller,
    key: Option<&str>,
    options: Options,
    image: Bytes,
) -> Result<Taken, ApiError> {
    let (version_asked, wait) = (options.version, options.wait);
    let target = Target::of(state, caller, options).await?;
    if target.options.job.webhook.as_ref().is_some_and(|webhook| webhook.url.is_empty()) {
        let problem = "it needs a webhook".to_owned();
        return Err(ApiError::Option { name: "webhook_events".into(), problem });
    }
    let topic = target.topic.name().clone();
    let id = match key {
        Some(key) => JobId::derived(topic, &[caller.owner.as_deref().unwrap_or(""), key]),
        None => JobId::random(topic),
    };
    let spec = target.spec(state, caller, target.options.clone(), id, image_facts(&image)?);
    if key.is_some()
        && let Some(known) = state.queue.find_job(&spec.id).await?
    {
        return Taken::again(known.record, &spec, version_asked, wait);
    }
    match admit(state, caller, &target.topic, spec.clone(), Input::Image(image)).await? {
        Submitted::New(record) => Ok(Taken { record, is_replayed: false, wait }),
        // Two requests with the same key arrived at once, and the other one was faster.
        Submitted::Existing(record) => Taken::again(record, &spec, version_asked, wait),
    }
}

/// A job that was accepted, now or by an earlier request with the same key.
struct Taken {
    record: Record,
    is_replayed: bool,
    /// How long to wait for its end, if that was an option of the request.
    wait: Option<Duration>,
}

impl Taken {
    /// A job that already exists, if this request asks for the same.
    fn again(
        record: Record,
        asked: &JobSpec,
        version_asked: Option<u32>,
        wait: Option<Duration>,
    ) -> Result<Self, ApiError> {
        let is_same = |known: &JobSpec| {
            (&known.model, &known.image, &known.metadata) == (&asked.model, &asked.image, &asked.metadata)
                && is_same_wish(&known.options, &asked.options)
                && version_asked.is_none_or(|version| version == known.model_version)
        };
        if is_same(&record.spec) {
            Ok(Self { record, is_replayed: true, wait })
        } else {
            Err(ApiError::KeyReused(record.spec.id))
        }
    }
}

/// Whether two requests have the same options. `start_by` is ignored: a time from now is a different moment in each
/// request, and a retried job has none.
fn is_same_wish(known: &JobOptions, asked: &JobOptions) -> bool {
    let timeless = |options: &JobOptions| JobOptions { start_by: None, ..options.clone() };
    timeless(known) == timeless(asked)
}

/// The key that makes it safe to send a request again.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=IDEMPOTENCY_KEY_MAX).contains(&key.len()));
    match (key, values.next()) {
        (Some(key), None) => Ok(Some(key)),
        _ => Err(ApiError::Option {
            name: "Idempotency-Key".into(),
            problem: format!("it must be given once, and be 1 to {IDEMPOTENCY_KEY_MAX} printable ASCII characters"),
        }),
    }
}

/// `202` and the job; with `Prefer: wait`, `200` if it ended in time.
async fn answer(state: &AppState, Taken { record, is_replayed, .. }: Taken, wait: Option<Duration>) -> Response {
    let id = record.spec.id.clone();
    let (status, record) = match wait {
        _ if is_replayed && record.is_terminal() => (StatusCode::OK, record),
        None => (StatusCode::ACCEPTED, record),
        Some(patience) => match wait_for(state, &id, patience).await {
            Ok(Waited::Finished(stored)) => (StatusCode::OK, stored.record),
            Ok(Waited::StillOpen(stored)) => (StatusCode::ACCEPTED, stored.record),
            // The job is accepted even if waiting for it failed: the answer must not be an error, or the client
            // would send the image again.
            Ok(Waited::Unknown) => (StatusCode::ACCEPTED, record),
            Err(error) => {
                tracing::warn!(job_id = %id, %error, "wait ended early");
                (StatusCode::ACCEPTED, record)
            }
        },
    };
    let mut response = (status, Json(wire::Job::from(&record))).into_response();
    let headers = response.headers_mut();
    let location = HeaderValue::from_str(&wire::job_url(&id));
    headers.insert(header::LOCATION, location.expect("ids are ASCII"));
    wire::set_retry_after(headers, &record);
    if is_replayed {
        headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    if let Some(wait) = wait {
        let applied = HeaderValue::from_str(&format!("wait={}", wait.as_secs()));
        headers.insert(PREFERENCE_APPLIED, applied.expect("digits are ASCII"));
    }
    response
}
