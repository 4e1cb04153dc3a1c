//! The messages of one stream, by sequence and by subject; their bytes are in the journal.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::journal::Place;

/// What JetStream counts for a message beside its own bytes.
const OVERHEAD_BYTES: u64 = 30;
const HEADER_OVERHEAD_BYTES: u64 = 4;

/// A message that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) subject: Arc<str>,
    pub(crate) place: Place,
    pub(crate) header_bytes: u32,
    pub(crate) payload_bytes: u32,
    /// When it was stored, Unix time in ns.
    pub(crate) time: i64,
    /// When it ends by its own TTL, Unix time in ns; 0 is never.
    pub(crate) expires: i64,
}

impl Message {
    /// What it counts against `max_bytes`.
    pub(crate) fn counted_bytes(&self) -> u64 {
        counted_bytes(self.subject.len(), self.header_bytes as usize, self.payload_bytes as usize)
    }
}

/// What a message of these lengths counts against `max_bytes`.
pub(crate) fn counted_bytes(subject: usize, header: usize, payload: usize) -> u64 {
    let header = if header > 0 { header as u64 + HEADER_OVERHEAD_BYTES } else { 0 };
    OVERHEAD_BYTES + subject as u64 + header + payload as u64
}

/// Sequences of one subject, in order. Nearly always it is one.
#[derive(Debug, Clone)]
enum Sequences {
    One(u64),
    Many(BTreeSet<u64>),
}

/// All messages of a stream.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    by_sequence: BTreeMap<u64, Message>,
    by_subject: HashMap<Arc<str>, Sequences>,
    /// The ones with a TTL of their own, by when it ends.
    expiring: BTreeSet<(i64, u64)>,
    bytes: u64,
}

impl Messages {
    pub(crate) fn get(&self, sequence: u64) -> Option<&Message> {
        self.by_sequence.get(&sequence)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_sequence.len()
    }

    /// What they count against `max_bytes`.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn first(&self) -> Option<(u64, &Message)> {
        self.by_sequence.first_key_value().map(|(sequence, message)| (*sequence, message))
    }

    /// The messages from a sequence on.
    pub(crate) fn from(&self, sequence: u64) -> impl Iterator<Item = (u64, &Message)> {
        self.by_sequence.range(sequence..).map(|(sequence, message)| (*sequence, message))
    }

    /// How many subjects there are.
    pub(crate) fn subjects(&self) -> usize {
        self.by_subject.len()
    }

    /// Each subject and how many messages it has.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        self.by_subject.iter().map(|(subject, sequences)| (subject, sequences.len()))
    }

    /// How many messages a subject has.
    pub(crate) fn count(&self, subject: &str) -> usize {
        self.by_subject.get(subject).map_or(0, Sequences::len)
    }

    /// First and last sequence of a subject.
    pub(crate) fn ends(&self, subject: &str) -> Option<(u64, u64)> {
        self.by_subject.get(subject).map(Sequences::ends)
    }

    /// Sequences of a subject, in order.
    pub(crate) fn sequences(&self, subject: &str) -> Vec<u64> {
        match self.by_subject.get(subject) {
            None => Vec::new(),
            Some(Sequences::One(sequence)) => vec![*sequence],
            Some(Sequences::Many(sequences)) => sequences.iter().copied().collect(),
        }
    }

    /// A known subject's own copy of its name, or a new one: messages share it.
    fn shared(&self, subject: &str) -> Arc<str> {
        self.by_subject.get_key_value(subject).map_or_else(|| subject.into(), |(known, _)| known.clone())
    }

    /// Adds a message. The sequence must be free.
    pub(crate) fn insert(&mut self, sequence: u64, subject: &str, message: impl FnOnce(Arc<str>) -> Message) {
        let message = message(self.shared(subject));
        self.bytes += message.counted_bytes();
        if message.expires != 0 {
            self.expiring.insert((message.expires, sequence));
        }
        match self.by_subject.get_mut(subject) {
            Some(sequences) => sequences.insert(sequence),
            None => drop(self.by_subject.insert(message.subject.clone(), Sequences::One(sequence))),
        }
        let earlier = self.by_sequence.insert(sequence, message);
        debug_assert!(earlier.is_none(), "sequence {sequence} was taken");
    }

    /// Says where a message lies now; returns where it lay.
    pub(crate) fn relocate(&mut self, sequence: u64, place: Place) -> Option<Place> {
        self.by_sequence.get_mut(&sequence).map(|message| std::mem::replace(&mut message.place, place))
    }

    /// Removes a message.
    pub(crate) fn remove(&mut self, sequence: u64) -> Option<Message> {
        let message = self.by_sequence.remove(&sequence)?;
        self.bytes -= message.counted_bytes();
        if message.expires != 0 {
            self.expiring.remove(&(message.expires, sequence));
        }
        if let Some(sequences) = self.by_subject.get_mut(&message.subject)
            && sequences.remove(sequence)
        {
            self.by_subject.remove(&message.subject);
        }
        Some(message)
    }

    /// When the next message ends by its own TTL.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.expiring.first().map(|(when, _)| *when)
    }

    /// The messages whose own TTL has ended by `wall`, at most `count`.
    pub(crate) fn expired(&self, wall: i64, count: usize) -> Vec<u64> {
        self.expiring.iter().take_while(|(when, _)| *when <= wall).take(count).map(|(_, sequence)| *sequence).collect()
    }
}

impl Sequences {
    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(sequences) => sequences.len(),
        }
    }

    fn ends(&self) -> (u64, u64) {
        match self {
            Self::One(sequence) => (*sequence, *sequence),
            Self::Many(sequences) => {
                (sequences.first().copied().unwrap_or_default(), sequences.last().copied().unwrap_or_default())
            }
        }
    }

    fn insert(&mut self, sequence: u64) {
        match self {
            Self::One(first) => *self = Self::Many([*first, sequence].into()),
            Self::Many(sequences) => drop(sequences.insert(sequence)),
        }
    }

    /// Whether none is left.
    fn remove(&mut self, sequence: u64) -> bool {
        match self {
            Self::One(_) => true,
            Self::Many(sequences) => {
                sequences.remove(&sequence);
                if let (1, Some(last)) = (sequences.len(), sequences.first()) {
                    *self = Self::One(*last);
                }
                false
            }
        }
    }
}
