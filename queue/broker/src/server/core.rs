//! All state of a broker, under one lock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rand::seq::IndexedRandom;

use super::client::{Body, Handle, Outgoing};
use super::date;
use super::loss::Loss;
use super::options::Options;
use crate::calendar::Calendar;
use crate::journal::{Change, Full, Journal, LogPlace, OpenError, Share};
use crate::nats::SubjectTree;
use crate::platform::storage::Storage;
use crate::stream::config::{Discard, Retention};
use crate::stream::{Consumer, Now, Stream, StreamConfig};

/// Room reserved per queued job for the records it has yet to write.
const OWED_BYTES: u64 = 4096;
/// Bytes that queued messages may take when no limit is configured and the disk has room.
const QUEUE_BYTES_MAX: u64 = 32 << 30;
/// Larger payloads of other streams may use only half of the reserve.
const BULK_BYTES: usize = 64 * 1024;
/// Timers are set at least this far ahead.
const TIMER_MIN: Duration = Duration::from_millis(1);
/// Timers are set at most this far ahead, because the calendar may jump.
const TIMER_MAX: Duration = Duration::from_secs(60);

/// Streams, subscriptions, journal, and what is to be sent.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) subscriptions: SubjectTree<Handle>,
    pub(super) streams: BTreeMap<u32, Stream>,
    names: BTreeMap<String, u32>,
    /// Which stream takes a subject.
    subjects: SubjectTree<u32>,
    next_stream: u32,
    pub(super) journal: Journal<Outgoing>,
    pub(super) outgoing: Outgoing,
    /// When each stream (consumer 0) or consumer is due: time, stream, consumer.
    pub(super) timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Deliver subjects of push consumers, by stream id and consumer id.
    pub(super) push_targets: BTreeMap<(u32, u32), String>,
    /// Stored data that was lost because it decayed on disk.
    pub(super) losses: Vec<Loss>,
    /// Messages and bytes of all streams that refuse new messages when full.
    queued: (u64, u64),
    queue_bytes_max: Option<u64>,
    /// The date by which messages expire.
    pub(super) calendar: Calendar,
    pub(super) api_requests: u64,
    pub(super) api_errors: u64,
}

/// The current time, on both clocks.
pub(super) fn now() -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { wall: i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX), clock: Instant::now() }
}

