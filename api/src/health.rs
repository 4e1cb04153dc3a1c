//! `/healthz`: the process runs. `/readyz`: it can do its work, which means reaching the queue.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use queue::QueueError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::index::SetAside;
use crate::state::Shared;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Live {
    status: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Ready {
    status: &'static str,
    /// Number of workers that have loaded each model. Jobs are accepted even if there are none.
    workers: BTreeMap<String, usize>,
    /// Background tasks that keep failing, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<&'static str, String>,
}

/// Checks that the process runs.
#[utoipa::path(
    get, path = "/healthz", tag = "operations", operation_id = "isLive", security(()),
    responses((status = 200, description = "The process runs.", body = Live)),
)]
pub(crate) async fn live() -> Json<Live> {
    Json(Live { status: "live" })
}

/// Checks that jobs can be accepted.
#[utoipa::path(
    get, path = "/readyz", tag = "operations", operation_id = "isReady", security(()),
    responses(
        (status = 200, description = "Jobs can be accepted.", body = Ready),
        (status = 503, description = "`queue_unavailable`: the queue does not answer; `task_down`: a background task keeps failing."),
    ),
)]
pub(crate) async fn ready(State(state): State<Shared>) -> Result<Json<Ready>, ApiError> {
    if !state.queue.is_reachable().await {
        return Err(QueueError::Unavailable { action: "answer", problem: "not ready".into() }.into());
    }
    let health = state.tasks.health();
    if let Some(task) = health.iter().find(|task| task.is_down) {
        return Err(ApiError::TaskDown { task: task.name, problem: task.problem.clone().unwrap_or_default() });
    }
    let tasks = health.into_iter().filter_map(|task| Some((task.name, task.problem?))).collect();
    let workers = state.repository.iter().map(|model| (model.name().to_owned(), state.roster.workers_of(model.name())));
    Ok(Json(Ready { status: "ready", workers: workers.collect(), tasks }))
}

/// Jobs that the job index could not store.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct IndexHealth {
    /// Jobs missing from lists because the database cannot store them; each can still be read by its id.
    set_aside: Vec<SetAside>,
}

/// Returns the state of the job index.
#[utoipa::path(
    get, path = "/v1/index", tag = "operations", operation_id = "showIndex",
    responses((status = 200, description = "Jobs that the index could not store.", body = IndexHealth)),
)]
pub(crate) async fn index(State(state): State<Shared>) -> Result<Json<IndexHealth>, ApiError> {
    Ok(Json(IndexHealth { set_aside: state.index.all_set_aside().await? }))
}
