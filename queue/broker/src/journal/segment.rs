//! A segment: a file with a span of the log.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `SLJOURNL` |
//! | 8..12 | version of the format |
//! | 12..16 | 0 |
//! | 16..24 | base: the position in the log of the file's first byte |
//! | 24..32 | length of the span; the next segment's base is base + length |
//! | 32..40 | a random number, so that no two segments have the same chain of CRCs |
//! | 40..44 | CRC-32 of bytes 0..40 |
//! | 64.. | entries, the last of a full segment being a seal |
//!
//! Files are allocated ahead as `spare-<n>` and renamed to `segment-<base>` when the log reaches them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::platform::storage::{File, Storage};

/// Offset of the first entry in a segment.
pub(crate) const HEADER_BYTES: u64 = 64;
/// The version that we write, and the newest that we read. Version 1 has no marks, so damage in its
/// last segment looks the same as a torn tail.
pub(crate) const VERSION: u32 = 2;
/// Kind of the entry that ends a full segment; see [`super::change`] for the others.
pub(crate) const SEAL: u8 = 255;

const MAGIC: &[u8; 8] = b"SLJOURNL";
const CHECKED_BYTES: usize = 40;

/// The start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) base: u64,
    pub(crate) span: u64,
    pub(crate) salt: u64,
}

/// What the first bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderRead {
    Whole(Header),
    /// The file was allocated and never written.
    Empty,
    /// Written by a version that we do not know.
    Newer(u32),
    Damaged,
}

impl Header {
    /// Its bytes, and the CRC with which the chain of entries begins.
    pub(crate) fn encode(&self) -> ([u8; HEADER_BYTES as usize], u32) {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.span.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CHECKED_BYTES]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> HeaderRead {
        if bytes.iter().all(|byte| *byte == 0) {
            return HeaderRead::Empty;
        }
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if &bytes[..8] != MAGIC {
            return HeaderRead::Damaged;
        }
        // Future versions keep magic, version and this CRC where they are, so that a newer header and a
        // damaged one are never confused.
        if crc32fast::hash(&bytes[..CHECKED_BYTES]) != word(40) {
            return HeaderRead::Damaged;
        }
        if word(8) > VERSION {
            return HeaderRead::Newer(word(8));
        }
        let header = Self { version: word(8), base: long(16), span: long(24), salt: long(32) };
        if header.span <= HEADER_BYTES || header.base.checked_add(header.span).is_none() {
            return HeaderRead::Damaged;
        }
        HeaderRead::Whole(header)
    }
}

/// Files of old segments that stay open between reads. Any other is opened for each read.
const OPEN_FILES_MAX: usize = 32;

/// Opens files by name and keeps the last few open, so that thousands of segments do not each need a
/// descriptor.
#[derive(Debug)]
pub(crate) struct Files {
    storage: Arc<dyn Storage>,
    /// The least recently read first.
    open: Mutex<VecDeque<(String, Arc<dyn File>)>>,
}

impl Files {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { storage, open: Mutex::default() })
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Arc<dyn File>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut open = self.lock();
        let known = open.iter().position(|(known, _)| known == name).and_then(|at| open.remove(at));
        let (name, file) = match known {
            Some(entry) => entry,
            None => {
                let file = self.storage.open(name).or_else(|error| {
                    // Perhaps out of descriptors: close the cached files and retry.
                    open.clear();
                    if error.kind() == io::ErrorKind::NotFound { Err(error) } else { self.storage.open(name) }
                });
                (name.to_owned(), file?)
            }
        };
        if open.len() >= OPEN_FILES_MAX {
            open.pop_front();
        }
        open.push_back((name, file.clone()));
        Ok(file)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.lock().retain(|(known, _)| known != name);
        self.storage.remove(name)
    }
}

/// A segment's file, or a spare. It stays open while the log is written to it; afterwards it is opened
/// only for reads. Readers share it; a doomed file is removed when the last of them drops it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    files: Arc<Files>,
    name: Mutex<String>,
    /// The open file, until the segment is full.
    writable: Mutex<Option<Arc<dyn File>>>,
    /// Bytes that are allocated.
    pub(crate) bytes: u64,
    doomed: AtomicBool,
}

impl SegmentFile {
    /// Allocates a spare.
    pub(crate) fn allocate(files: &Arc<Files>, number: u64, bytes: u64) -> io::Result<Arc<Self>> {
        let name = format!("spare-{number}");
        let file = files.storage.create(&name, bytes)?;
        Ok(Self::new(files, name, Some(file), bytes))
    }

    /// A file that already exists, closed until it is read.
    pub(crate) fn existing(files: &Arc<Files>, name: String, bytes: u64) -> Arc<Self> {
        Self::new(files, name, None, bytes)
    }

    fn new(files: &Arc<Files>, name: String, writable: Option<Arc<dyn File>>, bytes: u64) -> Arc<Self> {
        let (name, writable, doomed) = (Mutex::new(name), Mutex::new(writable), AtomicBool::new(false));
        Arc::new(Self { files: files.clone(), name, writable, bytes, doomed })
    }

    fn writable(&self) -> MutexGuard<'_, Option<Arc<dyn File>>> {
        self.writable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, opened if necessary.
    pub(crate) fn file(&self) -> io::Result<Arc<dyn File>> {
        if let Some(file) = &*self.writable() {
            return Ok(file.clone());
        }
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        self.files.open(&name)
    }

    /// Keeps the file open, because the log continues in it.
    pub(crate) fn hold_open(&self) -> io::Result<()> {
        let file = self.file()?;
        *self.writable() = Some(file);
        Ok(())
    }

    /// Stops keeping the file open: nothing more is written to it.
    pub(crate) fn close(&self) {
        *self.writable() = None;
    }

    /// Makes a spare the segment of `header`, durably.
    pub(crate) fn begin(&self, header: &Header) -> io::Result<()> {
        let name = segment_name(header.base);
        {
            let mut current = self.name.lock().unwrap_or_else(PoisonError::into_inner);
            self.files.storage.rename(&current, &name)?;
            current.clone_from(&name);
        }
        let file = self.file()?;
        file.write_at(&header.encode().0, 0)?;
        file.sync()?;
        self.files.storage.sync_names()
    }

    /// Removes the file once no reader uses it.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire) {
            let name = self.name.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = self.files.remove(name) {
                tracing::warn!(%error, name, "dead segment not removed");
            }
        }
    }
}

/// Name of the segment that begins at a position.
pub(crate) fn segment_name(base: u64) -> String {
    format!("segment-{base:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_whole_newer_empty_or_damaged() {
        let header = Header { version: VERSION, base: 3, span: 1 << 20, salt: 9 };
        let (bytes, _) = header.encode();
        assert_eq!(Header::decode(&bytes), HeaderRead::Whole(header));
        assert_eq!(Header::decode(&[0; 64]), HeaderRead::Empty);
        let newer = Header { version: VERSION + 1, ..header }.encode().0;
        assert_eq!(Header::decode(&newer), HeaderRead::Newer(VERSION + 1));
        let older = Header { version: 1, ..header };
        assert_eq!(Header::decode(&older.encode().0), HeaderRead::Whole(older));
        for at in (0..12).chain(16..44) {
            let mut flipped = bytes;
            flipped[at] ^= 4;
            assert_eq!(Header::decode(&flipped), HeaderRead::Damaged, "byte {at}");
        }
    }
}
