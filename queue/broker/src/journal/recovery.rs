//! Opening a journal: the newest snapshot, then every whole entry after it.
//!
//! An entry that is not whole, or does not chain to the previous one, is one of two things. After the
//! last position that the log itself records as durable, it is a torn tail: it was never acknowledged,
//! and the log continues in its place. Before that position it was whole once: recovery skips and
//! reports the damage, and searches for the next entry byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::BytesMut;

use super::change::{Change, LogPlace};
use super::commit::{Committer, Release};
use super::entry::{MARK, Walk, WalkItem};
use super::segment::{Files, HEADER_BYTES, Header, HeaderRead, SEAL, SegmentFile, VERSION, segment_name};
use super::snapshot::{self, Mark, Unusable};
use super::space::Space;
use super::{Journal, Recent, Segment, rand_salt};
use crate::platform::storage::{File, Storage};

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or written.
    #[error("the journal's {name} cannot be used")]
    Io {
        /// The file, or what else is needed, such as the folder.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A user, a certificate or another setting is invalid.
    #[error("the broker cannot be started: {0}")]
    Settings(String),
    /// Another process has the journal open.
    #[error("the journal in {0} is in use by another broker")]
    Locked(String),
    /// A newer version of the program wrote it.
    #[error("the journal's {name} has format {version}, which this version cannot read: use a newer sightline")]
    Newer {
        /// The file.
        name: String,
        /// Its format.
        version: u32,
    },
    /// Data that was written whole is now damaged.
    #[error("the journal's {name} is damaged at byte {offset}: {problem}; restore the folder from a backup")]
    Damaged {
        /// The file.
        name: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

impl OpenError {
    pub(crate) fn io(name: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let name = name.to_owned();
        move |source| Self::Io { name, source }
    }
}

/// Applies a change, with the place of its entry if it has one; returns what is wrong with it.
pub(crate) type Apply<'a> = dyn FnMut(Change<'_>, Option<LogPlace>) -> Result<(), String> + 'a;

/// Bytes of the log that were whole once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The file.
    pub(crate) name: String,
    /// Where in the file.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Stream and sequence of the lost message, if they can still be read.
    pub(crate) message: Option<(u32, u64)>,
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Entries after the snapshot.
    pub(crate) entries: u64,
    /// Bytes after the last whole entry that are not zero: a torn tail.
    pub(crate) torn_bytes: u64,
    pub(crate) damage: Vec<Damage>,
}

/// A segment that exists.
struct Found {
    file: Arc<SegmentFile>,
    header: Header,
    /// CRC with which its chain begins; `None` if its header is damaged.
    crc: Option<u32>,
}

/// The end of the log while it is read.
struct End {
    active: u64,
    head: u64,
    crc: Option<u32>,
}

impl<R: Release> Journal<R> {
    /// Opens the journal of a folder and passes every change to `apply`, with the place of its entry;
    /// changes of a snapshot have none. The caller must then [claim](Journal::claim) what is live.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        segment_bytes: Option<u64>,
        on_failure: Box<dyn FnOnce(io::Error) + Send>,
        apply: &mut Apply<'_>,
    ) -> Result<(Self, Recovered), OpenError> {
        let mut space = Space::new(&storage, segment_bytes).map_err(OpenError::io("disk"))?;
        let files = Files::new(storage.clone());
        let mut found = segments(&files)?;
        let mut recovered = Recovered::default();
        let mark = load_snapshot(storage.as_ref(), &found, apply, &mut recovered.damage)?;
        if found.is_empty() {
            let file = space.take(&files, 0, super::Share::Settle).map_err(|full| OpenError::Io {
                name: "first segment".into(),
                source: io::Error::new(io::ErrorKind::StorageFull, full),
            })?;
            let header = Header { version: VERSION, base: 0, span: file.bytes, salt: rand_salt() };
            file.begin(&header).map_err(OpenError::io("first segment"))?;
            found.insert(0, Found { file, header, crc: Some(header.encode().1) });
        }
        let end = replay(&found, mark, apply, &mut recovered)?;
        let last = found[&end.active].file.clone();
        last.hold_open().map_err(OpenError::io("last segment"))?;
        let active = last.file().map_err(OpenError::io("last segment"))?;
        // Not in a segment of an older version: it has no marks, so this may be more than a torn tail, and
        // nothing more is written there.
        if recovered.torn_bytes > 0 && found[&end.active].header.version == VERSION {
            // Recovery must never find whole entries after the tear again, even if the log before it is damaged.
            let rest = last.bytes.saturating_sub(end.head - end.active) as usize;
            active.write_at(&vec![0; rest], end.head - end.active).map_err(OpenError::io("last segment"))?;
        }
        // What was read may be only in the system's cache; sync it before anything depends on it.
        active.sync().map_err(OpenError::io("last segment"))?;
        storage.sync_names().map_err(OpenError::io("folder"))?;
        let committer = Committer::start(last, end.head, on_failure).map_err(OpenError::io("thread"))?;
        let segments = found.into_iter().map(|(base, found)| {
            let Header { span, version, .. } = found.header;
            (base, Segment { file: found.file, span, version, live: 0, live_before: 0 })
        });
        let journal = Self {
            files,
            committer: Arc::new(committer),
            segments: segments.collect(),
            active: end.active,
            head: end.head,
            crc: end.crc.unwrap_or_default(),
            space,
            open: BytesMut::new(),
            writes: Vec::new(),
            must_sync: false,
            marked: end.head,
            told: end.head,
            appended: 0,
            carried: 0,
            recent: Recent::default(),
        };
        Ok((journal, recovered))
    }
}

