//! Reads an upload's body: bounded in bytes, and in how many are read at once. [`crate::incoming`] enforces its
//! pace.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use crate::bodies::{BODY_UNIT, Room};
use crate::error::ApiError;
use crate::incoming;
use crate::keys::Caller;
use crate::state::AppState;

/// Room for a form's other fields besides the image.
const FORM_OVERHEAD: usize = BODY_UNIT;

/// A body in memory, and the right to have it there.
pub(super) struct Upload<'a> {
    pub(super) bytes: Bytes,
    _room: Room<'a>,
}

/// Reads the whole body.
pub(super) async fn read<'a>(
    state: &'a AppState,
    caller: &Caller,
    headers: &HeaderMap,
    body: Body,
) -> Result<Upload<'a>, ApiError> {
    let limit = state.config.upload_bytes_max;
    let body_max = limit + FORM_OVERHEAD;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > body_max) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let mut chunks = body.into_data_stream();
    // Both grow with the bytes that arrive, not with the announced length: announcing costs a client nothing.
    let mut room = state.bodies.room(caller.address);
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

/// Refuses encoded bodies, since images are sent as they are; `identity` is not an encoding.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let values =
        headers.get_all(header::CONTENT_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    for value in values {
        let is_plain = |encoding: &str| encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
        if let Some(encoding) = value.split(',').map(str::trim).find(|encoding| !is_plain(encoding)) {
            return Err(ApiError::ContentEncoding(encoding.to_owned()));
        }
    }
    Ok(())
}
