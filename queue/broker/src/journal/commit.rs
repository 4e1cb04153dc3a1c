//! Group commit: one thread writes the changes of all streams, in order.
//!
//! While a sync runs, further batches queue up; the next sync makes all of them durable at once. So
//! clients share the cost of a sync, and none waits for more than two.
//!
//! Durability: a batch is released after its bytes are written and, if it must be durable, synced.
//! Batches are released in the order in which they were made. A failed write or sync is final:
//! nothing is released after it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use super::segment::{Header, SegmentFile};
use crate::panics::caught;

/// How long written bytes without a waiting client may stay unsynced.
const LAZY_SYNC: Duration = Duration::from_millis(100);
/// Adjacent writes shorter than this are joined.
const JOIN_BYTES: usize = 64 * 1024;

/// What waits for a batch. Releasing it must not block.
pub(crate) trait Release: Send + 'static {
    /// The batch is safe.
    fn release(self);
}

/// One step on disk.
#[derive(Debug)]
pub(super) enum Write {
    /// The log continues in this file.
    Begin { segment: Arc<SegmentFile>, header: Header },
    /// Bytes at an offset of the file that was begun last.
    Data { segment: Arc<SegmentFile>, offset: u64, bytes: Bytes },
}

/// Steps that belong together, and what waits for them.
#[derive(Debug)]
pub(crate) struct Batch<R> {
    pub(super) writes: Vec<Write>,
    pub(super) must_sync: bool,
    pub(super) bytes: usize,
    /// Where the log ends after this batch.
    pub(super) end: u64,
    pub(super) release: Option<R>,
}

/// The thread's handle.
#[derive(Debug)]
pub(crate) struct Committer<R> {
    shared: Arc<Shared<R>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<R> {
    state: Mutex<CommitState<R>>,
    /// Notified when there is work, or the thread must stop.
    work: Condvar,
    /// Notified when batches are released, or the thread fails.
    progress: Condvar,
    /// Everything before this position is on disk.
    durable: AtomicU64,
}

#[derive(Debug)]
struct CommitState<R> {
    waiting: Vec<Batch<R>>,
    waiting_bytes: usize,
    /// Batches ever pushed, and ever released.
    pushed: u64,
    released: u64,
    stop: bool,
    failed: bool,
}

impl<R> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, CommitState<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Release> Committer<R> {
    /// Starts the thread. `current` is the segment being written, and the log on disk ends at `end`.
    /// `on_failure` is called once, when a write or sync has failed.
    pub(super) fn start(
        current: Arc<SegmentFile>,
        end: u64,
        on_failure: Box<dyn FnOnce(io::Error) + Send>,
    ) -> io::Result<Self> {
        let state =
            CommitState { waiting: Vec::new(), waiting_bytes: 0, pushed: 0, released: 0, stop: false, failed: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            durable: AtomicU64::new(end),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            // A panic here is as final as a failed write: what is on disk is unknown.
            if let Err(error) = caught(|| run(&worker, current)) {
                let mut state = worker.lock();
                state.failed = true;
                state.waiting.clear();
                drop(state);
                worker.progress.notify_all();
                on_failure(error);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a batch. After a failure, drops it together with what waits for it.
    pub(super) fn push(&self, batch: Batch<R>) {
        let mut state = self.shared.lock();
        if state.failed {
            return;
        }
        state.pushed += 1;
        state.waiting_bytes += batch.bytes;
        state.waiting.push(batch);
        self.shared.work.notify_one();
    }

    /// Whether every batch pushed so far is released. If so, a batch without writes need not be pushed.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.shared.lock();
        state.pushed == state.released && !state.failed
    }

    /// Everything before this position is on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Whether a write or sync has failed, so that nothing more is released.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared.lock().failed
    }

    /// Bytes that wait to be written.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.shared.lock().waiting_bytes
    }

    /// Returns once every batch pushed before is durable; fails if the journal has failed.
    pub(crate) fn barrier(&self) -> io::Result<()> {
        self.push(Batch { writes: Vec::new(), must_sync: true, bytes: 0, end: 0, release: None });
        let mut state = self.shared.lock();
        let target = state.pushed;
        while state.released < target && !state.failed {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed { Err(io::Error::other("the journal has failed")) } else { Ok(()) }
    }
}

impl<R> Drop for Committer<R> {
    /// Writes and syncs every batch pushed before.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_one();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the journal's thread panicked");
        }
    }
}

