//! The window in which a `Nats-Msg-Id` is known, even after its message is removed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Ids, each with the sequence and time of its message.
#[derive(Debug, Default)]
pub(crate) struct Dedupe {
    ids: HashMap<Arc<str>, (u64, i64)>,
    by_time: VecDeque<(i64, Arc<str>)>,
}

impl Dedupe {
    /// The sequence under which an id was stored within the window before `wall`, in ns.
    pub(crate) fn find(&self, id: &str, wall: i64, window: i64) -> Option<u64> {
        self.ids.get(id).filter(|(_, time)| wall - time < window).map(|(sequence, _)| *sequence)
    }

    /// Adds an id, and drops those outside the window.
    pub(crate) fn register(&mut self, id: &str, sequence: u64, time: i64, window: i64) {
        while let Some((oldest, id)) = self.by_time.front().filter(|(oldest, _)| time - *oldest >= window) {
            // If the id was registered again since then, only the later entry counts.
            if self.ids.get(id).is_some_and(|(_, registered)| registered == oldest) {
                self.ids.remove(id);
            }
            self.by_time.pop_front();
        }
        let id: Arc<str> = id.into();
        self.by_time.push_back((time, id.clone()));
        self.ids.insert(id, (sequence, time));
    }

    /// All ids, the oldest first: `(id, sequence, time)`.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, u64, i64)> {
        let known = self.by_time.iter().filter_map(|(time, id)| {
            let (sequence, registered) = self.ids.get(id)?;
            (registered == time).then(|| (id.clone(), *sequence, *time))
        });
        known.collect()
    }

    /// The id that was stored last, and the sequence of its message.
    pub(crate) fn last(&self) -> Option<(&str, u64)> {
        let (_, id) = self.by_time.back()?;
        Some((id, self.ids.get(id)?.0))
    }
}
