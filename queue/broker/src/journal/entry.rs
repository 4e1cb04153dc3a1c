//! An entry: one change, in a frame that shows whether the entry is whole.
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | length of the body |
//! | 4..8 | CRC-32 of the entry's position in the log, then of bytes 8.. of the entry and the length |
//! | 8..12 | CRC of the previous entry in the segment; for the first entry, of the segment's header |
//! | 12 | kind of the change |
//! | 13..16 | 0 |
//! | 16.. | the body |
//!
//! The chain of CRCs makes a torn tail safe to write over: entries after the tear, even whole ones,
//! do not chain to what is written there later, so they never reappear. The position in the CRC
//! makes an entry valid only where it was written, so a walk can search for the next entry after
//! damage byte by byte.

use bytes::{BufMut, BytesMut};

use super::change::Change;
use super::frame::FRAME_BYTES;

/// Bytes of candidates that a search for the next entry checks in total, and the length up to which it
/// always checks one.
const CHECKED_BYTES_MAX: usize = 1 << 30;
const SMALL_BYTES: usize = 4096;

/// Appends the entry of `change` at `position`, and returns its CRC.
pub(super) fn encode(change: &Change<'_>, position: u64, before: u32, out: &mut BytesMut) -> u32 {
    let start = out.len();
    out.put_bytes(0, FRAME_BYTES);
    let kind = change.encode(out);
    let bytes = ((out.len() - start - FRAME_BYTES) as u32).to_le_bytes();
    let entry = &mut out[start..];
    entry[..4].copy_from_slice(&bytes);
    entry[8..12].copy_from_slice(&before.to_le_bytes());
    entry[12] = kind;
    let crc = crc(position, entry);
    entry[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Kind of an entry that records up to which position the log was durable when it was written.
/// Everything before that position was whole once; if it no longer is, that is damage, not a torn tail.
pub(super) const MARK: u8 = 254;
/// Length of a mark, including its frame.
pub(super) const MARK_BYTES: usize = FRAME_BYTES + 8;

/// Appends a mark, and returns its CRC.
pub(super) fn mark(durable: u64, position: u64, before: u32, out: &mut BytesMut) -> u32 {
    let start = out.len();
    out.put_u32_le((MARK_BYTES - FRAME_BYTES) as u32);
    out.put_bytes(0, FRAME_BYTES - 4);
    out.put_u64_le(durable);
    let entry = &mut out[start..];
    entry[8..12].copy_from_slice(&before.to_le_bytes());
    entry[12] = MARK;
    let crc = crc(position, entry);
    entry[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Fills in the frame of an entry without a body.
pub(super) fn seal(position: u64, before: u32, frame: &mut [u8], kind: u8) {
    frame[8..12].copy_from_slice(&before.to_le_bytes());
    frame[12] = kind;
    let crc = crc(position, frame);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Chains an encoded entry to another CRC, and returns its own.
#[cfg(test)]
pub(super) fn chain(position: u64, before: u32, entry: &mut [u8]) -> u32 {
    entry[8..12].copy_from_slice(&before.to_le_bytes());
    let crc = crc(position, entry);
    entry[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn crc(position: u64, entry: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&position.to_le_bytes());
    crc.update(&entry[8..]);
    crc.update(&entry[..4]);
    crc.finalize()
}

/// An entry that was read and checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) crc: u32,
    pub(super) before: u32,
    pub(crate) kind: u8,
    pub(crate) body: &'a [u8],
}

/// What a walk along the log finds.
#[derive(Debug)]
pub(crate) enum WalkItem<'a> {
    Entry {
        position: u64,
        entry: Entry<'a>,
    },
    /// Bytes that are not a whole entry, up to the next one or to the end.
    Gap {
        position: u64,
        bytes: &'a [u8],
    },
}

/// A walk along a span of the log that continues after damage.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    position: u64,
    rest: &'a [u8],
    /// CRC of the previous entry, if known.
    before: Option<u32>,
}

impl<'a> Walk<'a> {
    /// Begins at a position. `before` is the CRC of what precedes it, if known.
    pub(crate) fn new(position: u64, bytes: &'a [u8], before: Option<u32>) -> Self {
        Self { position, rest: bytes, before }
    }

    /// Where the next whole entry begins. Searches byte by byte, cheap tests first: false frames are rare.
    fn resume(&self) -> usize {
        let looks_like_one = |at: &usize| {
            self.rest.get(*at..at + FRAME_BYTES).is_some_and(|frame| frame[12] != 0 && frame[13..16] == [0; 3])
        };
        // A client's payload may look like a million long entries: checking all would take hours.
        let mut budget = CHECKED_BYTES_MAX;
        let is_one = |at: &usize| {
            let rest = &self.rest[*at..];
            let bytes = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if bytes > rest.len() || (bytes > SMALL_BYTES && bytes > budget) {
                return false;
            }
            budget = budget.saturating_sub(bytes);
            Entry::decode(self.position + *at as u64, rest).is_some()
        };
        (1..self.rest.len()).filter(looks_like_one).find(is_one).unwrap_or(self.rest.len())
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = WalkItem<'a>;

    fn next(&mut self) -> Option<WalkItem<'a>> {
        let position = self.position;
        let entry = Entry::decode(position, self.rest);
        let (bytes, step) = match entry.filter(|entry| self.before.is_none_or(|before| entry.before == before)) {
            Some(entry) => {
                self.before = Some(entry.crc);
                (entry.bytes(), WalkItem::Entry { position, entry })
            }
            None => {
                // Zeros to the end are room that was never written.
                let written = self.rest.iter().rposition(|byte| *byte != 0)? + 1;
                self.before = None;
                let bytes = self.resume();
                (bytes, WalkItem::Gap { position, bytes: &self.rest[..bytes.min(written)] })
            }
        };
        self.position += bytes as u64;
        self.rest = &self.rest[bytes..];
        Some(step)
    }
}

impl<'a> Entry<'a> {
    /// The entry at the start of `bytes`; `None` if there is no whole one.
    pub(crate) fn decode(position: u64, bytes: &'a [u8]) -> Option<Self> {
        let frame = bytes.first_chunk::<FRAME_BYTES>()?;
        let word = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let entry = bytes.get(..FRAME_BYTES + word(0) as usize)?;
        // Zeros are room that was never written. They are not an entry, whatever their CRC.
        if frame[12] == 0 || crc(position, entry) != word(4) {
            return None;
        }
        Some(Self { crc: word(4), before: word(8), kind: frame[12], body: &entry[FRAME_BYTES..] })
    }

    /// Up to where the log was durable, if this is a mark.
    pub(crate) fn durable(&self) -> Option<u64> {
        self.body.first_chunk().filter(|_| self.kind == MARK).copied().map(u64::from_le_bytes)
    }

    /// Its length, including the frame.
    pub(crate) fn bytes(&self) -> usize {
        FRAME_BYTES + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::change::Stored;

    #[test]
    fn an_entry_is_whole_only_where_it_was_written() {
        let stored = Stored {
            stream: 1,
            sequence: 2,
            time: 3,
            expires: 4,
            replaces: 5,
            moved: true,
            subject: b"a.b",
            header: b"NATS/1.0\r\n\r\n",
            payload: b"payload",
        };
        let mut bytes = BytesMut::new();
        let crc = encode(&Change::Stored(stored), 100, 7, &mut bytes);
        let entry = Entry::decode(100, &bytes).expect("whole");
        assert_eq!((entry.crc, entry.before, entry.bytes()), (crc, 7, bytes.len()));
        assert_eq!(entry.body.len(), stored.body_bytes());
        assert_eq!(Change::decode(entry.kind, entry.body), Some(Change::Stored(stored)));
        assert!(Entry::decode(101, &bytes).is_none(), "another position");
        for cut in 0..bytes.len() {
            assert!(Entry::decode(100, &bytes[..cut]).is_none(), "cut at {cut}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[cut] ^= 1 << bit;
                assert!(Entry::decode(100, &flipped).is_none(), "bit {bit} of byte {cut} flipped");
            }
        }
        assert!(Entry::decode(0, &[0; 64]).is_none(), "zeros");
    }
}
