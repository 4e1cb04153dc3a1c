//! `POST /v1/keys`, and `sightline keys create` on the machine itself.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use queue::{Queue, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::key::{Key, Limits, hash};
use super::scope::Scope;
use super::store;
use crate::error::ApiError;
use crate::json::{self, Settings};
use crate::state::Shared;

/// Longest name.
const NAME_MAX: usize = 64;
/// Highest limits of a key: more would not be a limit, and not every JSON reader handles larger numbers.
const QUEUED_JOBS_MAX: u64 = 1_000_000_000_000;
const QUEUED_BYTES_MAX: u64 = 1_000_000_000_000_000;
/// Requests per second that a key can be limited to.
const RATES: RangeInclusive<f64> = 0.001..=1e6;
/// Most keys, including revoked and expired ones: all are in one document.
const KEYS_MAX: usize = 2_000;

/// A key to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Owner's name; keys of one name belong to one owner.
    #[schema(pattern = "^[A-Za-z0-9._@-]{1,64}$", example = "nightly")]
    name: String,
    #[schema(value_type = Vec<Scope>, min_items = 1, example = json!(["submit", "read"]))]
    scopes: BTreeSet<Scope>,
    /// Time until it expires, such as `90d`; absent: never.
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

/// Creates a key. The first key is created on the machine itself: `sightline keys create`.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", operation_id = "createKey",
    request_body(content = NewKey),
    responses(
        (status = 201, description = "The key, shown only this once.", body = Made),
        (status = 400, description = "`json_invalid`."),
        (status = 403, description = "`key_first`: no key exists yet."),
        (status = 413, description = "`body_too_large`."),
    ),
)]
pub(crate) async fn create(State(state): State<Shared>, Settings(new): Settings<NewKey>) -> Result<Response, ApiError> {
    state.keys.refresh(&state.queue).await?;
    // Without keys every client is let in, and the first client to create a key would own the server.
    if !state.keys.are_needed() {
        return Err(ApiError::KeyFirst);
    }
    let made = make(&state.queue, &new, false).await?;
    state.keys.refresh(&state.queue).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Creates a key without the API, for an operator who can read the data folder: the first one, or a replacement for
/// the last admin key, if that was lost.
///
/// `folder` is the data folder of that queue, if known: it records that keys exist.
///
/// # Errors
/// When the new key is invalid, or the queue does not answer.
pub async fn create_local(
    queue: &Queue,
    new: &NewKey,
    folder: Option<&std::path::Path>,
) -> Result<serde_json::Value, String> {
    let made = make(queue, new, true).await.map_err(|error| error.to_string())?;
    // Durability: before the key is shown, and not for a key that was refused.
    store::Witness::of(folder).set().map_err(|error| format!("note that there are keys: {error}"))?;
    Ok(serde_json::to_value(made).expect("a key is JSON"))
}

async fn make(queue: &Queue, new: &NewKey, is_local: bool) -> Result<Made, ApiError> {
    let id = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
    let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let key = format!("sl_{id}_{secret}");
    let kept = new.checked(id, hash(&key), Timestamp::now()).map_err(ApiError::Json)?;
    store::change(queue, |keys| {
        if !kept.scopes.contains(&Scope::Admin) && !store::has_admin_beside(keys, "") {
            let problem = "no key with the scope admin exists; create one first, on this machine, with sightline keys create --local --scopes admin";
            return Err(ApiError::Json(problem.into()));
        }
        if keys.is_empty() && !is_local {
            return Err(ApiError::KeyFirst);
        }
        if keys.len() >= KEYS_MAX {
            return Err(ApiError::Json(format!("there are {KEYS_MAX} keys already, the most that are kept")));
        }
        keys.push(kept.clone());
        Ok(())
    })
    .await?;
    Ok(Made { key, kept: kept.shown() })
}

impl NewKey {
    /// The key to store, if these settings are valid.
    fn checked(&self, id: String, hash: String, now: Timestamp) -> Result<Key, String> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if self.name.is_empty() || self.name.len() > NAME_MAX || !self.name.chars().all(is_good) {
            return Err("`name` has 1 to 64 letters, digits and - _ . @".into());
        }
        if self.scopes.is_empty() {
            return Err("`scopes` names at least one of submit, read, operate, admin".into());
        }
        let expires = self.expires.as_deref().map(humantime::parse_duration).transpose();
        let expires = expires.map_err(|error| format!("`expires` must be a time such as 90d: {error}"))?;
        let limits = self.limits;
        if limits.requests_per_second.is_some_and(|rate| !RATES.contains(&rate)) {
            return Err(format!("`requests_per_second` is a number from {} to {}", RATES.start(), RATES.end()));
        }
        if limits.uploads == Some(0) {
            return Err("`uploads` is at least 1".into());
        }
        if limits.queued_jobs.is_some_and(|jobs| !(1..=QUEUED_JOBS_MAX).contains(&jobs)) {
            return Err(format!("`queued_jobs` is a number from 1 to {QUEUED_JOBS_MAX}"));
        }
        if limits.queued_bytes.is_some_and(|bytes| bytes > QUEUED_BYTES_MAX) {
            return Err(format!("`queued_bytes` is at most {QUEUED_BYTES_MAX}"));
        }
        Ok(Key {
            id,
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            created_at: now,
            expires_at: expires.map(|lasts: Duration| now.plus(lasts)),
            revoked_at: None,
            limits,
            hash,
        })
    }
}
