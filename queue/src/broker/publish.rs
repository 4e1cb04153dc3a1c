//! A message on its way into a stream.

use bytes::Bytes;

use super::core::Core;
use crate::journal::entry::FRAME_BYTES;
use crate::journal::{Change, Stored};
use crate::nats::Publication;
use crate::stream::config::Discard;
use crate::stream::{Accepted, Now, Refusal};

impl Core {
    /// Stores a message if its stream takes it, tells the publisher, and serves who waits.
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

    /// The message's sequence, and whether it was there already.
    fn try_store(&mut self, id: u32, publication: &Publication, now: Now) -> Result<(u64, bool), Refusal> {
        let Publication { subject, header, payload, .. } = publication;
        let text = std::str::from_utf8(subject).map_err(|_| Refusal::bad_request())?;
        let stream = &self.streams[&id];
        let accepted = stream.decide_publish(text, header, payload.len(), now.wall)?;
        let refuses_when_full = stream.config.discard == Discard::New;
        let (sequence, expires, replaces, evicts) = match accepted {
            Accepted::Duplicate(sequence) => {
                // The first one may have been published by somebody who waited for nothing.
                self.journal.require_sync();
                return Ok((sequence, true));
            }
            Accepted::Store { sequence, expires, replaces, evicts } => (sequence, expires, replaces, evicts),
        };
        let stored =
            Stored { stream: id, sequence, time: now.wall, expires, replaces, moved: false, subject, header, payload };
        let full = |_| if refuses_when_full { Refusal::limit("bytes") } else { Refusal::no_room() };
        self.make_room(id, FRAME_BYTES + stored.body_bytes(), payload.len()).map_err(full)?;
        // Durability: with a reply somebody waits for an ack, which must mean on disk.
        self.change(&Change::Stored(stored), publication.reply.is_some(), now).map_err(full)?;
        for (from, to) in evicts {
            // The new message is not among them: it is behind them all.
            let removed = Change::Removed { stream: id, from, to: to.min(sequence - 1) };
            if self.change(&removed, false, now).is_err() {
                tracing::warn!(stream = id, "no room to note that old messages went; they go with the next one");
            }
        }
        if expires != 0 || self.streams[&id].config.max_age > 0 {
            self.schedule(id, 0, now);
        }
        Ok((sequence, false))
    }
}
