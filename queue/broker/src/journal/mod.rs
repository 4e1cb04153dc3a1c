//! The journal: one append-only log for all streams of a broker.
//!
//! The log is a sequence of positions, divided into segments (`segment`). [`Journal::append`] gives
//! an entry (`entry`) its place and keeps its bytes; [`Journal::commit`] hands them to the committer
//! (`commit`), which makes them durable. The streams know what is live: they
//! [claim](Journal::claim) and [release](Journal::release) places. A segment without claims is
//! dropped once a snapshot (`snapshot`) covers it.
//!
//! Invariant: between two commits, the log, the streams and the answers to clients change together
//! under one lock. So the order in the log is the order of events.

pub(crate) mod frame;
pub(crate) mod change;
pub(crate) mod entry;
pub(crate) mod segment;
pub(crate) mod commit;
pub(crate) mod recovery;
pub(crate) mod snapshot;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

pub(crate) use change::{Change, Indexed, LogPlace, Stored, stored_bytes};
pub(crate) use commit::{Committer, Release};
pub(crate) use recovery::{Damage, OpenError};
pub(crate) use space::{Full, Share};

use commit::{Batch, Write};
use entry::MARK_BYTES;
use frame::FRAME_BYTES;
use segment::{Files, HEADER_BYTES, Header, SEAL, SegmentFile, VERSION};
use space::Space;

/// Bytes at the end of the log that stay in memory, so that messages delivered soon are not read
/// from disk.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// Appended bytes that are handed to the committer even if no client waits for them.
const LAZY_BYTES_MAX: usize = 64 << 10;

/// Segments that the log may use beyond 1.5 times its live bytes before old ones are emptied at once.
const BLOAT_SEGMENTS_MAX: u64 = 8;

/// The log, and the entries that are not yet handed to the committer.
#[derive(Debug)]
pub(crate) struct Journal<R> {
    files: Arc<Files>,
    committer: Arc<Committer<R>>,
    segments: BTreeMap<u64, Segment>,
    /// Base of the segment being written.
    active: u64,
    /// Position of the next entry.
    head: u64,
    /// CRC of the last entry.
    crc: u32,
    space: Space,
    /// Entries that end at `head` and are not yet handed over.
    open: BytesMut,
    writes: Vec<Write>,
    must_sync: bool,
    /// Durable position that the log's last mark records.
    marked: u64,
    /// Where the last entry that is not a mark ends.
    told: u64,
    /// Bytes of entries appended since the start, and how many of them were carried from old segments.
    appended: u64,
    carried: u64,
    recent: Recent,
}

/// A span of the log.
#[derive(Debug)]
struct Segment {
    file: Arc<SegmentFile>,
    /// Length of its span of the log.
    span: u64,
    /// Format version of its file.
    version: u32,
    /// Bytes of claimed entries.
    live: u64,
    /// `live` at the last call of [`Journal::emptiest`].
    live_before: u64,
}

impl<R: Release> Journal<R> {
    /// Makes sure that entries of `bytes` in total can be appended. New jobs are refused long before
    /// there is no room to settle queued ones.
    ///
    /// `owed` is what queued jobs may still need for their records.
    pub(crate) fn make_room(&mut self, bytes: u64, share: Share, owed: u64) -> Result<(), Full> {
        let left = self.left();
        self.space.admit(bytes.saturating_sub(left), share, owed)?;
        if bytes > left {
            let file = self.space.take(&self.files, bytes + HEADER_BYTES + FRAME_BYTES as u64, share)?;
            self.roll(file);
        }
        Ok(())
    }

    /// Bytes that still fit in the active segment before its seal.
    fn left(&self) -> u64 {
        if self.segments[&self.active].version < VERSION {
            // Never append to a segment of an older version: older programs could not read the new entries.
            return 0;
        }
        let end = self.active + self.segments[&self.active].span;
        end.saturating_sub(self.head + FRAME_BYTES as u64)
    }