impl Core {
    /// Opens the journal and rebuilds the state from it.
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        options: &Options,
        on_failure: Box<dyn FnOnce(std::io::Error) + Send>,
    ) -> Result<Self, OpenError> {
        let started = Instant::now();
        let mut state = Replay { streams: BTreeMap::new(), next_stream: 1, missing: Vec::new(), newest: 0, now: now() };
        // The date that the last run believed: dates in the journal may come from a clock that had jumped.
        let believed = date::read(storage.as_ref());
        let (journal, recovered) = Journal::open(storage, options.segment_bytes, on_failure, &mut |change, place| {
            state.apply(&change, place)
        })?;
        let newest = believed.unwrap_or(state.newest);
        let mut core = Self {
            subscriptions: SubjectTree::default(),
            streams: BTreeMap::new(),
            names: BTreeMap::new(),
            subjects: SubjectTree::default(),
            next_stream: state.next_stream,
            journal,
            outgoing: Outgoing::default(),
            timers: BinaryHeap::new(),
            push_targets: BTreeMap::new(),
            losses: Vec::new(),
            queued: (0, 0),
            queue_bytes_max: options.queue_bytes_max,
            calendar: Calendar::since(newest, state.now.wall, state.now.clock),
            api_requests: 0,
            api_errors: 0,
        };
        for (_, mut stream) in std::mem::take(&mut state.streams) {
            stream.recovered();
            stream.cap_delays(newest, state.now);
            if options.release_at_start && is_of_our_own(&stream.config.name) {
                stream.release_in_hand(state.now.clock);
            }
            let mut homeless = Vec::new();
            for message in stream.messages.from(0) {
                if !core.journal.claim(message.place()) {
                    homeless.push(message.take_out());
                }
            }
            for message in homeless {
                let problem =
                    format!("message {} of stream {} is in none of them", message.sequence, stream.config.name);
                if recovered.damage.is_empty() {
                    let (name, offset) = ("segments".into(), message.place.position);
                    return Err(OpenError::Damaged { name, offset, problem });
                }
                // The entry that it was moved to is damaged, and the segment that it was moved from was dropped.
                let sequence = message.sequence;
                let removed = Change::Removed { stream: stream.id, from: sequence, to: sequence };
                drop(stream.apply(&removed, None, now(), &mut Vec::new()));
                let (name, sequences) = (Some(stream.config.name.clone()), Some((sequence, sequence)));
                core.lost(Loss { stream: name, sequences, problem: "its entry is damaged".into() });
            }
            core.admit(stream);
        }
        core.account(&recovered.damage, &state.missing);
        let now = now();
        for id in core.streams.keys().copied().collect::<Vec<_>>() {
            core.schedule_all(id, now);
        }
        tracing::info!(
            streams = core.streams.len(),
            messages = core.streams.values().map(|stream| stream.messages.len()).sum::<usize>(),
            entries = recovered.entries,
            torn_bytes = recovered.torn_bytes,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "journal opened"
        );
        Ok(core)
    }

    /// Registers a stream with its name, subjects and push targets.
    fn admit(&mut self, stream: Stream) {
        for subject in &stream.config.subjects {
            self.subjects.insert(subject.as_bytes(), stream.id);
        }
        self.count(weight(&stream), true);
        for consumer in stream.consumers().filter(|consumer| consumer.config.is_push()) {
            self.push_targets.insert((stream.id, consumer.id), consumer.config.deliver_subject.clone());
        }
        self.names.insert(stream.config.name.clone(), stream.id);
        self.streams.insert(stream.id, stream);
    }

    fn count(&mut self, (messages, bytes): (u64, u64), more: bool) {
        let by = |total: u64, part: u64| if more { total + part } else { total.saturating_sub(part) };
        self.queued = (by(self.queued.0, messages), by(self.queued.1, bytes));
    }

    pub(super) fn id_of(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.get(self.names.get(name)?)
    }

    /// A consumer by its stream's id and its own.
    pub(super) fn consumer(&mut self, stream: u32, consumer: u32) -> Option<&mut Consumer> {
        self.streams.get_mut(&stream)?.consumer_by_id(consumer)
    }

    /// Streams in the order of their names.
    pub(super) fn by_name(&self) -> impl Iterator<Item = &Stream> {
        self.names.values().filter_map(|id| self.streams.get(id))
    }

    /// The stream that takes a subject.
    pub(super) fn taker(&self, subject: &[u8]) -> Option<u32> {
        let mut taker = None;
        self.subjects.find(subject, &mut |id| taker = Some(*id));
        taker
    }

    /// An id that no stream has ever had.
    pub(super) fn new_stream_id(&self) -> u32 {
        self.next_stream
    }

    /// Appends a change to the journal and applies it. If `durable`, what is sent because of it waits for
    /// the disk.
    pub(super) fn change(&mut self, change: &Change<'_>, durable: bool, now: Now) -> Result<(), Full> {
        let id = change.stream();
        let share = match (change, self.streams.get(&id)) {
            // Moving messages makes room, but leaves half of the reserve to settling, which makes room too.
            (Change::Stored(stored), Some(_)) if stored.moved => Share::Bulk,
            (Change::Stored(stored), Some(stream)) => share(stream, stored.payload.len()),
            _ => Share::Settle,
        };
        if !self.is_written_down(change) {
            self.apply(change, None, now);
            return Ok(());
        }
        let place = self.journal.append(change, share, durable)?;
        if matches!(change, Change::StreamPut { .. } | Change::ConsumerPut { .. }) {
            // Twice, since later entries are useless without this one: one decayed spot on the disk must not
            // cost a stream. On a full disk, once is enough.
            self.journal.append(change, share, durable).ok();
        }
        if let Change::StreamPut { config, created, .. } = change
            && let Ok(config) = serde_json::from_slice::<StreamConfig>(config)
        {
            self.put_stream(id, config, *created);
            return Ok(());
        }
        self.apply(change, Some(place), now);
        if matches!(change, Change::StreamDeleted { .. })
            && let Some(gone) = self.streams.remove(&id)
        {
            self.names.remove(&gone.config.name);
            self.push_targets.retain(|(stream, _), _| *stream != id);
            gone.config.subjects.iter().for_each(|subject| self.subjects.remove(subject.as_bytes(), &id));
        }
        Ok(())
    }

    /// Applies a change to a stream that exists.
    pub(super) fn apply(&mut self, change: &Change<'_>, place: Option<LogPlace>, now: Now) {
        let id = change.stream();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = weight(stream);
        let mut freed = Vec::new();
        if let Err(problem) = stream.apply(change, place, now, &mut freed) {
            // The broker made this change itself, so this is a bug; the journal holds the change too.
            tracing::error!(problem, ?id, "change does not apply");
        }
        let after = weight(stream);
        self.count(before, false);
        self.count(after, true);
        if let (Change::Stored(_), Some(place)) = (change, place) {
            let is_there = self.journal.claim(place);
            debug_assert!(is_there, "an entry lies in the segment that it was put into");
        }
        freed.into_iter().for_each(|place| self.journal.release(place));
        if let Change::ConsumerPut { consumer, .. } | Change::ConsumerDeleted { consumer, .. } = change {
            let found = self.streams.get(&id).and_then(|stream| stream.consumer_of(*consumer));
            match found.filter(|consumer| consumer.config.is_push()) {
                Some(found) => self.push_targets.insert((id, *consumer), found.config.deliver_subject.clone()),
                None => self.push_targets.remove(&(id, *consumer)),
            };
        }
    }

    /// Whether a change must outlive the process. Changes of consumers that are not durable need not,
    /// unless they remove a message.
    fn is_written_down(&self, change: &Change<'_>) -> bool {
        let (Change::Delivered { consumer, .. }
        | Change::Acked { consumer, .. }
        | Change::Nakked { consumer, .. }
        | Change::ConsumerReset { consumer, .. }
        | Change::ConsumerDeleted { consumer, .. }) = change
        else {
            return true;
        };
        let Some(stream) = self.streams.get(&change.stream()) else { return true };
        let removes = matches!(change, Change::Acked { .. }) && stream.config.retention == Retention::WorkQueue;
        removes || stream.consumer_of(*consumer).is_none_or(Consumer::is_durable)
    }

    fn put_stream(&mut self, id: u32, config: StreamConfig, created: i64) {
        self.next_stream = self.next_stream.max(id + 1);
        match self.streams.remove(&id) {
            Some(mut stream) => {
                stream.config.subjects.iter().for_each(|subject| self.subjects.remove(subject.as_bytes(), &id));
                self.count(weight(&stream), false);
                stream.config = config;
                self.admit(stream);
            }
            None => self.admit(Stream::new(id, config, created)),
        }
    }

    /// Makes room for a new message of a stream, or refuses it. Jobs are refused long before the messages
    /// that settle them.
    pub(super) fn make_room(&mut self, id: u32, bytes: usize, payload_bytes: usize) -> Result<(), Full> {
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let share = share(stream, payload_bytes);
        // Computed on use: a disk that was full at the start may have room by now.
        let by_disk = || QUEUE_BYTES_MAX.min((self.queued.1 + self.journal.room()) / 2);
        if share == Share::Work && self.queued.1 + bytes as u64 > self.queue_bytes_max.unwrap_or_else(by_disk) {
            return Err(Full);
        }
        self.journal.make_room(bytes as u64, share, self.queued.0 * OWED_BYTES)
    }

    /// Sends a message to all subscribers and returns whether there are any. `from` is a client that does
    /// not want to receive its own messages.
    pub(super) fn route(&mut self, subject: &[u8], reply: Option<&[u8]>, body: &Body<'_>, from: Option<u64>) -> bool {
        self.route_as(subject, subject, reply, body, from)
    }

    /// Like `route`, but subscribers of `subject` see the message as sent to `shown`.
    pub(super) fn route_as(
        &mut self,
        subject: &[u8],
        shown: &[u8],
        reply: Option<&[u8]>,
        body: &Body<'_>,
        from: Option<u64>,
    ) -> bool {
        let mut plain = 0;
        let mut groups: Vec<(&Bytes, Vec<&Handle>)> = Vec::new();
        let outgoing = &mut self.outgoing;
        let mut used_up = Vec::new();
        let mut deliver = |handle: &Handle| {
            let subscription = &handle.0;
            if let Some(permissions) = subscription.client.permissions() {
                if permissions.hides(shown) {
                    return;
                }
                if let (Some(responses), Some(reply)) = (&permissions.allow_responses, reply) {
                    let mut asked = subscription.client.asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked.put(responses, reply, Instant::now());
                }
            }
            outgoing.to(&subscription.client).put_message(subscription, shown, reply, body);
            subscription.delivered.fetch_add(1, Ordering::Relaxed);
            if subscription.is_used_up() {
                used_up.push(handle.clone());
            }
        };
        self.subscriptions.find(subject, &mut |handle: &Handle| {
            if from == Some(handle.0.client.id) {
                return;
            }
            match &handle.0.queue {
                None => {
                    deliver(handle);
                    plain += 1;
                }
                Some(queue) => match groups.iter_mut().find(|(known, _)| *known == queue) {
                    Some((_, members)) => members.push(handle),
                    None => groups.push((queue, vec![handle])),
                },
            }
        });
        for (_, members) in &groups {
            // At random, not in turn: with other messages in between, turns could always pick the same member.
            members.choose(&mut rand::rng()).into_iter().for_each(|handle| deliver(handle));
        }
        let is_heard = plain > 0 || !groups.is_empty();
        for handle in used_up {
            self.subscriptions.remove(&handle.0.subject, &handle);
        }
        is_heard
    }

    /// Sends a small message that the broker itself creates.
    pub(super) fn tell(&mut self, subject: &[u8], header: &[u8], payload: &Bytes) {
        self.route(subject, None, &Body::Given { header, payload }, None);
    }

    /// Ends a turn with the lock: hands changes to the journal and queues outgoing messages behind them, or
    /// sends them at once if nothing is queued before them.
    pub(super) fn finish(&mut self) {
        let outgoing = std::mem::take(&mut self.outgoing);
        let release = (!outgoing.is_empty()).then_some(outgoing);
        if let Some(ready) = self.journal.commit(release) {
            ready.send();
        }
    }

    /// Like `finish`, but holds no changes back: for a caller that is about to wait for the disk.
    pub(super) fn finish_all(&mut self) {
        self.finish();
        self.journal.flush();
    }

    /// Sets the timer of a consumer to its next deadline, or of a stream (consumer 0) to its next expiry.
    pub(super) fn schedule(&mut self, id: u32, consumer: u32, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let farthest = now.clock + TIMER_MAX;
        let (wanted, scheduled) = if consumer == 0 {
            let believed = self.calendar.look(now.wall, now.clock);
            let in_ns = stream.next_expiry().map(|when| when.saturating_sub(believed).max(0).unsigned_abs());
            (in_ns.map(|ns| now.clock + Duration::from_nanos(ns).min(TIMER_MAX)), &mut stream.scheduled)
        } else {
            let Some(consumer) = stream.consumer_by_id(consumer) else { return };
            (consumer.next_deadline().map(|at| at.min(farthest)), &mut consumer.scheduled)
        };
        // Never now: work that could not be done this time (a full disk, a long list) lets other timers run first.
        if let Some(wanted) = wanted.map(|wanted| wanted.max(now.clock + TIMER_MIN))
            && scheduled.is_none_or(|at| wanted < at)
        {
            *scheduled = Some(wanted);
            self.timers.push(Reverse((wanted, id, consumer)));
        }
    }

    /// When the next timer fires.
    pub(super) fn earliest_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _, _))| *at)
    }

    fn schedule_all(&mut self, id: u32, now: Now) {
        self.schedule(id, 0, now);
        let consumers: Vec<u32> = self.streams.get(&id).into_iter().flat_map(|s| s.consumers().map(|c| c.id)).collect();
        consumers.into_iter().for_each(|consumer| self.schedule(id, consumer, now));
    }
}

