//! The journal against disks that lose, tear and flip what was written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::platform::memory::Memory;

/// Counts what is released.
struct Count(Arc<AtomicU64>);

impl Release for Count {
    fn release(self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

type Opened = (Journal<Count>, Vec<u64>, recovery::Recovered);

/// Opens a journal; these tests identify changes by their sequence.
fn open(memory: Arc<Memory>, segment_bytes: u64) -> Result<Opened, OpenError> {
    let mut seen = Vec::new();
    let (journal, recovered) =
        Journal::open(memory, Some(segment_bytes), Box::new(|_| {}), &mut |change, _| match change {
            Change::Stored(stored) => {
                seen.push(stored.sequence);
                Ok(())
            }
            other => Err(format!("this was never written: {other:?}")),
        })?;
    Ok((journal, seen, recovered))
}

fn append(journal: &mut Journal<Count>, sequence: u64, payload: &[u8], durable: bool) {
    let stored = Stored {
        stream: 1,
        sequence,
        time: 0,
        expires: 0,
        replaces: 0,
        moved: false,
        subject: b"a.b",
        header: b"",
        payload,
    };
    journal.append(&Change::Stored(stored), Share::Settle, durable).expect("there is room");
}

/// A journal of one segment with `count` entries of some 200 bytes, and where each of them ends.
fn filled(count: u64) -> (Vec<(String, Vec<u8>)>, Vec<usize>) {
    let memory = Memory::with([]);
    let (mut journal, ..) = open(memory.clone(), 256 << 10).expect("opens");
    let mut ends = Vec::new();
    for sequence in 1..=count {
        append(&mut journal, sequence, &vec![sequence as u8; 100 + sequence as usize % 64], true);
        ends.push(journal.mark().0 as usize);
    }
    journal.commit(None);
    drop(journal);
    (memory.files().into_iter().filter(|(name, _)| name.starts_with("segment")).collect(), ends)
}

/// Reopens images of a journal, one damaged at each offset of its last 64 KiB. Recovery must return
/// exactly the entries that end before the damage.
fn at_every_offset(damage: impl Fn(&mut Vec<u8>, usize)) {
    let (files, ends) = filled(400);
    let [(name, bytes)] = &files[..] else { panic!("one segment") };
    let end = *ends.last().expect("entries");
    assert!(end > (64 << 10) + 64, "the tail is 64 KiB and more");
    for offset in end - (64 << 10)..end {
        let whole = ends.partition_point(|end| *end <= offset);
        let mut image = bytes[..end].to_vec();
        damage(&mut image, offset);
        let opened = open(Memory::with([(name.clone(), image)]), 256 << 10);
        let (_, seen, _) = opened.unwrap_or_else(|error| panic!("damage at {offset}: {error}"));
        assert_eq!(seen.len(), whole, "damage at {offset}");
        assert!(seen.iter().zip(1..).all(|(seen, expected)| *seen == expected), "damage at {offset}: no prefix");
    }
}

#[test]
fn wherever_the_tail_is_cut_an_exact_prefix_is_recovered() {
    at_every_offset(|image, offset| image.truncate(offset));
}

#[test]
fn wherever_a_bit_of_the_tail_is_flipped_an_exact_prefix_is_recovered() {
    at_every_offset(|image, offset| image[offset] ^= 1 << (offset % 8));
}

#[test]
fn garbage_behind_the_end_is_not_taken_for_entries() {
    let (mut files, ends) = filled(20);
    files[0].1.truncate(ends[19]);
    files[0].1.extend((0..4096_u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 24) as u8));
    let (_, seen, recovered) = open(Memory::with(files), 256 << 10).expect("opens");
    assert_eq!((seen.len(), recovered.torn_bytes), (20, 4096));
}

#[test]
fn what_lies_behind_a_torn_entry_never_comes_back() {
    let (files, ends) = filled(5);
    let [(name, mut bytes)] = files.try_into().expect("one segment");
    // The third entry is torn; the fourth and fifth are whole, but were never acknowledged.
    bytes[ends[2] - 1] ^= 1;
    let memory = Memory::with([(name, bytes)]);
    let (mut journal, seen, recovered) = open(memory.clone(), 256 << 10).expect("opens");
    assert_eq!(seen, [1, 2]);
    assert!(recovered.torn_bytes > 0);
    // An entry of the same length replaces the torn one.
    append(&mut journal, 103, &[9; 100 + 3], true);
    assert_eq!(journal.mark().0 as usize, ends[2]);
    journal.commit(None);
    drop(journal);
    let (_, seen, _) = open(memory, 256 << 10).expect("opens");
    assert_eq!(seen, [1, 2, 103], "entries from before the tear came back");
}

#[test]
fn after_a_failed_sync_nothing_is_released() {
    let memory = Memory::with([]);
    let released = Arc::new(AtomicU64::new(0));
    let (failed, failure) = mpsc::channel();
    let on_failure = Box::new(move |error: io::Error| drop(failed.send(error.to_string())));
    let (mut journal, _) =
        Journal::open(memory.clone(), Some(64 << 10), on_failure, &mut |_, _| Ok(())).expect("opens");
    append(&mut journal, 1, b"x", true);
    journal.commit(Some(Count(released.clone())));
    journal.committer().barrier().expect("the disk is well");
    assert_eq!(released.load(Ordering::SeqCst), 1);
    memory.fail_syncs_after(0);
    for sequence in 2..5 {
        append(&mut journal, sequence, b"x", true);
        journal.commit(Some(Count(released.clone())));
    }
    assert_eq!(failure.recv().expect("the failure is told"), "the disk is gone");
    assert!(journal.committer().barrier().is_err());
    append(&mut journal, 5, b"x", false);
    assert!(journal.commit(Some(Count(released.clone()))).is_none(), "nothing goes out any more");
    drop(journal);
    assert_eq!(released.load(Ordering::SeqCst), 1);
}

#[test]
fn a_newer_format_is_refused_with_a_reason() {
    let (mut files, _) = filled(3);
    let header = Header { version: VERSION + 1, base: 0, span: 256 << 10, salt: 1 };
    files[0].1[..64].copy_from_slice(&header.encode().0);
    let error = open(Memory::with(files), 256 << 10).map(drop).expect_err("refused").to_string();
    assert!(error.contains("format 3") && error.contains("newer sightline"), "{error}");
}

/// A journal of several segments, each entry synced before the next.
fn synced(count: u64) -> Vec<(String, Vec<u8>)> {
    let memory = Memory::with([]);
    let (mut journal, ..) = open(memory.clone(), 4096).expect("opens");
    for sequence in 1..=count {
        append(&mut journal, sequence, &[7; 300], true);
        journal.commit(None);
        journal.committer().barrier().expect("the disk is well");
    }
    drop(journal);
    memory.files().into_iter().filter(|(name, _)| name.starts_with("segment")).collect()
}

#[test]
fn a_flipped_bit_costs_one_entry_at_most_and_is_reported() {
    const COUNT: u64 = 40;
    let files = synced(COUNT);
    assert!(files.len() > 2, "several segments");
    let mut random = Coins(0x5EED);
    let flips = if is_long() { 10_000 } else { 2_000 };
    for _ in 0..flips {
        let mut image = files.clone();
        let which = random.below(image.len() as u64) as usize;
        let bytes = &mut image[which].1;
        let written = bytes.iter().rposition(|byte| *byte != 0).expect("written") + 1;
        let (at, bit) = (random.below(written as u64) as usize, random.below(8));
        bytes[at] ^= 1 << bit;
        let is_end = which == files.len() - 1;
        let opened = open(Memory::with(image), 4096);
        let (_, seen, recovered) = opened.unwrap_or_else(|error| panic!("byte {at} of file {which}: {error}"));
        let mut all = seen.clone();
        all.dedup();
        assert!(all.is_sorted() && all == seen, "byte {at} of file {which}: out of order: {seen:?}");
        assert!(seen.len() as u64 >= COUNT - 1, "byte {at} of file {which}: {seen:?}");
        // Only the last entry may look like a torn tail: nothing after it shows that it was durable.
        let is_found = !recovered.damage.is_empty() || (is_end && recovered.torn_bytes > 0);
        let is_unused = (12..16).contains(&at) || (44..64).contains(&at);
        assert!(is_found || (is_unused && seen.len() as u64 == COUNT), "byte {at} of file {which}: not found");
        if let Some(gone) = (1..COUNT).find(|sequence| !seen.contains(sequence)) {
            assert!(!recovered.damage.is_empty(), "{gone} is missing without a report");
        }
    }
}

#[test]
fn a_message_whose_entry_is_damaged_is_named() {
    let mut files = synced(20);
    let payload = memchr::memmem::find(&files[0].1, &[7; 300]).expect("a payload");
    files[0].1[payload] ^= 1;
    let (_, seen, recovered) = open(Memory::with(files), 4096).expect("opens");
    assert_eq!(seen, (2..=20).collect::<Vec<_>>());
    let [damage] = &recovered.damage[..] else { panic!("{recovered:?}") };
    assert_eq!((damage.name.as_str(), damage.message), ("segment-0000000000000000", Some((1, 1))));
}

#[test]
fn what_an_older_program_wrote_is_read_and_gone_on_with_in_a_segment_of_our_own() {
    let (mut files, ends) = filled(5);
    let header = Header { version: 1, base: 0, span: 256 << 10, salt: 1 };
    let (bytes, mut crc) = header.encode();
    let file = &mut files[0].1;
    file[..64].copy_from_slice(&bytes);
    // The chain begins with the header's CRC.
    let mut start = 64;
    for end in &ends {
        crc = entry::chain(start as u64, crc, &mut file[start..*end]);
        start = *end;
    }
    file[start..].fill(0);
    let memory = Memory::with(files);
    let (mut journal, seen, _) = open(memory.clone(), 256 << 10).expect("opens");
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    append(&mut journal, 6, b"new", true);
    journal.commit(None);
    drop(journal);
    let (_, seen, recovered) = open(memory.clone(), 256 << 10).expect("opens");
    assert_eq!((seen, recovered.damage.len()), (vec![1, 2, 3, 4, 5, 6], 0));
    assert_eq!(memory.files().iter().filter(|(name, _)| name.starts_with("segment")).count(), 2);
}

#[test]
fn an_entry_may_be_longer_than_a_segment() {
    let memory = Memory::with([]);
    let (mut journal, ..) = open(memory.clone(), 4096).expect("opens");
    for sequence in 1..6 {
        append(&mut journal, sequence, &vec![1; 3000 * sequence as usize], true);
        journal.commit(None);
    }
    drop(journal);
    assert_eq!(open(memory, 4096).expect("opens").1, [1, 2, 3, 4, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Power fails twice, at any time, and the disk keeps any of the sectors that were not synced.
    #[test]
    fn a_power_cut_leaves_a_prefix_that_holds_all_that_was_released(
        batches in proptest::collection::vec(
            (proptest::collection::vec(0_usize..1500, 1..6), any::<bool>(), any::<bool>()),
            1..20,
        ),
        coins in any::<u64>(),
    ) {
        let mut coins = Coins(coins | 1);
        let mut files = Vec::new();
        let mut before: Vec<u64> = Vec::new();
        for round in 0..2_u64 {
            let memory = Memory::with(files);
            let (mut journal, seen, _) = open(memory.clone(), 4096).expect("opens");
            prop_assert_eq!(&seen, &before);
            let released = Arc::new(AtomicU64::new(0));
            // How many entries must survive once each batch is released.
            let mut written = seen.clone();
            let mut held = Vec::new();
            for (sizes, durable, wait) in &batches {
                for size in sizes {
                    let sequence = written.len() as u64 + 1 + round * 1_000_000;
                    append(&mut journal, sequence, &vec![3; *size], *durable);
                    written.push(sequence);
                }
                journal.commit(Some(Count(released.clone())));
                // A batch that needs no sync is released without one.
                held.push(if *durable { written.len() } else { held.last().copied().unwrap_or(seen.len()) });
                if *wait {
                    journal.committer().barrier().expect("the disk is well");
                    *held.last_mut().expect("just pushed") = written.len();
                }
            }
            let promised = released.load(Ordering::SeqCst);
            files = memory.cut(&mut || coins.next());
            drop(journal);
            let (_, seen, _) = open(Memory::with(files.clone()), 4096).expect("opens");
            let promised = promised.checked_sub(1).map_or(before.len(), |last| held[last as usize]);
            prop_assert!(seen.len() >= promised, "{} of {promised} released entries", seen.len());
            prop_assert_eq!(&seen[..], &written[..seen.len()], "no prefix");
            before = seen;
        }
    }
}

/// Number of test cases; more with `SIGHTLINE_FAULTS=long`.
fn cases() -> u32 {
    if is_long() { 100_000 } else { 500 }
}

fn is_long() -> bool {
    std::env::var("SIGHTLINE_FAULTS").is_ok_and(|form| form == "long")
}

/// A sequence of coin flips from a seed.
struct Coins(u64);

impl Coins {
    fn next(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 1 == 0
    }

    fn below(&mut self, count: u64) -> u64 {
        self.next();
        (self.0 >> 16) % count
    }
}
