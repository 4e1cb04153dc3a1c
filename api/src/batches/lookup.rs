//! Finds a batch by its path, and a job's id by its item's name.

use queue::JobId;
use queue::client::Batch;

use crate::error::ApiError;
use crate::path::BatchPath;
use crate::state::AppState;

/// The batch in a path.
pub(crate) async fn find(state: &AppState, BatchPath { id }: BatchPath) -> Result<Batch, ApiError> {
    let found = state.queue.batches.get(&id).await?;
    found.map(|(batch, _)| batch).ok_or(ApiError::BatchUnknown(id))
}

/// The job id of an item, derived from owner, batch and the item's own name, so that a repeated request finds it.
pub(super) fn item_id(batch: &Batch, custom_id: &str) -> JobId {
    JobId::derived(batch.topic.clone(), &[batch.owner.as_deref().unwrap_or(""), &batch.id, custom_id])
}