    /// Appends an entry. `durable`: a client waits for an answer, so the entry is synced first.
    pub(crate) fn append(&mut self, change: &Change<'_>, share: Share, durable: bool) -> Result<LogPlace, Full> {
        let estimate = match change {
            Change::Stored(stored) => stored.body_bytes(),
            Change::StreamPut { config, .. } | Change::ConsumerPut { config, .. } => config.len() + 64,
            Change::Registered { id, .. } => id.len() + 64,
            _ => 64,
        };
        let needed = (FRAME_BYTES + estimate) as u64;
        if needed > self.left() {
            self.make_room(needed, share, 0)?;
        }
        let (position, before) = (self.head, self.open.len());
        self.crc = entry::encode(change, position, self.crc, &mut self.open);
        let bytes = (self.open.len() - before) as u64;
        self.head += bytes;
        self.appended += bytes;
        self.told = self.head;
        self.must_sync |= durable;
        // Invariant: an entry is within one segment, with room for the seal after it.
        debug_assert!(self.head + FRAME_BYTES as u64 <= self.active + self.segments[&self.active].span);
        Ok(LogPlace { position, bytes: bytes as u32 })
    }

    /// Makes the next commit sync everything up to here.
    pub(crate) fn require_sync(&mut self) {
        self.must_sync = true;
    }

    /// Seals the active segment and continues the log in `file`.
    fn roll(&mut self, file: Arc<SegmentFile>) {
        let mut seal = BytesMut::zeroed(FRAME_BYTES);
        entry::seal(self.head, self.crc, &mut seal, SEAL);
        self.open.put_slice(&seal);
        self.head += FRAME_BYTES as u64;
        self.close_open();
        let base = self.active + self.segments[&self.active].span;
        let header = Header { version: VERSION, base, span: file.bytes, salt: rand_salt() };
        self.writes.push(Write::Begin { segment: file.clone(), header });
        let segment = Segment { span: file.bytes, version: VERSION, file, live: 0, live_before: 0 };
        self.segments.insert(base, segment);
        (self.active, self.head, self.crc) = (base, base + HEADER_BYTES, header.encode().1);
    }

    /// Moves the open entries to the writes.
    fn close_open(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let bytes = self.open.split().freeze();
        let position = self.head - bytes.len() as u64;
        self.recent.push(position, bytes.clone());
        let segment = self.segments[&self.active].file.clone();
        self.writes.push(Write::Data { segment, offset: position - self.active, bytes });
    }

    /// Hands what was appended to the committer, with the `release` that waits for it. Returns `release`
    /// if it need not wait: nothing durable was appended, and the committer is idle.
    ///
    /// Entries that need not be durable (deliveries, unconfirmed acks) stay here until one must be, or
    /// until [`Journal::flush`]: they are not worth waking a thread for.
    pub(crate) fn commit(&mut self, release: Option<R>) -> Option<R> {
        let is_lazy = !self.must_sync && self.open.len() < LAZY_BYTES_MAX && self.writes.is_empty();
        if is_lazy && (release.is_none() || self.committer.is_idle()) {
            return release;
        }
        self.hand_over(release);
        None
    }

    /// Hands what was appended to the committer, however little it is.
    pub(crate) fn flush(&mut self) {
        // An idle log is marked too, so that later damage to its last entries is not mistaken for a torn tail.
        if self.marked < self.told && self.committer.durable() >= self.told {
            self.put_mark();
        }
        if !self.open.is_empty() || !self.writes.is_empty() {
            self.hand_over(None);
        }
    }

    fn hand_over(&mut self, release: Option<R>) {
        if !self.open.is_empty() && self.marked < self.told {
            self.put_mark();
        }
        self.close_open();
        let writes = std::mem::take(&mut self.writes);
        let bytes = writes.iter().map(|write| if let Write::Data { bytes, .. } = write { bytes.len() } else { 0 });
        let bytes = bytes.sum();
        let must_sync = std::mem::take(&mut self.must_sync);
        self.committer.push(Batch { writes, must_sync, bytes, end: self.head, release });
    }

