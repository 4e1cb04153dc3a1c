//! A stream in a snapshot: the records before its messages, its messages, and the records after them.

use std::sync::Arc;

use bytes::BytesMut;

use super::state::Stream;
use crate::journal::change::{Change, Indexed};
use crate::journal::snapshot::put_record;

/// Appends an id of the dedupe window as a record.
pub(crate) fn put_id((id, sequence, time): &(Arc<str>, u64, i64), stream: u32, records: &mut BytesMut) {
    let (sequence, time, id) = (*sequence, *time, id.as_bytes());
    put_record(&Change::Registered { stream, sequence, time, id }, records);
}

impl Stream {
    /// Configuration and last sequence.
    pub(crate) fn snapshot_head(&self, records: &mut BytesMut) {
        let (stream, created) = (self.id, self.created);
        let config = serde_json::to_vec(&self.config).expect("a configuration holds strings and numbers only");
        put_record(&Change::StreamPut { stream, created, config: &config }, records);
        put_record(&Change::Counted { stream, last: self.last, last_time: self.last_time }, records);
    }

    /// The ids of the dedupe window, to be written to the snapshot without blocking clients.
    pub(crate) fn snapshot_ids(&self) -> Vec<(Arc<str>, u64, i64)> {
        self.dedupe.all()
    }

    /// At most `count` messages from a sequence on. Returns the sequence to continue from, if there were any.
    pub(crate) fn snapshot_messages(&self, from: u64, count: usize, records: &mut BytesMut) -> Option<u64> {
        let mut next = None;
        for message in self.messages.from(from).take(count) {
            let subject = message.subject();
            let indexed = Indexed {
                stream: self.id,
                sequence: message.sequence(),
                time: message.time(),
                expires: message.expires(),
                place: message.place(),
                header_bytes: message.header_bytes(),
                payload_bytes: message.payload_bytes(),
                subject: subject.as_bytes(),
            };
            put_record(&Change::Indexed(indexed), records);
            next = Some(message.sequence() + 1);
        }
        next
    }

    /// Consumers, how far they have read, and their pending messages.
    pub(crate) fn snapshot_tail(&self, records: &mut BytesMut) {
        let stream = self.id;
        // Other consumers end with the process.
        for found in self.consumers().filter(|consumer| consumer.is_durable()) {
            let consumer = found.id;
            let config = serde_json::to_vec(&found.config).expect("a configuration holds strings and numbers only");
            let (created, start, resume) = (found.created, found.cursor, found.resume);
            put_record(&Change::ConsumerPut { stream, consumer, created, start, resume, config: &config }, records);
            let (cursor, consumer_sequence, time) = (found.cursor, found.consumer_sequence, found.last_active);
            put_record(&Change::Cursor { stream, consumer, cursor, consumer_sequence, time }, records);
            for (sequence, pending) in &found.pending {
                let (sequence, consumer_sequence, count) = (*sequence, pending.consumer_sequence, pending.count);
                put_record(&Change::Delivered { stream, consumer, sequence, consumer_sequence, count, time }, records);
                let until = if pending.is_due() { Some(0) } else { pending.put_off_until };
                if let Some(until) = until {
                    put_record(&Change::Nakked { stream, consumer, sequence, until }, records);
                }
            }
        }
    }
}
