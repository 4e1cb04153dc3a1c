//! A snapshot: the state at a position of the log, so that recovery need not begin at its start.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `SLSNAPSH` |
//! | 8..12 | version of the format |
//! | 12..16 | CRC of the entry before the position |
//! | 16..24 | position in the log from which recovery goes on |
//! | 24..32 | length of the records |
//! | 32..36 | CRC-32 of the records |
//! | 36..40 | CRC-32 of bytes 0..36 |
//! | 64.. | records: length (4), kind (1), body of a [`Change`] |
//!
//! It is written in portions while work goes on, so its later records know of changes behind its
//! position; recovery applies those once more, which changes nothing (see [`Change`]). It takes its
//! name, `snapshot-<position>`, when it and all that it knows of is durable.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::change::Change;
use crate::platform::storage::{File, Storage};

const MAGIC: &[u8; 8] = b"SLSNAPSH";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const CHECKED_BYTES: usize = 36;
const PARTIAL: &str = "snapshot.partial";
/// How much is read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// Appends a change as a record.
pub(crate) fn put_record(change: &Change<'_>, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, 5);
    let kind = change.encode(out);
    let bytes = (out.len() - start - 5) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
    out[start + 4] = kind;
}

/// A snapshot on its way.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    storage: Arc<dyn Storage>,
    file: Arc<dyn File>,
    position: u64,
    before: u32,
    bytes: u64,
    crc: crc32fast::Hasher,
}

impl SnapshotWriter {
    /// Begins a snapshot at a [mark](super::Journal::mark).
    pub(crate) fn create(storage: &Arc<dyn Storage>, (position, before): (u64, u32)) -> io::Result<Self> {
        let file = storage.create(PARTIAL, 0)?;
        let crc = crc32fast::Hasher::new();
        Ok(Self { storage: storage.clone(), file, position, before, bytes: 0, crc })
    }

    /// Adds records.
    pub(crate) fn put(&mut self, records: &[u8]) -> io::Result<()> {
        self.file.write_at(records, HEADER_BYTES as u64 + self.bytes)?;
        self.bytes += records.len() as u64;
        self.crc.update(records);
        Ok(())
    }

    /// Removes what an attempt that failed has left.
    pub(crate) fn give_up(storage: &dyn Storage) {
        if let Err(error) = storage.remove(PARTIAL) {
            tracing::debug!(%error, "there is no partial snapshot");
        }
    }

    /// Makes it the one that counts, and removes the ones before. All that it knows of must be
    /// durable. Returns its length.
    pub(crate) fn finish(self) -> io::Result<u64> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&self.before.to_le_bytes());
        header[16..24].copy_from_slice(&self.position.to_le_bytes());
        header[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        header[32..36].copy_from_slice(&self.crc.finalize().to_le_bytes());
        let crc = crc32fast::hash(&header[..CHECKED_BYTES]);
        header[36..40].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&header, 0)?;
        self.file.sync()?;
        let name = name(self.position);
        self.storage.rename(PARTIAL, &name)?;
        self.storage.sync_names()?;
        for old in names(self.storage.as_ref())?.into_iter().filter(|(position, _)| *position < self.position) {
            self.storage.remove(&old.1)?;
        }
        Ok(self.bytes + HEADER_BYTES as u64)
    }
}

fn name(position: u64) -> String {
    format!("snapshot-{position:016x}")
}

/// All snapshots with their positions, the newest first.
pub(super) fn names(storage: &dyn Storage) -> io::Result<Vec<(u64, String)>> {
    let position = |name: &String| u64::from_str_radix(name.strip_prefix("snapshot-")?, 16).ok();
    let mut found: Vec<(u64, String)> =
        storage.names()?.into_iter().filter_map(|name| position(&name).map(|position| (position, name))).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Why a snapshot cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    Io(io::Error),
    Newer(u32),
    Damaged,
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where recovery goes on behind a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) position: u64,
    pub(super) before: u32,
}

/// Checks a whole snapshot, then gives its changes to `apply`.
pub(super) fn load(
    storage: &dyn Storage,
    name: &str,
    apply: &mut dyn FnMut(Change<'_>) -> Result<(), String>,
) -> Result<Mark, Unusable> {
    let file = storage.open(name)?;
    if file.bytes()? < HEADER_BYTES as u64 {
        return Err(Unusable::Damaged);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(&mut header, 0)?;
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    if &header[..8] != MAGIC {
        return Err(Unusable::Damaged);
    }
    if word(8) > VERSION {
        return Err(Unusable::Newer(word(8)));
    }
    let bytes = long(24);
    let is_long_enough = bytes.checked_add(HEADER_BYTES as u64).is_some_and(|end| file.bytes().is_ok_and(|b| b >= end));
    if crc32fast::hash(&header[..CHECKED_BYTES]) != word(36) || !is_long_enough {
        return Err(Unusable::Damaged);
    }
    // Nothing is applied before everything is known to be whole.
    let mut crc = crc32fast::Hasher::new();
    windows(file.as_ref(), bytes, &mut |window| {
        crc.update(window);
        Ok(window.len())
    })?;
    if crc.finalize() != word(32) {
        return Err(Unusable::Damaged);
    }
    windows(file.as_ref(), bytes, &mut |window| {
        let mut rest = window;
        while let Some((head, after)) = rest.split_first_chunk::<5>() {
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let Some(body) = after.get(..length) else { break };
            let change = Change::decode(head[4], body).ok_or(Unusable::Damaged)?;
            apply(change).map_err(|_| Unusable::Damaged)?;
            rest = &after[length..];
        }
        Ok(window.len() - rest.len())
    })?;
    Ok(Mark { position: long(16), before: word(12) })
}

/// Shows the records window by window; `look` says how much of a window it has used, and sees the
/// rest again.
fn windows(
    file: &dyn File,
    bytes: u64,
    look: &mut dyn FnMut(&[u8]) -> Result<usize, Unusable>,
) -> Result<(), Unusable> {
    let mut window = Vec::new();
    let mut at = 0;
    while at < bytes || !window.is_empty() {
        let kept = window.len();
        let more = ((bytes - at) as usize).min(WINDOW_BYTES);
        window.resize(kept + more, 0);
        file.read_at(&mut window[kept..], HEADER_BYTES as u64 + at)?;
        at += more as u64;
        let used = look(&window)?;
        // A record that does not end.
        if used == 0 && more == 0 {
            return Err(Unusable::Damaged);
        }
        window.drain(..used);
    }
    Ok(())
}