/// All segments by base. Removes spares and segments that were never begun.
fn segments(files: &Arc<Files>) -> Result<BTreeMap<u64, Found>, OpenError> {
    let storage = files.storage();
    let names = storage.names().map_err(OpenError::io("folder"))?;
    let mut found = BTreeMap::new();
    let mut empty = Vec::new();
    for name in names {
        if name.starts_with("spare-") || name.ends_with(".partial") {
            storage.remove(&name).map_err(OpenError::io(&name))?;
        }
        let Some(base) = name.strip_prefix("segment-").and_then(|base| u64::from_str_radix(base, 16).ok()) else {
            continue;
        };
        let damaged = |problem: &str| OpenError::Damaged { name: name.clone(), offset: 0, problem: problem.into() };
        let file = storage.open(&name).map_err(OpenError::io(&name))?;
        let bytes = file.bytes().map_err(OpenError::io(&name))?;
        let mut header = [0; HEADER_BYTES as usize];
        let there = bytes.min(HEADER_BYTES) as usize;
        file.read_at(&mut header[..there], 0).map_err(OpenError::io(&name))?;
        match Header::decode(&header) {
            HeaderRead::Whole(header) if header.base == base => {
                let file = SegmentFile::existing(files, name, bytes);
                found.insert(base, Found { file, header, crc: Some(header.encode().1) });
            }
            // Never written, or torn while being written: then nothing was ever written after it.
            HeaderRead::Empty | HeaderRead::Damaged
                if is_blank(file.as_ref(), bytes).map_err(OpenError::io(&name))? =>
            {
                empty.push((base, name));
            }
            HeaderRead::Newer(version) => return Err(OpenError::Newer { name, version }),
            HeaderRead::Whole(_) => return Err(damaged("its header belongs to another segment than its name")),
            HeaderRead::Empty | HeaderRead::Damaged => {
                // Its name shows where it begins, and the next segment's name where it ends.
                let header = Header { version: VERSION, base, span: bytes, salt: 0 };
                let file = SegmentFile::existing(files, name, bytes);
                found.insert(base, Found { file, header, crc: None });
            }
        }
    }
    let bases: Vec<u64> = found.keys().copied().collect();
    for pair in bases.windows(2) {
        if let Some(segment) = found.get_mut(&pair[0]).filter(|segment| segment.crc.is_none()) {
            segment.header.span = pair[1] - pair[0];
        }
    }
    for (base, name) in empty {
        // The crash came after the rename and before the header: nothing can follow it.
        if found.range(base..).next().is_some() {
            return Err(OpenError::Damaged { name, offset: 0, problem: "its header is missing".into() });
        }
        storage.remove(&name).map_err(OpenError::io(&name))?;
    }
    Ok(found)
}

/// Whether a segment holds only zeros after its header.
fn is_blank(file: &dyn File, bytes: u64) -> io::Result<bool> {
    let mut rest = vec![0; bytes.saturating_sub(HEADER_BYTES) as usize];
    file.read_at(&mut rest, HEADER_BYTES.min(bytes))?;
    Ok(rest.iter().all(|byte| *byte == 0))
}

/// Applies the newest whole snapshot. Without one, the log is read from its start.
fn load_snapshot(
    storage: &dyn Storage,
    found: &BTreeMap<u64, Found>,
    apply: &mut Apply<'_>,
    damage: &mut Vec<Damage>,
) -> Result<Option<Mark>, OpenError> {
    let positions = snapshot::positions(storage).map_err(OpenError::io("folder"))?;
    let mut damaged = None;
    for position in positions {
        let mut told = BTreeSet::new();
        let mut report = |name: &str| {
            if told.insert(name.to_owned()) {
                damage.push(Damage { name: name.to_owned(), offset: 0, bytes: 0, message: None });
            }
        };
        let [name, _] = snapshot::file_names(position);
        match snapshot::load(storage, position, &mut report, &mut |change| apply(change, None)) {
            Ok(mark) => return Ok(Some(mark)),
            Err(Unusable::Io(source)) => return Err(OpenError::Io { name, source }),
            Err(Unusable::Newer(version)) => return Err(OpenError::Newer { name, version }),
            Err(Unusable::Damaged) => {
                tracing::error!(name, "snapshot damaged; trying an older one");
                damaged.get_or_insert(name);
            }
        }
    }
    match (damaged, found.keys().next()) {
        (_, None | Some(0)) => Ok(None),
        (Some(name), _) => Err(OpenError::Damaged {
            name,
            offset: 0,
            problem: "it is incomplete, and the log before it no longer exists".into(),
        }),
        (None, Some(first)) => Err(OpenError::Damaged {
            name: segment_name(*first),
            offset: 0,
            problem: "the log before it is missing, and so is a snapshot".into(),
        }),
    }
}

