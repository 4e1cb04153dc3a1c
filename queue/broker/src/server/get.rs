//! Reading stored messages: one, or many in one request.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::rfc3339;
use super::client::Body;
use super::core::Core;
use crate::journal::change::stored_header_start;
use crate::journal::frame::FRAME_BYTES;
use crate::nats::{is_valid, matches, status};
use crate::stream::{Found, Message, Refusal, Stream, config, unix_nanos};

/// Messages that one request may return, at most.
const BATCH_MAX: usize = 1024;
/// Bytes that it may return, at most: a client must be able to receive them.
const BATCH_BYTES_MAX: u64 = 32 << 20;

/// The status of a request that cannot be read.
const MALFORMED: &str = "408 Malformed Request";

/// Whether a body is an object without fields.
fn says_nothing(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|value| value == json!({}))
}

/// Which messages a request wants.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Get {
    seq: Option<u64>,
    last_by_subj: Option<String>,
    next_by_subj: Option<String>,
    start_time: Option<String>,
    no_hdr: Option<bool>,
    batch: Option<i64>,
    max_bytes: Option<u64>,
    multi_last: Option<Vec<String>>,
    up_to_seq: Option<u64>,
    up_to_time: Option<String>,
}

/// What a request for many messages found.
struct Batch {
    sequences: Vec<u64>,
    /// Further messages that match but did not fit.
    left: u64,
    /// The sequence up to which last messages were searched, if the request wants last messages.
    up_to: Option<u64>,
}

