//! Data that has decayed on disk: how it is found, removed and reported.
//!
//! A message whose bytes are not what was written is never served. It is removed from its stream, so that
//! consumers continue after it, and listed in the losses that the operator sees.

use std::io;

use super::core::{Core, now};
use super::loss::Loss;
use super::shared::Shared;
use crate::journal::{Change, Damage, LogPlace};
use crate::stream::Stream;

/// Losses that are kept in memory; further ones are only logged.
const LOSSES_MAX: usize = 1000;

impl Core {
    /// Logs a loss and adds it to the list.
    pub(super) fn lost(&mut self, loss: Loss) {
        tracing::error!("the journal is damaged: {loss}");
        if self.losses.len() < LOSSES_MAX {
            self.losses.push(loss);
        }
    }

    /// Handles a stored message that could not be read. A damaged one is removed from its stream; after any
    /// other error, the next read may succeed.
    pub(super) fn unreadable(&mut self, (id, sequence): (u32, u64), place: LogPlace, error: &io::Error) {
        // It may have been moved since it was looked up.
        let is_there = |stream: &&Stream| stream.messages.get(sequence).is_some_and(|message| message.place() == place);
        let Some(stream) = self.streams.get(&id).filter(is_there) else { return };
        let name = stream.config.name.clone();
        // A message that is not durable yet may not be in the file yet either.
        let is_written = place.position + u64::from(place.bytes) <= self.journal.committer().durable();
        if error.kind() != io::ErrorKind::InvalidData || !is_written {
            tracing::error!(%error, stream = name, sequence, "stored message unreadable");
            return;
        }
        let now = now();
        let removed = Change::Removed { stream: id, from: sequence, to: sequence };
        if self.change(&removed, true, now).is_ok() {
            let problem = "its bytes on disk have changed".to_owned();
            self.lost(Loss { stream: Some(name), sequences: Some((sequence, sequence)), problem });
            self.serve_all(id, now);
        }
    }

    /// Reports what recovery had to skip. `missing` are sequences that were assigned but whose messages were
    /// not found.
    pub(super) fn account(&mut self, damage: &[Damage], missing: &[(u32, u64, u64)]) {
        for Damage { name, offset, bytes, message } in damage {
            let problem = match bytes {
                0 => format!("{name} is damaged; its other copy was used"),
                _ => format!("{bytes} bytes at {offset} of {name} have changed on disk"),
            };
            self.lost(Loss { stream: None, sequences: None, problem });
            // The last message ever stored: no later one shows that it is missing. Its sequence must not be
            // assigned again.
            if let Some((id, sequence)) = message
                && let Some(stream) = self.streams.get_mut(id)
                && *sequence == stream.last + 1
            {
                stream.last = *sequence;
                let stream = Some(stream.config.name.clone());
                let problem = "its entry is damaged".to_owned();
                self.lost(Loss { stream, sequences: Some((*sequence, *sequence)), problem });
            }
        }
        for (id, from, to) in missing {
            let Some(stream) = self.streams.get(id).filter(|_| !damage.is_empty()) else { continue };
            let stream = Some(stream.config.name.clone());
            let problem = "their entries are damaged".to_owned();
            self.lost(Loss { stream, sequences: Some((*from, *to)), problem });
        }
    }
}

impl Shared {
    /// Like [`Core::unreadable`], for callers without the lock.
    pub(super) fn unreadable(&self, of: (u32, u64), place: LogPlace, error: &io::Error) {
        let mut core = self.lock();
        core.unreadable(of, place, error);
        core.finish();
        // The next message may have been delivered, with a deadline.
        self.timer_set.notify_one();
    }
}
