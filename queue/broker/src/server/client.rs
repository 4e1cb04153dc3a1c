//! A client as the rest of the broker sees it: a receiver of messages.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::auth::{Asked, Permissions};
use crate::journal::{LogPlace, Release, Source};
use crate::nats::Frame;

/// Bytes up to this length are copied together; longer ones are passed on without a copy.
const COPY_BYTES_MAX: usize = 4096;

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    /// It understands messages with headers.
    pub(super) takes_headers: AtomicBool,
    pub(super) peer: SocketAddr,
    /// When it connected, Unix time in ns.
    pub(super) since: i64,
    /// How it described itself, and what it may do.
    pub(super) about: OnceLock<About>,
    pub(super) traffic: Traffic,
    /// Requests that it may answer even where it may not publish.
    pub(super) asked: Mutex<Asked>,
    outbox: Mutex<Outbox>,
    outbox_bytes_max: usize,
    /// Notified when the outbox has something to send, or is closed.
    pub(super) notify: Notify,
}

/// How a client described itself, and what it may do.
#[derive(Debug, Default)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) language: String,
    pub(super) version: String,
    pub(super) permissions: Permissions,
}

/// Traffic from and to a client.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) in_messages: AtomicU64,
    pub(super) in_bytes: AtomicU64,
    pub(super) out_messages: AtomicU64,
    pub(super) out_bytes: AtomicU64,
    pub(super) subscriptions: AtomicU64,
    /// It was disconnected because it did not keep up.
    pub(super) was_slow: AtomicBool,
}

impl Traffic {
    /// Counts one more message of `size` bytes.
    pub(super) fn count(messages: &AtomicU64, bytes: &AtomicU64, size: usize) {
        messages.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(size as u64, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Outbox {
    /// The socket to write to, while the connection is open.
    socket: Option<Arc<TcpStream>>,
    chunks: Vec<Chunk>,
    bytes: usize,
    /// The connection's task is writing what it took from here.
    is_writing: bool,
    /// Nothing more is accepted; what is queued is still sent.
    closed: bool,
}

/// Bytes queued for a client.
#[derive(Debug)]
pub(super) enum Chunk {
    Bytes(Bytes),
    /// A message that has to be read first.
    Stored(Box<StoredMessage>),
}

/// A message queued for a client whose bytes are still on disk. Its `MSG` line is sent only once they were
/// read and found intact.
#[derive(Debug)]
pub(super) struct StoredMessage {
    pub(super) source: Source,
    /// Stream and sequence.
    pub(super) of: (u32, u64),
    pub(super) place: LogPlace,
    pub(super) line: Bytes,
    pub(super) parts: Vec<Part>,
    /// Sent instead if the message is damaged.
    pub(super) lost: Bytes,
}

impl StoredMessage {
    fn bytes(&self) -> usize {
        let parts = self.parts.iter().map(Part::bytes).sum::<usize>();
        self.line.len() + parts + 2
    }
}

/// A part of a message.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Bytes(Bytes),
    /// Bytes of the entry, from one offset to another.
    Entry(usize, usize),
}

impl Part {
    fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Entry(from, to) => to - from,
        }
    }
}

