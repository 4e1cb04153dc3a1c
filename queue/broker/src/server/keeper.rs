//! Keeps the journal short: allocates spare segments, writes snapshots, empties and drops old segments.
//!
//! A segment may be dropped when nothing in it is live, a snapshot covers it, and the changes that made
//! it dead are durable. Otherwise a power cut could bring back a message whose bytes were deleted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::core::{Core, now};
use super::shared::Shared;
use crate::journal::change::Change;
use crate::journal::entry::{Entry, Walk, WalkItem};
use crate::journal::segment::{HEADER_BYTES, SEAL, SegmentFile};
use crate::journal::snapshot::SnapshotWriter;
use crate::journal::{Haste, LogPlace, Stored};
use crate::panics::caught;
use crate::stream::put_id;

/// Pause between two rounds of the keeper.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two searches for a segment to empty: segments that drain by themselves need none.
const SWEEP_PAUSE: Duration = Duration::from_secs(2);
/// Dead room is freed after this time, however little it is.
const GIVE_BACK: Duration = Duration::from_secs(15);
/// Log that must follow the last snapshot before the next one, at least.
const SNAPSHOT_EVERY: u64 = 64 << 20;
/// Dead bytes that justify a snapshot at once, at least.
const WORTH_BYTES: u64 = 32 << 20;
/// Messages written to a snapshot in one turn with the lock.
const TURN_MESSAGES: usize = 2048;
/// Bytes moved out of an old segment in one turn with the lock.
const TURN_BYTES: usize = 1 << 20;

/// Dead bytes that may pile up before a snapshot, at most.
const DEAD_BYTES_MAX: u64 = 256 << 20;
/// Pause between two writes of the date.
const DATE_PAUSE: Duration = Duration::from_secs(60);
/// Segments emptied in one round, at most.
const SWEEPS_MAX: usize = 64;

/// The keeper's thread.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the keeper remembers between two rounds.
struct KeeperState {
    /// Where recovery would begin, and the length of the snapshot that it would read.
    mark: u64,
    snapshot_bytes: u64,
    snapshot_at: Instant,
    swept_at: Instant,
    dated_at: Option<Instant>,
}

