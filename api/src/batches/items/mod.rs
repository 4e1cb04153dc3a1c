//! Reads a body as items, one after another: a form with many files, a tar, a zip, or lines of JSON.
//!
//! Only a few items are in memory: a slow receiver of items makes the sender wait. A bad item becomes a failed item
//! and does not end the batch. Names are never used as paths here, but an item whose name tries path tricks fails
//! all the same, since results may be written under that name one day.

mod archive;
mod form;
mod lines;
mod zip;

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use queue::JobError;
use tokio::sync::{Semaphore, mpsc};

pub(super) use form::Files;
pub(super) use lines::Line;

use super::room::{Room, Rooms};
use crate::error::ApiError;
use crate::incoming;

/// Items read ahead.
const AHEAD: usize = 4;
/// Longest custom id, bytes; a shortened name leaves room for the number that a duplicate gets.
const CUSTOM_ID_MAX: usize = 512;
const NAME_BYTES_MAX: usize = 480;
/// An image's bytes, or why they cannot be one.
type Content = Result<Bytes, JobError>;

/// One image of a batch.
#[derive(Debug)]
pub(super) struct Item {
    /// The client's name for it.
    pub(super) custom_id: String,
    /// Its bytes, or why they cannot be an image.
    pub(super) content: Content,
    pub(super) metadata: BTreeMap<String, String>,
    /// The right to have it in memory.
    pub(super) _room: Room,
}

/// One entry of a body.
#[derive(Debug)]
pub(super) enum BodyEntry {
    Item(Item),
    /// The name of an entry that is not meant to be an image: a folder, or a file that file managers leave behind.
    Skipped(String),
}

type Sender = mpsc::Sender<Result<BodyEntry, ApiError>>;
type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

/// Limits and memory for reading a body's items.
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
) -> Result<mpsc::Receiver<Result<BodyEntry, ApiError>>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").trim().to_owned();
    let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    // The library in between passes a body's error on as text only, so the original is kept here.
    let fault = Fault::default();
    let noted = fault.clone();
    let chunks = body.into_data_stream().map_err(move |error| {
        let error = incoming::error_of(error);
        let words = error.to_string();
        *noted.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other(words)
    });
    let (send, items) = mpsc::channel(AHEAD);
    // Once the receiver of items is dropped, no reader holds the rest of the body, and its memory is freed.
    let untaken = send.clone();
    let chunks: Chunks = Box::pin(chunks.take_until(async move { untaken.closed().await }).fuse());
    match essence.as_str() {
        "application/x-tar" | "application/tar" => {
            archive::read(chunks, send, fault, bounds, archive::tar)?;
        }
        "application/zip" | "application/x-zip-compressed" => {
            archive::read(chunks, send, fault, bounds, zip::read)?;
        }
        "application/x-ndjson" | "application/jsonl" | "application/json-lines" => {
            spawn(send.clone(), fault, async move { lines::read(chunks, &bounds, &send).await });
        }
        "multipart/form-data" => {
            let boundary = multer::parse_boundary(&kind).map_err(|error| ApiError::Form(error.to_string()))?;
            spawn(send.clone(), fault, async move { form::read(chunks, boundary, &bounds, &send).await });
        }
        _ => return Err(ApiError::BatchKind(essence.chars().take(80).collect())),
    }
    Ok(items)
}

/// What was wrong with a body itself, rather than with its contents.
#[derive(Debug, Clone, Default)]
struct Fault(Arc<Mutex<Option<ApiError>>>);

impl Fault {
    fn or(&self, error: ApiError) -> ApiError {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // For a body that broke off, the archive's reader has the better error.
            None | Some(ApiError::BodyBroken(_)) => error,
            Some(fault) => fault,
        }
    }
}

/// Reads in the background. A panic becomes an error: otherwise the end of the items would look like the end of the
/// batch.
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

/// Sends an item; `false` once the receiver of items is dropped.
async fn hand_over(
    send: &Sender,
    mut room: Room,
    custom_id: String,
    content: Content,
    metadata: BTreeMap<String, String>,
) -> bool {
    room.shrink(content.as_ref().map_or(0, Bytes::len));
    send.send(Ok(BodyEntry::Item(Item { custom_id, content, metadata, _room: room }))).await.is_ok()
}