impl Client {
    pub(super) fn new(id: u64, peer: SocketAddr, since: i64, outbox_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            id,
            takes_headers: AtomicBool::new(false),
            peer,
            since,
            about: OnceLock::new(),
            traffic: Traffic::default(),
            asked: Mutex::default(),
            outbox: Mutex::new(Outbox::default()),
            outbox_bytes_max,
            notify: Notify::new(),
        })
    }

    /// Lets threads other than the connection's task write to this socket.
    pub(super) fn attach(&self, socket: Option<Arc<TcpStream>>) {
        self.lock().socket = socket;
    }

    /// What it may do, once it has authenticated.
    pub(super) fn permissions(&self) -> Option<&Permissions> {
        self.about.get().map(|about| &about.permissions)
    }

    /// Bytes that wait to be sent to it.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bytes into the outbox. A client that does not keep up is disconnected: others must not pay for it.
    fn push(&self, bundle: Bundle) {
        let mut outbox = self.lock();
        if !outbox.closed {
            self.put(&mut outbox, bundle);
        }
    }

    /// Like `push`, but writes at once if the socket accepts it and nothing is queued before it. For threads that
    /// may make system calls: it saves waking the connection's task.
    fn push_through(&self, bundle: Bundle) {
        let mut outbox = self.lock();
        if outbox.closed {
            return;
        }
        let is_free = !outbox.is_writing && outbox.chunks.is_empty();
        let Some(socket) = outbox.socket.clone().filter(|_| is_free) else {
            return self.put(&mut outbox, bundle);
        };
        let mut chunks = bundle.into_chunks().into_iter();
        let mut rest = Vec::new();
        for chunk in chunks.by_ref() {
            let Chunk::Bytes(mut bytes) = chunk else {
                rest.push(chunk);
                break;
            };
            while !bytes.is_empty()
                && let Ok(written) = socket.try_write(&bytes)
            {
                bytes.advance(written);
            }
            if !bytes.is_empty() {
                rest.push(Chunk::Bytes(bytes));
                break;
            }
        }
        rest.extend(chunks);
        if !rest.is_empty() {
            self.put(&mut outbox, Bundle::of(rest));
        }
    }

    fn put(&self, outbox: &mut Outbox, bundle: Bundle) {
        if outbox.bytes + bundle.bytes > self.outbox_bytes_max {
            tracing::warn!(client = self.id, bytes = outbox.bytes, "slow consumer disconnected");
            self.traffic.was_slow.store(true, Ordering::Relaxed);
            outbox.chunks.clear();
            outbox.chunks.push(Chunk::Bytes(crate::nats::err("Slow Consumer")));
            outbox.closed = true;
        } else {
            outbox.bytes += bundle.bytes;
            outbox.chunks.extend(bundle.into_chunks());
        }
        self.notify.notify_one();
    }

    /// Sends protocol bytes that need not wait for the disk.
    pub(super) fn send_now(&self, bytes: Bytes) {
        let mut bundle = Bundle::default();
        bundle.put(&bytes);
        self.push(bundle);
    }

    /// Whether the outbox is so full, with `more` bytes added, that nothing more should be delivered for now.
    pub(super) fn is_congested(&self, more: usize) -> bool {
        self.lock().bytes + more > self.outbox_bytes_max / 4
    }

    /// Takes what is to be sent, and whether the outbox is closed, so that nothing will follow.
    pub(super) fn take(&self) -> (Vec<Chunk>, bool) {
        let mut outbox = self.lock();
        outbox.bytes = 0;
        outbox.is_writing = !outbox.chunks.is_empty();
        (std::mem::take(&mut outbox.chunks), outbox.closed)
    }

    /// Closes the outbox, after a last message if one is given.
    pub(super) fn close(&self, last: Option<Bytes>) {
        if let Some(last) = last {
            self.send_now(last);
        }
        self.lock().closed = true;
        self.notify.notify_one();
    }

    /// Closes the outbox and drops the socket, once the connection has ended.
    pub(super) fn detach(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.socket = None;
    }
}

/// A subscription of a client.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) client: Arc<Client>,
    pub(super) subject: Bytes,
    pub(super) sid: Bytes,
    pub(super) queue: Option<Bytes>,
    pub(super) delivered: AtomicU64,
    /// It ends after this many messages; 0 is never.
    pub(super) ends_after: AtomicU64,
}

/// A shared subscription; two handles are equal if they hold the same one.
#[derive(Debug, Clone)]
pub(super) struct Handle(pub(super) Arc<Subscription>);

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Subscription {
    /// Whether it has received all messages that it asked for.
    pub(super) fn is_used_up(&self) -> bool {
        let ends_after = self.ends_after.load(Ordering::Relaxed);
        ends_after > 0 && self.delivered.load(Ordering::Relaxed) >= ends_after
    }
}

/// What a message carries.
#[derive(Debug, Clone)]
pub(super) enum Body<'a> {
    /// Header block and payload.
    Given { header: &'a [u8], payload: &'a Bytes },
    /// A stored message: the payload directly follows the header block in the entry.
    Stored(Stored),
}

/// A stored message, as it is to be sent.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) source: Source,
    /// Stream and sequence.
    pub(super) of: (u32, u64),
    pub(super) place: LogPlace,
    /// Where the header block begins in the entry.
    pub(super) start: usize,
    pub(super) header_bytes: usize,
    pub(super) payload_bytes: usize,
    /// Further header lines, with the end of the block.
    pub(super) extra: Option<Bytes>,
}

impl Stored {
    fn parts(&self, with_header: bool) -> Vec<Part> {
        let header_end = self.start + self.header_bytes;
        let payload = Part::Entry(header_end, header_end + self.payload_bytes);
        match &self.extra {
            // Further lines go before the block's final line end, or into a block of their own.
            Some(extra) if with_header => {
                vec![
                    Part::Entry(self.start, header_end - self.header_bytes.min(2)),
                    Part::Bytes(extra.clone()),
                    payload,
                ]
            }
            _ if with_header => vec![Part::Entry(self.start, header_end + self.payload_bytes)],
            _ => vec![payload],
        }
    }
}

