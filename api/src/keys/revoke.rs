//! `DELETE /v1/keys/{id}`, and `sightline keys revoke`.

use axum::Json;
use axum::extract::{Path, State};
use queue::{Queue, Timestamp};

use super::key::Key;
use super::store;
use crate::error::ApiError;
use crate::state::Shared;

/// Revokes a key; other processes apply that within two seconds.
#[utoipa::path(
    delete, path = "/v1/keys/{id}", tag = "keys", operation_id = "revokeKey",
    params(("id" = String, Path, description = "The public part of the key.")),
    responses(
        (status = 200, description = "It is revoked.", body = Key),
        (status = 404, description = "`key_unknown`."),
        (status = 409, description = "`key_last`: the last one with the scope admin."),
    ),
)]
pub(crate) async fn revoke(State(state): State<Shared>, Path(id): Path<String>) -> Result<Json<Key>, ApiError> {
    let revoked = end(&state.queue, &id).await?;
    state.keys.refresh(&state.queue).await?;
    Ok(Json(revoked))
}

/// Revokes a key without the API.
///
/// # Errors
/// When the key does not exist or is the last admin key, or the queue does not answer.
pub async fn revoke_local(queue: &Queue, id: &str) -> Result<serde_json::Value, String> {
    let revoked = end(queue, id).await.map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(revoked).expect("a key is JSON"))
}

/// Revokes a key, unless it is the last admin key.
async fn end(queue: &Queue, id: &str) -> Result<Key, ApiError> {
    let now = Timestamp::now();
    store::change(queue, |keys| {
        let others_manage = store::has_admin_beside(keys, id);
        let key = keys.iter_mut().find(|key| key.id == id).ok_or_else(|| ApiError::KeyUnknown(id.to_owned()))?;
        if !others_manage {
            return Err(ApiError::KeyLast(id.to_owned()));
        }
        key.revoked_at.get_or_insert(now);
        Ok(key.clone().shown())
    })
    .await
}
