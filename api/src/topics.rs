//! `/v1/topics`: creating, describing, changing and deleting topics, as `sightline topics` does.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use queue::client::{Description, Purged};
use queue::topic::{Change, Retention};
use queue::watchdog::Stall;
use queue::{TopicError, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::error::ApiError;
use crate::json::Settings;
use crate::links;
use crate::path::TopicPath;
use crate::schema::NoTopic;
use crate::state::{AppState, Shared};

/// Settings of a topic, new or to be changed.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTopic)]
pub(crate) struct NewTopic {
    #[schema(required = true, nullable = false)]
    name: Option<TopicName>,
    /// Model to run; default: the model of the same name, otherwise none (a plain log).
    #[schema(example = "efficientnet-lite0")]
    model: Option<String>,
    #[schema(minimum = 1, maximum = 512, example = 8)]
    partitions: Option<u16>,
    /// Copies of its streams: 1, 3 or 5. More than one needs a cluster.
    #[schema(minimum = 1, maximum = 5)]
    replicas: Option<usize>,
    /// `work` keeps an input until its job ends; `log:7d` keeps it for that time.
    #[schema(pattern = "^(work|log:[1-9][0-9]{0,3}[hd])$", example = "work")]
    retention: Option<String>,
    /// Most bytes of its inputs.
    #[schema(minimum = 1)]
    max_bytes: Option<u64>,
    /// Lease a worker holds on a job before it must renew.
    #[schema(format = "timespan", example = "30s")]
    lease: Option<String>,
    /// Attempts before a job fails.
    #[schema(minimum = 1, maximum = 4_294_967_295_u32)]
    attempts: Option<u32>,
    /// Time limit of one attempt, unless the job sets one.
    #[schema(format = "timespan", example = "1m")]
    run_timeout: Option<String>,
    /// Time that results are kept, unless the job sets one.
    #[schema(format = "timespan", example = "7d")]
    result_ttl: Option<String>,
    /// Delay after the first failed attempt; it doubles after each later one.
    #[schema(format = "timespan", example = "1s")]
    retry_first: Option<String>,
    /// Longest delay.
    #[schema(format = "timespan", example = "5m")]
    retry_max: Option<String>,
    #[schema(minimum = 0, maximum = 100)]
    retry_jitter_percent: Option<u8>,
    /// Whether jobs of one `partition_key` end in order of arrival.
    ordered: Option<bool>,
}

/// What may be changed of a topic, as the API's description has it: all but what it is made with.
pub(crate) struct Alteration;

impl PartialSchema for Alteration {
    fn schema() -> RefOr<Schema> {
        let RefOr::T(Schema::Object(mut wish)) = NewTopic::schema() else { return NewTopic::schema() };
        wish.properties.retain(|name, _| !["name", "model", "ordered"].contains(&name.as_str()));
        wish.required.clear();
        wish.into()
    }
}

impl ToSchema for Alteration {}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Topics {
    topics: Vec<Topic>,
}

/// A topic as clients see it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Topic {
    #[serde(flatten)]
    description: Description,
    /// Stalled partitions, and why.
    stalls: Vec<Stall>,
}

/// Lists all topics.
#[utoipa::path(
    get, path = "/v1/topics", tag = "topics", operation_id = "listTopics",
    responses((status = 200, description = "All topics with their partitions.", body = Topics)),
)]
pub(crate) async fn list(State(state): State<Shared>) -> Result<Json<Topics>, ApiError> {
    let topics = state.queue.topics().await?;
    let described = futures::future::join_all(topics.iter().map(|topic| show(&state, topic.name()))).await;
    let mut topics = Vec::with_capacity(described.len());
    for described in described {
        match described {
            Ok(topic) => topics.push(topic),
            // Deleted since it was listed.
            Err(ApiError::Topic(TopicError::Unknown(_))) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(Topics { topics }))
}

/// Returns a topic.
#[utoipa::path(
    get, path = "/v1/topics/{name}", tag = "topics", operation_id = "getTopic",
    params(TopicPath),
    responses(
        (status = 200, description = "The topic's settings and partitions.", body = Topic),
        NoTopic,
    ),
)]
pub(crate) async fn describe(
    State(state): State<Shared>,
    TopicPath { name }: TopicPath,
) -> Result<Json<Topic>, ApiError> {
    Ok(Json(show(&state, &name).await?))
}