fn run<R: Release>(shared: &Shared<R>, mut current: Arc<SegmentFile>) -> io::Result<()> {
    let mut is_dirty = false;
    let mut end = shared.durable.load(Ordering::Acquire);
    let mut joined = Vec::new();
    loop {
        let (batches, stop) = next(shared, is_dirty);
        let must_sync = batches.iter().any(|batch| batch.must_sync) || batches.is_empty();
        for write in joined_writes(batches.iter().flat_map(|batch| &batch.writes), &mut joined) {
            match write {
                CommitStep::Begin(segment, header) => {
                    // Sync the old segment before anything is written to the next one: recovery
                    // treats a gap in the middle as damage.
                    current.file()?.sync()?;
                    segment.begin(header)?;
                    current.close();
                    current = segment.clone();
                }
                CommitStep::Data(segment, offset, bytes) => segment.file()?.write_at(bytes, offset)?,
            }
            is_dirty = true;
        }
        end = batches.iter().map(|batch| batch.end).fold(end, u64::max);
        if must_sync && is_dirty {
            current.file()?.sync()?;
            is_dirty = false;
            shared.durable.store(end, Ordering::Release);
        }
        let (count, bytes) = (batches.len() as u64, batches.iter().map(|batch| batch.bytes).sum::<usize>());
        batches.into_iter().filter_map(|batch| batch.release).for_each(Release::release);
        let mut state = shared.lock();
        state.released += count;
        state.waiting_bytes -= bytes;
        drop(state);
        shared.progress.notify_all();
        if stop && count == 0 {
            return Ok(());
        }
    }
}

/// Waits for batches. An empty result means: sync what is dirty.
fn next<R>(shared: &Shared<R>, is_dirty: bool) -> (Vec<Batch<R>>, bool) {
    let mut state = shared.lock();
    while state.waiting.is_empty() && !state.stop {
        if is_dirty {
            let (guard, timeout) = shared.work.wait_timeout(state, LAZY_SYNC).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() {
                break;
            }
        } else {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
    (std::mem::take(&mut state.waiting), state.stop)
}

enum CommitStep<'a> {
    Begin(&'a Arc<SegmentFile>, &'a Header),
    Data(&'a Arc<SegmentFile>, u64, &'a [u8]),
}

/// The same writes with adjacent small ones joined in `buffer`, for fewer system calls.
fn joined_writes<'a>(writes: impl Iterator<Item = &'a Write>, buffer: &'a mut Vec<u8>) -> Vec<CommitStep<'a>> {
    let writes: Vec<&Write> = writes.collect();
    // Two passes, because the second borrows slices of the buffer that the first fills.
    let mut spans: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
    buffer.clear();
    let mut end_of_last = None;
    for (index, write) in writes.iter().enumerate() {
        match write {
            Write::Data { offset, bytes, .. } if bytes.len() < JOIN_BYTES => {
                let start = buffer.len();
                buffer.extend_from_slice(bytes);
                match spans.last_mut() {
                    Some((_, span)) if end_of_last == Some(*offset) && span.len() < 16 * JOIN_BYTES => {
                        span.end = buffer.len();
                    }
                    _ => spans.push((index, start..buffer.len())),
                }
                end_of_last = Some(offset + bytes.len() as u64);
            }
            _ => {
                spans.push((index, 0..0));
                end_of_last = None;
            }
        }
    }
    let buffer: &'a [u8] = buffer;
    let step = |(index, span): (usize, std::ops::Range<usize>)| match writes[index] {
        Write::Begin { segment, header } => CommitStep::Begin(segment, header),
        Write::Data { segment, offset, bytes } if span.is_empty() => CommitStep::Data(segment, *offset, bytes),
        Write::Data { segment, offset, .. } => CommitStep::Data(segment, *offset, &buffer[span]),
    };
    spans.into_iter().map(step).collect()
}
