//! A body as items, one after another: a form with many files, a tar, a zip, or lines of JSON.
//!
//! Nothing is held but the item at hand: a slow receiver of items makes the sender wait. Names
//! are never paths here, but one that tries to be a trick is refused all the same, since results
//! may be written under it one day.

mod archive;
mod form;

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use queue::JobError;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use utoipa::ToSchema;

pub(super) use form::Files;

use super::room::{Room, Rooms, SMALL_BYTES};
use crate::error::ApiError;
use crate::incoming;
use crate::json::Object;

/// Items that are read ahead.
const AHEAD: usize = 4;
/// Length of a custom id, bytes.
const CUSTOM_ID_MAX: usize = 512;
/// How often a line is in memory: as it came, as base64, decoded.
const LINE_COPIES: usize = 3;
/// Room in a line beside its image.
const LINE_OVERHEAD: usize = 64 * 1024;

/// One image of a batch.
#[derive(Debug)]
pub(super) struct Item {
    /// The client's name for it.
    pub(super) custom_id: String,
    /// Its bytes, or why they cannot be an image.
    pub(super) content: Result<Bytes, JobError>,
    pub(super) metadata: BTreeMap<String, String>,
    /// The right to have it in memory.
    pub(super) _room: Room,
}

type Sender = mpsc::Sender<Result<Item, ApiError>>;
type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

/// What a body's items are read with.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// The largest image, bytes.
    pub(super) limit: usize,
    pub(super) rooms: Rooms,
    /// Archives that may be read at a time.
    pub(super) archives: Arc<Semaphore>,
}

/// Reads a body's items.
pub(super) fn read(
    headers: &HeaderMap,
    body: Body,
    bounds: Bounds,
) -> Result<mpsc::Receiver<Result<Item, ApiError>>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").trim().to_owned();
    let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    // A library in between passes on what is wrong with a body as words; ours is kept beside it.
    let fault = Fault::default();
    let noted = fault.clone();
    let chunks = body.into_data_stream().map_err(move |error| {
        let error = incoming::error_of(error);
        let words = error.to_string();
        *noted.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other(words)
    });
    let (send, items) = mpsc::channel(AHEAD);
    // Once the receiver of items is gone, no reader holds the rest of the body, and its memory is free.
    let untaken = send.clone();
    let chunks: Chunks = Box::pin(chunks.take_until(async move { untaken.closed().await }).fuse());
    match essence.as_str() {
        "application/x-tar" | "application/tar" => {
            archive::read(chunks, send, fault, bounds, archive::tar)?;
        }
        "application/zip" | "application/x-zip-compressed" => {
            archive::read(chunks, send, fault, bounds, archive::zip)?;
        }
        "application/x-ndjson" | "application/jsonl" | "application/json-lines" => {
            spawn(send.clone(), fault, async move { lines(chunks, &bounds, &send).await });
        }
        "multipart/form-data" => {
            let boundary = multer::parse_boundary(&kind).map_err(|error| ApiError::Form(error.to_string()))?;
            spawn(send.clone(), fault, async move { form::read(chunks, boundary, &bounds, &send).await });
        }
        _ => return Err(ApiError::BatchKind(essence.chars().take(80).collect())),
    }
    Ok(items)
}

/// What was wrong with a body itself, rather than with what is in it.
#[derive(Debug, Clone, Default)]
struct Fault(Arc<Mutex<Option<ApiError>>>);

impl Fault {
    fn or(&self, error: ApiError) -> ApiError {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A body that broke off is what a reader of archives says better.
            None | Some(ApiError::BodyBroken(_)) => error,
            Some(fault) => fault,
        }
    }
}

/// Reads in the background. A panic is an error: the end of the items would be taken for the batch's end.
fn spawn(send: Sender, fault: Fault, reading: impl Future<Output = Result<(), ApiError>> + Send + 'static) {
    tokio::spawn(async move {
        let read = AssertUnwindSafe(reading).catch_unwind().await;
        if let Err(error) = read.unwrap_or(Err(ApiError::Internal)) {
            drop(send.send(Err(fault.or(error))).await);
        }
    });
}

fn too_large(limit: usize) -> JobError {
    JobError::new("image_too_large", format!("it is larger than {limit} bytes, the limit for one image"))
}

async fn unless_closed<T>(something: impl Future<Output = T>, send: &Sender) -> Option<T> {
    tokio::select! {
        done = something => Some(done),
        () = send.closed() => None,
    }
}

/// Sends an item; `false`: the receiver of items is gone.
async fn hand_over(
    send: &Sender,
    mut room: Room,
    custom_id: String,
    content: Result<Bytes, JobError>,
    metadata: BTreeMap<String, String>,
) -> bool {
    room.shrink(content.as_ref().map_or(0, Bytes::len));
    send.send(Ok(Item { custom_id, content, metadata, _room: room })).await.is_ok()
}

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