impl Body<'_> {
    fn lengths(&self) -> (usize, usize) {
        match self {
            Self::Given { header, payload } => (header.len(), payload.len()),
            Self::Stored(Stored { header_bytes, payload_bytes, extra, .. }) => {
                let extra = extra.as_ref().map(|extra| extra.len() - header_bytes.min(&2));
                (header_bytes + extra.unwrap_or(0), *payload_bytes)
            }
        }
    }
}

/// Bytes for one client; short pieces are merged.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    chunks: Vec<Chunk>,
    tail: BytesMut,
    bytes: usize,
}

impl Bundle {
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
        self.bytes += bytes.len();
    }

    /// Its length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn put_bytes(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_BYTES_MAX {
            return self.put(bytes);
        }
        self.close_tail();
        self.bytes += bytes.len();
        self.chunks.push(Chunk::Bytes(bytes.clone()));
    }

    /// Adds a whole message.
    pub(super) fn put_message(
        &mut self,
        subscription: &Subscription,
        subject: &[u8],
        reply: Option<&[u8]>,
        body: &Body<'_>,
    ) {
        let (header_bytes, payload_bytes) = body.lengths();
        let traffic = &subscription.client.traffic;
        Traffic::count(&traffic.out_messages, &traffic.out_bytes, header_bytes + payload_bytes);
        let with_header = subscription.client.takes_headers.load(Ordering::Relaxed);
        let header_bytes = if with_header { header_bytes } else { 0 };
        let sid = &subscription.sid;
        let frame = Frame { subject, sid, reply, header_bytes, payload_bytes };
        match body {
            Body::Given { header, payload } => {
                self.put_frame(&frame);
                if with_header {
                    self.put(header);
                }
                self.put_bytes(payload);
                self.put(b"\r\n");
            }
            Body::Stored(stored) => match &stored.source {
                Source::Memory(entry) => {
                    self.put_frame(&frame);
                    for part in stored.parts(with_header) {
                        match part {
                            Part::Bytes(bytes) => self.put_bytes(&bytes),
                            Part::Entry(from, to) => self.put_bytes(&entry.slice(from..to)),
                        }
                    }
                    self.put(b"\r\n");
                }
                Source::Disk { .. } => self.put_stored(stored, &frame, with_header),
            },
        }
    }

    fn put_frame(&mut self, frame: &Frame<'_>) {
        let before = self.tail.len();
        frame.put(&mut self.tail);
        self.bytes += self.tail.len() - before;
    }

    fn put_stored(&mut self, stored: &Stored, frame: &Frame<'_>, with_header: bool) {
        let mut line = BytesMut::new();
        frame.put(&mut line);
        let mut lost = BytesMut::new();
        if with_header {
            let status = crate::nats::status("500 Message Damaged", &[]);
            Frame { header_bytes: status.len(), payload_bytes: 0, reply: None, ..*frame }.put(&mut lost);
            lost.put_slice(&status);
            lost.put_slice(b"\r\n");
        }
        self.close_tail();
        let message = StoredMessage {
            source: stored.source.clone(),
            of: stored.of,
            place: stored.place,
            line: line.freeze(),
            parts: stored.parts(with_header),
            lost: lost.freeze(),
        };
        self.bytes += message.bytes();
        self.chunks.push(Chunk::Stored(Box::new(message)));
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(Chunk::Bytes(self.tail.split().freeze()));
        }
    }

    fn of(chunks: Vec<Chunk>) -> Self {
        let length = |chunk: &Chunk| match chunk {
            Chunk::Bytes(bytes) => bytes.len(),
            Chunk::Stored(message) => message.bytes(),
        };
        let bytes = chunks.iter().map(length).sum();
        Self { chunks, tail: BytesMut::new(), bytes }
    }

    fn into_chunks(mut self) -> Vec<Chunk> {
        self.close_tail();
        self.chunks
    }
}

/// What is sent together, to any number of clients.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bundles: Vec<(Arc<Client>, Bundle)>,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }

    /// The bundle for a client.
    pub(super) fn to(&mut self, client: &Arc<Client>) -> &mut Bundle {
        // Few clients get something in one turn, and most often the last one gets more.
        let index = match self.bundles.iter().rposition(|(known, _)| known.id == client.id) {
            Some(index) => index,
            None => {
                self.bundles.push((client.clone(), Bundle::default()));
                self.bundles.len() - 1
            }
        };
        &mut self.bundles[index].1
    }
}

impl Outgoing {
    /// Sends it. The caller holds the lock on all state, so this makes no system calls.
    pub(super) fn send(self) {
        self.bundles.into_iter().for_each(|(client, bundle)| client.push(bundle));
    }
}

impl Release for Outgoing {
    /// Sends it, from the journal's thread.
    fn release(self) {
        self.bundles.into_iter().for_each(|(client, bundle)| client.push_through(bundle));
    }
}
