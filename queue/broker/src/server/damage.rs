//! What has decayed on disk: found, kept apart, and told.
//!
//! A message whose bytes are not what was written is never served. It leaves its stream, so that its
//! consumers go on behind it, and stands in the account that the operator sees.

use std::io;

use super::core::{Core, now};
use super::loss::Loss;
use super::shared::Shared;
use crate::journal::{Change, Damage, LogPlace};
use crate::stream::Stream;

/// Losses that are kept in mind; further ones are only logged.
const LOSSES_MAX: usize = 1000;

impl Core {
    /// Takes a loss to the account.
    pub(super) fn lost(&mut self, loss: Loss) {
        tracing::error!("the journal is damaged: {loss}");
        if self.losses.len() < LOSSES_MAX {
            self.losses.push(loss);
        }
    }

    /// A stored message could not be read. One that is damaged leaves its stream; after another fault
    /// the next one who asks may have more luck.
    pub(super) fn unreadable(&mut self, (id, sequence): (u32, u64), place: LogPlace, error: &io::Error) {
        // It may have been carried elsewhere since it was looked up.
        let is_there = |stream: &&Stream| stream.messages.get(sequence).is_some_and(|message| message.place() == place);
        let Some(stream) = self.streams.get(&id).filter(is_there) else { return };
        let name = stream.config.name.clone();
        // What is not durable yet may not be in the file either.
        let is_written = place.position + u64::from(place.bytes) <= self.journal.committer().durable();
        if error.kind() != io::ErrorKind::InvalidData || !is_written {
            tracing::error!(%error, stream = name, sequence, "stored message unreadable");
            return;
        }
        let now = now();
        let removed = Change::Removed { stream: id, from: sequence, to: sequence };
        if self.change(&removed, true, now).is_ok() {
            let problem = "it is not as it was written".to_owned();
            self.lost(Loss { stream: Some(name), sequences: Some((sequence, sequence)), problem });
            self.serve_all(id, now);
        }
    }

    /// Accounts for what recovery had to step over. `missing` are sequences that were given and whose
    /// messages did not come.
    pub(super) fn account(&mut self, damage: &[Damage], missing: &[(u32, u64, u64)]) {
        for Damage { name, offset, bytes, message } in damage {
            let problem = match bytes {
                0 => format!("{name} is not whole, and its other copy was used"),
                _ => format!("{bytes} bytes at {offset} of {name} are not as they were written"),
            };
            self.lost(Loss { stream: None, sequences: None, problem });
            // The last message that was ever stored: nothing behind it shows that it is missing. Its
            // sequence must not be given again.
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
    /// The same as [`Core::unreadable`], for callers without the lock.
    pub(super) fn unreadable(&self, of: (u32, u64), place: LogPlace, error: &io::Error) {
        let mut core = self.lock();
        core.unreadable(of, place, error);
        core.finish();
        // What comes next may have been handed out, with a deadline.
        self.timer_set.notify_one();
    }
}
