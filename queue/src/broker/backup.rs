//! A copy of a journal, taken while it is in use, and whether a journal is whole.
//!
//! A snapshot and the log from it on are enough, and what changes while they are copied is only ever
//! behind them: the log grows at its end, and a segment goes only when a newer snapshot has taken the
//! place of what needs it. So: snapshot first, then segments; if a newer snapshot came in between,
//! from the start. What is written at the log's end just then is cut off at the last whole entry.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::core::Core;
use super::{Loss, Options};
use crate::journal::entry::{Step, Walk};
use crate::journal::segment::{HEADER_BYTES, SEAL};
use crate::journal::{OpenError, snapshot};
use crate::platform::storage::Folder;

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
    fs::create_dir(to)?;
    let copied = (0..TRIES).find_map(|_| match try_copy(from, to) {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error)),
    });
    let copied = copied.unwrap_or_else(|| Err(io::Error::other("the journal is tidied all the time; try again")));
    if copied.is_err() {
        fs::remove_dir_all(to)?;
    }
    copied
}

/// Copies once; `false` if a newer snapshot came in between.
fn try_copy(from: &Path, to: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(to)? {
        fs::remove_file(entry?.path())?;
    }
    let newest = newest_snapshot(&names(from)?);
    for name in newest.map(snapshot::file_names).into_iter().flatten() {
        match fs::copy(from.join(&name), to.join(&name)) {
            // Version 1 had one copy.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with(".copy") => {}
            copied => drop(copied?),
        }
    }
    let names = names(from)?;
    if newest_snapshot(&names) != newest {
        return Ok(false);
    }
    for name in names {
        if let Some(base) = name.strip_prefix("segment-").and_then(|base| u64::from_str_radix(base, 16).ok()) {
            let mut bytes = fs::read(from.join(&name))?;
            if let Some(end) = torn_at(base, &bytes) {
                bytes[end..].fill(0);
            }
            fs::write(to.join(&name), bytes)?;
        }
    }
    for entry in fs::read_dir(to)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    fs::File::open(to)?.sync_all()?;
    Ok(true)
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
            Step::Entry { entry, .. } if entry.kind == SEAL => return None,
            Step::Entry { entry, .. } => {
                let durable = entry.durable().unwrap_or(0);
                first_gap = first_gap.filter(|gap| *gap >= durable);
            }
            Step::Gap { position, .. } => first_gap = first_gap.or(Some(position)),
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
    // Looked at, and left as it is: what opening it writes goes nowhere.
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
