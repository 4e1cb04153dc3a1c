//! Storing a published message in a stream.

use bytes::Bytes;

use super::core::Core;
use crate::journal::change::stored_header_start;
use crate::journal::frame::FRAME_BYTES;
use crate::journal::{Change, Full, Stored};
use crate::nats::{HeaderBlock, Publication};
use crate::stream::config::Discard;
use crate::stream::{Accepted, MESSAGE_ID, Message, Now, Refusal};

/// Header of a marker: why the last message of its subject was removed.
const MARKER_REASON: &str = "Nats-Marker-Reason";

impl Core {
    /// Stores a message if its stream accepts it, answers the publisher, and serves waiting consumers.
    pub(super) fn store(&mut self, stream: u32, publication: &Publication, now: Now) {
        let result = self.try_store(stream, publication, now);
        let Some(reply) = publication.reply.as_deref().filter(|_| !self.streams[&stream].config.no_ack) else {
            return self.serve_all(stream, now);
        };
        let name = &self.streams[&stream].config.name;
        let ack = match &result {
            Ok((sequence, false)) => format!(r#"{{"stream":"{name}","seq":{sequence}}}"#),
            Ok((sequence, true)) => format!(r#"{{"stream":"{name}","seq":{sequence},"duplicate":true}}"#),
            Err(refusal) => {
                serde_json::json!({"error": super::answer::error(refusal), "stream": name, "seq": 0}).to_string()
            }
        };
        self.tell(reply, &[], &Bytes::from(ack));
        if result.is_ok() {
            self.serve_all(stream, now);
        }
    }

    /// Counts a message that no consumer wants: it uses a sequence, and its id is registered against duplicates.
    fn pass_over(&mut self, stream: u32, sequence: u64, header: &[u8], now: Now) -> Result<(), Full> {
        let counted = Change::Counted { stream, last: sequence, last_time: now.wall };
        self.change(&counted, true, now)?;
        match HeaderBlock(header).get(MESSAGE_ID).filter(|id| !id.is_empty()) {
            Some(id) => {
                self.change(&Change::Registered { stream, sequence, time: now.wall, id: id.as_bytes() }, true, now)
            }
            None => Ok(()),
        }
    }

    /// Whether a message itself marks a removal: a marker of ours, or one that a client wrote.
    pub(super) fn is_marker(&mut self, message: &Message) -> bool {
        if message.header_bytes == 0 {
            return false;
        }
        // Reads with the lock held; only streams that want markers need this.
        match self.journal.read(message.place).load() {
            Ok(entry) => {
                let header = FRAME_BYTES + stored_header_start(message.subject.len());
                let header = HeaderBlock(&entry[header..header + message.header_bytes as usize]);
                header.has(MARKER_REASON) || header.has("KV-Operation")
            }
            Err(error) => {
                tracing::error!(%error, sequence = message.sequence, "expired message unreadable; no marker written");
                true
            }
        }
    }

    /// Stores a marker for a subject whose last message expired. The marker expires after its own TTL.
    pub(super) fn store_marker(&mut self, id: u32, subject: &str, now: Now) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.messages.count(subject) == 0) else { return };
        let ttl = stream.config.subject_delete_marker_ttl;
        let seconds = ttl as f64 / 1e9;
        let header = format!("NATS/1.0\r\n{MARKER_REASON}: MaxAge\r\nNats-TTL: {seconds}s\r\nNats-Rollup: sub\r\n\r\n");
        let stored = Stored {
            stream: id,
            sequence: stream.last + 1,
            time: now.wall,
            expires: now.wall.saturating_add(ttl),
            replaces: 0,
            moved: false,
            subject: subject.as_bytes(),
            header: header.as_bytes(),
            payload: &[],
        };
        if self.change(&Change::Stored(stored), false, now).is_err() {
            tracing::warn!(stream = id, "disk full: no marker written");
        }
    }

    /// Returns the message's sequence, and whether it is a duplicate.
    fn try_store(&mut self, id: u32, publication: &Publication, now: Now) -> Result<(u64, bool), Refusal> {
        let Publication { subject, header, payload, .. } = publication;
        let text = std::str::from_utf8(subject).map_err(|_| Refusal::bad_request())?;
        let stream = &self.streams[&id];
        let accepted = stream.decide_publish(text, header, payload.len(), now.wall)?;
        let is_kept = stream.has_interest(text);
        let refuses_when_full = stream.config.discard == Discard::New;
        let (sequence, expires, replaces, evicts) = match accepted {
            Accepted::Duplicate(sequence) => {
                // The original may have been published without a reply, so it may not be synced yet.
                self.journal.require_sync();
                return Ok((sequence, true));
            }
            Accepted::Store { sequence, expires, replaces, evicts } => (sequence, expires, replaces, evicts),
        };
        if !is_kept {
            self.pass_over(id, sequence, header, now).map_err(|_| Refusal::no_room())?;
            return Ok((sequence, false));
        }
        let stored =
            Stored { stream: id, sequence, time: now.wall, expires, replaces, moved: false, subject, header, payload };
        let full = |_| if refuses_when_full { Refusal::limit("bytes") } else { Refusal::no_room() };
        self.make_room(id, FRAME_BYTES + stored.body_bytes(), payload.len()).map_err(full)?;
        // Durability: with a reply subject, a client waits for an ack, which must mean on disk.
        self.change(&Change::Stored(stored), publication.reply.is_some(), now).map_err(full)?;
        for (from, to) in evicts {
            // Never the new message: it comes after all of them.
            let removed = Change::Removed { stream: id, from, to: to.min(sequence - 1) };
            if self.change(&removed, false, now).is_err() {
                tracing::warn!(stream = id, "disk full: expiry not written; the next one includes it");
            }
        }
        // A consumer wants its subject, but may start only after its sequence.
        self.remove_unneeded(id, &[sequence], now);
        if expires != 0 || self.streams[&id].config.max_age > 0 {
            self.schedule(id, 0, now);
        }
        Ok((sequence, false))
    }
}