fn replay(
    found: &BTreeMap<u64, Found>,
    mark: Option<Mark>,
    apply: &mut Apply<'_>,
    recovered: &mut Recovered,
) -> Result<End, OpenError> {
    let start = mark.map_or(0, |mark| mark.position);
    let Some((_, first)) = found.range(..=start).next_back() else {
        let problem = "the log that its snapshot continues is missing".to_owned();
        return Err(OpenError::Damaged { name: segment_name(start), offset: 0, problem });
    };
    let mut segment = first;
    let mut end = End { active: segment.header.base, head: start, crc: mark.map(|mark| mark.before) };
    if start < segment.header.base + HEADER_BYTES {
        (end.head, end.crc) = (segment.header.base + HEADER_BYTES, segment.crc);
    }
    loop {
        let next = segment.header.base + segment.header.span;
        let is_last = found.range(next..).next().is_none();
        replay_segment(segment, is_last, &mut end, apply, recovered)?;
        if is_last {
            return Ok(end);
        }
        let Some(following) = found.get(&next) else {
            return Err(OpenError::Damaged {
                name: segment_name(segment.header.base),
                offset: end.head - segment.header.base,
                problem: "the segment after it is missing".into(),
            });
        };
        segment = following;
        end = End { active: next, head: next + HEADER_BYTES, crc: following.crc };
    }
}

/// Applies the entries of one segment from `end.head` on, and skips damage. In the last segment, the
/// log ends at its torn tail.
fn replay_segment(
    segment: &Found,
    is_last: bool,
    end: &mut End,
    apply: &mut Apply<'_>,
    recovered: &mut Recovered,
) -> Result<(), OpenError> {
    let base = segment.header.base;
    let name = segment_name(base);
    let mut bytes = vec![0; segment.file.bytes.saturating_sub(end.head - base) as usize];
    let file = segment.file.file().map_err(OpenError::io(&name))?;
    file.read_at(&mut bytes, end.head - base).map_err(OpenError::io(&name))?;
    if segment.crc.is_none() {
        recovered.damage.push(Damage { name: name.clone(), offset: 0, bytes: HEADER_BYTES, message: None });
    }
    // A segment is synced whole before the next one is begun.
    let durable = if is_last { last_mark(end, &bytes) } else { base + segment.header.span };
    for step in Walk::new(end.head, &bytes, end.crc) {
        match step {
            WalkItem::Entry { position, entry } => {
                // A seal at the end of the log was written but never acknowledged. The log continues
                // in its place: `end.crc` stays that of the entry before it.
                if entry.kind == SEAL {
                    if is_last {
                        end.head = position;
                    }
                    return Ok(());
                }
                let place = LogPlace { position, bytes: entry.bytes() as u32 };
                if entry.kind != MARK {
                    let damaged =
                        |problem: String| OpenError::Damaged { name: name.clone(), offset: position - base, problem };
                    let change =
                        Change::decode(entry.kind, entry.body).ok_or_else(|| damaged("unknown entry".into()))?;
                    apply(change, Some(place)).map_err(damaged)?;
                    recovered.entries += 1;
                }
                (end.head, end.crc) = (position + entry.bytes() as u64, Some(entry.crc));
            }
            WalkItem::Gap { position, bytes } if position < durable => {
                let message = Change::glimpse(bytes);
                let (offset, bytes) = (position - base, bytes.len() as u64);
                recovered.damage.push(Damage { name: name.clone(), offset, bytes, message });
                (end.head, end.crc) = (position + bytes, None);
            }
            WalkItem::Gap { bytes, .. } => {
                recovered.torn_bytes += bytes.len() as u64;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The highest position that a mark in the last segment records as durable.
fn last_mark(end: &End, bytes: &[u8]) -> u64 {
    let marks = Walk::new(end.head, bytes, end.crc).filter_map(|step| match step {
        WalkItem::Entry { entry, .. } => entry.durable(),
        WalkItem::Gap { .. } => None,
    });
    marks.max().unwrap_or(0)
}