impl Keeper {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (worker, stopping) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || {
            let now = Instant::now();
            let mut state = KeeperState { mark: 0, snapshot_bytes: 0, snapshot_at: now, swept_at: now, dated_at: None };
            while !stopping.load(Ordering::Acquire) {
                // A panic counts as a failed round: without the keeper the journal would grow forever.
                if let Err(error) = caught(|| worker.look(&mut state, &stopping)) {
                    tracing::warn!(%error, "journal not compacted; it will be retried");
                }
                std::thread::park_timeout(LOOK_PAUSE);
            }
        })?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Stops the thread and writes a snapshot, so that the next start has no log to replay.
    pub(super) fn end(mut self) {
        self.halt();
        if let Err(error) = self.shared.snapshot(0) {
            tracing::warn!(%error, "no snapshot written; the next start reads the log instead");
        }
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the journal's keeper panicked");
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    /// One round: checks the journal and does what it needs.
    fn look(&self, state: &mut KeeperState, stopping: &AtomicBool) -> io::Result<()> {
        if state.dated_at.is_none_or(|at| at.elapsed() >= DATE_PAUSE) {
            // The date matters only to a start with a wrong clock; compaction matters now.
            if let Err(error) = self.note_date() {
                tracing::debug!(%error, "date not written");
            }
            state.dated_at = Some(Instant::now());
        }
        // Writes deliveries and unconfirmed acks that are still held back.
        self.lock().finish_all();
        let is_short = self.fill_spares()?;
        if state.swept_at.elapsed() >= SWEEP_PAUSE || is_short {
            state.swept_at = Instant::now();
            self.sweep_or_log(Haste::None);
        }
        // Keeps up with the log however fast it grows; others get the lock between two segments.
        for _ in 0..SWEEPS_MAX {
            let (is_bloated, dead) = {
                let core = self.lock();
                let usage = core.journal.usage();
                (core.journal.is_bloated(&usage), usage.dead_bytes)
            };
            // Only a snapshot lets us free emptied segments, so not too many may pile up before it.
            let is_enough = !is_bloated || dead >= DEAD_BYTES_MAX || stopping.load(Ordering::Acquire);
            if is_enough || !self.sweep_or_log(Haste::Now) {
                break;
            }
            self.fill_spares()?;
        }
        self.drop_dead(state.mark)?;
        let (dead, head) = {
            let mut core = self.lock();
            let old = state.snapshot_at.elapsed() >= GIVE_BACK;
            if old || is_short {
                core.journal.roll_if_dead();
                core.finish_all();
            }
            (core.journal.dead_bytes(), core.journal.mark().0)
        };
        let is_worth = dead >= WORTH_BYTES.max(4 * state.snapshot_bytes).min(DEAD_BYTES_MAX);
        let is_time = dead > 0 && (is_short || state.snapshot_at.elapsed() >= GIVE_BACK);
        let is_long = head - state.mark >= SNAPSHOT_EVERY.max(4 * state.snapshot_bytes);
        if is_worth || is_time || is_long {
            (state.mark, state.snapshot_bytes) = self.snapshot(state.snapshot_bytes)?;
            state.snapshot_at = Instant::now();
            self.drop_dead(state.mark)?;
        }
        Ok(())
    }

    /// Writes the date that is believed now, for the next start.
    fn note_date(&self) -> io::Result<()> {
        let (files, date) = {
            let mut core = self.lock();
            let now = now();
            (core.journal.files().clone(), core.calendar.look(now.wall, now.clock))
        };
        super::date::write(files.storage().as_ref(), date)
    }

    /// Allocates spares. Returns whether some are still missing.
    fn fill_spares(&self) -> io::Result<bool> {
        let (files, (missing, bytes)) = {
            let mut core = self.lock();
            (core.journal.files().clone(), core.journal.spares_wanted())
        };
        let mut is_short = false;
        for _ in 0..missing {
            let number = self.lock().journal.space().next_number();
            match SegmentFile::allocate(&files, number, bytes) {
                Ok(spare) => self.lock().journal.space().put(spare),
                Err(error) => {
                    tracing::debug!(%error, "disk full: no spare segment allocated");
                    is_short = true;
                    break;
                }
            }
        }
        let free = files.storage().free_bytes()?;
        self.lock().journal.space().set_free_bytes(free);
        Ok(is_short)
    }

    pub(super) fn drop_dead(&self, mark: u64) -> io::Result<()> {
        let dead = {
            let mut core = self.lock();
            core.finish_all();
            core.journal.dead_before(mark)
        };
        if dead.is_empty() {
            return Ok(());
        }
        self.committer.barrier()?;
        self.lock().journal.drop_segments(&dead);
        Ok(())
    }

    /// [Sweeps](Self::sweep) and returns whether a segment was emptied.
    fn sweep_or_log(&self, haste: Haste) -> bool {
        self.sweep(haste).unwrap_or_else(|error| {
            tracing::debug!(%error, "old segment not emptied");
            false
        })
    }

    /// Moves live entries out of the emptiest old segment. Returns whether there was one.
    pub(super) fn sweep(&self, haste: Haste) -> io::Result<bool> {
        let Some((base, segment)) = self.lock().journal.emptiest(haste) else { return Ok(false) };
        // A sealed segment may not be written to its end yet; the unwritten part would look like damage.
        self.lock().finish_all();
        self.committer.barrier()?;
        let file = segment.file()?;
        let mut bytes = vec![0; (file.bytes()?.min(segment.bytes) - HEADER_BYTES) as usize];
        file.read_at(&mut bytes, HEADER_BYTES)?;
        let mut walk = Sweep { steps: Walk::new(base + HEADER_BYTES, &bytes, None), is_over: false, is_damaged: false };
        loop {
            // Walks without the lock: checking a whole segment takes milliseconds.
            let turn = walk.turn();
            let mut core = self.lock();
            for (stored, place) in &turn {
                core.carry(stored, *place)?;
            }
            if walk.is_over {
                if walk.is_damaged {
                    core.give_up_between(base, base + segment.bytes);
                    self.timer_set.notify_one();
                }
                core.finish_all();
                return Ok(true);
            }
            core.finish_all();
        }
    }

    /// Writes a snapshot. Returns the log position at which recovery continues after it, and its length; the
    /// last one had `expected_bytes`.
    pub(super) fn snapshot(&self, expected_bytes: u64) -> io::Result<(u64, u64)> {
        let (storage, mark, streams) = {
            let mut core = self.lock();
            core.finish_all();
            (
                core.journal.files().storage().clone(),
                core.journal.mark(),
                core.streams.keys().copied().collect::<Vec<_>>(),
            )
        };
        let write = || {
            let mut writer = SnapshotWriter::create(&storage, mark)?;
            for stream in &streams {
                self.snapshot_stream(*stream, &mut writer)?;
            }
            // Every change in the snapshot must be durable before the snapshot is valid.
            self.lock().finish_all();
            self.committer.barrier()?;
            writer.finish()
        };
        let written = write().or_else(|error| {
            SnapshotWriter::give_up(storage.as_ref());
            // On a full disk, a snapshot frees more than a spare takes. But we do not give up one spare
            // after another: they are reserved for acks.
            let is_full = error.kind() == io::ErrorKind::StorageFull;
            let is_enough = storage.free_bytes()?.saturating_add(self.lock().journal.spare_bytes()) >= expected_bytes;
            if is_full && is_enough && self.lock().journal.space().sacrifice() { write() } else { Err(error) }
        });
        if written.is_err() {
            SnapshotWriter::give_up(storage.as_ref());
        }
        written.map(|bytes| (mark.0, bytes))
    }

    fn snapshot_stream(&self, id: u32, writer: &mut SnapshotWriter) -> io::Result<()> {
        let mut records = BytesMut::new();
        let mut next = 0;
        let ids = {
            let core = self.lock();
            let Some(stream) = core.streams.get(&id) else { return Ok(()) };
            stream.snapshot_head(&mut records);
            stream.snapshot_ids()
        };
        for portion in ids.chunks(TURN_MESSAGES) {
            portion.iter().for_each(|known| put_id(known, id, &mut records));
            writer.put(&records.split())?;
        }
        loop {
            writer.put(&records.split())?;
            let core = self.lock();
            let Some(stream) = core.streams.get(&id) else { return Ok(()) };
            if let Some(following) = stream.snapshot_messages(next, TURN_MESSAGES, &mut records) {
                next = following;
            } else {
                // After the messages, because recovery ignores deliveries of messages that do not exist.
                stream.snapshot_tail(&mut records);
                drop(core);
                return writer.put(&records);
            }
        }
    }
}