/// Creates a topic.
#[utoipa::path(
    post, path = "/v1/topics", tag = "topics", operation_id = "createTopic",
    request_body(content = NewTopic),
    responses(
        (status = 201, description = "The topic exists now.", body = Topic,
            headers(("Location" = String, description = "URL of the topic."))),
        (status = 400, description = "`json_invalid`, `topic_invalid`."),
        (status = 404, description = "`model_unknown`."),
        (status = 409, description = "`topic_exists`, `topic_refused`."),
        (status = 413, description = "`body_too_large`."),
    ),
)]
pub(crate) async fn create(
    State(state): State<Shared>,
    Settings(wish): Settings<NewTopic>,
) -> Result<Response, ApiError> {
    let name = wish.name.clone().ok_or_else(|| ApiError::Json("`name` is missing".into()))?;
    // A topic with a model's name runs that model by default; otherwise the model's jobs would find a topic that
    // runs nothing.
    let own = || state.repository.get(name.as_str()).map(|model| model.name().to_owned());
    let model = wish.model.clone().or_else(own);
    if let Some(unknown) = model.as_ref().filter(|model| state.repository.get(model).is_none()) {
        return Err(ApiError::ModelUnknown { name: unknown.clone(), known: state.repository.names() });
    }
    let mut settings = state.queue.defaults().settings(name.clone(), model.as_deref());
    wish.change()?.apply(&mut settings);
    settings.ordered = wish.ordered.unwrap_or(false);
    let replicas = wish.replicas.unwrap_or(state.queue.defaults().replicas);
    state.queue.topics.create(settings, Some(replicas)).await?;
    let mut response = (StatusCode::CREATED, Json(show(&state, &name).await?)).into_response();
    let location = HeaderValue::from_str(&links::to(&format!("/v1/topics/{name}"))).expect("names are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Changes a topic.
#[utoipa::path(
    patch, path = "/v1/topics/{name}", tag = "topics", operation_id = "alterTopic",
    params(TopicPath),
    request_body(content = Alteration),
    responses(
        (status = 200, description = "The topic is changed; queued jobs stay.", body = Topic),
        (status = 400, description = "`json_invalid`, `topic_invalid`."),
        (status = 404, description = "`topic_unknown`."),
        (status = 409, description = "`topic_refused`: the number of partitions can only grow; more replicas need a cluster."),
        (status = 413, description = "`body_too_large`."),
    ),
)]
pub(crate) async fn alter(
    State(state): State<Shared>,
    TopicPath { name }: TopicPath,
    Settings(wish): Settings<NewTopic>,
) -> Result<Json<Topic>, ApiError> {
    if wish.name.is_some() || wish.model.is_some() || wish.ordered.is_some() {
        return Err(ApiError::Json(
            "name, model and ordered are set when a topic is created and cannot be changed".into(),
        ));
    }
    let change = wish.change()?;
    state.queue.topics.alter(&name, wish.replicas, |settings| change.apply(settings)).await?;
    Ok(Json(show(&state, &name).await?))
}

/// Deletes a topic with its jobs, results and dead letters.
#[utoipa::path(
    delete, path = "/v1/topics/{name}", tag = "topics", operation_id = "deleteTopic",
    params(TopicPath),
    responses(
        (status = 204, description = "The topic is deleted."),
        NoTopic,
    ),
)]
pub(crate) async fn delete(State(state): State<Shared>, TopicPath { name }: TopicPath) -> Result<StatusCode, ApiError> {
    state.queue.topics.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Cancels all queued jobs.
#[utoipa::path(
    post, path = "/v1/topics/{name}/purge", tag = "topics", operation_id = "purgeTopic",
    params(TopicPath),
    responses(
        (status = 200, description = "Number of canceled jobs.", body = Purged),
        NoTopic,
    ),
)]
pub(crate) async fn purge(
    State(state): State<Shared>,
    TopicPath { name }: TopicPath,
) -> Result<Json<Purged>, ApiError> {
    Ok(Json(state.queue.topics.purge(&name).await?))
}

/// Stops workers from taking jobs.
#[utoipa::path(
    post, path = "/v1/topics/{name}/pause", tag = "topics", operation_id = "pauseTopic",
    params(TopicPath),
    responses(
        (status = 200, description = "The topic.", body = Topic),
        NoTopic,
    ),
)]
pub(crate) async fn pause(State(state): State<Shared>, TopicPath { name }: TopicPath) -> Result<Json<Topic>, ApiError> {
    set_paused(&state, name, true).await
}

/// Resumes a paused topic.
#[utoipa::path(
    post, path = "/v1/topics/{name}/resume", tag = "topics", operation_id = "resumeTopic",
    params(TopicPath),
    responses(
        (status = 200, description = "The topic.", body = Topic),
        NoTopic,
    ),
)]
pub(crate) async fn resume(
    State(state): State<Shared>,
    TopicPath { name }: TopicPath,
) -> Result<Json<Topic>, ApiError> {
    set_paused(&state, name, false).await
}

async fn set_paused(state: &AppState, name: TopicName, paused: bool) -> Result<Json<Topic>, ApiError> {
    state.queue.topics.pause(&name, paused).await?;
    Ok(Json(show(state, &name).await?))
}

async fn show(state: &AppState, name: &TopicName) -> Result<Topic, ApiError> {
    Ok(Topic { description: state.queue.topics.describe(name).await?, stalls: state.watch.stalls_of(name) })
}

impl NewTopic {
    /// The settings that the request names.
    fn change(&self) -> Result<Change, ApiError> {
        let wrong = |problem| ApiError::Json(format!("`retention`: {problem}"));
        let retention = self.retention.as_deref().map(str::parse::<Retention>).transpose().map_err(wrong)?;
        Ok(Change {
            partitions: self.partitions,
            retention,
            bytes_max: self.max_bytes,
            lease: time("lease", self.lease.as_deref())?,
            attempts_max: self.attempts,
            run_timeout: time("run_timeout", self.run_timeout.as_deref())?,
            result_ttl: time("result_ttl", self.result_ttl.as_deref())?,
            retry_first: time("retry_first", self.retry_first.as_deref())?,
            retry_max: time("retry_max", self.retry_max.as_deref())?,
            jitter_percent: self.retry_jitter_percent,
        })
    }
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let wrong = |_| ApiError::Json(format!("`{name}`: it must be a time, such as 30s, 5m or 7d"));
    text.map(humantime::parse_duration).transpose().map_err(wrong)
}
