//! A body as items, one after another: a form with many files, a tar, a zip, or lines of JSON.
//!
//! Nothing is held but the item at hand: whoever takes the items slowly makes the sender wait. Names
//! are never paths here, but one that tries to be a trick is refused all the same, since somebody
//! may write results under it one day.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use queue::JobError;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ApiError;
use crate::jobs::BODY_UNIT;
use crate::json::Object;
use crate::openapi::Binary;

/// How long a body may pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Items that are read ahead.
const AHEAD: usize = 4;
/// Length of a custom id, bytes.
const CUSTOM_ID_MAX: usize = 512;
/// Room in a line beside its image.
const LINE_OVERHEAD: usize = 64 * 1024;
/// What file managers leave in archives.
const LITTER: [&str; 3] = [".DS_Store", "Thumbs.db", "desktop.ini"];

/// One image of a batch.
#[derive(Debug)]
pub(super) struct Item {
    /// The client's name for it.
    pub(super) custom_id: String,
    /// Its bytes, or why they cannot be an image.
    pub(super) content: Result<Bytes, JobError>,
    pub(super) metadata: BTreeMap<String, String>,
    /// The right to have it in memory.
    pub(super) _room: OwnedSemaphorePermit,
}

/// Memory for items, in units of [`BODY_UNIT`].
#[derive(Clone)]
pub(super) struct Rooms {
    pub(super) units: Arc<Semaphore>,
    pub(super) count: usize,
}

impl Rooms {
    /// Waits until there is room for so many bytes.
    async fn lend(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = bytes.div_ceil(BODY_UNIT).clamp(1, self.count);
        self.units.clone().acquire_many_owned(units as u32).await.expect("this semaphore is never closed")
    }
}

type Sender = mpsc::Sender<Result<Item, ApiError>>;
type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

/// Reads a body's items; `limit` is the largest image, bytes.
pub(super) fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    rooms: Rooms,
) -> Result<mpsc::Receiver<Result<Item, ApiError>>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").trim().to_owned();
    let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let chunks = paced(body);
    let (send, items) = mpsc::channel(AHEAD);
    match essence.as_str() {
        "application/x-tar" | "application/tar" => {
            blocking(chunks, send, move |reader, send| tar(reader, limit, &rooms, send))
        }
        "application/zip" | "application/x-zip-compressed" => {
            blocking(chunks, send, move |reader, send| zip(reader, limit, &rooms, send));
        }
        "application/x-ndjson" | "application/jsonl" | "application/json-lines" => {
            spawn(send.clone(), async move { lines(chunks, limit, &rooms, &send).await });
        }
        "multipart/form-data" => {
            let boundary = multer::parse_boundary(&kind).map_err(|error| ApiError::Form(error.to_string()))?;
            spawn(send.clone(), async move { form(chunks, boundary, limit, &rooms, &send).await });
        }
        _ => return Err(ApiError::BatchKind(essence.chars().take(80).collect())),
    }
    Ok(items)
}

fn paced(body: Body) -> Chunks {
    let chunks = body.into_data_stream();
    let paced = futures::stream::unfold(chunks, |mut chunks| async move {
        let next = match tokio::time::timeout(PAUSE_MAX, chunks.next()).await {
            Ok(next) => next?.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the body paused for longer than 30 s")),
        };
        Some((next, chunks))
    });
    Box::pin(paced.fuse())
}

fn spawn(send: Sender, reading: impl Future<Output = Result<(), ApiError>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = reading.await {
            drop(send.send(Err(error)).await);
        }
    });
}

/// Archives are read by libraries that block.
fn blocking(
    chunks: Chunks,
    send: Sender,
    read: impl FnOnce(&mut dyn Read, &Sender) -> Result<(), ApiError> + Send + 'static,
) {
    let mut reader = SyncIoBridge::new(StreamReader::new(chunks));
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read(&mut reader, &send) {
            drop(send.blocking_send(Err(error)));
        }
    });
}

fn tar(reader: &mut dyn Read, limit: usize, rooms: &Rooms, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: io::Error| ApiError::Archive(format!("the tar cannot be read to its end: {error}"));
    let mut archive = tar::Archive::new(reader);
    let mut any = false;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        any = true;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if is_litter(&name) {
            continue;
        }
        let name = checked(&name)?;
        let content = content(&mut entry, limit).map_err(broken)?;
        if content.is_err() {
            io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
        }
        if !deliver(rooms, send, name, content) {
            return Ok(());
        }
    }
    if any { Ok(()) } else { Err(ApiError::Archive("the tar is empty".into())) }
}

