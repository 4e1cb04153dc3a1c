//! What the journal records: changes of streams and consumers, and their encoding.
//!
//! All numbers are little-endian. Kinds are never reused. The byte tables are in
//! `queue/broker/README.md`.

use bytes::{BufMut, BytesMut};

use super::frame::FRAME_BYTES;

/// One change. Applying all changes in order to an empty state gives the current state.
///
/// Invariant: applying a suffix of the changes to a state that already includes some of them gives
/// the same state as applying each once. So a snapshot can be taken in portions while work continues.
/// Hence absolute values, never increments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// A stream exists, with this configuration (JSON).
    StreamPut { stream: u32, created: i64, config: &'a [u8] },
    /// A stream is deleted, with everything in it.
    StreamDeleted { stream: u32 },
    /// A message is stored in a stream.
    Stored(Stored<'a>),
    /// All messages with these sequences are removed, both ends included.
    Removed { stream: u32, from: u64, to: u64 },
    /// A consumer exists; its cursor begins at `start`, and up to `resume` it wants only the last
    /// message of each subject.
    ConsumerPut { stream: u32, consumer: u32, created: i64, start: u64, resume: u64, config: &'a [u8] },
    /// A consumer is deleted.
    ConsumerDeleted { stream: u32, consumer: u32 },
    /// A consumer moves back or ahead to `start`, with no pending deliveries.
    ConsumerReset { stream: u32, consumer: u32, start: u64 },
    /// A message was delivered, for the `count`th time.
    Delivered { stream: u32, consumer: u32, sequence: u64, consumer_sequence: u64, count: u32, time: i64 },
    /// A message needs no more deliveries; a work queue removes it.
    Acked { stream: u32, consumer: u32, sequence: u64 },
    /// A message is to be redelivered, not before `until`, Unix time in ns.
    Nakked { stream: u32, consumer: u32, sequence: u64, until: i64 },
    /// Snapshots only: a message whose entry is earlier in the journal.
    Indexed(Indexed<'a>),
    /// The stream's last sequence: in snapshots, and for a message that no consumer wanted.
    Counted { stream: u32, last: u64, last_time: i64 },
    /// An id in the dedupe window: in snapshots, and for a message that no consumer wanted.
    Registered { stream: u32, sequence: u64, time: i64, id: &'a [u8] },
    /// Snapshots only: how far a consumer has read.
    Cursor { stream: u32, consumer: u32, cursor: u64, consumer_sequence: u64, time: i64 },
}

/// A message with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored<'a> {
    pub(crate) stream: u32,
    pub(crate) sequence: u64,
    /// When it was stored, Unix time in ns.
    pub(crate) time: i64,
    /// When it expires by its own TTL, Unix time in ns; 0 is never.
    pub(crate) expires: i64,
    /// The earlier message of the subject that it replaces; 0 is none.
    pub(crate) replaces: u64,
    /// It is not new, but was carried here from an old segment.
    pub(crate) moved: bool,
    pub(crate) subject: &'a [u8],
    pub(crate) header: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// A message without its bytes, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Indexed<'a> {
    pub(crate) stream: u32,
    pub(crate) sequence: u64,
    pub(crate) time: i64,
    pub(crate) expires: i64,
    pub(crate) place: LogPlace,
    pub(crate) header_bytes: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) subject: &'a [u8],
}

/// Where an entry is: its position in the whole log, and its length, including the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LogPlace {
    pub(crate) position: u64,
    pub(crate) bytes: u32,
}

const STREAM_PUT: u8 = 1;
const STREAM_DELETED: u8 = 2;
const STORED: u8 = 3;
const REMOVED: u8 = 4;
const CONSUMER_PUT: u8 = 5;
const CONSUMER_DELETED: u8 = 6;
const DELIVERED: u8 = 7;
const ACKED: u8 = 8;
const NAKKED: u8 = 9;
const INDEXED: u8 = 10;
const COUNTED: u8 = 11;
const REGISTERED: u8 = 12;
const CURSOR: u8 = 13;
/// Like 5, but with `resume`; 5 is still read, but no longer written.
const CONSUMER_PUT_FROM: u8 = 14;
const CONSUMER_RESET: u8 = 15;

/// Bytes of a [`Stored`] body before the subject.
const STORED_FIXED: usize = 4 + 1 + 8 + 8 + 8 + 8 + 2 + 4;

impl Change<'_> {
    /// The stream that it changes.
    pub(crate) fn stream(&self) -> u32 {
        match self {
            Self::StreamPut { stream, .. }
            | Self::StreamDeleted { stream }
            | Self::Stored(Stored { stream, .. })
            | Self::Removed { stream, .. }
            | Self::ConsumerPut { stream, .. }
            | Self::ConsumerDeleted { stream, .. }
            | Self::ConsumerReset { stream, .. }
            | Self::Delivered { stream, .. }
            | Self::Acked { stream, .. }
            | Self::Nakked { stream, .. }
            | Self::Indexed(Indexed { stream, .. })
            | Self::Counted { stream, .. }
            | Self::Registered { stream, .. }
            | Self::Cursor { stream, .. } => *stream,
        }
    }

    /// Appends its bytes, and returns its kind.
    pub(crate) fn encode(&self, out: &mut BytesMut) -> u8 {
        match self {
            Self::StreamPut { stream, created, config } => {
                out.put_u32_le(*stream);
                out.put_i64_le(*created);
                out.put_slice(config);
                STREAM_PUT
            }
            Self::StreamDeleted { stream } => {
                out.put_u32_le(*stream);
                STREAM_DELETED
            }
            Self::Stored(stored) => {
                out.put_u32_le(stored.stream);
                out.put_u8(stored.moved.into());
                out.put_u64_le(stored.sequence);
                out.put_i64_le(stored.time);
                out.put_i64_le(stored.expires);
                out.put_u64_le(stored.replaces);
                // A control line is at most 4 KiB, so its subject fits in 16 bits.
                out.put_u16_le(stored.subject.len() as u16);
                out.put_u32_le(stored.header.len() as u32);
                out.put_slice(stored.subject);
                out.put_slice(stored.header);
                out.put_slice(stored.payload);
                STORED
            }
            Self::Removed { stream, from, to } => {
                out.put_u32_le(*stream);
                out.put_u64_le(*from);
                out.put_u64_le(*to);
                REMOVED
            }
            Self::ConsumerPut { stream, consumer, created, start, resume, config } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                out.put_i64_le(*created);
                out.put_u64_le(*start);
                out.put_u64_le(*resume);
                out.put_slice(config);
                CONSUMER_PUT_FROM
            }
            Self::ConsumerReset { stream, consumer, start } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                out.put_u64_le(*start);
                CONSUMER_RESET
            }
            Self::ConsumerDeleted { stream, consumer } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                CONSUMER_DELETED
            }
            Self::Delivered { stream, consumer, sequence, consumer_sequence, count, time } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                out.put_u64_le(*sequence);
                out.put_u64_le(*consumer_sequence);
                out.put_u32_le(*count);
                out.put_i64_le(*time);
                DELIVERED
            }
            Self::Acked { stream, consumer, sequence } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                out.put_u64_le(*sequence);
                ACKED
            }
            Self::Nakked { stream, consumer, sequence, until } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                out.put_u64_le(*sequence);
                out.put_i64_le(*until);
                NAKKED
            }
            Self::Indexed(indexed) => {
                out.put_u32_le(indexed.stream);
                out.put_u64_le(indexed.sequence);
                out.put_i64_le(indexed.time);
                out.put_i64_le(indexed.expires);
                out.put_u64_le(indexed.place.position);
                out.put_u32_le(indexed.place.bytes);
                out.put_u32_le(indexed.header_bytes);
                out.put_u32_le(indexed.payload_bytes);
                out.put_slice(indexed.subject);
                INDEXED
            }
            Self::Counted { stream, last, last_time } => {
                out.put_u32_le(*stream);
                out.put_u64_le(*last);
                out.put_i64_le(*last_time);
                COUNTED
            }
            Self::Registered { stream, sequence, time, id } => {
                out.put_u32_le(*stream);
                out.put_u64_le(*sequence);
                out.put_i64_le(*time);
                out.put_slice(id);
                REGISTERED
            }
            Self::Cursor { stream, consumer, cursor, consumer_sequence, time } => {
                out.put_u32_le(*stream);
                out.put_u32_le(*consumer);
                out.put_u64_le(*cursor);
                out.put_u64_le(*consumer_sequence);
                out.put_i64_le(*time);
                CURSOR
            }
        }
    }
}