async fn lines(mut chunks: Chunks, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let limit = bounds.limit;
    let line_max = limit / 3 * 4 + LINE_OVERHEAD;
    let (mut rest, mut number, mut searched) = (BytesMut::new(), 0_u64, 0);
    let mut room: Option<Room> = None;
    loop {
        let end = rest[searched..].iter().position(|byte| *byte == b'\n').map(|at| searched + at);
        let line = match end {
            Some(end) => rest.split_to(end + 1),
            None if rest.len() > line_max => return Err(ApiError::BodyTooLarge { limit }),
            None => match chunks.try_next().await.map_err(|error| ApiError::BodyBroken(error.to_string()))? {
                Some(chunk) => {
                    // A line, its image in base64 and the image itself are in memory at a time.
                    let needed = (rest.len() + chunk.len()) * LINE_COPIES;
                    let wanted = if needed <= SMALL_BYTES { SMALL_BYTES } else { line_max * LINE_COPIES };
                    if room.as_ref().is_none_or(|room| room.bytes() < needed.min(wanted)) {
                        // Given back before more is waited for.
                        drop(room.take());
                        let Some(lent) = unless_closed(bounds.rooms.lend(wanted), send).await else { return Ok(()) };
                        room = Some(lent);
                    }
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
        let Object(parsed): Object<Line> = serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))?;
        drop(line);
        let custom_id = checked(&parsed.custom_id)?;
        let image = BASE64_STANDARD.decode(&parsed.image).map_err(|error| wrong(format!("`image`: {error}")))?;
        let content = if image.len() > limit { Err(too_large(limit)) } else { Ok(Bytes::from(image)) };
        let held = match room.take() {
            Some(room) => room,
            None => match unless_closed(bounds.rooms.lend(SMALL_BYTES), send).await {
                Some(room) => room,
                None => return Ok(()),
            },
        };
        if !hand_over(send, held, custom_id, content, parsed.metadata).await {
            return Ok(());
        }
    }
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
    use super::super::room::Memory;
    use super::*;

    async fn all(kind: &str, body: Vec<u8>) -> Result<Vec<(String, Option<usize>)>, String> {
        let headers = headers(kind);
        let bounds = Bounds { limit: 10, rooms: Memory::new(64).of_one_batch(), archives: Arc::new(Semaphore::new(1)) };
        let mut items = read(&headers, Body::from(body), bounds).map_err(|error| error.to_string())?;
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

    /// A body of each kind with one image of these bytes.
    fn bodies(image: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        use std::io::Write;
        let line = serde_json::json!({"custom_id": "a", "image": BASE64_STANDARD.encode(image)}).to_string();
        let mut form = b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\n".to_vec();
        form.extend(image);
        form.extend(b"\r\n--b--\r\n");
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file("a", options).and_then(|()| Ok(zip.write_all(image)?)).expect("written");
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(image.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, "a", image).expect("written");
        vec![
            ("application/x-tar", tar.into_inner().expect("finished")),
            ("application/zip", zip.finish().expect("finished").into_inner()),
            ("application/x-ndjson", line.into_bytes()),
            ("multipart/form-data; boundary=b", form),
        ]
    }

    fn headers(kind: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().expect("a header"))])
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_image_of_the_largest_size_comes_in_each_kind_and_its_memory_is_given_back() {
        // Noise, which does not compress.
        let limit = 4 << 20;
        let mut state = 1_u64;
        let image: Vec<u8> = (0..limit)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            })
            .collect();
        // As much as a server has, and little.
        for units in [4096, 256] {
            let memory = Memory::new(units);
            for (kind, body) in bodies(&image) {
                let bounds = Bounds { limit, rooms: memory.of_one_batch(), archives: Arc::new(Semaphore::new(1)) };
                let mut items = read(&headers(kind), Body::from(body), bounds).expect("read");
                let item = tokio::time::timeout(std::time::Duration::from_secs(60), items.recv()).await;
                let item = item.unwrap_or_else(|_| panic!("{kind} hangs")).expect("an item").expect("good");
                assert_eq!(item.content.expect("an image").len(), limit, "{kind}");
                assert!(items.recv().await.is_none(), "{kind}");
            }
            while memory.is_used() {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_whose_items_nobody_takes_gives_back_what_it_has_although_its_body_never_ends() {
        let memory = Memory::new(1024);
        let archives = Arc::new(Semaphore::new(1));
        for (kind, body) in bodies(&[7; 3 << 20]) {
            let bounds = Bounds { limit: 4 << 20, rooms: memory.of_one_batch(), archives: archives.clone() };
            let half = Bytes::from(body[..body.len() / 2].to_vec());
            let endless = futures::stream::iter([Ok::<_, io::Error>(half)]).chain(futures::stream::pending());
            let items = read(&headers(kind), Body::from_stream(endless), bounds).expect("read");
            drop(items);
            while memory.is_used() || archives.available_permits() == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn a_sparse_file_that_claims_much_and_holds_nothing_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path("a").expect("a path");
        header.set_size(0);
        let gnu = header.as_gnu_mut().expect("gnu");
        gnu.set_real_size(1 << 60);
        gnu.sparse[0].set_offset(1 << 60);
        gnu.sparse[0].set_length(0);
        header.set_cksum();
        let error = all("application/x-tar", [header.as_bytes(), &[0; 1024][..]].concat()).await.expect_err("refused");
        assert!(error.contains("sparse"), "{error}");
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
