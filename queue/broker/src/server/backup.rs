//! Copies a journal while it is in use, and checks whether a journal is intact.
//!
//! A snapshot and the log after it are enough, and both stay valid while they are copied: the log only grows at
//! its end, and a segment is deleted only once a newer snapshot has replaced the one that needs it. So the snapshot
//! is copied first, then the segments; if a newer snapshot was written meanwhile, copying starts over. That is quick,
//! because the files are only hard-linked at first, which keeps them until they are copied. An entry that is being
//! written at the log's end is cut off after the last whole one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::core::Core;
use super::loss::Loss;
use super::options::Options;
use crate::journal::entry::{Walk, WalkItem};
use crate::journal::segment::{HEADER_BYTES, SEAL};
use crate::journal::{OpenError, snapshot};
use crate::platform::storage::{Folder, private};

/// Attempts before a copy fails; an attempt fails if the journal was compacted meanwhile.
const TRIES: usize = 20;

/// The contents of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Number of streams.
    pub streams: usize,
    /// Number of intact messages in all streams.
    pub messages: usize,
    /// What is damaged or missing.
    pub losses: Vec<Loss>,
}

/// Copies the journal in `from`, which may be in use, to `to`, which must not exist. The copy holds
/// everything that was acknowledged before the call.
///
/// # Errors
/// If something cannot be read or written; nothing is left at `to` then.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(Path::new("")))?;
    // Private, because the journal contains uploads.
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let copied = copy_pinned(from, to);
    if copied.is_err() {
        fs::remove_dir_all(to)?;
    }
    copied
}

/// Hard links to a journal's files, removed on drop: the broker may delete the originals meanwhile.
struct Pinned(PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "temporary links of the backup not removed");
        }
    }
}

fn copy_pinned(from: &Path, to: &Path) -> io::Result<()> {
    let folder = from.with_file_name(format!("journal-copy-{}", std::process::id()));
    if fs::DirBuilder::new().mode(0o700).create(&folder).is_err() {
        // Most likely read-only, so no process changes it.
        return copy_consistently(from, to, &|one, other| copy_whole(one, other));
    }
    let pinned = Pinned(folder);
    let linked = copy_consistently(from, &pinned.0, &|one, other| fs::hard_link(one, other));
    match linked {
        Ok(()) => copy_consistently(&pinned.0, to, &|one, other| copy_whole(one, other)),
        // The file system does not support hard links.
        Err(_) => copy_consistently(from, to, &|one, other| copy_whole(one, other)),
    }
}

type Put<'a> = dyn Fn(&Path, &Path) -> io::Result<()> + 'a;

/// Puts a snapshot and all that it needs into `to`; starts over if a newer snapshot was written meanwhile.
fn copy_consistently(from: &Path, to: &Path, put: &Put<'_>) -> io::Result<()> {
    for _ in 0..TRIES {
        match try_copy(from, to, put) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the journal changed during every attempt to copy it; retry"))
}

/// One attempt; `false` if a newer snapshot was written meanwhile.
fn try_copy(from: &Path, to: &Path, put: &Put<'_>) -> io::Result<bool> {
    for entry in fs::read_dir(to)? {
        fs::remove_file(entry?.path())?;
    }
    let newest = newest_snapshot(&names(from)?);
    for name in newest.map(snapshot::file_names).into_iter().flatten() {
        match put(&from.join(&name), &to.join(&name)) {
            // Version 1 wrote snapshots without a second copy.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with(".copy") => {}
            done => done?,
        }
    }
    let names = names(from)?;
    if newest_snapshot(&names) != newest {
        return Ok(false);
    }
    for name in names.iter().filter(|name| base_of(name).is_some()) {
        put(&from.join(name), &to.join(name))?;
    }
    fs::File::open(to)?.sync_all()?;
    Ok(true)
}

/// The log position at which a segment begins, if `name` is a segment's.
fn base_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}

/// Copies one file durably, without entries that are being written at the log's end.
fn copy_whole(from: &Path, to: &Path) -> io::Result<()> {
    let mut bytes = fs::read(from)?;
    let base = from.file_name().and_then(|name| base_of(&name.to_string_lossy()));
    if let Some(end) = base.and_then(|base| torn_at(base, &bytes)) {
        bytes[end..].fill(0);
    }
    let mut copy = private().write(true).create(true).truncate(true).open(to)?;
    copy.write_all(&bytes)?;
    copy.sync_all()
}

fn names(folder: &Path) -> io::Result<BTreeSet<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn newest_snapshot(names: &BTreeSet<String>) -> Option<u64> {
    names.iter().filter_map(|name| snapshot::position_of(name)).max()
}

/// Where the log ends in the active segment: entries may follow whose predecessors were not written yet when
/// they were read. `None` for a sealed segment. An entry that was durable and is not intact is damage, and is
/// copied as it is.
fn torn_at(base: u64, bytes: &[u8]) -> Option<usize> {
    let body = bytes.get(HEADER_BYTES as usize..)?;
    let mut first_gap = None;
    for step in Walk::new(base + HEADER_BYTES, body, None) {
        match step {
            WalkItem::Entry { entry, .. } if entry.kind == SEAL => return None,
            WalkItem::Entry { entry, .. } => {
                let durable = entry.durable().unwrap_or(0);
                first_gap = first_gap.filter(|gap| *gap >= durable);
            }
            WalkItem::Gap { position, .. } => first_gap = first_gap.or(Some(position)),
        }
    }
    first_gap.map(|position| (position - base) as usize)
}

/// Reads every message of a journal that is not in use.
///
/// # Errors
/// If the journal cannot be opened.
pub fn check(folder: &Path) -> Result<Inventory, OpenError> {
    let shown = folder.display().to_string();
    // Opened without changing it: what recovery writes is discarded.
    let storage = Folder::open_to_look(folder).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked(shown),
        _ => OpenError::Io { name: shown, source: error },
    })?;
    let mut core = Core::open(Arc::new(storage), &Options::new(folder.to_owned()), Box::new(|_| {}))?;
    let mut messages = 0;
    for id in core.streams.keys().copied().collect::<Vec<_>>() {
        let places = core.streams[&id].messages.from(0).map(|message| (message.sequence(), message.place()));
        for (sequence, place) in places.collect::<Vec<_>>() {
            match core.journal.read(place).load() {
                Ok(_) => messages += 1,
                Err(error) => {
                    let (stream, sequences) = (Some(core.streams[&id].config.name.clone()), Some((sequence, sequence)));
                    core.lost(Loss { stream, sequences, problem: error.to_string() });
                }
            }
        }
    }
    Ok(Inventory { streams: core.streams.len(), messages, losses: std::mem::take(&mut core.losses) })
}
