//! Archives: tar and zip, each read in a thread of its own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use queue::JobError;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{Bounds, Chunks, Fault, Sender, checked, hand_over, too_large, unless_closed};
use crate::batches::room::{Room, SMALL_BYTES};
use crate::error::ApiError;

/// What may stand before a file of an archive: names, links and what describes them.
const HEADER_MAX: u64 = 1 << 20;
/// Stack of a thread that reads an archive.
const STACK_BYTES: usize = 1 << 20;
/// What file managers leave in archives.
const LITTER: [&str; 3] = [".DS_Store", "Thumbs.db", "desktop.ini"];

/// Archives are read by libraries that block, and they wait for their senders: each has a thread of its own,
/// since those of the runtime are needed by all others.
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
        tracing::warn!(%error, "no thread for an archive");
        ApiError::UploadsBusy
    })
}

/// What an archive's reader may read: little between two files, where a library keeps all that it reads.
struct Metered<'a> {
    reader: &'a mut dyn Read,
    left: &'a Cell<u64>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other(format!("a header in it is above {HEADER_MAX} bytes")));
        }
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

pub(super) fn tar(reader: &mut dyn Read, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: io::Error| ApiError::Archive(format!("the tar cannot be read to its end: {error}"));
    let left = Cell::new(HEADER_MAX);
    let mut archive = tar::Archive::new(Metered { reader, left: &left });
    let mut entries = archive.entries().map_err(broken)?;
    let mut any = false;
    loop {
        left.set(HEADER_MAX);
        let Some(entry) = entries.next() else { break };
        left.set(u64::MAX);
        let mut entry = entry.map_err(broken)?;
        any = true;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // It may claim any length, none of which has to be sent.
        if entry.header().entry_type().is_gnu_sparse() {
            return Err(ApiError::Archive(format!("`{name}` is a sparse file; pack it without --sparse")));
        }
        if entry.header().entry_type().is_file() && !is_litter(&name) {
            let name = checked(&name)?;
            let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
            let Some(room) = wait(bounds.rooms.lend(size.min(bounds.limit)), send) else { return Ok(()) };
            let (content, room) = content(&mut entry, room, bounds, send).map_err(broken)?;
            if !wait_to_hand_over(send, room, name, content) {
                return Ok(());
            }
        }
        // What is left of it is read here, and not as a part of the next header.
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
    }
    if any { Ok(()) } else { Err(ApiError::Archive("the tar is empty".into())) }
}

pub(super) fn zip(mut reader: &mut dyn Read, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: &dyn std::fmt::Display| {
        ApiError::Archive(format!("the zip cannot be read from its beginning to its end: {error}; a tar always can"))
    };
    let limit = bounds.limit;
    let mut any = false;
    while let Some(mut file) = zip::read::read_zipfile_from_stream(&mut reader).map_err(|error| broken(&error))? {
        any = true;
        let name = file.name().map_err(|error| broken(&error))?.into_owned();
        // The rest of a file might be without end, be it an image or not.
        let too_large = || ApiError::Archive(format!("`{name}` is larger than {limit} bytes, the limit for one image"));
        if file.is_dir() || is_litter(&name) {
            let most = limit as u64 + 1;
            if io::copy(&mut (&mut file).take(most), &mut io::sink()).map_err(|error| broken(&error))? == most {
                return Err(too_large());
            }
            continue;
        }
        let custom_id = checked(&name)?;
        let Some(room) = wait(bounds.rooms.lend(SMALL_BYTES.min(limit)), send) else { return Ok(()) };
        let (content, room) = content(&mut file, room, bounds, send).map_err(|error| broken(&error))?;
        if content.is_err() {
            return Err(too_large());
        }
        if !wait_to_hand_over(send, room, custom_id, content) {
            return Ok(());
        }
    }
    if any { Ok(()) } else { Err(ApiError::Archive("the zip is empty".into())) }
}

/// An archive's file, unless it is larger than an image may be, with the room that it needs. `room` is what
/// it has to begin with.
fn content(
    file: &mut dyn Read,
    mut room: Room,
    bounds: &Bounds,
    send: &Sender,
) -> io::Result<(Result<Bytes, JobError>, Room)> {
    let limit = bounds.limit;
    let mut bytes = Vec::with_capacity(room.bytes().min(limit) + 1);
    (&mut *file).take(room.bytes() as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > room.bytes() && room.bytes() < limit {
        let gone = || io::Error::other("the receiver of items is gone");
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

/// Waits in a thread of its own; `None` once the receiver of items is gone.
fn wait<T>(something: impl Future<Output = T>, send: &Sender) -> Option<T> {
    tokio::runtime::Handle::current().block_on(unless_closed(something, send))
}

fn wait_to_hand_over(send: &Sender, room: Room, custom_id: String, content: Result<Bytes, JobError>) -> bool {
    let item = hand_over(send, room, custom_id, content, BTreeMap::new());
    tokio::runtime::Handle::current().block_on(item)
}

fn is_litter(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.starts_with("._") || LITTER.contains(&last) || name.starts_with("__MACOSX/")
}