    /// Appends a mark: it records how far the log is durable.
    fn put_mark(&mut self) {
        let durable = self.committer.durable();
        if durable > self.marked && self.left() >= MARK_BYTES as u64 {
            self.crc = entry::mark(durable, self.head, self.crc, &mut self.open);
            self.head += MARK_BYTES as u64;
            self.marked = durable;
        }
    }

    /// The thread that makes things durable.
    pub(crate) fn committer(&self) -> &Arc<Committer<R>> {
        &self.committer
    }

    /// An entry's bytes, or where to read them.
    pub(crate) fn read(&mut self, place: LogPlace) -> Source {
        let open_start = self.head - self.open.len() as u64;
        if place.position >= open_start {
            let from = (place.position - open_start) as usize;
            return Source::Memory(Bytes::copy_from_slice(&self.open[from..from + place.bytes as usize]));
        }
        if let Some(bytes) = self.recent.get(place) {
            return Source::Memory(bytes);
        }
        let (base, segment) = self.segment_of(place).expect("live entries lie in segments that are there");
        Source::Disk { file: segment.file.clone(), offset: place.position - base, place }
    }

    fn segment_of(&self, place: LogPlace) -> Option<(u64, &Segment)> {
        self.segments.range(..=place.position).next_back().map(|(base, segment)| (*base, segment))
    }

    /// Marks the entry as needed. Returns false if no segment holds it.
    pub(crate) fn claim(&mut self, place: LogPlace) -> bool {
        match self.segments.range_mut(..=place.position).next_back() {
            Some((base, segment)) if place.position + u64::from(place.bytes) <= base + segment.span => {
                segment.live += u64::from(place.bytes);
                true
            }
            _ => false,
        }
    }

    /// Marks the entry as no longer needed.
    pub(crate) fn release(&mut self, place: LogPlace) {
        if let Some((_, segment)) = self.segments.range_mut(..=place.position).next_back() {
            debug_assert!(segment.live >= u64::from(place.bytes), "released more than was claimed");
            segment.live = segment.live.saturating_sub(u64::from(place.bytes));
        }
    }

    /// Where recovery starts after a snapshot that begins now, and the CRC before that position.
    pub(crate) fn mark(&self) -> (u64, u32) {
        (self.head, self.crc)
    }

    /// The folder's files.
    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// Bases of the segments before `position` that hold no live entries.
    pub(crate) fn dead_before(&self, position: u64) -> Vec<u64> {
        let dead = self.segments.iter().filter(|(base, s)| s.live == 0 && **base + s.span <= position);
        dead.map(|(base, _)| *base).filter(|base| *base != self.active).collect()
    }

    /// Drops dead segments. The changes that made them dead must be durable.
    pub(crate) fn drop_segments(&mut self, bases: &[u64]) {
        for base in bases {
            if let Some(segment) = self.segments.remove(base) {
                debug_assert_eq!(segment.live, 0, "a dead segment came to life");
                segment.file.doom();
            }
        }
    }