fn zip(mut reader: &mut dyn Read, limit: usize, rooms: &Rooms, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: &dyn std::fmt::Display| {
        ApiError::Archive(format!("the zip cannot be read from its beginning to its end: {error}; a tar always can"))
    };
    let mut any = false;
    while let Some(mut file) = zip::read::read_zipfile_from_stream(&mut reader).map_err(|error| broken(&error))? {
        any = true;
        let name = file.name().map_err(|error| broken(&error))?.into_owned();
        if file.is_dir() || is_litter(&name) {
            io::copy(&mut file, &mut io::sink()).map_err(|error| broken(&error))?;
            continue;
        }
        let name = checked(&name)?;
        let content = content(&mut file, limit).map_err(|error| broken(&error))?;
        // The rest might be without end.
        if content.is_err() {
            return Err(ApiError::Archive(format!("`{name}` is larger than {limit} bytes, the limit for one image")));
        }
        if !deliver(rooms, send, name, content) {
            return Ok(());
        }
    }
    if any { Ok(()) } else { Err(ApiError::Archive("the zip is empty".into())) }
}

/// An archive's file, unless it is larger than an image may be.
fn content(file: &mut dyn Read, limit: usize) -> io::Result<Result<Bytes, JobError>> {
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() > limit { Err(too_large(limit)) } else { Ok(Bytes::from(bytes)) })
}

fn too_large(limit: usize) -> JobError {
    JobError::new("image_too_large", format!("it is larger than {limit} bytes, the limit for one image"))
}

/// `false`: nobody takes items any more.
fn deliver(rooms: &Rooms, send: &Sender, custom_id: String, content: Result<Bytes, JobError>) -> bool {
    let item = hand_over(rooms, send, custom_id, content, BTreeMap::new());
    tokio::runtime::Handle::current().block_on(item)
}

/// Sends an item once there is room for it; `false`: nobody takes items any more.
async fn hand_over(
    rooms: &Rooms,
    send: &Sender,
    custom_id: String,
    content: Result<Bytes, JobError>,
    metadata: BTreeMap<String, String>,
) -> bool {
    let room = tokio::select! {
        room = rooms.lend(content.as_ref().map_or(0, Bytes::len)) => room,
        () = send.closed() => return false,
    };
    send.send(Ok(Item { custom_id, content, metadata, _room: room })).await.is_ok()
}

async fn form(chunks: Chunks, boundary: String, limit: usize, rooms: &Rooms, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: multer::Error| ApiError::Form(error.to_string());
    let mut form = multer::Multipart::new(chunks, boundary);
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        let Some(name) = field.file_name().map(str::to_owned) else {
            let name = field.name().unwrap_or("").to_owned();
            return Err(ApiError::Form(format!("field `{name}` is no file; options of a batch stand in the query")));
        };
        let custom_id = checked(&name)?;
        let mut bytes = BytesMut::new();
        let mut is_too_large = false;
        while let Some(chunk) = field.chunk().await.map_err(broken)? {
            is_too_large |= bytes.len() + chunk.len() > limit;
            if !is_too_large {
                bytes.extend_from_slice(&chunk);
            }
        }
        let content = if is_too_large { Err(too_large(limit)) } else { Ok(bytes.freeze()) };
        if !hand_over(rooms, send, custom_id, content, BTreeMap::new()).await {
            return Ok(());
        }
    }
    Ok(())
}

/// A form of files, as the API's description has it: the name of each is its custom id.
pub(super) struct Files;

impl PartialSchema for Files {
    fn schema() -> RefOr<Schema> {
        let files = ArrayBuilder::new().items(Binary::schema()).min_items(Some(1));
        ObjectBuilder::new().property("files", files).required("files").into()
    }
}

impl ToSchema for Files {}

/// A line of JSON lines.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchLine)]
pub(super) struct Line {
    /// Your name for it within the batch.
    #[schema(min_length = 1, max_length = 512, example = "cam7/0001.jpg")]
    custom_id: String,
    /// In base64.
    #[schema(content_encoding = "base64")]
    image: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

async fn lines(mut chunks: Chunks, limit: usize, rooms: &Rooms, send: &Sender) -> Result<(), ApiError> {
    let line_max = limit / 3 * 4 + LINE_OVERHEAD;
    let (mut rest, mut number, mut searched) = (BytesMut::new(), 0_u64, 0);
    loop {
        let end = rest[searched..].iter().position(|byte| *byte == b'\n').map(|at| searched + at);
        let line = match end {
            Some(end) => rest.split_to(end + 1),
            None if rest.len() > line_max => return Err(ApiError::BodyTooLarge { limit }),
            None => match chunks.try_next().await.map_err(|error| ApiError::BodyBroken(error.to_string()))? {
                Some(chunk) => {
                    searched = rest.len();
                    rest.extend_from_slice(&chunk);
                    continue;
                }
                None if rest.is_empty() => return Ok(()),
                None => rest.split(),
            },
        };
        searched = 0;
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |problem: String| ApiError::Json(format!("line {number}: {problem}"));
        let Object(line): Object<Line> = serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))?;
        let custom_id = checked(&line.custom_id)?;
        let image = BASE64_STANDARD.decode(&line.image).map_err(|error| wrong(format!("`image`: {error}")))?;
        let content = if image.len() > limit { Err(too_large(limit)) } else { Ok(Bytes::from(image)) };
        if !hand_over(rooms, send, custom_id, content, line.metadata).await {
            return Ok(());
        }
    }
}

