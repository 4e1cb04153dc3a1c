//! Batches: many images that are sent, watched, read and called off together.

mod items;
mod manage;
mod receive;
mod results;
mod wire;

pub(crate) use manage::{cancel, list, show, verify};
pub(crate) use receive::{create, put};
pub(crate) use results::results;

use axum::extract::Path;

use crate::dead::Named;
use crate::error::ApiError;

/// Length of a batch's id.
const ID_MAX: usize = 64;

/// The id in a path.
fn named(id: Named) -> Result<String, ApiError> {
    let id = id.map_or_else(|_| "?".to_owned(), |Path(id)| id);
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if id.is_empty() || id.len() > ID_MAX || !id.chars().all(is_good) {
        return Err(ApiError::BatchId(id.chars().take(80).collect()));
    }
    Ok(id)
}