/// Turns a name into a custom id; the content becomes an error if the name cannot be one.
fn named(name: &str, content: Content) -> (String, Content) {
    let name = name.strip_prefix("./").unwrap_or(name);
    let is_trick = name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..");
    let problem = match name.len() {
        0 => Some("it has no name".to_owned()),
        length if length > CUSTOM_ID_MAX => Some(format!("its name is longer than {CUSTOM_ID_MAX} bytes")),
        _ if is_trick => Some("its name is absolute, or leaves the folder with `..`".to_owned()),
        _ => None,
    };
    let mut id: String = name.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    if problem.is_some() {
        id = id.trim_start_matches(['/', '\\']).replace("..", "__");
        id.truncate(id.floor_char_boundary(NAME_BYTES_MAX));
    }
    if id.is_empty() {
        id = "unnamed".to_owned();
    }
    (id, problem.map_or(content, |problem| Err(JobError::new("custom_id_invalid", problem))))
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::super::room::Memory;
    use super::lines::BASE64;
    use super::*;

    async fn all(kind: &str, body: Vec<u8>) -> Result<Vec<(String, Option<usize>)>, String> {
        let headers = headers(kind);
        let bounds = Bounds { limit: 10, rooms: Memory::new(64).of_one_batch(), archives: Arc::new(Semaphore::new(1)) };
        let mut items = read(&headers, Body::from(body), bounds).map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        while let Some(entry) = items.recv().await {
            match entry.map_err(|error| error.to_string())? {
                BodyEntry::Item(item) => found.push((item.custom_id, item.content.ok().map(|bytes| bytes.len()))),
                BodyEntry::Skipped(name) => found.push((format!("skipped {name}"), None)),
            }
        }
        Ok(found)
    }

    fn tar_of(files: &[(&str, usize)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in files {
            let mut header = tar::Header::new_gnu();
            // Not `set_path`, which refuses the names that our code must refuse.
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
        let line = serde_json::json!({"custom_id": "a", "image": BASE64.encode(image)}).to_string();
        let mut form = b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\n".to_vec();
        form.extend(image);
        form.extend(b"\r\n--b--\r\n");
        let mut zip = ::zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = ::zip::write::SimpleFileOptions::default();
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
        // As much memory as a server has, and little.
        for units in [4096, 256] {
            let memory = Memory::new(units);
            for (kind, body) in bodies(&image) {
                let bounds = Bounds { limit, rooms: memory.of_one_batch(), archives: Arc::new(Semaphore::new(1)) };
                let mut items = read(&headers(kind), Body::from(body), bounds).expect("read");
                let item = tokio::time::timeout(std::time::Duration::from_secs(60), items.recv()).await;
                let item = item.unwrap_or_else(|_| panic!("{kind} hangs")).expect("an item").expect("good");
                let BodyEntry::Item(item) = item else { panic!("{kind}: {item:?}") };
                assert_eq!(item.content.expect("an image").len(), limit, "{kind}");
                assert!(items.recv().await.is_none(), "{kind}");
            }
            while memory.is_used() {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_without_a_receiver_releases_its_memory_although_its_body_never_ends() {
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

    /// What is found, as names and lengths.
    fn list(found: &[(String, Option<usize>)]) -> Vec<(&str, Option<usize>)> {
        found.iter().map(|(name, length)| (name.as_str(), *length)).collect()
    }

    #[tokio::test]
    async fn a_sparse_file_that_claims_much_and_holds_nothing_is_one_bad_item() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path("a").expect("a path");
        header.set_size(0);
        let gnu = header.as_gnu_mut().expect("gnu");
        gnu.set_real_size(1 << 60);
        gnu.sparse[0].set_offset(1 << 60);
        gnu.sparse[0].set_length(0);
        header.set_cksum();
        let body = [header.as_bytes(), &tar_of(&[("b", 2)])[..]].concat();
        let found = all("application/x-tar", body).await.expect("read");
        assert_eq!(list(&found), [("a", None), ("b", Some(2))]);
    }

    #[tokio::test]
    async fn a_tar_is_read_to_its_end_and_tricks_are_failed_items() {
        let good = tar_of(&[("./a/b.jpg", 3), ("._b.jpg", 1), ("big.png", 11), ("d/", 0), ("c.jpg", 10)]);
        let found = all("application/x-tar", good.clone()).await.expect("good");
        let expected = [
            ("a/b.jpg", Some(3)),
            ("skipped ._b.jpg", None),
            ("big.png", None),
            ("skipped d/", None),
            ("c.jpg", Some(10)),
        ];
        assert_eq!(list(&found), expected);
        let tricks = tar_of(&[("/etc/passwd", 1), ("a/../../b", 1), ("e\rf", 1), ("good", 1)]);
        let found = all("application/x-tar", tricks).await.expect("read");
        assert_eq!(list(&found), [("etc/passwd", None), ("a/__/__/b", None), ("e_f", Some(1)), ("good", Some(1))]);
        let cut = good[..good.len() / 2].to_vec();
        assert!(all("application/x-tar", cut).await.expect_err("refused").contains("to its end"));
        let border = good[..good.len() - 1024].to_vec();
        assert!(all("application/x-tar", border).await.expect_err("refused").contains("end marker"));
        assert!(all("application/x-tar", Vec::new()).await.expect_err("refused").contains("empty"));
    }

    #[tokio::test]
    async fn what_is_packed_is_named_and_a_name_that_looks_like_it_is_a_name() {
        let packed = all("application/x-tar", b"\x1F\x8B\x08 and more".to_vec()).await.expect_err("refused");
        assert!(packed.contains("a gzip file"), "{packed}");
        let packed = all("application/x-tar", b"BZh91AY&SY and more".to_vec()).await.expect_err("refused");
        assert!(packed.contains("a bzip2 file"), "{packed}");
        let found = all("application/x-tar", tar_of(&[("BZhang.jpg", 3)])).await.expect("good");
        assert_eq!(list(&found), [("BZhang.jpg", Some(3))]);
    }

    #[tokio::test]
    async fn links_of_a_tar_are_failed_items_that_say_what_they_are() {
        let body = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cases/links.tar")).expect("there");
        let bounds =
            Bounds { limit: 1 << 20, rooms: Memory::new(64).of_one_batch(), archives: Arc::new(Semaphore::new(1)) };
        let mut items = read(&headers("application/x-tar"), Body::from(body), bounds).expect("read");
        let mut found = Vec::new();
        while let Some(entry) = items.recv().await {
            let Ok(BodyEntry::Item(item)) = entry else { panic!("{entry:?}") };
            found.push((item.custom_id, item.content.err().map(|error| error.message).unwrap_or_default()));
        }
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].1.is_empty() && found[1].1.contains("hard link") && found[2].1.contains("symbolic link"));
    }

    #[tokio::test]
    async fn a_zip_is_read_and_a_bomb_in_it_is_one_bad_item() {
        use std::io::Write;
        let zip_of = |files: &[(&str, usize)]| {
            let mut writer = ::zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            for (name, size) in files {
                writer.start_file(*name, ::zip::write::SimpleFileOptions::default()).expect("begun");
                writer.write_all(&vec![0; *size]).expect("written");
            }
            writer.finish().expect("finished").into_inner()
        };
        let files = [("a.jpg", 3), ("__MACOSX/x", 1), ("bomb", 1 << 24), ("../x", 1), ("a.jpg/", 0), ("b.jpg", 10)];
        let good = zip_of(&files);
        let found = all("application/zip", good.clone()).await.expect("good");
        let expected = [
            ("a.jpg", Some(3)),
            ("skipped __MACOSX/x", None),
            ("bomb", None),
            ("__/x", None),
            ("skipped a.jpg/", None),
            ("b.jpg", Some(10)),
        ];
        assert_eq!(list(&found), expected);
        for cut in [good.len() - 1, good.len() - 23, good.len() / 2, 40, 3] {
            let error = all("application/zip", good[..cut].to_vec()).await.expect_err("refused");
            assert!(error.contains("cut off"), "at {cut}: {error}");
        }
        assert!(all("application/zip", Vec::new()).await.expect_err("refused").contains("empty"));
        let mut damaged = zip_of(&[("a", 5), ("b", 5)]);
        let at = damaged.windows(1).position(|byte| byte == b"a").expect("a name");
        damaged[at + 1] ^= 0xFF;
        let found = all("application/zip", damaged).await.expect("read");
        assert_eq!(list(&found), [("a", None), ("b", Some(5))]);
    }

    #[tokio::test]
    async fn a_zip_whose_lengths_stand_behind_its_files_is_read() {
        let finder = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cases/finder_like.zip"));
        let bounds =
            Bounds { limit: 1 << 20, rooms: Memory::new(64).of_one_batch(), archives: Arc::new(Semaphore::new(1)) };
        let mut items = read(&headers("application/zip"), Body::from(finder.expect("there")), bounds).expect("read");
        for name in ["a.png", "b.png"] {
            let Some(Ok(BodyEntry::Item(item))) = items.recv().await else { panic!("{name}") };
            assert_eq!((item.custom_id.as_str(), item.content.expect("an image").len()), (name, 140));
        }
        assert!(items.recv().await.is_none());
        // Stored, with a descriptor of each form after it, and the mark of one in the data.
        for (marked, longer) in [(true, false), (false, false), (true, true), (false, true)] {
            let data = b"0PK\x07\x089";
            let mut zip = Vec::new();
            for name in [b"a", b"b"] {
                zip.extend(b"PK\x03\x04\x14\0\x08\0\0\0\0\0\0\0");
                zip.extend([0; 12]);
                zip.extend([1, 0, 0, 0, name[0]]);
                zip.extend(data);
                // Without its mark the end of stored data cannot be found.
                zip.extend(&b"PK\x07\x08"[..if marked { 4 } else { 0 }]);
                zip.extend(crc32fast::hash(data).to_le_bytes());
                let length = (data.len() as u64).to_le_bytes();
                let length = &length[..if longer { 8 } else { 4 }];
                zip.extend([length, length].concat());
            }
            zip.extend(b"PK\x05\x06");
            zip.extend([0; 18]);
            let found = all("application/zip", zip).await;
            if marked {
                assert_eq!(list(&found.expect("read")), [("a", Some(6)), ("b", Some(6))], "{longer}");
            } else {
                assert!(found.expect_err("refused").contains("cut off"));
            }
        }
    }

    #[tokio::test]
    async fn lines_are_read_one_by_one_and_a_bad_one_is_one_bad_item() {
        let lines = [
            "\u{feff}{\"custom_id\":\"a\",\"image\":\"AAAA\"}",
            "",
            "{\"custom_id\":\"b\",\"image\":\"AA==\"}",
            "{\"custom_id\":\"unpadded\",\"image\":\"AA\"}",
            "{\"custom_id\":\"broken\",\"image\":\"AA\\r\\nAA\"}",
            "{\"custom_id\":\"url\",\"image\":\"_-8=\"}",
            "{\"custom_id\":\"data\",\"image\":\"data:image/png;base64,AAAA\"}",
            "{",
            "{\"custom_id\":\"no base64\",\"image\":\"?\"}",
            "{\"custom_id\":\"too much\",\"image\":\"AAAA\",\"color\":1}",
            "{\"custom_id\":\"\",\"image\":\"AAAA\"}",
            "[1]",
        ];
        let long = format!("{{\"custom_id\":\"long\",\"image\":\"{}\"}}", "A".repeat(1 << 20));
        let mut body = lines.join("\r\n").into_bytes();
        body.extend(format!("\n{long}\n{{\"custom_id\":\"last\",\"image\":\"AAAA\"}}").into_bytes());
        let found = all("application/x-ndjson", body).await.expect("read");
        let expected = [
            ("a", Some(3)),
            ("b", Some(1)),
            ("unpadded", Some(1)),
            ("broken", Some(3)),
            ("url", Some(2)),
            ("data", Some(3)),
            ("line 8", None),
            ("no base64", None),
            ("too much", None),
            ("unnamed", None),
            ("line 12", None),
            ("long", None),
            ("last", Some(3)),
        ];
        assert_eq!(list(&found), expected);
        let endless = all("application/x-ndjson", vec![b'x'; 1 << 20]).await.expect("read");
        assert_eq!(list(&endless), [("line 1", None)]);
        assert!(all("image/jpeg", Vec::new()).await.expect_err("refused").contains("image/jpeg"));
    }

    #[tokio::test]
    async fn a_form_takes_names_of_either_kind_and_leaves_empty_fields_out() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename*=UTF-8''h%C3%BCtte.jpg\r\n\r\n123\r\n\
            --b\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n\r\n\
            --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nx\r\n\
            --b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"b.jpg\"\r\n\r\n12\r\n--b--\r\n";
        let found = all("multipart/form-data; boundary=b", body.to_vec()).await.expect("read");
        let expected = [("hütte.jpg", Some(3)), ("skipped note", None), ("model", None), ("b.jpg", Some(2))];
        assert_eq!(list(&found), expected);
        let option = b"--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nx\r\n--b--\r\n";
        let error = all("multipart/form-data; boundary=b", option.to_vec()).await.expect_err("refused");
        assert!(error.contains("stand in the query"), "{error}");
    }
}
