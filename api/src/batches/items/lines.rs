//! Lines of JSON, each an image in base64 with a name.

use std::collections::BTreeMap;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use queue::JobError;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Bounds, Chunks, Content, Sender, hand_over, named, too_large, unless_closed};
use crate::batches::room::{Room, SMALL_BYTES};
use crate::error::ApiError;
use crate::json::Object;

/// Some editors put it at the start of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// Padded or not.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
/// Copies of a line in memory: as received, as base64, decoded.
const LINE_COPIES: usize = 3;
/// Bytes in a line besides its image.
const LINE_OVERHEAD: usize = 64 * 1024;

/// A line of JSON lines.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchLine)]
pub(in crate::batches) struct Line {
    /// Your name for it within the batch.
    #[schema(min_length = 1, max_length = 512, example = "cam7/0001.jpg")]
    custom_id: String,
    /// In base64.
    #[schema(content_encoding = "base64")]
    image: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

pub(super) async fn read(mut chunks: Chunks, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let limit = bounds.limit;
    let line_max = limit / 3 * 4 + LINE_OVERHEAD;
    let (mut rest, mut number, mut searched) = (BytesMut::new(), 0_u64, 0);
    // Nothing is kept of a line that is too long.
    let mut is_too_long = false;
    let mut room: Option<Room> = None;
    loop {
        let end = memchr::memchr(b'\n', &rest[searched..]).map(|at| searched + at);
        let line = match end {
            Some(end) => rest.split_to(end + 1),
            None if rest.len() > line_max => {
                is_too_long = true;
                rest.clear();
                searched = 0;
                continue;
            }
            None => match chunks.try_next().await.map_err(|error| ApiError::BodyBroken(error.to_string()))? {
                Some(chunk) => {
                    // A line, its image in base64 and the image itself are in memory at the same time.
                    let needed = (rest.len() + chunk.len()) * LINE_COPIES;
                    let wanted = if needed <= SMALL_BYTES { SMALL_BYTES } else { line_max * LINE_COPIES };
                    if room.as_ref().is_none_or(|room| room.bytes() < needed.min(wanted)) {
                        // Give back the old room before waiting for a larger one.
                        drop(room.take());
                        let Some(lent) = unless_closed(bounds.rooms.lend(wanted), send).await else { return Ok(()) };
                        room = Some(lent);
                    }
                    searched = rest.len();
                    rest.extend_from_slice(&chunk);
                    continue;
                }
                None if rest.is_empty() && !is_too_long => return Ok(()),
                None => rest.split(),
            },
        };
        searched = 0;
        number += 1;
        let was_too_long = std::mem::take(&mut is_too_long);
        let text = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| number == 1).unwrap_or(&line);
        if text.trim_ascii().is_empty() && !was_too_long {
            continue;
        }
        let (custom_id, content, metadata) = if was_too_long {
            (format!("line {number}"), Err(too_large(limit)), BTreeMap::new())
        } else {
            read_line(text, number, limit)
        };
        drop(line);
        let held = match room.take() {
            Some(room) => room,
            None => match unless_closed(bounds.rooms.lend(SMALL_BYTES), send).await {
                Some(room) => room,
                None => return Ok(()),
            },
        };
        if !hand_over(send, held, custom_id, content, metadata).await {
            return Ok(());
        }
    }
}

/// One line as an item. A line whose name cannot be read is named by its number.
fn read_line(text: &[u8], number: u64, limit: usize) -> (String, Content, BTreeMap<String, String>) {
    let parsed: Result<Object<Line>, _> = serde_json::from_slice(text);
    let Object(Line { custom_id, image, metadata }) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let value: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
            let own = value["custom_id"].as_str().map_or_else(|| format!("line {number}"), str::to_owned);
            let problem = JobError::new("line_invalid", format!("line {number}: {error}"));
            let (custom_id, content) = named(&own, Err(problem));
            return (custom_id, content, BTreeMap::new());
        }
    };
    let content = match of_base64(image) {
        Ok(bytes) if bytes.len() > limit => Err(too_large(limit)),
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => {
            Err(JobError::new("base64_invalid", format!("line {number}: `image` is not valid base64: {error}")))
        }
    };
    let (custom_id, content) = named(&custom_id, content);
    (custom_id, content, metadata)
}

/// Base64 as common tools write it: either alphabet, with or without padding, line breaks or a data URL around it.
fn of_base64(text: String) -> Result<Vec<u8>, base64::DecodeError> {
    let start = match text.get(..5) {
        Some(scheme) if scheme.eq_ignore_ascii_case("data:") => text.find(',').map_or(0, |comma| comma + 1),
        _ => 0,
    };
    let mut bytes = text.into_bytes();
    bytes.drain(..start);
    bytes.retain(|byte| !byte.is_ascii_whitespace());
    for byte in &mut bytes {
        *byte = match *byte {
            b'-' => b'+',
            b'_' => b'/',
            byte => byte,
        };
    }
    BASE64.decode(bytes)
}