fn is_litter(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.starts_with("._") || LITTER.contains(&last) || name.starts_with("__MACOSX/")
}

/// A name that can be a custom id.
fn checked(name: &str) -> Result<String, ApiError> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let is_trick = name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..");
    if is_trick || name.is_empty() || name.len() > CUSTOM_ID_MAX || name.chars().any(char::is_control) {
        return Err(ApiError::CustomId(name.chars().take(80).collect()));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(kind: &str, body: Vec<u8>) -> Result<Vec<(String, Option<usize>)>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().expect("a header"));
        let mut items = read(&headers, Body::from(body), 10, Rooms { units: Arc::new(Semaphore::new(9)), count: 9 })
            .map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        while let Some(item) = items.recv().await {
            let item = item.map_err(|error| error.to_string())?;
            found.push((item.custom_id, item.content.ok().map(|bytes| bytes.len())));
        }
        Ok(found)
    }

    fn tar_of(files: &[(&str, usize)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in files {
            let mut header = tar::Header::new_gnu();
            // Not `set_path`, which refuses what is to be refused by us.
            header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(*size as u64);
            header.set_cksum();
            builder.append(&header, &vec![7; *size][..]).expect("written");
        }
        builder.into_inner().expect("finished")
    }

    #[tokio::test]
    async fn a_tar_is_read_to_its_end_and_tricks_are_refused() {
        let good = tar_of(&[("./a/b.jpg", 3), ("._b.jpg", 1), ("big.png", 11), ("c.jpg", 10)]);
        let found = all("application/x-tar", good.clone()).await.expect("good");
        let expected = [("a/b.jpg", Some(3)), ("big.png", None), ("c.jpg", Some(10))];
        assert_eq!(found, expected.map(|(name, size)| (name.to_owned(), size)));
        for name in ["/etc/passwd", "a/../../b"] {
            let error = all("application/x-tar", tar_of(&[(name, 1)])).await.expect_err("refused");
            assert!(error.contains("custom id"), "{error}");
        }
        let cut = good[..good.len() / 2].to_vec();
        assert!(all("application/x-tar", cut).await.expect_err("refused").contains("to its end"));
        assert!(all("application/x-tar", Vec::new()).await.expect_err("refused").contains("empty"));
    }

    #[tokio::test]
    async fn a_zip_is_read_and_a_bomb_ends_it() {
        use std::io::Write;
        let zip_of = |files: &[(&str, usize)]| {
            let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            for (name, size) in files {
                writer.start_file(*name, zip::write::SimpleFileOptions::default()).expect("begun");
                writer.write_all(&vec![0; *size]).expect("written");
            }
            writer.finish().expect("finished").into_inner()
        };
        let found = all("application/zip", zip_of(&[("a.jpg", 3), ("b.jpg", 10)])).await.expect("good");
        assert_eq!(found.len(), 2);
        let error = all("application/zip", zip_of(&[("bomb", 1 << 24)])).await.expect_err("refused");
        assert!(error.contains("larger than 10 bytes"), "{error}");
        assert!(all("application/zip", zip_of(&[("../x", 1)])).await.expect_err("refused").contains("custom id"));
    }

    #[tokio::test]
    async fn lines_are_read_one_by_one() {
        let body = b"{\"custom_id\":\"a\",\"image\":\"AAAA\"}\n\n{\"custom_id\":\"b\",\"image\":\"AA==\"}".to_vec();
        let found = all("application/x-ndjson", body).await.expect("good");
        assert_eq!(found, [("a".to_owned(), Some(3)), ("b".to_owned(), Some(1))]);
        for (body, words) in [("{", "line 1"), ("{\"custom_id\":\"a\",\"image\":\"?\"}", "line 1: `image`")] {
            let error = all("application/x-ndjson", body.into()).await.expect_err("refused");
            assert!(error.contains(words), "{error}");
        }
        let endless = all("application/x-ndjson", vec![b'x'; 1 << 20]).await.expect_err("refused");
        assert!(endless.contains("limit"), "{endless}");
        assert!(all("image/jpeg", Vec::new()).await.expect_err("refused").contains("image/jpeg"));
    }
}
