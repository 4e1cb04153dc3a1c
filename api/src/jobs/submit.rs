//! `POST /v1/jobs`: check, queue, answer.
//!
//! Everything that can be known without decoding is checked here, so that a client hears at once
//! what is wrong; what only the decoder sees becomes a `failed` job. `202` is sent only when image
//! and record are durable.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use models::{ImageError, Limits, Model, ModelVersion, decode};
use queue::client::Waited;
use queue::{
    ImageFacts, JobId, JobOptions, JobSpec, QueueError, Record, SubmitError, Timestamp, Topic, TopicError, TopicName,
};

use super::options::{Form, Options};
use super::wire::Job;
use super::{body, form, lane, wire};
use crate::digest::sha256;
use crate::error::ApiError;
use crate::keys::Caller;
use crate::metrics;
use crate::openapi::Binary;
use crate::state::{AppState, Shared};
use crate::webhooks;

/// The longest time that a request may wait for its job.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long an upload that has come waits for the queue before it asks for a sign of life, and how long for that.
const QUEUE_PATIENCE: Duration = Duration::from_millis(1_500);
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_MAX: usize = 255;
/// Says that an answer is about a job that was there already.
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
            let wait = taken.wait.or_else(|| preferred_wait(&headers));
            answer(&state, taken, wait).await
        }
        Err(error) => {
            metrics::refused(&error);
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
    // What the query alone shows to be wrong is said before the upload.
    if !form::is_form(headers) {
        resolve_options(state, &mut options).await?;
        find_model(state, &options)?;
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

/// Resolves when an upload has waited for some time and the queue's server gives no sign of life. One that
/// lives may be waiting for its disk, or for a leader to be elected, which ends well.
async fn queue_is_dead(state: &AppState) {
    loop {
        tokio::time::sleep(QUEUE_PATIENCE).await;
        if !state.queue.is_alive(SIGN_OF_LIFE).await {
            return;
        }
    }
}

/// Queues an image that has come. Dropped at any point, it leaves what a crash would: a worker completes it, or
/// there is nothing.
async fn queue_image(
    state: &AppState,
    caller: &Caller,
    key: Option<&str>,
    mut options: Options,
    image: Bytes,
) -> Result<Taken, ApiError> {
    resolve_options(state, &mut options).await?;
    let (model, version) = find_model(state, &options)?;
    let topic = find_topic(state, &options, model).await?;
    if options.job.webhook.as_ref().is_some_and(|webhook| webhook.url.is_empty()) {
        let problem = "it needs a webhook".to_owned();
        return Err(ApiError::Option { name: "webhook_events".into(), problem });
    }
    let id = match key {
        Some(key) => JobId::derived(topic.name().clone(), &[caller.owner.as_deref().unwrap_or(""), key]),
        None => JobId::random(topic.name().clone()),
    };
    options.settle_priority(|asked| caller.priority(asked))?;
    let (version_asked, wait) = (options.version, options.wait);
    let mut spec = spec(state, caller, model, version, options, id, image_facts(&image)?);
    if key.is_some()
        && let Some(known) = state.queue.find(&spec.id).await?
    {
        return Taken::again(known.record, &spec, version_asked, wait);
    }
    let charge = caller.charge(state, spec.image.bytes).await?;
    spec.origin.lane = lane::of(state, caller, &topic, &spec).await;
    let asked = spec.clone();
    let record = state.queue.submit(&topic, spec, image).await?;
    if !record.spec.is_of_request(&asked) {
        // The same key came twice at once, and the other one was faster.
        return Taken::again(record, &asked, version_asked, wait);
    }
    if let Some(charge) = charge {
        charge.waits();
    }
    metrics::accepted(model.name());
    tracing::debug!(job_id = %record.spec.id, partition = %record.partition, "job accepted");
    Ok(Taken { record, is_replayed: false, wait })
}

/// An image comes as it is; `identity` is not an encoding.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let values =
        headers.get_all(header::CONTENT_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    for value in values {
        let is_plain = |encoding: &str| encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
        if let Some(encoding) = value.split(',').map(str::trim).find(|encoding| !is_plain(encoding)) {
            return Err(ApiError::ContentEncoding(encoding.to_owned()));
        }
    }
    Ok(())
}

/// A job that was taken in, now or by an earlier request with the same key.
struct Taken {
    record: Record,
    is_replayed: bool,
    /// How long to wait for its end, if that was an option of the request.
    wait: Option<Duration>,
}

impl Taken {
    /// A job that is there already, if it was asked for in the same way.
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

/// Whether two requests ask for the same. A time from now on is another moment in each of them, and a
/// job that was run again has none.
fn is_same_wish(known: &JobOptions, asked: &JobOptions) -> bool {
    let timeless = |options: &JobOptions| JobOptions { start_by: None, ..options.clone() };
    timeless(known) == timeless(asked)
}

/// The key under which a request may be sent again.
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

/// What options mean on this server: a topic stands for its model, and a webhook must be one that may be called.
pub(crate) async fn resolve_options(state: &AppState, options: &mut Options) -> Result<(), ApiError> {
    if let Some(url) = options.webhook() {
        webhooks::check_target(url, &state.config.webhook_allow)?;
    }
    if let (None, Some(name)) = (&options.model, &options.topic) {
        let topic = state.queue.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone()))?;
        options.model = Some(topic.settings.model.clone().ok_or_else(|| ApiError::TopicPlain(name.clone()))?);
    }
    Ok(())
}

/// The topic that was named, or else the model's own, which is made with its first job.
pub(crate) async fn find_topic(state: &AppState, options: &Options, model: &Model) -> Result<Arc<Topic>, ApiError> {
    let topic = match &options.topic {
        Some(name) => state.queue.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone()))?,
        None => {
            let name = TopicName::new(model.name()).map_err(|_| ApiError::Internal)?;
            state.queue.ensure_topic(&name, model.name()).await?
        }
    };
    match &topic.settings.model {
        Some(its) if its == model.name() => Ok(topic),
        Some(its) => {
            let (topic, model) = (topic.name().clone(), model.name().to_owned());
            Err(ApiError::TopicModel { topic, its: its.clone(), model })
        }
        None => Err(ApiError::TopicPlain(topic.name().clone())),
    }
}

