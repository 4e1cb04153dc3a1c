//! Every way in which a request is refused: status, stable code and message, decided here and nowhere else.
//!
//! Answers are RFC 9457 problem documents. `code` is for programs and is never reused for another meaning; `detail`
//! is for people and states what to do. What clients must not see (the queue's messages, paths) is logged with the
//! request's id.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use models::ImageError;
use queue::client::RedriveError;
use queue::{JobId, QueueError, SubmitError, TopicError, TopicName};
use serde::Serialize;
use utoipa::ToSchema;

use crate::index::IndexError;
use crate::keys::Scope;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// A topic does not exist, or cannot be created or changed this way.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The topic is for another model.
    #[error("topic {topic} runs {its}, not {model}: name another topic, or make one with sightline topics create")]
    TopicModel {
        /// The topic.
        topic: TopicName,
        /// The model that it runs.
        its: String,
        /// The requested model.
        model: String,
    },
    /// The topic runs no model.
    #[error("topic {0} is a plain log and runs no model: write to it with sightline produce")]
    TopicPlain(TopicName),
    /// The dead letter does not exist, or cannot be redriven.
    #[error(transparent)]
    Redrive(#[from] RedriveError),
    /// The request's body is not the expected JSON.
    #[error("the request's body: {0}")]
    Json(String),
    /// The image is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The job could not be queued.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The queue did not answer.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The job index did not answer.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The body is above the limit.
    #[error(
        "the body exceeds {limit} bytes, the limit for one image; raise --upload-limit (and max_payload of the queue's server, which must be 64 KiB larger)"
    )]
    BodyTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// Settings are above the limit.
    #[error("the body exceeds {limit} bytes, the limit for settings")]
    SettingsTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// A list of names is above the limit.
    #[error("the body exceeds {limit} bytes; send the names in several requests")]
    ListTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// This process is stopping.
    #[error("the server is stopping; send the request again, a batch with PUT, which adds only missing images")]
    Stopping,
    /// The queue stayed full.
    #[error("the queue was full for {0} s; send the batch again with PUT, which adds only missing images")]
    StayedFull(u64),
    /// The body arrived too slowly, or stalled.
    #[error("the body arrived too slowly: {0}")]
    BodyTimeout(&'static str),
    /// The connection broke, or the body does not match its headers.
    #[error("the request's body could not be read: {0}")]
    BodyBroken(String),
    /// Too many uploads at once.
    #[error("too many concurrent uploads; retry after Retry-After seconds")]
    UploadsBusy,
    /// The body is compressed.
    #[error("Content-Encoding `{0}` is not supported; send the image uncompressed")]
    ContentEncoding(String),
    /// The multipart form is invalid.
    #[error("multipart/form-data: {0}")]
    Form(String),
    /// An option is unknown or has an invalid value.
    #[error("option `{name}`: {problem}")]
    Option {
        /// The option's name.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No model was named.
    #[error("no model named; add ?model=…, one of {known}")]
    ModelMissing {
        /// All names.
        known: String,
    },
    /// No such model.
    #[error("model `{name}` does not exist; known models: {known}")]
    ModelUnknown {
        /// The requested name.
        name: String,
        /// All names.
        known: String,
    },
    /// The model has no such version.
    #[error("model {model} has no version {version}")]
    VersionUnknown {
        /// The model.
        model: String,
        /// The requested version.
        version: u32,
    },
    /// No such job, or its record has expired.
    #[error("job `{0}` not found: the id is wrong, or its result has expired")]
    JobUnknown(String),
    /// A job that has ended cannot be canceled.
    #[error("job {id} has already {state}")]
    JobEnded {
        /// The job.
        id: JobId,
        /// How it ended.
        state: &'static str,
    },
    /// Only failed or canceled jobs can be retried.
    #[error("job {id} is {state}; only failed and canceled jobs can be retried")]
    JobNotFailed {
        /// The job.
        id: JobId,
        /// The job's current state.
        state: &'static str,
    },
    /// The input of a job is no longer kept.
    #[error("the input of job {0} is no longer kept; upload it again")]
    InputGone(JobId),
    /// The idempotency key belongs to another request.
    #[error("this Idempotency-Key belongs to another request, which created job {0}; use a new key")]
    KeyReused(JobId),
    /// The batch id is invalid.
    #[error("`{0}` is not a batch id; use 1 to 64 letters, digits, - and _")]
    BatchId(String),
    /// No such batch, or its record has expired.
    #[error("batch `{0}` not found: the id is wrong, or it has expired")]
    BatchUnknown(String),
    /// Images cannot be added to a canceled batch.
    #[error("batch {0} was canceled; send the remaining images under another id")]
    BatchCanceled(String),
    /// The batch is for another model.
    #[error("batch {id} is for model {model} and topic {topic}; use these, or another id")]
    BatchModel {
        /// The batch.
        id: String,
        /// Its model.
        model: String,
        /// Its topic.
        topic: TopicName,
    },
    /// A batch has too many items.
    #[error("a batch holds at most {limit} images; send the rest as another batch")]
    BatchTooLarge {
        /// Items.
        limit: usize,
    },
    /// The content type of a batch is not supported.
    #[error(
        "content type `{0}` is not supported for batches; send multipart/form-data, application/x-tar, application/zip or application/x-ndjson"
    )]
    BatchKind(String),
    /// The archive is invalid.
    #[error("{0}")]
    Archive(String),
    /// Items already exist with other bytes.
    #[error("{}", Self::changed(custom_id, *others))]
    CustomIdChanged {
        /// The first such item.
        custom_id: String,
        /// Number of further ones.
        others: u64,
    },
    /// Only a part of a batch's body was accepted.
    #[error("{}", Self::batch(id, *taken, &error.to_string()))]
    Batch {
        /// The batch.
        id: String,
        /// Items accepted so far.
        taken: u64,
        /// What was wrong.
        error: Box<ApiError>,
    },
    /// A batch that has ended cannot be canceled.
    #[error("batch `{0}` has already finished")]
    BatchFinished(String),
    /// A key is needed.
    #[error("this server requires an API key; send Authorization: Bearer sl_…")]
    KeyMissing,
    /// No key exists yet, and a request cannot create the first one.
    #[error(
        "no key exists yet; create the first one on the machine with the data folder: sightline keys create --local --name NAME --scopes admin"
    )]
    KeyFirst,
    /// The key is unknown, revoked or expired.
    #[error("invalid API key: unknown, revoked or expired; create one with sightline keys create")]
    KeyWrong,
    /// Its address has sent too many invalid keys.
    #[error(
        "too many requests with invalid API keys from this address; check the key and retry after Retry-After seconds"
    )]
    WrongKeys,
    /// The key does not allow this.
    #[error("this key lacks the scope {0:?}; use a key that has it")]
    KeyScope(Scope),
    /// Only the job's owner may read this.
    #[error("only the job's owner may read the original image with its metadata; omit `original`")]
    NotOwner,
    /// The key does not allow this priority.
    #[error("this key does not allow priority {asked}; use {most} or lower")]
    Priority {
        /// The requested priority.
        asked: queue::Priority,
        /// The highest priority that the key allows.
        most: queue::Priority,
    },
    /// No such key.
    #[error("key `{0}` does not exist; sightline keys list shows all keys")]
    KeyUnknown(String),
    /// The last admin key cannot be revoked.
    #[error("key {0} is the last one with the scope admin; create another one first")]
    KeyLast(String),
    /// The key's limit is reached.
    #[error("this key's limit is {what}; retry after Retry-After seconds")]
    TooMany {
        /// The limit.
        what: String,
        /// Seconds.
        wait: u32,
    },
    /// The URL is not among the receivers that are no longer called.
    #[error("`{0}` is not on the list of URLs that answered 410; GET /v1/webhooks/gone returns that list")]
    ReceiverUnknown(String),
    /// No such route.
    #[error("no such route: {0}; /docs lists all routes")]
    RouteUnknown(String),
    /// The route does not take this method.
    #[error("this route does not support {0}")]
    Method(String),
    /// The `Host` header names another host: a page could point its own name at this machine.
    #[error("host `{0}` is not allowed; allow it with --allow-host, or with --public-url behind a proxy")]
    Host(String),
    /// A page of another site tries to write.
    #[error(
        "pages of `{origin}` may not send requests to `{host}`; behind a proxy, start with --behind-proxy and let it send X-Forwarded-Host (nginx: proxy_set_header X-Forwarded-Host $http_host), or pass --public-url"
    )]
    Origin {
        /// The page's origin.
        origin: String,
        /// This server's host, as the request names it.
        host: String,
    },
    /// A header that decides about access was sent more than once.
    #[error("header `{0}` was sent more than once; send it once")]
    HeaderTwice(HeaderName),
    /// The URL contains a character that databases cannot store.
    #[error("the URL contains a NUL character (%00); remove it")]
    Nul,
    /// A background task keeps failing.
    #[error("background task `{task}` keeps failing: {problem}; the log has details")]
    TaskDown {
        /// Its name.
        task: &'static str,
        /// Why it failed last.
        problem: String,
    },
    /// Our own bug.
    #[error("internal error; the log has details under this request's id")]
    Internal,
}