/// Whether a stream's messages are delivered only to processes that end with this one: workers and webhook senders.
fn is_of_our_own(stream: &str) -> bool {
    stream.starts_with("jobs_") || stream == "hooks"
}

/// Messages and bytes that a stream counts against the limit over all queues.
fn weight(stream: &Stream) -> (u64, u64) {
    match stream.config.discard {
        Discard::New => (stream.messages.len() as u64, stream.messages.bytes()),
        Discard::Old => (0, 0),
    }
}

/// How much of the room on disk a message may use.
fn share(stream: &Stream, payload_bytes: usize) -> Share {
    match stream.config.discard {
        Discard::New => Share::Work,
        Discard::Old if payload_bytes > BULK_BYTES => Share::Bulk,
        Discard::Old => Share::Settle,
    }
}

/// When a change was made, Unix time in ns; 0 if the change does not record it.
fn written_at(change: &Change<'_>) -> i64 {
    match change {
        Change::Stored(stored) => stored.time,
        Change::Indexed(indexed) => indexed.time,
        Change::Delivered { time, .. } | Change::Cursor { time, .. } | Change::Registered { time, .. } => *time,
        Change::Counted { last_time, .. } => *last_time,
        _ => 0,
    }
}

/// The state while recovery reads it from the journal.
struct Replay {
    streams: BTreeMap<u32, Stream>,
    next_stream: u32,
    /// Sequences that were assigned but whose messages are missing: stream, first and last.
    missing: Vec<(u32, u64, u64)>,
    /// The newest date of any change, Unix time in ns.
    newest: i64,
    now: Now,
}

impl Replay {
    fn apply(&mut self, change: &Change<'_>, place: Option<LogPlace>) -> Result<(), String> {
        let id = change.stream();
        self.next_stream = self.next_stream.max(id + 1);
        if let Change::StreamPut { config, created, .. } = change
            && !self.streams.contains_key(&id)
        {
            let config = serde_json::from_slice(config).map_err(|error| error.to_string())?;
            self.streams.insert(id, Stream::new(id, config, *created));
            return Ok(());
        }
        if matches!(change, Change::StreamDeleted { .. }) {
            self.streams.remove(&id);
        }
        // The snapshot may already lack a stream that the log deletes only later.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if let Change::Stored(stored) = change
            && stored.sequence > stream.last + 1
        {
            self.missing.push((id, stream.last + 1, stored.sequence - 1));
        }
        self.newest = self.newest.max(written_at(change));
        stream.apply(change, place, self.now, &mut Vec::new())
    }
}
