//! Archives, each read in a thread of its own, and the reader of tars.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use queue::JobError;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{BodyEntry, Bounds, Chunks, Content, Fault, Sender, hand_over, named, too_large, unless_closed};
use crate::batches::room::Room;
use crate::error::ApiError;

/// Most bytes before a file of an archive: names, links and their headers.
const HEADER_MAX: u64 = 1 << 20;
/// Stack of a thread that reads an archive.
const STACK_BYTES: usize = 1 << 20;
/// Number of first bytes that identify a file's kind.
const MAGIC_BYTES: u64 = 10;
/// What file managers leave in archives.
const LITTER: [&str; 4] = [".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r"];
/// Most characters shown of a skipped file's name.
const NAME_SHOWN_MAX: usize = 200;

/// The libraries that read archives block while they wait for the sender, so each archive gets a thread of its own:
/// the runtime's threads serve everything else.
pub(super) fn read(
    chunks: Chunks,
    send: Sender,
    fault: Fault,
    bounds: Bounds,
    kind: fn(&mut dyn Read, &Bounds, &Sender) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let permit = bounds.archives.clone().try_acquire_owned().map_err(|_| ApiError::UploadsBusy)?;
    let mut reader = SyncIoBridge::new(StreamReader::new(chunks));
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("archive".into()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        let _runtime = runtime.enter();
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| kind(&mut reader, &bounds, &send)));
        if let Err(error) = read.unwrap_or(Err(ApiError::Internal)) {
            drop(send.blocking_send(Err(fault.or(error))));
        }
        drop(permit);
    });
    started.map(drop).map_err(|error| {
        tracing::warn!(%error, "no thread to read an archive");
        ApiError::UploadsBusy
    })
}

/// Limits what an archive's reader may read: little between two files, where a library keeps all that it reads.
struct Metered<'a> {
    reader: &'a mut dyn Read,
    left: &'a Cell<u64>,
    /// The body has ended.
    ended: &'a Cell<bool>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other(format!("a header in it is above {HEADER_MAX} bytes")));
        }
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - read as u64);
        self.ended.set(read == 0 && most > 0);
        Ok(read)
    }
}

pub(super) fn tar(reader: &mut dyn Read, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: io::Error| ApiError::Archive(format!("the tar cannot be read to its end: {error}"));
    let mut first = Vec::new();
    (&mut *reader).take(MAGIC_BYTES).read_to_end(&mut first).map_err(broken)?;
    if let Some(packed) = packed_as(&first) {
        return Err(ApiError::Archive(format!("this is {packed}, not a tar: unpack it once, and send the tar in it")));
    }
    let reader = &mut first.chain(reader);
    let (left, ended) = (Cell::new(HEADER_MAX), Cell::new(false));
    let mut archive = tar::Archive::new(Metered { reader, left: &left, ended: &ended });
    let mut any = false;
    for entry in archive.entries().map_err(broken)? {
        left.set(u64::MAX);
        let mut entry = entry.map_err(broken)?;
        any = true;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let goes_on = match no_file(&mut entry) {
            _ if is_litter(&name) || name.ends_with('/') || entry.header().entry_type().is_dir() => skip(send, &name),
            Some(problem) => {
                let Some(room) = wait(bounds.rooms.lend(0), send) else { return Ok(()) };
                let (custom_id, content) = named(&name, Err(problem));
                wait_to_hand_over(send, room, custom_id, content)
            }
            None => {
                let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
                let Some(room) = wait(bounds.rooms.lend(size.min(bounds.limit)), send) else { return Ok(()) };
                let (content, room) = content(&mut entry, room, bounds, send).map_err(broken)?;
                let (custom_id, content) = named(&name, content);
                wait_to_hand_over(send, room, custom_id, content)
            }
        };
        if !goes_on {
            return Ok(());
        }
        // The rest of this file comes before the next header. A sparse file may claim any length; only its bytes in
        // the archive count.
        let rest = entry.header().entry_size().map_err(broken)?;
        left.set(rest.saturating_add(HEADER_MAX));
    }
    match (any, ended.get()) {
        (false, _) => Err(ApiError::Archive("the tar is empty".into())),
        // Two blocks of zeros mark the end.
        (true, true) => Err(ApiError::Archive("the tar cannot be read to its end: its end marker is missing".into())),
        (true, false) => Ok(()),
    }
}

/// What clients send in place of a tar, by its first bytes. A tar begins with a name, which may be nearly anything.
fn packed_as(first: &[u8]) -> Option<&'static str> {
    Some(match first {
        [0x1F, 0x8B, ..] => "a gzip file",
        [0x28, 0xB5, 0x2F, 0xFD, ..] => "a zstd file",
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', b'&', b'S', b'Y', ..] => "a bzip2 file",
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => "an xz file",
        [b'P', b'K', 3, 4, ..] => "a zip (application/zip)",
        _ => return None,
    })
}

/// Why an entry of a tar is not a file of its own.
fn no_file(entry: &mut tar::Entry<'_, impl Read>) -> Option<JobError> {
    let kind = entry.header().entry_type();
    let target = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default();
    if kind.is_gnu_sparse() {
        return Some(JobError::new("item_sparse", "it is a sparse file; pack it without --sparse"));
    }
    if kind.is_hard_link() {
        let words = format!("it is a hard link to `{target}`; pack it with --hard-dereference");
        return Some(JobError::new("item_link", words));
    }
    if kind.is_symlink() {
        let words = format!("it is a symbolic link to `{target}`; pack it with --dereference (-h)");
        return Some(JobError::new("item_link", words));
    }
    (!kind.is_file() && !kind.is_contiguous())
        .then(|| JobError::new("item_kind", "it is a device or another special file"))
}

/// Reads a file of an archive, unless it is larger than an image may be, and returns it with the room that it
/// needs. `room` is the room it starts with.
pub(super) fn content(
    file: &mut dyn Read,
    mut room: Room,
    bounds: &Bounds,
    send: &Sender,
) -> io::Result<(Content, Room)> {
    let limit = bounds.limit;
    let mut bytes = Vec::with_capacity(room.bytes().min(limit) + 1);
    (&mut *file).take(room.bytes() as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > room.bytes() && room.bytes() < limit {
        let gone = || io::Error::other("the receiver of items was dropped");
        room = wait(bounds.rooms.grow(room, limit), send).ok_or_else(gone)?;
        bytes.reserve_exact(limit + 1 - bytes.len());
        file.take((limit + 1 - bytes.len()) as u64).read_to_end(&mut bytes)?;
    }
    if bytes.len() > limit {
        return Ok((Err(too_large(limit)), room));
    }
    bytes.shrink_to_fit();
    Ok((Ok(Bytes::from(bytes)), room))
}

/// Blocks an archive's thread until `something` is done; `None` once the receiver of items is dropped.
pub(super) fn wait<T>(something: impl Future<Output = T>, send: &Sender) -> Option<T> {
    tokio::runtime::Handle::current().block_on(unless_closed(something, send))
}

pub(super) fn wait_to_hand_over(send: &Sender, room: Room, custom_id: String, content: Content) -> bool {
    let item = hand_over(send, room, custom_id, content, BTreeMap::new());
    tokio::runtime::Handle::current().block_on(item)
}

/// Reports a file that is left out on purpose; `false` once the receiver of items is dropped.
pub(super) fn skip(send: &Sender, name: &str) -> bool {
    send.blocking_send(Ok(BodyEntry::Skipped(name.chars().take(NAME_SHOWN_MAX).collect()))).is_ok()
}

pub(super) fn is_litter(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.starts_with("._") || LITTER.contains(&last) || name.starts_with("__MACOSX/")
}
