//! The subjects of a stream's messages, each stored once and compactly.
//!
//! The subject of a job ends with its UUID. As text, the UUID takes 36 characters; here it takes 16
//! bytes and the number of the prefix before it, which nearly all subjects of a stream share.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

/// Prefixes that are stored once; any more are stored with their subject.
const PREFIXES_MAX: usize = 1024;

/// The number of a subject, valid as long as the subject has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SubjectId(pub(super) u32);

/// All subjects that have a message.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    hasher: RandomState,
    prefixes: Vec<Box<str>>,
    prefix_numbers: HashMap<Box<str>, u32>,
}

#[derive(Debug)]
struct Slot {
    name: Name,
    sequences: Sequences,
}

/// A subject as it is stored.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Name {
    Uuid { prefix: u32, uuid: [u8; 16] },
    Other(Box<str>),
}

/// A subject as it is looked up.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Uuid { prefix: u32, uuid: [u8; 16] },
    Other(&'a str),
}

/// Sequences of one subject, in order. Nearly always there is only one.
#[derive(Debug)]
enum Sequences {
    One(u64),
    #[expect(clippy::box_collection, reason = "the usual case stays small")]
    Many(Box<BTreeSet<u64>>),
}

/// Prefix and UUID of a subject that ends with a UUID in its usual form.
fn split(subject: &str) -> Option<(&str, [u8; 16])> {
    let at = subject.len().checked_sub(Hyphenated::LENGTH)?;
    let (prefix, token) = (subject.get(..at)?, subject.get(at..)?);
    let uuid = Uuid::try_parse(token).ok().filter(|_| prefix.is_empty() || prefix.ends_with('.'))?;
    // Other forms of the same UUID are different subjects.
    let mut buffer = [0; Hyphenated::LENGTH];
    (*token == *uuid.as_hyphenated().encode_lower(&mut buffer)).then(|| (prefix, *uuid.as_bytes()))
}