impl ApiError {
    /// See [`Self::CustomIdChanged`].
    fn changed(custom_id: &str, others: u64) -> String {
        let what = match others {
            0 => "already exists with another image".to_owned(),
            1 => "and 1 other already exist with other images".to_owned(),
            _ => format!("and {others} others already exist with other images"),
        };
        format!("custom id `{custom_id}` {what}; give new images new ids")
    }

    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        self.kind().1
    }

    /// Status and stable code.
    pub(crate) fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Image(error) => (
                match error {
                    ImageError::Empty => StatusCode::BAD_REQUEST,
                    ImageError::Unsupported | ImageError::Foreign { .. } | ImageError::UnsupportedKind { .. } => {
                        StatusCode::UNSUPPORTED_MEDIA_TYPE
                    }
                    ImageError::Truncated { .. } | ImageError::TooLarge { .. } | ImageError::Corrupt { .. } => {
                        StatusCode::UNPROCESSABLE_ENTITY
                    }
                },
                error.code(),
            ),
            Self::Topic(error) => match error {
                TopicError::Unknown(_) => (StatusCode::NOT_FOUND, "topic_unknown"),
                TopicError::Exists(_) => (StatusCode::CONFLICT, "topic_exists"),
                TopicError::Invalid(_) => (StatusCode::BAD_REQUEST, "topic_invalid"),
                TopicError::Refused(_) => (StatusCode::CONFLICT, "topic_refused"),
                TopicError::Queue(error) => kind_of_queue(error),
            },
            Self::TopicModel { .. } => (StatusCode::CONFLICT, "topic_model"),
            Self::TopicPlain(_) => (StatusCode::BAD_REQUEST, "topic_plain"),
            Self::Redrive(RedriveError::NoLetter(_)) => (StatusCode::NOT_FOUND, "dead_letter_unknown"),
            Self::Redrive(RedriveError::NoSpec(_)) => (StatusCode::CONFLICT, "dead_letter_unreadable"),
            Self::Redrive(RedriveError::Submit(error)) | Self::Submit(error) => kind_of_submit(error),
            Self::Json(_) => (StatusCode::BAD_REQUEST, "json_invalid"),
            Self::Queue(error) => kind_of_queue(error),
            Self::Index(_) => (StatusCode::SERVICE_UNAVAILABLE, "index_unavailable"),
            Self::BodyTooLarge { .. } | Self::SettingsTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large")
            }
            Self::ListTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "list_too_large"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Self::StayedFull(_) => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyBroken(_) => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::UploadsBusy => (StatusCode::SERVICE_UNAVAILABLE, "uploads_busy"),
            Self::ContentEncoding(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding"),
            Self::Form(_) => (StatusCode::BAD_REQUEST, "form_invalid"),
            Self::Option { .. } => (StatusCode::BAD_REQUEST, "option_invalid"),
            Self::ModelMissing { .. } => (StatusCode::BAD_REQUEST, "model_missing"),
            Self::ModelUnknown { .. } => (StatusCode::NOT_FOUND, "model_unknown"),
            Self::VersionUnknown { .. } => (StatusCode::NOT_FOUND, "version_unknown"),
            Self::JobUnknown(_) => (StatusCode::NOT_FOUND, "job_unknown"),
            Self::JobEnded { .. } => (StatusCode::CONFLICT, "job_ended"),
            Self::JobNotFailed { .. } => (StatusCode::CONFLICT, "job_not_failed"),
            Self::InputGone(_) => (StatusCode::CONFLICT, "input_gone"),
            Self::KeyReused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::BatchId(_) => (StatusCode::BAD_REQUEST, "batch_id_invalid"),
            Self::BatchUnknown(_) => (StatusCode::NOT_FOUND, "batch_unknown"),
            Self::BatchCanceled(_) => (StatusCode::CONFLICT, "batch_canceled"),
            Self::BatchModel { .. } => (StatusCode::CONFLICT, "batch_model"),
            Self::BatchTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "batch_too_large"),
            Self::BatchKind(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "batch_kind"),
            Self::Archive(_) => (StatusCode::BAD_REQUEST, "archive_invalid"),
            Self::Batch { error, .. } => error.kind(),
            Self::BatchFinished(_) => (StatusCode::CONFLICT, "batch_finished"),
            Self::CustomIdChanged { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "custom_id_changed"),
            Self::KeyMissing => (StatusCode::UNAUTHORIZED, "key_missing"),
            Self::KeyWrong => (StatusCode::UNAUTHORIZED, "key_invalid"),
            Self::WrongKeys => (StatusCode::TOO_MANY_REQUESTS, "key_invalid_too_often"),
            Self::KeyFirst => (StatusCode::FORBIDDEN, "key_first"),
            Self::KeyScope(_) => (StatusCode::FORBIDDEN, "key_scope"),
            Self::NotOwner => (StatusCode::FORBIDDEN, "owner_only"),
            Self::Priority { .. } => (StatusCode::FORBIDDEN, "priority_forbidden"),
            Self::KeyUnknown(_) => (StatusCode::NOT_FOUND, "key_unknown"),
            Self::KeyLast(_) => (StatusCode::CONFLICT, "key_last"),
            Self::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "limit_reached"),
            Self::ReceiverUnknown(_) => (StatusCode::NOT_FOUND, "receiver_unknown"),
            Self::RouteUnknown(_) => (StatusCode::NOT_FOUND, "route_unknown"),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Host(_) => (StatusCode::FORBIDDEN, "host_forbidden"),
            Self::HeaderTwice(_) => (StatusCode::BAD_REQUEST, "header_twice"),
            Self::Nul => (StatusCode::BAD_REQUEST, "text_invalid"),
            Self::Origin { .. } => (StatusCode::FORBIDDEN, "origin_forbidden"),
            Self::TaskDown { .. } => (StatusCode::SERVICE_UNAVAILABLE, "task_down"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    fn batch(id: &str, taken: u64, problem: &str) -> String {
        format!(
            "{problem}; {taken} items of batch `{id}` were taken: send it again with PUT /v1/batches/{id}, and only what is missing is added"
        )
    }

    /// The message that clients get.
    fn public_message(&self) -> String {
        match self {
            Self::Submit(SubmitError::Queue(_)) | Self::Redrive(RedriveError::Submit(SubmitError::Queue(_))) => {
                "the queue did not confirm the job, which may still run; retry with the same Idempotency-Key".into()
            }
            Self::Queue(QueueError::Unavailable { .. })
            | Self::Topic(TopicError::Queue(QueueError::Unavailable { .. })) => {
                "the queue does not answer; retry after Retry-After seconds".into()
            }
            Self::Batch { id, taken, error } => Self::batch(id, *taken, &error.public_message()),
            Self::Index(_) => "the job index does not answer; retry after Retry-After seconds".into(),
            Self::Queue(QueueError::TooLarge { .. } | QueueError::Damaged { .. }) => Self::Internal.to_string(),
            Self::Submit(SubmitError::Full { topic }) => {
                format!("the queue of {topic} is full; retry when workers have caught up, or raise --queue-bytes")
            }
            other => other.to_string(),
        }
    }

    /// Seconds after which the same request may succeed.
    fn retry_after(&self) -> Option<u32> {
        match self.kind() {
            (StatusCode::SERVICE_UNAVAILABLE, "queue_full") => Some(5),
            (StatusCode::SERVICE_UNAVAILABLE, _) => Some(1),
            (StatusCode::TOO_MANY_REQUESTS, _) => match self {
                Self::Batch { error, .. } => error.retry_after(),
                Self::TooMany { wait, .. } => Some((*wait).max(1)),
                _ => Some(1),
            },
            _ => None,
        }
    }
}