pub(crate) fn find_model<'a>(
    state: &'a AppState,
    options: &Options,
) -> Result<(&'a Model, &'a ModelVersion), ApiError> {
    let known = || state.repository.names();
    let name = options.model.as_ref().ok_or_else(|| ApiError::ModelMissing { known: known() })?;
    let unknown = || ApiError::ModelUnknown { name: name.chars().take(80).collect(), known: known() };
    let model = state.repository.get(name).ok_or_else(unknown)?;
    let number = options.version;
    let missing = || ApiError::VersionUnknown { model: name.clone(), version: number.unwrap_or_default() };
    Ok((model, model.version(number).ok_or_else(missing)?))
}

/// What a job is asked to do.
pub(crate) fn spec(
    state: &AppState,
    caller: &Caller,
    model: &Model,
    version: &ModelVersion,
    options: Options,
    id: JobId,
    image: ImageFacts,
) -> JobSpec {
    JobSpec {
        id,
        model: model.name().to_owned(),
        model_version: version.number,
        model_digest: version.digest.clone(),
        created_at: Timestamp::now(),
        accepted_by: state.member.clone(),
        image,
        options: options.job,
        metadata: options.metadata,
        origin: queue::Origin {
            owner: caller.owner.clone(),
            request: Some(uuid::Uuid::new_v4().simple().to_string()),
            ..queue::Origin::default()
        },
    }
}

/// What an image's bytes say of it without being decoded.
///
/// # Errors
/// [`ImageError`] when they are no image, or one that would be refused.
pub fn image_facts(image: &Bytes) -> Result<ImageFacts, ImageError> {
    let header = decode::inspect(image, &Limits::default())?;
    Ok(ImageFacts {
        width: header.width,
        height: header.height,
        format: header.format.name().to_owned(),
        bytes: image.len() as u64,
        sha256: sha256(image),
    })
}

/// `202` and the job; with `Prefer: wait`, `200` if it was finished in time.
async fn answer(state: &AppState, Taken { record, is_replayed, .. }: Taken, wait: Option<Duration>) -> Response {
    let id = record.spec.id.clone();
    let (status, record) = match wait {
        _ if is_replayed && record.is_terminal() => (StatusCode::OK, record),
        None => (StatusCode::ACCEPTED, record),
        Some(patience) => match wait_for(state, &id, patience).await {
            Ok(Waited::Finished(stored)) => (StatusCode::OK, stored.record),
            Ok(Waited::StillOpen(stored)) => (StatusCode::ACCEPTED, stored.record),
            // The job is accepted, whatever became of the waiting: its answer must not be an error,
            // or the client would send it again.
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

/// Waits for a job, but not beyond the end of this process.
pub(super) async fn wait_for(state: &AppState, id: &JobId, patience: Duration) -> Result<Waited, queue::QueueError> {
    tokio::select! {
        waited = state.queue.wait(id, patience) => waited,
        () = state.stop.cancelled() => state.queue.wait(id, Duration::ZERO).await,
    }
}

/// `wait=N` out of `Prefer` headers (RFC 7240), in seconds, at most [`WAIT_MAX`].
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split([',', ';'])).map(str::trim);
    let seconds = preferences.find_map(|preference| preference.strip_prefix("wait="))?;
    let seconds: u64 = seconds.trim_matches('"').parse().ok()?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn prefers(values: &[&'static str], seconds: Option<u64>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        assert_eq!(preferred_wait(&headers), seconds.map(Duration::from_secs), "{values:?}");
    }

    #[test]
    fn a_preferred_wait_is_read_and_bounded() {
        prefers(&[], None);
        prefers(&["wait=10"], Some(10));
        prefers(&["respond-async, wait=5"], Some(5));
        prefers(&["respond-async", "wait=\"7\""], Some(7));
        prefers(&["wait=100000"], Some(60));
        prefers(&["wait=-1"], None);
        prefers(&["wait=soon"], None);
    }
}