impl<'a> Change<'a> {
    /// Decodes what [`Change::encode`] wrote; `None` if the bytes are not a change.
    pub(crate) fn decode(kind: u8, body: &'a [u8]) -> Option<Self> {
        let mut from = Reader(body);
        let stream = from.u32()?;
        let change = match kind {
            STREAM_PUT => Self::StreamPut { stream, created: from.i64()?, config: from.rest() },
            STREAM_DELETED => Self::StreamDeleted { stream },
            STORED => {
                let moved = from.take(1)?[0] & 1 != 0;
                let (sequence, time, expires, replaces) = (from.u64()?, from.i64()?, from.i64()?, from.u64()?);
                let (subject, header) = (from.u16()?, from.u32()?);
                let (subject, header) = (from.take(subject.into())?, from.take(header as usize)?);
                let payload = from.rest();
                Self::Stored(Stored { stream, sequence, time, expires, replaces, moved, subject, header, payload })
            }
            REMOVED => Self::Removed { stream, from: from.u64()?, to: from.u64()? },
            CONSUMER_PUT | CONSUMER_PUT_FROM => {
                let (consumer, created, start) = (from.u32()?, from.i64()?, from.u64()?);
                let resume = if kind == CONSUMER_PUT { 0 } else { from.u64()? };
                Self::ConsumerPut { stream, consumer, created, start, resume, config: from.rest() }
            }
            CONSUMER_RESET => Self::ConsumerReset { stream, consumer: from.u32()?, start: from.u64()? },
            CONSUMER_DELETED => Self::ConsumerDeleted { stream, consumer: from.u32()? },
            DELIVERED => {
                let (consumer, sequence, consumer_sequence) = (from.u32()?, from.u64()?, from.u64()?);
                let (count, time) = (from.u32()?, from.i64()?);
                Self::Delivered { stream, consumer, sequence, consumer_sequence, count, time }
            }
            ACKED => Self::Acked { stream, consumer: from.u32()?, sequence: from.u64()? },
            NAKKED => Self::Nakked { stream, consumer: from.u32()?, sequence: from.u64()?, until: from.i64()? },
            INDEXED => {
                let (sequence, time, expires) = (from.u64()?, from.i64()?, from.i64()?);
                let place = LogPlace { position: from.u64()?, bytes: from.u32()? };
                let (header_bytes, payload_bytes) = (from.u32()?, from.u32()?);
                let subject = from.rest();
                Self::Indexed(Indexed { stream, sequence, time, expires, place, header_bytes, payload_bytes, subject })
            }
            COUNTED => Self::Counted { stream, last: from.u64()?, last_time: from.i64()? },
            REGISTERED => {
                let (sequence, time) = (from.u64()?, from.i64()?);
                Self::Registered { stream, sequence, time, id: from.rest() }
            }
            CURSOR => {
                let (consumer, cursor, consumer_sequence) = (from.u32()?, from.u64()?, from.u64()?);
                Self::Cursor { stream, consumer, cursor, consumer_sequence, time: from.i64()? }
            }
            _ => return None,
        };
        Some(change)
    }
}

impl Change<'_> {
    /// Stream and sequence of the message in a damaged entry, if they can still be read. Only a guess.
    pub(super) fn glimpse(entry: &[u8]) -> Option<(u32, u64)> {
        let body = entry.get(FRAME_BYTES..).filter(|_| entry[12] == STORED)?;
        let mut from = Reader(body);
        let stream = from.u32()?;
        from.take(1)?;
        Some((stream, from.u64()?))
    }
}

impl Stored<'_> {
    /// Length of its encoded body.
    pub(crate) fn body_bytes(&self) -> usize {
        STORED_FIXED + self.subject.len() + self.header.len() + self.payload.len()
    }
}

/// Length of the entry of a message with parts of these lengths, including the frame.
pub(crate) fn stored_bytes(subject: usize, header: usize, payload: usize) -> usize {
    FRAME_BYTES + STORED_FIXED + subject + header + payload
}

/// Where header and payload begin in a checked body, so that a message can be served without decoding it.
pub(crate) fn stored_header_start(subject_bytes: usize) -> usize {
    STORED_FIXED + subject_bytes
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
