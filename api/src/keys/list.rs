//! `GET /v1/keys`, and `sightline keys list`.

use axum::Json;
use axum::extract::State;
use queue::Queue;
use serde::Serialize;
use utoipa::ToSchema;

use super::key::Key;
use super::store;
use crate::error::ApiError;
use crate::state::Shared;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyList)]
pub(crate) struct List {
    keys: Vec<Key>,
}

/// Lists keys without their secrets.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "listKeys",
    responses((status = 200, description = "All keys.", body = List)),
)]
pub(crate) async fn list(State(state): State<Shared>) -> Result<Json<List>, ApiError> {
    state.keys.refresh(&state.queue).await?;
    Ok(Json(shown(state.keys.all())))
}

/// Lists keys without the API.
///
/// # Errors
/// When the queue does not answer.
pub async fn list_local(queue: &Queue) -> Result<serde_json::Value, String> {
    let keys = store::read(queue).await.map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(shown(keys)).expect("keys are JSON"))
}

fn shown(keys: Vec<Key>) -> List {
    List { keys: keys.into_iter().map(Key::shown).collect() }
}