impl Get {
    /// Reads a request; a batch size below 1 counts as unset.
    fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut get: Self = config::read(body)?;
        get.batch = get.batch.filter(|batch| *batch > 0);
        Ok(get)
    }

    /// Checks the request; an error is the status to answer.
    fn check(&self) -> Result<(), &'static str> {
        let is_no_time = |text: &Option<String>| text.as_deref().is_some_and(|text| unix_nanos(text).is_none());
        if is_no_time(&self.start_time) || is_no_time(&self.up_to_time) {
            return Err(MALFORMED);
        }
        let has_start = self.seq.unwrap_or(0) > 0 || self.start_time.is_some();
        if self.seq.unwrap_or(0) > 0 && self.start_time.is_some() {
            return Err("408 Bad Request");
        }
        if let Some(filters) = &self.multi_last {
            let is_mixed = self.last_by_subj.is_some() || self.next_by_subj.is_some();
            if is_mixed || (self.up_to_seq.unwrap_or(0) > 0 && self.up_to_time.is_some()) {
                return Err("408 Bad Request");
            }
            return if filters.is_empty() { Err("408 Empty Request") } else { Ok(()) };
        }
        if self.last_by_subj.is_some() {
            let is_mixed = self.next_by_subj.is_some() || has_start || self.batch.is_some();
            return if is_mixed { Err("408 Bad Request") } else { Ok(()) };
        }
        if !has_start && self.next_by_subj.is_none() { Err("408 Empty Request") } else { Ok(()) }
    }

    /// Messages that match, from the request's start on.
    fn matching<'a>(&'a self, stream: &'a Stream) -> impl Iterator<Item = Found<'a>> {
        let since = self.start_time.as_deref().and_then(unix_nanos);
        let wanted = move |message: &Found<'_>| {
            since.is_none_or(|since| message.time() >= since)
                && self
                    .next_by_subj
                    .as_ref()
                    .is_none_or(|filter| matches(filter.as_bytes(), message.subject().as_bytes()))
        };
        stream.messages.from(self.seq.unwrap_or(0)).filter(wanted)
    }

    fn one(&self, stream: &Stream) -> Option<u64> {
        if let Some(subject) = &self.last_by_subj {
            return Some(stream.last_of(subject)).filter(|sequence| *sequence > 0);
        }
        match self.seq {
            Some(sequence) if self.next_by_subj.is_none() && self.start_time.is_none() => {
                stream.messages.get(sequence).map(Found::sequence)
            }
            _ => self.matching(stream).next().map(Found::sequence),
        }
    }

    /// The messages for a batch request.
    fn many(&self, stream: &Stream) -> Result<Batch, &'static str> {
        let (all, up_to) = match &self.multi_last {
            None => (self.matching(stream).map(Found::sequence).collect::<Vec<_>>(), None),
            Some(filters) => {
                let (last, up_to) = self.last_messages(stream, filters)?;
                (last, Some(up_to))
            }
        };
        let count = match self.batch {
            Some(batch) => usize::try_from(batch).unwrap_or(0).min(BATCH_MAX),
            None => BATCH_MAX,
        };
        let bytes_max = self.max_bytes.filter(|max| *max > 0).unwrap_or(u64::MAX).min(BATCH_BYTES_MAX);
        let mut bytes = 0;
        let fits = |sequence: &&u64| {
            let size = stream.messages.get(**sequence).map_or(0, Found::counted_bytes);
            bytes += size;
            // At least one, however large.
            bytes <= bytes_max || bytes == size
        };
        let sequences: Vec<u64> = all.iter().take(count).take_while(fits).copied().collect();
        if all.is_empty() {
            return Err(if up_to.is_some() { "404 No Results" } else { "404 Message Not Found" });
        }
        Ok(Batch { left: (all.len() - sequences.len()) as u64, sequences, up_to })
    }

    /// The last message of each subject that matches a filter, up to a sequence, and that sequence.
    fn last_messages(&self, stream: &Stream, filters: &[String]) -> Result<(Vec<u64>, u64), &'static str> {
        let up_to = match (self.up_to_seq.filter(|sequence| *sequence > 0), self.up_to_time.as_deref()) {
            (Some(sequence), _) => sequence.min(stream.last),
            (None, Some(time)) => {
                let time = unix_nanos(time).ok_or("408 Bad Request")?;
                let before = stream.messages.from(0).take_while(|message| message.time() <= time).last();
                before.map_or(0, Found::sequence)
            }
            (None, None) => stream.last,
        };
        let from = self.seq.unwrap_or(0);
        let mut last = Vec::new();
        for filter in filters {
            if !is_valid(filter.as_bytes()) {
                continue;
            }
            let mut add = |subject: &str| {
                let found = stream.messages.sequences(subject, from).rev().find(|sequence| *sequence <= up_to);
                last.extend(found);
            };
            if crate::nats::is_literal(filter.as_bytes()) {
                add(filter);
            } else {
                let all = stream.messages.all_ends().map(|(subject, _)| subject);
                all.filter(|subject| matches(filter.as_bytes(), subject.as_bytes())).for_each(|subject| add(&subject));
            }
        }
        last.sort_unstable();
        last.dedup();
        if last.len() > BATCH_MAX { Err("413 Too Many Results") } else { Ok((last, up_to)) }
    }
}

impl Core {
    /// `DIRECT.GET`: the message itself, or a status. `false`: the stream does not offer it.
    pub(super) fn direct_get(&mut self, stream: &str, subject: Option<&str>, reply: &Bytes, body: &[u8]) -> bool {
        let Some(found) = self.stream(stream).filter(|stream| stream.config.allow_direct) else { return false };
        let is_empty = body.trim_ascii().is_empty();
        let get = match subject {
            Some(subject) if is_empty || says_nothing(body) => {
                Ok(Get { last_by_subj: Some(subject.to_owned()), ..Get::default() })
            }
            Some(_) => Err("408 Bad Request"),
            None if is_empty => Err("408 Empty Request"),
            None => Get::read(body).map_err(|_| MALFORMED),
        };
        let get = get.and_then(|get| get.check().map(|()| get));
        let result = match get {
            Err(line) => Err(line),
            Ok(get) if get.batch.is_some() || get.multi_last.is_some() => match get.many(found) {
                Ok(batch) => {
                    self.send_batch(stream, reply, &batch, get.no_hdr == Some(true) && get.multi_last.is_none());
                    Ok(())
                }
                Err(line) => Err(line),
            },
            Ok(get) => match get.one(found).and_then(|sequence| found.messages.get(sequence)) {
                None => Err("404 Message Not Found"),
                Some(message) => {
                    let message = message.take_out();
                    self.send_stored(stream, reply, &message, &[], get.no_hdr == Some(true));
                    Ok(())
                }
            },
        };
        if let Err(line) = result {
            self.tell(reply, &status(line, &[]), &Bytes::new());
        }
        true
    }