impl Subjects {
    /// How many subjects have messages.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    fn wanted<'a>(&self, subject: &'a str) -> Wanted<'a> {
        let number = split(subject).and_then(|(prefix, uuid)| Some((*self.prefix_numbers.get(prefix)?, uuid)));
        number.map_or(Wanted::Other(subject), |(prefix, uuid)| Wanted::Uuid { prefix, uuid })
    }

    fn hash(hasher: &RandomState, wanted: Wanted<'_>) -> u64 {
        match wanted {
            Wanted::Uuid { prefix, uuid } => hasher.hash_one((prefix, uuid)),
            Wanted::Other(text) => hasher.hash_one(text),
        }
    }

    fn slot_of(&self, subject: &str) -> Option<&Slot> {
        let wanted = self.wanted(subject);
        let is_it = |index: &u32| self.slots[*index as usize].name.is(wanted);
        let index = self.by_name.find(Self::hash(&self.hasher, wanted), is_it)?;
        Some(&self.slots[*index as usize])
    }

    /// Adds a sequence to a subject, which may be new.
    pub(super) fn insert(&mut self, subject: &str, sequence: u64) -> SubjectId {
        if let Some((prefix, _)) = split(subject)
            && self.prefixes.len() < PREFIXES_MAX
            && !self.prefix_numbers.contains_key(prefix)
        {
            self.prefix_numbers.insert(prefix.into(), self.prefixes.len() as u32);
            self.prefixes.push(prefix.into());
        }
        let wanted = self.wanted(subject);
        let hash = Self::hash(&self.hasher, wanted);
        let slots = &mut self.slots;
        if let Some(index) = self.by_name.find(hash, |index| slots[*index as usize].name.is(wanted)) {
            slots[*index as usize].sequences.insert(sequence);
            return SubjectId(*index);
        }
        let slot = Slot { name: wanted.into(), sequences: Sequences::One(sequence) };
        let index = match self.free.pop() {
            Some(index) => {
                slots[index as usize] = slot;
                index
            }
            None => {
                slots.push(slot);
                (slots.len() - 1) as u32
            }
        };
        let hasher = &self.hasher;
        self.by_name.insert_unique(hash, index, |index| Self::hash(hasher, slots[*index as usize].name.as_wanted()));
        SubjectId(index)
    }

    /// Removes a sequence, and the subject with its last one.
    pub(super) fn remove(&mut self, id: SubjectId, sequence: u64) {
        let slot = &mut self.slots[id.0 as usize];
        if !slot.sequences.remove(sequence) {
            return;
        }
        let hash = Self::hash(&self.hasher, slot.name.as_wanted());
        if let Ok(found) = self.by_name.find_entry(hash, |index| *index == id.0) {
            found.remove();
        }
        slot.name = Name::Other("".into());
        self.free.push(id.0);
    }

    /// A subject's text.
    pub(super) fn text(&self, id: SubjectId) -> Cow<'_, str> {
        match &self.slots[id.0 as usize].name {
            Name::Other(text) => Cow::Borrowed(text),
            Name::Uuid { prefix, uuid } => {
                let prefix = &self.prefixes[*prefix as usize];
                let mut text = String::with_capacity(prefix.len() + Hyphenated::LENGTH);
                text.push_str(prefix);
                text.push_str(Uuid::from_bytes(*uuid).as_hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]));
                Cow::Owned(text)
            }
        }
    }

    /// Length of a subject's text.
    pub(super) fn bytes(&self, id: SubjectId) -> usize {
        match &self.slots[id.0 as usize].name {
            Name::Other(text) => text.len(),
            Name::Uuid { prefix, .. } => self.prefixes[*prefix as usize].len() + Hyphenated::LENGTH,
        }
    }

    /// Each subject and how many messages it has.
    pub(super) fn counts(&self) -> impl Iterator<Item = (Cow<'_, str>, usize)> {
        self.by_name.iter().map(|index| (self.text(SubjectId(*index)), self.slots[*index as usize].sequences.len()))
    }

    /// How many messages a subject has.
    pub(super) fn count(&self, subject: &str) -> usize {
        self.slot_of(subject).map_or(0, |slot| slot.sequences.len())
    }

    /// First and last sequence of a subject.
    pub(super) fn ends(&self, subject: &str) -> Option<(u64, u64)> {
        self.slot_of(subject).map(|slot| slot.sequences.ends())
    }

    /// First and last sequence of each subject, with its text.
    pub(super) fn all_ends(&self) -> impl Iterator<Item = (Cow<'_, str>, (u64, u64))> {
        self.by_name.iter().map(|index| (self.text(SubjectId(*index)), self.slots[*index as usize].sequences.ends()))
    }

    /// The last sequence of the subject with this number.
    pub(super) fn last(&self, id: SubjectId) -> u64 {
        self.slots[id.0 as usize].sequences.ends().1
    }

    /// Sequences of a subject from one on, in order.
    pub(super) fn sequences(&self, subject: &str, from: u64) -> impl DoubleEndedIterator<Item = u64> {
        let (one, many) = match self.slot_of(subject).map(|slot| &slot.sequences) {
            None => (None, None),
            Some(Sequences::One(sequence)) => (Some(*sequence).filter(|sequence| *sequence >= from), None),
            Some(Sequences::Many(sequences)) => (None, Some(sequences.range(from..).copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl Name {
    fn is(&self, wanted: Wanted<'_>) -> bool {
        match (self, wanted) {
            (Self::Uuid { prefix, uuid }, Wanted::Uuid { prefix: wanted, uuid: other }) => {
                *prefix == wanted && *uuid == other
            }
            (Self::Other(text), Wanted::Other(wanted)) => **text == *wanted,
            _ => false,
        }
    }

    fn as_wanted(&self) -> Wanted<'_> {
        match self {
            Self::Uuid { prefix, uuid } => Wanted::Uuid { prefix: *prefix, uuid: *uuid },
            Self::Other(text) => Wanted::Other(text),
        }
    }
}

impl From<Wanted<'_>> for Name {
    fn from(wanted: Wanted<'_>) -> Self {
        match wanted {
            Wanted::Uuid { prefix, uuid } => Self::Uuid { prefix, uuid },
            Wanted::Other(text) => Self::Other(text.into()),
        }
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
            Self::One(first) => *self = Self::Many(Box::new([*first, sequence].into())),
            Self::Many(sequences) => drop(sequences.insert(sequence)),
        }
    }

    /// Removes a sequence. Returns true if it was the last one.
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

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0199d2a4-0000-7000-8000-000000000000";

    #[test]
    fn a_subject_comes_out_as_it_went_in_and_its_sequences_with_it() {
        let mut subjects = Subjects::default();
        let texts = [
            format!("jobs.cats.0.{UUID}"),
            format!("jobs.cats.1.{UUID}"),
            UUID.to_owned(),
            // None of these is the usual form of a UUID at the end.
            format!("jobs.cats.0.{}", UUID.to_uppercase()).replace("D2A4", "D2A5"),
            format!("jobs.cats.0.x{UUID}"),
            format!("jobs.{UUID}.cats"),
            "plain".to_owned(),
            "käse.ö0199d2a4-0000-7000-8000-00000000000".to_owned(),
        ];
        let ids: Vec<SubjectId> =
            texts.iter().zip(1..).map(|(text, sequence)| subjects.insert(text, sequence)).collect();
        assert_eq!(subjects.len(), texts.len());
        for ((text, id), sequence) in texts.iter().zip(&ids).zip(1..) {
            assert_eq!((subjects.text(*id).as_ref(), subjects.bytes(*id)), (text.as_str(), text.len()));
            assert_eq!(subjects.ends(text), Some((sequence, sequence)));
        }
        assert_eq!(subjects.insert(&texts[0], 20), ids[0]);
        assert_eq!((subjects.count(&texts[0]), subjects.ends(&texts[0])), (2, Some((1, 20))));
        assert_eq!(subjects.sequences(&texts[0], 2).collect::<Vec<_>>(), [20]);
        subjects.remove(ids[0], 1);
        assert_eq!(subjects.ends(&texts[0]), Some((20, 20)));
        subjects.remove(ids[0], 20);
        assert_eq!((subjects.ends(&texts[0]), subjects.len()), (None, texts.len() - 1));
        assert_eq!(subjects.insert("another", 21), ids[0], "a free place is used again");
    }
}
