//! The messages of one stream, by sequence and by subject; their bytes are in the journal.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::entries::{Entries, IndexEntry};
use super::subjects::Subjects;
use crate::journal::{LogPlace, stored_bytes};

/// Bytes that JetStream counts for a message in addition to its own.
const OVERHEAD_BYTES: u64 = 30;
const HEADER_OVERHEAD_BYTES: u64 = 4;

/// An owned description of a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) place: LogPlace,
    pub(crate) header_bytes: u32,
    pub(crate) payload_bytes: u32,
    /// When it was stored, Unix time in ns.
    pub(crate) time: i64,
}

/// A borrowed view of a stored message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    entry: &'a IndexEntry,
    subjects: &'a Subjects,
}

impl<'a> Found<'a> {
    pub(crate) fn sequence(self) -> u64 {
        self.entry.sequence
    }

    pub(crate) fn subject(self) -> Cow<'a, str> {
        self.subjects.text(self.entry.subject)
    }

    pub(crate) fn header_bytes(self) -> u32 {
        self.entry.header_bytes
    }

    pub(crate) fn payload_bytes(self) -> u32 {
        self.entry.payload_bytes
    }

    /// When it was stored, Unix time in ns.
    pub(crate) fn time(self) -> i64 {
        self.entry.time
    }

    /// When it expires by its own TTL, Unix time in ns; 0 is never.
    pub(crate) fn expires(self) -> i64 {
        self.entry.expires
    }

    /// Where its entry is; the entry's length follows from its parts.
    pub(crate) fn place(self) -> LogPlace {
        place(self.entry, self.subjects.bytes(self.entry.subject))
    }

    /// Whether it is the last one of its subject.
    pub(crate) fn is_last_of_subject(self) -> bool {
        self.subjects.last(self.entry.subject) == self.entry.sequence
    }

    /// Bytes that it counts against `max_bytes`.
    pub(crate) fn counted_bytes(self) -> u64 {
        counted_entry(self.entry, self.subjects.bytes(self.entry.subject))
    }

    pub(crate) fn take_out(self) -> Message {
        Message {
            sequence: self.sequence(),
            subject: self.subject().into_owned(),
            place: self.place(),
            header_bytes: self.header_bytes(),
            payload_bytes: self.payload_bytes(),
            time: self.time(),
        }
    }
}

fn place(entry: &IndexEntry, subject_bytes: usize) -> LogPlace {
    let bytes = stored_bytes(subject_bytes, entry.header_bytes as usize, entry.payload_bytes as usize);
    LogPlace { position: entry.position, bytes: bytes as u32 }
}

fn counted_entry(entry: &IndexEntry, subject_bytes: usize) -> u64 {
    counted_bytes(subject_bytes, entry.header_bytes as usize, entry.payload_bytes as usize)
}

/// Bytes that a message with parts of these lengths counts against `max_bytes`.
pub(crate) fn counted_bytes(subject: usize, header: usize, payload: usize) -> u64 {
    let header = if header > 0 { header as u64 + HEADER_OVERHEAD_BYTES } else { 0 };
    OVERHEAD_BYTES + subject as u64 + header + payload as u64
}

/// All messages of a stream.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    entries: Entries,
    subjects: Subjects,
    /// Messages with their own TTL, by when they expire.
    expiring: BTreeSet<(i64, u64)>,
    bytes: u64,
}

/// A message that is new, or read from the journal.
pub(super) struct Arrival<'a> {
    pub(super) sequence: u64,
    pub(super) position: u64,
    pub(super) time: i64,
    pub(super) expires: i64,
    pub(super) header_bytes: u32,
    pub(super) payload_bytes: u32,
    pub(super) subject: &'a str,
}

/// A message that was removed.
pub(super) struct Gone {
    pub(super) subject: String,
    pub(super) place: LogPlace,
}

impl Messages {
    fn found<'a>(&'a self, entry: &'a IndexEntry) -> Found<'a> {
        Found { entry, subjects: &self.subjects }
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<Found<'_>> {
        self.entries.get(sequence).map(|entry| self.found(entry))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that the messages count against `max_bytes`.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn first(&self) -> Option<Found<'_>> {
        self.from(0).next()
    }

    pub(crate) fn last(&self) -> Option<Found<'_>> {
        self.entries.last().map(|entry| self.found(entry))
    }

    /// The messages from a sequence on.
    pub(crate) fn from(&self, sequence: u64) -> impl DoubleEndedIterator<Item = Found<'_>> {
        self.entries.from(sequence).map(|entry| self.found(entry))
    }

    /// How many subjects have messages.
    pub(crate) fn subjects(&self) -> usize {
        self.subjects.len()
    }

    /// Each subject and how many messages it has.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Cow<'_, str>, usize)> {
        self.subjects.counts()
    }

    /// How many messages a subject has.
    pub(crate) fn count(&self, subject: &str) -> usize {
        self.subjects.count(subject)
    }

    /// First and last sequence of a subject.
    pub(crate) fn ends(&self, subject: &str) -> Option<(u64, u64)> {
        self.subjects.ends(subject)
    }

    /// First and last sequence of each subject.
    pub(crate) fn all_ends(&self) -> impl Iterator<Item = (Cow<'_, str>, (u64, u64))> {
        self.subjects.all_ends()
    }

    /// Sequences of a subject from one on, in order.
    pub(crate) fn sequences(&self, subject: &str, from: u64) -> impl DoubleEndedIterator<Item = u64> {
        self.subjects.sequences(subject, from)
    }

    /// Adds a message. The sequence must be free.
    pub(super) fn insert(&mut self, arrival: &Arrival<'_>) {
        let Arrival { sequence, position, time, expires, header_bytes, payload_bytes, subject } = *arrival;
        debug_assert!(self.entries.get(sequence).is_none(), "sequence {sequence} was taken");
        let id = self.subjects.insert(subject, sequence);
        let entry = IndexEntry { sequence, position, time, expires, header_bytes, payload_bytes, subject: id };
        self.bytes += counted_entry(&entry, subject.len());
        if expires != 0 {
            self.expiring.insert((expires, sequence));
        }
        self.entries.insert(entry);
    }

    /// Records where a message is now; returns where it was.
    pub(super) fn relocate(&mut self, sequence: u64, position: u64) -> Option<LogPlace> {
        let entry = self.entries.get_mut(sequence)?;
        let before = place(entry, self.subjects.bytes(entry.subject));
        entry.position = position;
        Some(before)
    }

    /// Removes a message.
    pub(super) fn remove(&mut self, sequence: u64) -> Option<Gone> {
        let entry = self.entries.remove(sequence)?;
        let subject = self.subjects.text(entry.subject).into_owned();
        self.bytes -= counted_entry(&entry, subject.len());
        if entry.expires != 0 {
            self.expiring.remove(&(entry.expires, sequence));
        }
        self.subjects.remove(entry.subject, sequence);
        Some(Gone { place: place(&entry, subject.len()), subject })
    }

    /// When the next message expires by its own TTL.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.expiring.first().map(|(when, _)| *when)
    }

    /// At most `count` messages whose own TTL has expired by `wall`.
    pub(crate) fn expired(&self, wall: i64, count: usize) -> Vec<u64> {
        self.expiring.iter().take_while(|(when, _)| *when <= wall).take(count).map(|(_, sequence)| *sequence).collect()
    }
}
