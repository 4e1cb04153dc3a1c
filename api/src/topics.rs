//! `/v1/topics`: making, describing, changing and removing topics, as `sightline topics` does.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use queue::client::{Description, Purged};
use queue::topic::{Change, Retention};
use queue::watchdog::Stall;
use queue::{TopicError, TopicName};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::state::{Shared, State as Inner};

/// What may be said of a new topic, or be changed of one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    name: Option<TopicName>,
    model: Option<String>,
    partitions: Option<u16>,
    replicas: Option<usize>,
    retention: Option<String>,
    max_bytes: Option<u64>,
    lease: Option<String>,
    attempts: Option<u32>,
    run_timeout: Option<String>,
    result_ttl: Option<String>,
    retry_first: Option<String>,
    retry_max: Option<String>,
    retry_jitter_percent: Option<u8>,
    ordered: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Topics {
    topics: Vec<Topic>,
}

/// A topic as clients see it.
#[derive(Debug, Serialize)]
pub(crate) struct Topic {
    #[serde(flatten)]
    description: Description,
    /// Partitions that have work and get nowhere, and why.
    stalls: Vec<Stall>,
}

/// Lists all topics.
pub(crate) async fn list(State(state): State<Shared>) -> Result<Json<Topics>, ApiError> {
    let topics = state.queue.topics().await?;
    let described = futures::future::join_all(topics.iter().map(|topic| show(&state, topic.name()))).await;
    let mut topics = Vec::with_capacity(described.len());
    for described in described {
        match described {
            Ok(topic) => topics.push(topic),
            // Removed since it was listed.
            Err(ApiError::Topic(TopicError::Unknown(_))) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(Topics { topics }))
}

/// Describes one topic.
pub(crate) async fn describe(State(state): State<Shared>, name: Named) -> Result<Json<Topic>, ApiError> {
    Ok(Json(show(&state, &named(name)?).await?))
}

/// Makes a topic.
pub(crate) async fn create(State(state): State<Shared>, body: Bytes) -> Result<Response, ApiError> {
    let wish: Wish = parse(&body)?;
    let name = wish.name.clone().ok_or_else(|| ApiError::Json("`name` is missing".into()))?;
    // A model's own topic is its model's, or its jobs would find a topic that runs nothing.
    let own = || state.repository.get(name.as_str()).map(|model| model.name().to_owned());
    let model = wish.model.clone().or_else(own);
    if let Some(unknown) = model.as_ref().filter(|model| state.repository.get(model).is_none()) {
        return Err(ApiError::ModelUnknown { name: unknown.clone(), known: state.repository.names() });
    }
    let mut settings = state.queue.defaults().settings(name.clone(), model.as_deref());
    wish.change()?.apply(&mut settings);
    settings.ordered = wish.ordered.unwrap_or(false);
    let replicas = wish.replicas.unwrap_or(state.queue.defaults().replicas);
    state.queue.create_topic(settings, Some(replicas)).await?;
    let mut response = (StatusCode::CREATED, Json(show(&state, &name).await?)).into_response();
    let location = HeaderValue::from_str(&format!("/v1/topics/{name}")).expect("names are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Changes a topic.
pub(crate) async fn alter(State(state): State<Shared>, name: Named, body: Bytes) -> Result<Json<Topic>, ApiError> {
    let name = named(name)?;
    let wish: Wish = parse(&body)?;
    if wish.name.is_some() || wish.model.is_some() || wish.ordered.is_some() {
        return Err(ApiError::Json("name, model and ordered are said when a topic is made".into()));
    }
    let change = wish.change()?;
    state.queue.alter_topic(&name, wish.replicas, |settings| change.apply(settings)).await?;
    Ok(Json(show(&state, &name).await?))
}

/// Removes a topic with everything in it.
pub(crate) async fn delete(State(state): State<Shared>, name: Named) -> Result<StatusCode, ApiError> {
    state.queue.delete_topic(&named(name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Calls off what waits.
pub(crate) async fn purge(State(state): State<Shared>, name: Named) -> Result<Json<Purged>, ApiError> {
    Ok(Json(state.queue.purge_topic(&named(name)?).await?))
}

/// Keeps workers from taking jobs.
pub(crate) async fn pause(State(state): State<Shared>, name: Named) -> Result<Json<Topic>, ApiError> {
    set_paused(&state, name, true).await
}

/// Lets workers go on.
pub(crate) async fn resume(State(state): State<Shared>, name: Named) -> Result<Json<Topic>, ApiError> {
    set_paused(&state, name, false).await
}

async fn set_paused(state: &Inner, name: Named, paused: bool) -> Result<Json<Topic>, ApiError> {
    let name = named(name)?;
    state.queue.pause_topic(&name, paused).await?;
    Ok(Json(show(state, &name).await?))
}

async fn show(state: &Inner, name: &TopicName) -> Result<Topic, ApiError> {
    Ok(Topic { description: state.queue.describe(name).await?, stalls: state.watch.stalls_of(name) })
}

/// The name in a path.
pub(crate) type Named = Result<Path<String>, PathRejection>;

/// Reads a topic's name; one that no topic can have is unknown.
pub(crate) fn named(name: Named) -> Result<TopicName, ApiError> {
    let name = name.map_or_else(|_| "?".to_owned(), |Path(name)| name);
    name.parse().map_err(|error: queue::IdError| TopicError::Invalid(error.to_string()).into())
}

fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Json(error.to_string()))
}

impl Wish {
    /// The settings that were said.
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
