//! Reading an upload's body: bounded in bytes, and in how many are read at once. Its pace is kept by
//! [`crate::incoming`].

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::ApiError;
use crate::incoming;
use crate::state::State;

/// The unit in which memory for bodies is lent.
pub(crate) const BODY_UNIT: usize = 64 * 1024;
/// Room for a form's other fields beside the image.
const FORM_OVERHEAD: usize = BODY_UNIT;
/// How long to wait for memory.
pub(crate) const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// A body in memory, and the right to have it there.
pub(super) struct Upload<'a> {
    pub(super) bytes: Bytes,
    _room: Room<'a>,
}

/// Reads the whole body.
pub(super) async fn read<'a>(state: &'a State, headers: &HeaderMap, body: Body) -> Result<Upload<'a>, ApiError> {
    let limit = state.config.upload_bytes_max;
    let body_max = limit + FORM_OVERHEAD;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > body_max) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let mut chunks = body.into_data_stream();
    // Both grow with what comes, not with what is announced: announcing costs nothing.
    let mut room = Room { bodies: &state.bodies, held: None, units: 0 };
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(incoming::error_of)?;
        if bytes.len() + chunk.len() > body_max {
            return Err(ApiError::BodyTooLarge { limit });
        }
        room.grow(bytes.len() + chunk.len()).await?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(Upload { bytes: bytes.freeze(), _room: room })
}

/// Memory that was lent to one body.
struct Room<'a> {
    bodies: &'a Semaphore,
    held: Option<SemaphorePermit<'a>>,
    units: usize,
}

impl Room<'_> {
    /// Makes sure that `bytes` are lent. Patience is what ends it when all wait for each other.
    async fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let missing = bytes.div_ceil(BODY_UNIT).saturating_sub(self.units);
        if missing > 0 {
            let more = tokio::time::timeout(BUSY_PATIENCE, self.bodies.acquire_many(missing as u32)).await;
            let more = more.map_err(|_| ApiError::UploadsBusy)?.map_err(|_| ApiError::Internal)?;
            self.units += missing;
            match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            }
        }
        Ok(())
    }
}
