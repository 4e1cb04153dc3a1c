//! A snapshot: the state at a position of the log, so that recovery need not begin at its start.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `SLSNAPSH` |
//! | 8..12 | version of the format |
//! | 12..16 | CRC of the entry before the position |
//! | 16..24 | position in the log from which recovery continues |
//! | 24..32 | length of the blocks |
//! | 36..40 | CRC-32 of bytes 0..36 |
//! | 64.. | blocks: length (4), CRC-32 of the block's place in the file and its records (4), records |
//!
//! A record is length (4), kind (1), body of a [`Change`]. In version 1, records were not in blocks,
//! and bytes 32..36 were the CRC of all of them.
//!
//! A snapshot is written in portions while work continues, so its later records may include changes
//! after its position; recovery applies those again, which changes nothing (see [`Change`]). It is
//! renamed to `snapshot-<position>` once it and every change that it includes are durable. The log
//! before it is removed, so there are two copies: a block damaged in one is read from the other.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::change::Change;
use crate::platform::storage::{File, Storage};

const MAGIC: &[u8; 8] = b"SLSNAPSH";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 64;
const CHECKED_BYTES: usize = 36;
const BLOCK_FRAME_BYTES: u64 = 8;
/// Bytes after which a snapshot is synced.
const SYNC_BYTES: usize = 1 << 20;
const PARTIAL: [&str; 2] = ["snapshot.partial", "snapshot-copy.partial"];

/// Appends a change as a record.
pub(crate) fn put_record(change: &Change<'_>, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, 5);
    let kind = change.encode(out);
    let bytes = (out.len() - start - 5) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
    out[start + 4] = kind;
}

/// A snapshot being written.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    storage: Arc<dyn Storage>,
    copies: [Arc<dyn File>; 2],
    position: u64,
    before: u32,
    bytes: u64,
    unsynced: usize,
}

impl SnapshotWriter {
    /// Begins a snapshot at a [mark](super::Journal::mark).
    pub(crate) fn create(storage: &Arc<dyn Storage>, (position, before): (u64, u32)) -> io::Result<Self> {
        let copies = [storage.create(PARTIAL[0], 0)?, storage.create(PARTIAL[1], 0)?];
        Ok(Self { storage: storage.clone(), copies, position, before, bytes: 0, unsynced: 0 })
    }

    /// Adds whole records, as one block.
    pub(crate) fn put(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let offset = HEADER_BYTES as u64 + self.bytes;
        let mut block = BytesMut::with_capacity(BLOCK_FRAME_BYTES as usize + records.len());
        block.put_u32_le(records.len() as u32);
        block.put_u32_le(block_crc(offset, records));
        block.put_slice(records);
        for copy in &self.copies {
            copy.write_at(&block, offset)?;
        }
        self.bytes += block.len() as u64;
        self.unsynced += block.len();
        if self.unsynced >= SYNC_BYTES {
            // In small portions: one long sync at the end would delay the journal's own.
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.copies.iter().try_for_each(|copy| copy.sync())
    }

    /// Removes what a failed attempt left.
    pub(crate) fn give_up(storage: &dyn Storage) {
        for name in PARTIAL {
            if let Err(error) = storage.remove(name) {
                tracing::debug!(%error, "no partial snapshot");
            }
        }
    }

    /// Makes this the current snapshot and removes earlier ones. Every change that it includes must be
    /// durable. Returns the length of both copies together.
    pub(crate) fn finish(self) -> io::Result<u64> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&self.before.to_le_bytes());
        header[16..24].copy_from_slice(&self.position.to_le_bytes());
        header[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32fast::hash(&header[..CHECKED_BYTES]);
        header[36..40].copy_from_slice(&crc.to_le_bytes());
        for copy in &self.copies {
            copy.write_at(&header, 0)?;
            copy.sync()?;
        }
        for (partial, name) in PARTIAL.into_iter().zip(file_names(self.position)) {
            self.storage.rename(partial, &name)?;
        }
        self.storage.sync_names()?;
        for old in positions(self.storage.as_ref())?.into_iter().filter(|position| *position < self.position) {
            for name in file_names(old) {
                match self.storage.remove(&name) {
                    // Version 1 had one copy.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        Ok(2 * (self.bytes + HEADER_BYTES as u64))
    }
}

fn block_crc(offset: u64, records: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&offset.to_le_bytes());
    crc.update(records);
    crc.finalize()
}

/// Names of a snapshot's two copies.
pub(crate) fn file_names(position: u64) -> [String; 2] {
    [format!("snapshot-{position:016x}"), format!("snapshot-{position:016x}.copy")]
}

/// Positions of all snapshots, the newest first.
pub(crate) fn positions(storage: &dyn Storage) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = storage.names()?.iter().filter_map(|name| position_of(name)).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.dedup();
    Ok(found)
}

/// The position of the snapshot that a file is a copy of, if any.
pub(crate) fn position_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("snapshot-")?;
    u64::from_str_radix(digits.strip_suffix(".copy").unwrap_or(digits), 16).ok()
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

/// Where recovery continues after a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) position: u64,
    pub(super) before: u32,
}

