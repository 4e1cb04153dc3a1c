//! Multipart forms with many files.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::header;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use percent_encoding::percent_decode_str;
use queue::JobError;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::{BodyEntry, Bounds, Chunks, Sender, hand_over, named, too_large, unless_closed};
use crate::batches::room::SMALL_BYTES;
use crate::error::ApiError;
use crate::schema::Binary;

/// Most bytes before a file of a form, including the preamble.
const HEADER_MAX: u64 = 64 * 1024;
/// Bytes that a form's reader gets at a time.
const PIECE: usize = 16 * 1024;

/// Cuts chunks into small pieces and counts them down: between two parts of a form, its reader keeps all that it
/// reads and scans it again with each piece, so the total must stay small.
fn metered(chunks: Chunks, left: Arc<AtomicU64>) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
    let pieces = futures::stream::unfold((chunks, Bytes::new()), |(mut chunks, mut rest)| async move {
        while rest.is_empty() {
            match chunks.next().await {
                Some(Ok(chunk)) => rest = chunk,
                Some(Err(error)) => return Some((Err(error), (chunks, rest))),
                None => {
                    // The form's reader calls a form incomplete when its beginning and end arrive in one poll.
                    tokio::task::yield_now().await;
                    return None;
                }
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE));
        // The form's reader takes all that is ready before it parses any of it.
        tokio::task::yield_now().await;
        Some((Ok(piece), (chunks, rest)))
    });
    pieces.map(move |piece| {
        let piece = piece?;
        let before = left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(piece.len() as u64)));
        if before.is_ok_and(|before| before == 0) {
            return Err(io::Error::other(format!("what is before a file of it is above {HEADER_MAX} bytes")));
        }
        Ok(piece)
    })
}

pub(super) async fn read(chunks: Chunks, boundary: String, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: multer::Error| ApiError::Form(chain(&error));
    let limit = bounds.limit;
    let left = Arc::new(AtomicU64::new(HEADER_MAX));
    let mut any = false;
    let mut form = multer::Multipart::new(metered(chunks, left.clone()), boundary);
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        left.store(u64::MAX, Ordering::Relaxed);
        let file_name = file_name(&field);
        let Some(mut room) = unless_closed(bounds.rooms.lend(SMALL_BYTES.min(limit)), send).await else {
            return Ok(());
        };
        let mut bytes = BytesMut::new();
        let mut is_too_large = false;
        while let Some(chunk) = field.chunk().await.map_err(broken)? {
            is_too_large |= bytes.len() + chunk.len() > limit;
            if is_too_large {
                continue;
            }
            if bytes.len() + chunk.len() > room.bytes() {
                let Some(larger) = unless_closed(bounds.rooms.grow(room, limit), send).await else { return Ok(()) };
                room = larger;
            }
            bytes.extend_from_slice(&chunk);
        }
        // The next file's header may have been read already, but not much more.
        left.store(HEADER_MAX, Ordering::Relaxed);
        let field_name = || field.name().unwrap_or("").to_owned();
        // A field before all files is an option in the wrong place.
        if file_name.is_none() && !bytes.is_empty() && !any {
            let name = field_name();
            return Err(ApiError::Form(format!("field `{name}` is not a file; options of a batch stand in the query")));
        }
        if file_name.is_none() && bytes.is_empty() {
            if send.send(Ok(BodyEntry::Skipped(field_name()))).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let content = match file_name {
            None => Err(JobError::new("item_kind", "it is not a file; options of a batch stand in the query")),
            Some(_) if is_too_large => Err(too_large(limit)),
            Some(_) => Ok(bytes.freeze()),
        };
        any = true;
        let (custom_id, content) = named(&file_name.unwrap_or_else(field_name), content);
        if !hand_over(send, room, custom_id, content, BTreeMap::new()).await {
            return Ok(());
        }
    }
    Ok(())
}

/// The name of a field's file. `filename*` holds any characters, in UTF-8 (RFC 5987); the standard for forms
/// forbids it, but some clients send only that.
fn file_name(field: &multer::Field<'_>) -> Option<String> {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION)?.to_str().unwrap_or("");
    let extended = disposition.split(';').find_map(|part| part.trim().strip_prefix("filename*="));
    let encoded = extended.and_then(|value| value.trim_matches('"').splitn(3, '\'').nth(2));
    let decoded = encoded.map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned());
    decoded.or_else(|| field.file_name().map(str::to_owned))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

/// A form of files, as the API's description has it: the name of each is its custom id.
pub(in crate::batches) struct Files;

impl PartialSchema for Files {
    fn schema() -> RefOr<Schema> {
        let files = ArrayBuilder::new().items(Binary::schema()).min_items(Some(1));
        ObjectBuilder::new().property("files", files).required("files").into()
    }
}

impl ToSchema for Files {}