/// A walk through a segment that is being emptied.
struct Sweep<'a> {
    steps: Walk<'a>,
    is_over: bool,
    is_damaged: bool,
}

impl<'a> Sweep<'a> {
    /// The next messages, about [`TURN_BYTES`] in total; none at the segment's end.
    fn turn(&mut self) -> Vec<(Stored<'a>, LogPlace)> {
        let (mut turn, mut bytes) = (Vec::new(), 0);
        while bytes <= TURN_BYTES && !self.is_over {
            match self.steps.next() {
                // Anything after a seal is left over from before a torn tail.
                None | Some(WalkItem::Entry { entry: Entry { kind: SEAL, .. }, .. }) => self.is_over = true,
                Some(WalkItem::Gap { .. }) => self.is_damaged = true,
                Some(WalkItem::Entry { position, entry }) => {
                    if let Some(Change::Stored(stored)) = Change::decode(entry.kind, entry.body) {
                        bytes += entry.bytes();
                        turn.push((stored, LogPlace { position, bytes: entry.bytes() as u32 }));
                    }
                }
            }
        }
        turn
    }
}

impl Core {
    /// Reports as lost the messages that remain in a span of the log after the intact ones were moved out of it.
    fn give_up_between(&mut self, from: u64, to: u64) {
        let mut lost = Vec::new();
        for stream in self.streams.values() {
            let there = stream.messages.from(0).filter(|message| (from..to).contains(&message.place().position));
            lost.extend(there.map(|message| ((stream.id, message.sequence()), message.place())));
        }
        let damaged = io::Error::from(io::ErrorKind::InvalidData);
        lost.into_iter().for_each(|(of, place)| self.unreadable(of, place, &damaged));
    }

    /// Rewrites a message at the head of the log, if `place` is still where it is stored.
    fn carry(&mut self, stored: &Stored<'_>, place: LogPlace) -> io::Result<()> {
        let message = self.streams.get(&stored.stream).and_then(|stream| stream.messages.get(stored.sequence));
        if message.is_none_or(|message| message.place() != place) {
            return Ok(());
        }
        // A move serves no waiting requests, and replaces no older message.
        let moved = Change::Stored(Stored { moved: true, replaces: 0, ..*stored });
        let full = |full| io::Error::new(io::ErrorKind::StorageFull, full);
        self.change(&moved, false, now()).map_err(full)?;
        self.journal.count_carried(u64::from(place.bytes));
        Ok(())
    }
}
