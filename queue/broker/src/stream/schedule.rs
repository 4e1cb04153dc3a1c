//! Which messages of a stream expire, and when.

use super::Message;
use super::messages::Found;
use super::state::Stream;

/// Messages that one check may remove, so that a stream whose age limit was lowered does not block others.
const BATCH: usize = 1024;

impl Stream {
    /// Messages past the stream's age limit or their own TTL, as ranges of sequences.
    pub(crate) fn expired(&self, wall: i64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> =
            self.messages.expired(wall, BATCH).into_iter().map(|sequence| (sequence, sequence)).collect();
        if self.config.max_age > 0 {
            let oldest = wall.saturating_sub(self.config.max_age);
            let aged = self.messages.from(0).take(BATCH).take_while(|message| message.time() <= oldest);
            if let Some(last) = aged.last() {
                ranges.push((0, last.sequence()));
            }
        }
        ranges
    }

    /// Messages in ranges about to be removed that are the last of their subject: each leaves a marker,
    /// if the stream uses markers.
    pub(crate) fn to_be_marked(&self, ranges: &[(u64, u64)]) -> Vec<Message> {
        if self.config.subject_delete_marker_ttl == 0 {
            return Vec::new();
        }
        let going = |range: &(u64, u64)| {
            let to = range.1;
            self.messages.from(range.0).take_while(move |message| message.sequence() <= to)
        };
        let last = ranges.iter().flat_map(going).filter(|message| message.is_last_of_subject());
        last.map(Found::take_out).collect()
    }

    /// When the next message expires, Unix time in ns.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        let aged = self.messages.first().filter(|_| self.config.max_age > 0);
        let aged = aged.map(|message| message.time().saturating_add(self.config.max_age));
        aged.into_iter().chain(self.messages.next_expiry()).min()
    }
}
