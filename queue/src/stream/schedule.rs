//! What a stream loses with time.

use super::state::Stream;

/// Messages that one look may remove, so that a stream whose age was cut does not hold everybody up.
const BATCH: usize = 1024;

impl Stream {
    /// Messages that have outlived the stream's age or their own TTL, as ranges of sequences.
    pub(crate) fn expired(&self, wall: i64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> =
            self.messages.expired(wall, BATCH).into_iter().map(|sequence| (sequence, sequence)).collect();
        if self.config.max_age > 0 {
            let oldest = wall.saturating_sub(self.config.max_age);
            let aged = self.messages.from(0).take(BATCH).take_while(|(_, message)| message.time <= oldest);
            if let Some((last, _)) = aged.last() {
                ranges.push((0, last));
            }
        }
        ranges
    }

    /// When the next message ends, Unix time in ns.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        let aged = self.messages.first().filter(|_| self.config.max_age > 0);
        let aged = aged.map(|(_, message)| message.time.saturating_add(self.config.max_age));
        aged.into_iter().chain(self.messages.next_expiry()).min()
    }
}
