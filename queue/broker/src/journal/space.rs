//! Disk space: spare files that are allocated ahead, and which appends may use the last of them.
//!
//! New jobs are refused at a high-water mark; the remaining room is for queued jobs: their records,
//! dead letters and acks. So a full disk drains by itself.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::{Files, SegmentFile};
use crate::platform::storage::Storage;

/// Spares beyond the reserve, so that the log never waits for an allocation.
const AHEAD: usize = 1;
/// Spares that new jobs may not use.
const RESERVE: usize = 4;
/// Length of a segment on a large disk.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
const SEGMENT_BYTES_MIN: u64 = 256 << 10;
/// Pause after a refused allocation before the next attempt.
const REFUSED_FOR: Duration = Duration::from_millis(100);

/// How much of the room an append may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// New work: may use what is beyond the reserve.
    Work,
    /// Large results of work, such as dead letters: may also use half of the reserve.
    Bulk,
    /// Changes that settle work and make room: may use everything.
    Settle,
}

/// The disk has no room for the append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("disk full")]
pub(crate) struct Full;

#[derive(Debug)]
pub(crate) struct Space {
    pub(super) segment_bytes: u64,
    spares: Vec<Arc<SegmentFile>>,
    /// Free bytes of the disk when last measured, minus what was allocated since.
    free_bytes: u64,
    next_number: u64,
    refused_at: Option<Instant>,
}

impl Space {
    /// Segments are small on a small disk.
    pub(super) fn new(storage: &Arc<dyn Storage>, segment_bytes: Option<u64>) -> io::Result<Self> {
        let by_disk = storage.disk_bytes()?.div_euclid(64).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let segment_bytes = segment_bytes.unwrap_or(by_disk);
        let free_bytes = storage.free_bytes()?;
        Ok(Self { segment_bytes, spares: Vec::new(), free_bytes, next_number: 0, refused_at: None })
    }

    /// Refuses `bytes` that would take from the reserve, or from what queued work is owed.
    pub(super) fn admit(&self, bytes: u64, share: Share, owed: u64) -> Result<(), Full> {
        let reserve = match share {
            Share::Work => RESERVE as u64,
            Share::Bulk => RESERVE as u64 / 2,
            Share::Settle => return Ok(()),
        };
        let there = self.room();
        let owed = if share == Share::Work { owed } else { 0 };
        if there < bytes + owed + reserve * self.segment_bytes { Err(Full) } else { Ok(()) }
    }

    /// A file of at least `bytes`: a spare, or one that is allocated now.
    pub(super) fn take(&mut self, files: &Arc<Files>, bytes: u64, share: Share) -> Result<Arc<SegmentFile>, Full> {
        if bytes > self.segment_bytes {
            return self.allocate(files, bytes);
        }
        let kept = match share {
            Share::Work => RESERVE,
            Share::Bulk => RESERVE / 2,
            Share::Settle => 0,
        };
        if self.spares.len() > kept {
            return self.spares.pop().ok_or(Full);
        }
        let allocated = self.allocate(files, self.segment_bytes);
        if share == Share::Settle { allocated.or_else(|full| self.spares.pop().ok_or(full)) } else { allocated }
    }

    fn allocate(&mut self, files: &Arc<Files>, bytes: u64) -> Result<Arc<SegmentFile>, Full> {
        if self.refused_at.is_some_and(|at| at.elapsed() < REFUSED_FOR) {
            return Err(Full);
        }
        let number = self.next_number();
        match SegmentFile::allocate(files, number, bytes) {
            Ok(file) => {
                self.free_bytes = self.free_bytes.saturating_sub(bytes);
                Ok(file)
            }
            Err(error) => {
                tracing::warn!(%error, bytes, "disk full: no segment allocated");
                self.refused_at = Some(Instant::now());
                Err(Full)
            }
        }
    }

    /// Free bytes, in spares and on the disk.
    pub(super) fn room(&self) -> u64 {
        self.free_bytes + self.spares.len() as u64 * self.segment_bytes
    }

    /// A number that no spare had before.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// How many spares are missing, and their length.
    pub(super) fn wanted(&self) -> (usize, u64) {
        ((RESERVE + AHEAD).saturating_sub(self.spares.len()), self.segment_bytes)
    }

    /// Adds a spare.
    pub(crate) fn put(&mut self, spare: Arc<SegmentFile>) {
        self.spares.push(spare);
    }

    /// Removes a spare to make room for something more urgent. Returns whether there was one.
    pub(crate) fn sacrifice(&mut self) -> bool {
        self.spares.pop().is_some_and(|spare| {
            spare.doom();
            true
        })
    }

    /// Records how many bytes the disk has free now.
    pub(crate) fn set_free_bytes(&mut self, bytes: u64) {
        self.free_bytes = bytes;
    }
}