    /// Sends the messages of a batch, and the end marker.
    fn send_batch(&mut self, stream: &str, reply: &Bytes, batch: &Batch, no_header: bool) {
        let mut pending = batch.sequences.len() as u64 + batch.left;
        let mut before = 0;
        for sequence in &batch.sequences {
            let found = self.stream(stream).and_then(|stream| stream.messages.get(*sequence));
            let Some(message) = found.map(Found::take_out) else { continue };
            pending -= 1;
            let lines = [("Nats-Num-Pending", pending.to_string()), ("Nats-Last-Sequence", before.to_string())];
            self.send_stored(stream, reply, &message, &lines, no_header);
            before = *sequence;
        }
        let mut lines = vec![("Nats-Num-Pending", batch.left.to_string()), ("Nats-Last-Sequence", before.to_string())];
        if let Some(up_to) = batch.up_to {
            lines.push(("Nats-UpTo-Sequence", up_to.to_string()));
        }
        self.tell(reply, &status("204 EOB", &lines), &Bytes::new());
    }

    /// Sends a stored message to a client that asked for it.
    fn send_stored(
        &mut self,
        stream: &str,
        reply: &Bytes,
        message: &Message,
        more: &[(&'static str, String)],
        no_header: bool,
    ) {
        let (sequence, time) = (message.sequence.to_string(), rfc3339(message.time));
        let mut lines = vec![
            ("Nats-Stream", stream),
            ("Nats-Subject", message.subject.as_str()),
            ("Nats-Sequence", sequence.as_str()),
            ("Nats-Time-Stamp", time.as_str()),
        ];
        lines.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        let Some(id) = self.id_of(stream) else { return };
        let mut stored = self.stored(id, message, &lines);
        if no_header {
            stored.start += stored.header_bytes;
            (stored.header_bytes, stored.extra) = (0, None);
        }
        self.route(reply, None, &Body::Stored(stored), None);
    }

    /// `STREAM.MSG.GET`: the message in JSON.
    pub(super) fn message_get(&mut self, stream: &str, body: &[u8]) -> Result<Value, Refusal> {
        if matches!(body.trim_ascii(), b"" | b"null") {
            return Err(Refusal::bad_request());
        }
        let get = Get::read(body)?;
        let found = self.stream(stream).ok_or_else(Refusal::stream_not_found)?;
        let checked = get.check();
        if checked == Err(MALFORMED) {
            return Err(Refusal::invalid_json("a time is expected"));
        }
        if get.batch.is_some() || get.multi_last.is_some() || checked.is_err() {
            return Err(Refusal::bad_request());
        }
        let sequence = get.one(found).ok_or_else(Refusal::no_message)?;
        let message = found.messages.get(sequence).ok_or_else(Refusal::no_message)?.take_out();
        // Reads with the lock held: only tools use this, and rarely; workers and API use `DIRECT.GET`.
        let id = found.id;
        let entry = self.journal.read(message.place).load().map_err(|error| {
            self.unreadable((id, sequence), message.place, &error);
            Refusal::no_message()
        })?;
        let header = FRAME_BYTES + stored_header_start(message.subject.len());
        let payload = header + message.header_bytes as usize;
        let mut json = json!({"subject": message.subject, "seq": sequence, "time": rfc3339(message.time)});
        if message.header_bytes > 0 && get.no_hdr != Some(true) {
            json["hdrs"] = BASE64_STANDARD.encode(&entry[header..payload]).into();
        }
        if message.payload_bytes > 0 {
            json["data"] = BASE64_STANDARD.encode(&entry[payload..]).into();
        }
        Ok(json!({"message": json}))
    }
}
