//! Looking at one message.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::rfc3339;
use super::core::Core;
use crate::journal::change::stored_header_start;
use crate::journal::entry::FRAME_BYTES;
use crate::nats::{HEADER_START, matches, status, with_lines};
use crate::stream::{Message, Refusal, Stream};

/// Which message is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Get {
    seq: Option<u64>,
    last_by_subj: Option<String>,
    next_by_subj: Option<String>,
    no_hdr: Option<bool>,
    batch: Option<u64>,
    multi_last: Option<Vec<String>>,
}

impl Get {
    fn is_empty(&self) -> bool {
        self.seq.unwrap_or(0) == 0 && self.last_by_subj.is_none() && self.next_by_subj.is_none()
    }

    fn find(&self, stream: &Stream) -> Option<u64> {
        let from = self.seq.unwrap_or(0);
        match (&self.last_by_subj, &self.next_by_subj) {
            (Some(subject), _) => Some(stream.last_of(subject)).filter(|sequence| *sequence > 0),
            (None, Some(filter)) => {
                let mut messages = stream.messages.from(from);
                let wanted = |message: &Message| matches(filter.as_bytes(), message.subject.as_bytes());
                messages.find(|(_, message)| wanted(message)).map(|(sequence, _)| sequence)
            }
            (None, None) => Some(from).filter(|sequence| stream.messages.get(*sequence).is_some()),
        }
    }
}

impl Core {
    /// `DIRECT.GET`: the message itself, or a status. `false`: the stream does not offer it.
    pub(super) fn direct_get(&mut self, stream: &str, subject: Option<&str>, reply: &Bytes, body: &[u8]) -> bool {
        let Some(found) = self.stream(stream).filter(|stream| stream.config.allow_direct) else { return false };
        let get = match subject {
            Some(subject) => Ok(Get { last_by_subj: Some(subject.to_owned()), ..Get::default() }),
            None if body.trim_ascii().is_empty() => Err("408 Empty Request"),
            None => serde_json::from_slice::<Get>(body).map_err(|_| "408 Malformed Request"),
        };
        let sequence = get.and_then(|get| match () {
            () if get.batch.is_some() || get.multi_last.is_some() => Err("408 Bad Request"),
            () if get.is_empty() => Err("408 Empty Request"),
            () => Ok((get.find(found).ok_or("404 Message Not Found")?, get.no_hdr == Some(true))),
        });
        let (sequence, no_header) = match sequence {
            Ok(sequence) => sequence,
            Err(line) => {
                self.tell(reply, &status(line, &[]), &Bytes::new());
                return true;
            }
        };
        let Some(message) = found.messages.get(sequence).cloned() else { return true };
        let lines = [
            ("Nats-Stream", stream),
            ("Nats-Subject", &message.subject),
            ("Nats-Sequence", &sequence.to_string()),
            ("Nats-Time-Stamp", &rfc3339(message.time)),
        ];
        let block = with_lines(b"", &lines);
        // Behind the message's own lines, if it has any.
        let extra = if message.header_bytes == 0 { block } else { block.slice(HEADER_START.len()..) };
        let mut body = self.stored_body(&message, Some(extra));
        if no_header && let super::client::Body::Stored { start, header_bytes, extra, .. } = &mut body {
            *start += *header_bytes;
            (*header_bytes, *extra) = (0, None);
        }
        self.route(reply, None, &body, None);
        true
    }

    /// `STREAM.MSG.GET`: the message in JSON.
    pub(super) fn message_get(&mut self, stream: &str, body: &[u8]) -> Result<Value, Refusal> {
        let found = self.stream(stream).ok_or_else(Refusal::stream_not_found)?;
        let get: Get = serde_json::from_slice(body).map_err(|_| Refusal::bad_request())?;
        if get.is_empty() {
            return Err(Refusal::bad_request());
        }
        let sequence = get.find(found).ok_or_else(Refusal::no_message)?;
        let message = found.messages.get(sequence).cloned().ok_or_else(Refusal::no_message)?;
        // Read with the lock held. This is for tools and rare looks; workers and API read directly.
        let entry = self.journal.read(message.place).load().map_err(|error| {
            tracing::error!(%error, stream, sequence, "a stored message cannot be read");
            Refusal::no_message()
        })?;
        let header = FRAME_BYTES + stored_header_start(message.subject.len());
        let payload = header + message.header_bytes as usize;
        let mut json = json!({"subject": &*message.subject, "seq": sequence, "time": rfc3339(message.time)});
        if message.header_bytes > 0 {
            json["hdrs"] = BASE64_STANDARD.encode(&entry[header..payload]).into();
        }
        if message.payload_bytes > 0 {
            json["data"] = BASE64_STANDARD.encode(&entry[payload..]).into();
        }
        Ok(json!({"message": json}))
    }
}