    /// Bytes of sealed segments that hold no live entries.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.usage().dead_bytes
    }

    /// What the log uses on disk.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage { appended_bytes: self.appended, carried_bytes: self.carried, ..Usage::default() };
        for (base, segment) in &self.segments {
            usage.segments += 1;
            usage.bytes += segment.span;
            usage.live_bytes += segment.live;
            if segment.live == 0 && *base != self.active {
                usage.dead_bytes += segment.span;
            }
        }
        usage
    }

    /// Whether the log uses so much more space than its live bytes that segments must be emptied now.
    pub(crate) fn is_bloated(&self, usage: &Usage) -> bool {
        let Usage { bytes, live_bytes, dead_bytes, .. } = *usage;
        bytes - dead_bytes > live_bytes + live_bytes / 2 + BLOAT_SEGMENTS_MAX * self.space.segment_bytes
    }

    /// The sealed segment with the smallest live part, if at most half of it is live. With
    /// [`Haste::None`], skips segments that drain by themselves: their live bytes changed since the last call.
    pub(crate) fn emptiest(&mut self, haste: Haste) -> Option<(u64, Arc<SegmentFile>)> {
        let active = self.active;
        let sealed = self.segments.iter_mut().filter(|(base, segment)| **base != active && segment.live > 0);
        let candidates = sealed.filter_map(|(base, segment)| {
            let is_quiet = std::mem::replace(&mut segment.live_before, segment.live) == segment.live;
            ((is_quiet || haste == Haste::Now) && segment.live * 2 <= segment.span).then_some((*base, segment))
        });
        let (base, segment) = candidates.min_by_key(|(_, segment)| segment.live * 1024 / segment.span)?;
        Some((base, segment.file.clone()))
    }

    /// Counts bytes that were carried to the head from an old segment.
    pub(crate) fn count_carried(&mut self, bytes: u64) {
        self.carried += bytes;
    }

    /// Seals the active segment if most of what was written to it is dead, so that its space can be freed.
    pub(crate) fn roll_if_dead(&mut self) {
        let (segment, used) = (&self.segments[&self.active], self.head - self.active);
        if used > segment.span / 4
            && segment.live * 4 < used
            && let Ok(file) = self.space.take(&self.files, 0, Share::Work)
        {
            self.roll(file);
        }
    }

    /// How many spare files must be allocated now, and their length.
    pub(crate) fn spares_wanted(&mut self) -> (usize, u64) {
        self.space.wanted()
    }

    /// Bytes by which the log can still grow on this disk.
    pub(crate) fn room(&self) -> u64 {
        self.space.room()
    }

    /// Length of a spare.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.space.segment_bytes
    }

    /// Spare files, and the free disk space at the last measurement.
    pub(crate) fn space(&mut self) -> &mut Space {
        &mut self.space
    }
}

/// What a log uses on disk, and what was written to it since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Segments, including the one being written.
    pub segments: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Bytes of entries that are still needed.
    pub live_bytes: u64,
    /// Bytes of segments that hold no live entries and wait for a snapshot.
    pub dead_bytes: u64,
    /// Bytes of entries that were appended, including carried ones.
    pub appended_bytes: u64,
    /// Bytes of entries that were carried from old segments.
    pub carried_bytes: u64,
}

impl Usage {
    /// Bytes appended per byte of new entries.
    pub fn amplification(&self) -> f64 {
        self.appended_bytes as f64 / self.appended_bytes.saturating_sub(self.carried_bytes).max(1) as f64
    }
}

/// Whether segments that drain by themselves are emptied too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// There is room: carrying entries that will soon be released would waste work.
    None,
    /// The log is [bloated](Journal::is_bloated).
    Now,
}

fn rand_salt() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// An entry that was looked up.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Its bytes, frame included.
    Memory(Bytes),
    /// Where they are. The file is not removed while this value exists.
    Disk { file: Arc<SegmentFile>, offset: u64, place: LogPlace },
}

impl Source {
    /// The entry's bytes; checks those that it reads from disk. Blocks.
    pub(crate) fn load(&self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::Disk { file, offset, place } => {
                let mut bytes = vec![0; place.bytes as usize];
                file.file()?.read_at(&mut bytes, *offset)?;
                match entry::Entry::decode(place.position, &bytes) {
                    Some(entry) if entry.bytes() == bytes.len() => Ok(bytes.into()),
                    _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the entry is damaged")),
                }
            }
        }
    }
}

/// The latest bytes of the log, by position.
#[derive(Debug, Default)]
struct Recent {
    chunks: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, position: u64, bytes: Bytes) {
        self.bytes += bytes.len();
        self.chunks.push_back((position, bytes));
        while self.bytes > RECENT_BYTES_MAX {
            let Some((_, oldest)) = self.chunks.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    fn get(&self, place: LogPlace) -> Option<Bytes> {
        let after = self.chunks.partition_point(|(start, _)| *start <= place.position);
        let (start, chunk) = self.chunks.get(after.checked_sub(1)?)?;
        let from = (place.position - start) as usize;
        chunk.get(from..from + place.bytes as usize).map(|slice| chunk.slice_ref(slice))
    }
}
