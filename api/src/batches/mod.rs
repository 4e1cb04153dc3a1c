//! Batches: many images that are sent, watched, read and canceled together.

mod follow;
mod items;
mod room;
mod options;
pub(crate) mod manage;
pub(crate) mod receive;
pub(crate) mod results;
mod rates;
mod wire;

pub(crate) use follow::Follower;
pub(crate) use rates::Rates;
pub(crate) use room::Memory;
pub(crate) use wire::document;

use axum::extract::Path;
use queue::JobId;
use queue::client::Batch;
use utoipa::{IntoParams, IntoResponses};

use crate::dead::IdPath;
use crate::error::ApiError;

/// Length of a batch's id.
const ID_MAX: usize = 64;

/// The id in a path.
fn named(id: IdPath) -> Result<String, ApiError> {
    let id = id.map_or_else(|_| "?".to_owned(), |Path(id)| id);
    if is_id(&id) { Ok(id) } else { Err(ApiError::BatchId(id.chars().take(80).collect())) }
}

/// Whether a text can be a batch's id.
pub(crate) fn is_id(id: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=ID_MAX).contains(&id.len()) && id.chars().all(is_good)
}

/// The job of an item. It follows from owner, batch and the item's own name, so that a repeated request
/// finds it.
fn item_id(batch: &Batch, custom_id: &str) -> JobId {
    JobId::derived(batch.topic.clone(), &[batch.owner.as_deref().unwrap_or(""), &batch.id, custom_id])
}

/// The batch that a path names, as the API's description has it.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it only says how a path looks")]
pub(crate) struct BatchPath {
    /// The batch.
    #[param(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    id: String,
}

/// There is no such batch, as the API's description has it.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it only says how answers look")]
pub(crate) enum NoBatch {
    /// `batch_id_invalid`.
    #[response(status = 400)]
    Invalid,
    /// `batch_unknown`: the batch does not exist, or belongs to another owner.
    #[response(status = 404)]
    Unknown,
}
