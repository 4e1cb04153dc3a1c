//! `/v1/keys`: making, listing and revoking keys.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use queue::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Key, Limits, Scope, hash};
use crate::error::ApiError;
use crate::json;
use crate::state::Shared;

/// Length of a name.
const NAME_MAX: usize = 64;
/// What a key can be limited to: more is no limit, and not every JSON reader knows larger numbers.
const QUEUED_JOBS_MAX: u64 = 1_000_000_000_000;
const QUEUED_BYTES_MAX: u64 = 1_000_000_000_000_000;
/// Requests a second that a key can be limited to.
const RATES: RangeInclusive<f64> = 0.001..=1e6;

/// What is said of a new key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewKey)]
pub(crate) struct Wish {
    /// Whose it is: keys of one name are one owner.
    #[schema(pattern = "^[A-Za-z0-9._@-]{1,64}$", example = "nightly")]
    name: String,
    #[schema(value_type = Vec<Scope>, min_items = 1, example = json!(["submit", "read"]))]
    scopes: BTreeSet<Scope>,
    /// How long it is good for, such as `90d`; absent: until it is revoked.
    #[serde(default)]
    #[schema(pattern = "^[1-9][0-9]{0,3}[smhd]$", example = "90d")]
    expires: Option<String>,
    #[serde(default, deserialize_with = "json::object")]
    limits: Limits,
}

/// A new key, shown once.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MadeKey)]
struct Made {
    key: String,
    #[serde(flatten)]
    kept: Key,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyList)]
pub(crate) struct List {
    keys: Vec<Key>,
}

/// Makes a key.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", operation_id = "createKey",
    request_body(content = Wish),
    responses(
        (status = 201, description = "The key, shown this once.", body = Made),
        (status = 400, description = "`json_invalid`."),
    ),
)]
pub(crate) async fn create(State(state): State<Shared>, body: Bytes) -> Result<Response, ApiError> {
    let wish: Wish = json::parse(&body)?;
    let wrong = |problem: &str| ApiError::Json(problem.to_owned());
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if wish.name.is_empty() || wish.name.len() > NAME_MAX || !wish.name.chars().all(is_good) {
        return Err(wrong("`name` has 1 to 64 letters, digits and - _ . @"));
    }
    if wish.scopes.is_empty() {
        return Err(wrong("`scopes` names at least one of submit, read, admin"));
    }
    state.keys.refresh(&state.index).await?;
    if !wish.scopes.contains(&Scope::Admin) && !has_admin(&state.keys.all(), None) {
        return Err(wrong("the first key needs the scope admin, or nobody could make another one"));
    }
    let expires = wish.expires.as_deref().map(humantime::parse_duration).transpose();
    let expires = expires.map_err(|error| wrong(&format!("`expires` must be a time such as 90d: {error}")))?;
    if wish.limits.requests_per_second.is_some_and(|rate| !RATES.contains(&rate)) {
        return Err(wrong(&format!("`requests_per_second` is a number from {} to {}", RATES.start(), RATES.end())));
    }
    if wish.limits.uploads == Some(0) {
        return Err(wrong("`uploads` is at least 1"));
    }
    if wish.limits.queued_jobs.is_some_and(|jobs| !(1..=QUEUED_JOBS_MAX).contains(&jobs)) {
        return Err(wrong(&format!("`queued_jobs` is a number from 1 to {QUEUED_JOBS_MAX}")));
    }
    if wish.limits.queued_bytes.is_some_and(|bytes| bytes > QUEUED_BYTES_MAX) {
        return Err(wrong(&format!("`queued_bytes` is at most {QUEUED_BYTES_MAX}")));
    }
    let id = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
    let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let key = format!("sl_{id}_{secret}");
    let now = Timestamp::now();
    let kept = Key {
        id,
        name: wish.name,
        scopes: wish.scopes,
        created_at: now,
        expires_at: expires.map(|lasts: Duration| now.plus(lasts)),
        revoked_at: None,
        limits: wish.limits,
        hash: hash(&key),
    };
    state.index.write_key(&kept).await?;
    state.keys.refresh(&state.index).await?;
    let kept = Key { hash: String::new(), ..kept };
    Ok((StatusCode::CREATED, Json(Made { key, kept })).into_response())
}

/// Lists keys, without what makes them keys.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "listKeys",
    responses((status = 200, description = "All keys.", body = List)),
)]
pub(crate) async fn list(State(state): State<Shared>) -> Result<Json<List>, ApiError> {
    state.keys.refresh(&state.index).await?;
    let keys = state.keys.all().into_iter().map(|key| Key { hash: String::new(), ..key });
    Ok(Json(List { keys: keys.collect() }))
}

/// Revokes a key; other processes hear of it within two seconds.
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
    state.keys.refresh(&state.index).await?;
    let keys = state.keys.all();
    let key = keys.iter().find(|key| key.id == id).ok_or_else(|| ApiError::KeyUnknown(id.clone()))?;
    if !has_admin(&keys, Some(&id)) {
        return Err(ApiError::KeyLast(id));
    }
    let revoked = Key { revoked_at: Some(key.revoked_at.unwrap_or(Timestamp::now())), ..key.clone() };
    state.index.write_key(&revoked).await?;
    state.keys.refresh(&state.index).await?;
    Ok(Json(Key { hash: String::new(), ..revoked }))
}

/// Whether there is an admin key, other than this one.
fn has_admin(keys: &[Key], without: Option<&str>) -> bool {
    let now = Timestamp::now();
    keys.iter().any(|key| key.is_valid(now) && key.scopes.contains(&Scope::Admin) && without != Some(key.id.as_str()))
}