fn kind_of_submit(error: &SubmitError) -> (StatusCode, &'static str) {
    match error {
        SubmitError::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
        SubmitError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        SubmitError::NoTopic(_) => (StatusCode::NOT_FOUND, "topic_unknown"),
        SubmitError::OnePriority(_) => (StatusCode::BAD_REQUEST, "option_invalid"),
        SubmitError::Queue(error) => kind_of_queue(error),
    }
}

fn kind_of_queue(error: &QueueError) -> (StatusCode, &'static str) {
    match error {
        QueueError::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "queue_unavailable"),
        QueueError::TooLarge { .. } | QueueError::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

/// Why a request was refused (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `urn:sightline:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:sightline:problem:job_unknown")]
    kind: String,
    /// The status in words.
    #[schema(example = "Not Found")]
    title: &'static str,
    /// The status.
    #[schema(example = 404)]
    status: u16,
    /// Stable, for programs.
    #[schema(example = "job_unknown")]
    code: &'static str,
    /// For people: what is wrong, and what to do.
    detail: String,
    /// The batch whose body could not be read to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_id: Option<String>,
    /// Number of its items that were accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    items_taken: Option<u64>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.kind();
        // A refusal that we chose is counted, and is not an error.
        let is_chosen = matches!(code, "queue_full" | "uploads_busy" | "stopping");
        if status == StatusCode::SERVICE_UNAVAILABLE && !is_chosen {
            tracing::warn!(code, error = %self, "request failed");
        } else if status.is_server_error() && !is_chosen {
            tracing::error!(code, error = %self, "request failed");
        } else {
            tracing::debug!(code, error = %self, "request refused");
        }
        let (batch_id, items_taken) = match &self {
            Self::Batch { id, taken, .. } => (Some(id.clone()), Some(*taken)),
            _ => (None, None),
        };
        let problem = Problem {
            kind: format!("urn:sightline:problem:{code}"),
            title: status.canonical_reason().unwrap_or("error"),
            status: status.as_u16(),
            code,
            detail: self.public_message(),
            batch_id,
            items_taken,
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
