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
    /// Workers that have each model loaded. None is no reason not to take jobs.
    workers: BTreeMap<String, usize>,
    /// Background tasks that are not well, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<&'static str, String>,
}

/// The process runs.
#[utoipa::path(
    get, path = "/healthz", tag = "operations", operation_id = "isLive", security(()),
    responses((status = 200, description = "It runs.", body = Live)),
)]
pub(crate) async fn live() -> Json<Live> {
    Json(Live { status: "live" })
}

/// Jobs can be taken.
#[utoipa::path(
    get, path = "/readyz", tag = "operations", operation_id = "isReady", security(()),
    responses(
        (status = 200, description = "Jobs can be taken.", body = Ready),
        (status = 503, description = "`queue_unavailable`: not now; `task_down`: a background task keeps failing."),
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

/// What the job index could not take in.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct IndexHealth {
    /// Jobs that are in no list, because the database cannot hold them; each is found by its id all the same.
    set_aside: Vec<SetAside>,
}

/// How the job index is.
#[utoipa::path(
    get, path = "/v1/index", tag = "operations", operation_id = "showIndex",
    responses((status = 200, description = "What it could not take in.", body = IndexHealth)),
)]
pub(crate) async fn index(State(state): State<Shared>) -> Result<Json<IndexHealth>, ApiError> {
    Ok(Json(IndexHealth { set_aside: state.index.all_set_aside().await? }))
}
