//! A copy of a journal, taken while it is in use, and whether a journal is whole.
//!
//! A snapshot and the log from it on are enough, and what changes while they are copied is only ever
//! behind them: the log grows at its end, and a segment goes only when a newer snapshot has taken the
//! place of what needs it. So: snapshot first, then segments; if a newer snapshot came in between,
//! from the start. That is quick, because at first the files are only given a second name each, which
//! keeps them until they are copied. What is written at the log's end just then is cut off at the last whole entry.

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

/// How often a copy is begun before it is given up: each time the journal was tidied in between.
const TRIES: usize = 20;

/// What is in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Its streams.
    pub streams: usize,
    /// Messages in all of them that are whole.
    pub messages: usize,
    /// What is not.
    pub losses: Vec<Loss>,
}

/// Copies the journal in `from`, which may be in use, to `to`, which must not exist. What was
/// acknowledged before this is called is in the copy.
///
/// # Errors
/// What could not be read or written. Nothing is left at `to` then.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(Path::new("")))?;
    // Uploads are in it.
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let copied = copy_pinned(from, to);
    if copied.is_err() {
        fs::remove_dir_all(to)?;
    }
    copied
}

/// Second names of a journal's files, gone with this: the broker may remove its own meanwhile.
struct Pinned(PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "left behind");
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
        // A file system without second names.
        Err(_) => copy_consistently(from, to, &|one, other| copy_whole(one, other)),
    }
}

type Put<'a> = dyn Fn(&Path, &Path) -> io::Result<()> + 'a;

/// Puts a snapshot and all that it needs into `to`, from the start again if a newer one came.
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

/// Tries once; `false` if a newer snapshot came in between.
fn try_copy(from: &Path, to: &Path, put: &Put<'_>) -> io::Result<bool> {
    for entry in fs::read_dir(to)? {
        fs::remove_file(entry?.path())?;
    }
    let newest = newest_snapshot(&names(from)?);
    for name in newest.map(snapshot::file_names).into_iter().flatten() {
        match put(&from.join(&name), &to.join(&name)) {
            // Version 1 had one copy.
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

/// The position at which a segment's file begins, if it is one.
fn base_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}

/// Copies one file durably, without what is written to the log's end just then.
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

/// Where the log ends in the segment that is written just now: behind it may be entries whose
/// predecessors were not there yet when they were read. `None` in a sealed one. What was durable and is
/// not whole is damage, and is copied as it is.
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
/// Why it cannot be opened.
pub fn check(folder: &Path) -> Result<Inventory, OpenError> {
    let shown = folder.display().to_string();
    // Looked at, and unchanged: what opening it writes goes nowhere.
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
