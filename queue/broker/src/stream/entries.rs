//! A compact index of a stream's messages, in the order of their sequences.
//!
//! A queue may hold a million messages, so entries are small and blocks are filled completely: new
//! sequences are only ever added at the end. A search tree would leave a third of its room empty.

use std::collections::VecDeque;

use super::subjects::SubjectId;

/// Entries of a full block.
const BLOCK: usize = 256;

/// A message without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) sequence: u64,
    /// Where its entry begins in the journal.
    pub(super) position: u64,
    /// When it was stored, Unix time in ns.
    pub(super) time: i64,
    /// When it expires by its own TTL, Unix time in ns; 0 is never.
    pub(super) expires: i64,
    pub(super) header_bytes: u32,
    pub(super) payload_bytes: u32,
    pub(super) subject: SubjectId,
}

/// Entries by sequence.
#[derive(Debug)]
pub(super) struct Entries {
    /// Each with its first sequence at the time when it was created; none is empty.
    blocks: Vec<(u64, VecDeque<IndexEntry>)>,
    len: usize,
    block_max: usize,
}

impl Default for Entries {
    fn default() -> Self {
        Self::with_blocks_of(BLOCK)
    }
}

impl Entries {
    fn with_blocks_of(block_max: usize) -> Self {
        Self { blocks: Vec::new(), len: 0, block_max }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The block that a sequence belongs to, if any.
    fn block_of(&self, sequence: u64) -> Option<usize> {
        self.blocks.partition_point(|(first, _)| *first <= sequence).checked_sub(1)
    }

    /// Block and place of a sequence.
    fn find(&self, sequence: u64) -> Option<(usize, usize)> {
        let block = self.block_of(sequence)?;
        let place = self.blocks[block].1.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        Some((block, place))
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&IndexEntry> {
        let (block, place) = self.find(sequence)?;
        self.blocks[block].1.get(place)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut IndexEntry> {
        let (block, place) = self.find(sequence)?;
        self.blocks[block].1.get_mut(place)
    }

    pub(super) fn last(&self) -> Option<&IndexEntry> {
        self.blocks.last()?.1.back()
    }

    /// The entries from a sequence on.
    pub(super) fn from(&self, sequence: u64) -> impl DoubleEndedIterator<Item = &IndexEntry> {
        let block = self.block_of(sequence).unwrap_or(0);
        let skipped =
            self.blocks.get(block).map_or(0, |(_, entries)| entries.partition_point(|entry| entry.sequence < sequence));
        let mut blocks = self.blocks[block..].iter().map(|(_, entries)| entries);
        let first = blocks.next().map(|entries| entries.range(skipped..));
        first.into_iter().flatten().chain(blocks.flatten())
    }

    /// Adds an entry whose sequence is free. Adding at the end is cheap; only recovery adds elsewhere.
    pub(super) fn insert(&mut self, entry: IndexEntry) {
        let sequence = entry.sequence;
        self.len += 1;
        let is_last = self.last().is_none_or(|last| last.sequence < sequence);
        let Some(index) = self.block_of(sequence).filter(|_| !is_last) else {
            match self.blocks.last_mut() {
                Some((_, block)) if is_last && block.len() < self.block_max => block.push_back(entry),
                _ if is_last => self.blocks.push((sequence, [entry].into())),
                // Before all others.
                _ => self.blocks.insert(0, (sequence, [entry].into())),
            }
            return;
        };
        let block = &mut self.blocks[index].1;
        let place = block.partition_point(|other| other.sequence < sequence);
        block.insert(place, entry);
        if block.len() > self.block_max {
            let later = block.split_off(block.len() / 2);
            self.blocks.insert(index + 1, (later[0].sequence, later));
        }
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<IndexEntry> {
        let (index, place) = self.find(sequence)?;
        let entry = self.blocks[index].1.remove(place)?;
        self.len -= 1;
        let len = self.blocks[index].1.len();
        if len == 0 {
            self.blocks.remove(index);
        } else if len <= self.block_max / 4 {
            self.join(index);
        }
        Some(entry)
    }

    /// Joins a block that has become small with the next one, if that is small too.
    fn join(&mut self, index: usize) {
        let is_small = |block: &(u64, VecDeque<IndexEntry>)| block.1.len() <= self.block_max / 4;
        if self.blocks.get(index + 1).is_some_and(is_small) {
            let (_, later) = self.blocks.remove(index + 1);
            self.blocks[index].1.extend(later);
        } else if self.blocks[index].1.capacity() > self.block_max / 2 {
            self.blocks[index].1.shrink_to(self.block_max / 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;

    use proptest::prelude::*;

    use super::{Entries, SubjectId};

    fn entry(sequence: u64) -> super::IndexEntry {
        let position = sequence * 100;
        super::IndexEntry {
            sequence,
            position,
            time: 0,
            expires: 0,
            header_bytes: 0,
            payload_bytes: 0,
            subject: SubjectId(0),
        }
    }

    proptest! {
        /// After additions, mostly at the end, and removals anywhere, a search tree holds the same entries.
        #[test]
        fn entries_agree_with_a_search_tree(ops in proptest::collection::vec((0_u64..60, any::<bool>(), 0_u8..8), 1..200)) {
            let (mut entries, mut model) = (Entries::with_blocks_of(4), BTreeMap::new());
            for (number, removes, elsewhere) in ops {
                if removes {
                    prop_assert_eq!(entries.remove(number), model.remove(&number));
                } else {
                    let next = model.last_key_value().map_or(1, |(last, _)| last + 1 + number % 3);
                    let sequence = if elsewhere == 0 { number } else { next };
                    if let Entry::Vacant(free) = model.entry(sequence) {
                        entries.insert(entry(sequence));
                        free.insert(entry(sequence));
                    }
                }
                prop_assert_eq!(entries.len(), model.len());
                prop_assert_eq!(entries.last(), model.last_key_value().map(|(_, entry)| entry));
                prop_assert_eq!(entries.get(number), model.get(&number));
                let (found, expected): (Vec<_>, Vec<_>) =
                    (entries.from(number).collect(), model.range(number..).map(|(_, entry)| entry).collect());
                prop_assert_eq!(found, expected);
                prop_assert!(entries.blocks.iter().all(|(_, block)| !block.is_empty() && block.len() <= 4));
            }
        }
    }
}