/// One copy of a snapshot, as far as it can be read.
struct Copy {
    name: String,
    file: Arc<dyn File>,
    version: u32,
    mark: Mark,
    records_bytes: u64,
    /// CRC of all records, in version 1.
    crc: u32,
}

impl Copy {
    fn open(storage: &dyn Storage, name: String) -> Result<Self, Unusable> {
        let file = storage.open(&name)?;
        let mut header = [0; HEADER_BYTES];
        if file.bytes()? < HEADER_BYTES as u64 {
            return Err(Unusable::Damaged);
        }
        file.read_at(&mut header, 0)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        if &header[..8] != MAGIC || crc32fast::hash(&header[..CHECKED_BYTES]) != word(36) {
            return Err(Unusable::Damaged);
        }
        if word(8) > VERSION {
            return Err(Unusable::Newer(word(8)));
        }
        let mark = Mark { position: long(16), before: word(12) };
        Ok(Self { name, file, version: word(8), mark, records_bytes: long(24), crc: word(32) })
    }

    fn read(&self, offset: u64, bytes: u64) -> io::Result<Option<Vec<u8>>> {
        if offset.checked_add(bytes).is_none_or(|end| self.file.bytes().is_ok_and(|there| there < end)) {
            return Ok(None);
        }
        let mut read = vec![0; bytes as usize];
        self.file.read_at(&mut read, offset)?;
        Ok(Some(read))
    }

    /// The records of the block at an offset, if they are whole in this copy.
    fn block(&self, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(frame) = self.read(offset, BLOCK_FRAME_BYTES)? else { return Ok(None) };
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| frame[at + i]));
        let records = self.read(offset + BLOCK_FRAME_BYTES, word(0).into())?;
        Ok(records.filter(|records| block_crc(offset, records) == word(4)))
    }

    /// All records of version 1, if they are whole.
    fn records_of_version_1(&self) -> io::Result<Option<Vec<u8>>> {
        let records = self.read(HEADER_BYTES as u64, self.records_bytes)?;
        Ok(records.filter(|records| crc32fast::hash(records) == self.crc))
    }
}

/// Checks a whole snapshot, each block in both of its copies, then passes its changes to `apply`.
/// Reports copies that are not whole to `damaged`.
pub(super) fn load(
    storage: &dyn Storage,
    position: u64,
    damaged: &mut dyn FnMut(&str),
    apply: &mut dyn FnMut(Change<'_>) -> Result<(), String>,
) -> Result<Mark, Unusable> {
    let mut copies = Vec::new();
    let mut problem = Unusable::Damaged;
    for name in file_names(position) {
        match Copy::open(storage, name.clone()) {
            Ok(copy) => copies.push(copy),
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(unusable) => {
                damaged(&name);
                problem = unusable;
            }
        }
    }
    let Some(first) = copies.first() else { return Err(problem) };
    if first.version == 1 {
        apply_records(&first.records_of_version_1()?.ok_or(Unusable::Damaged)?, apply)?;
        return Ok(first.mark);
    }
    // Find a whole copy of every block before any change is applied.
    let mut places = Vec::new();
    let (mut offset, end) = (HEADER_BYTES as u64, HEADER_BYTES as u64 + first.records_bytes);
    while offset < end {
        let mut whole = None;
        for copy in &copies {
            // A sector that cannot be read is treated like one that was changed.
            match copy.block(offset) {
                Ok(Some(records)) => whole = whole.or(Some((copy, offset, records.len() as u64))),
                Ok(None) | Err(_) => damaged(&copy.name),
            }
        }
        let (copy, at, bytes) = whole.ok_or(Unusable::Damaged)?;
        places.push((copy, at));
        offset += BLOCK_FRAME_BYTES + bytes;
    }
    for (copy, offset) in places {
        // Not `Damaged`: once half of it is applied, an older snapshot is of no use either.
        let unusable = |problem| Unusable::Io(io::Error::new(io::ErrorKind::InvalidData, problem));
        let records = copy.block(offset)?.ok_or_else(|| unusable("it changed while it was read"))?;
        apply_records(&records, apply).map_err(|_| unusable("it has changes that cannot be applied"))?;
    }
    Ok(first.mark)
}

fn apply_records(records: &[u8], apply: &mut dyn FnMut(Change<'_>) -> Result<(), String>) -> Result<(), Unusable> {
    let mut rest = records;
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<5>().ok_or(Unusable::Damaged)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let (body, after) = after.split_at_checked(length).ok_or(Unusable::Damaged)?;
        let change = Change::decode(head[4], body).ok_or(Unusable::Damaged)?;
        apply(change).map_err(|_| Unusable::Damaged)?;
        rest = after;
    }
    Ok(())
}
