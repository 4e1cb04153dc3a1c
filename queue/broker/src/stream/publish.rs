//! Whether a message may be stored, and what must be removed for it.

use super::Refusal;
use super::config::{Discard, StreamConfig};
use super::messages::{Found, counted_bytes};
use super::state::{MESSAGE_ID, Stream};
use crate::nats::HeaderBlock;

const HEADER_BYTES_MAX: usize = 64 * 1024;

/// A message that may be stored, or is already stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// It was stored before, under this sequence.
    Duplicate(u64),
    Store {
        sequence: u64,
        /// When it expires by its own TTL, Unix time in ns; 0 is never.
        expires: i64,
        /// The earlier message of the subject that it replaces; 0 is none.
        replaces: u64,
        /// Further messages to remove, as ranges of sequences.
        evicts: Vec<(u64, u64)>,
    },
}

impl Stream {
    /// Decides about a message, with the checks in the same order as nats-server.
    pub(crate) fn decide_publish(
        &self,
        subject: &str,
        header: &[u8],
        payload_bytes: usize,
        wall: i64,
    ) -> Result<Accepted, Refusal> {
        let config = &self.config;
        let headers = HeaderBlock(header);
        if config.sealed {
            return Err(Refusal::sealed());
        }
        let mut ttl = None;
        if !header.is_empty() {
            if headers.get("Nats-Expected-Stream").is_some_and(|expected| expected != config.name) {
                return Err(Refusal::expected_stream());
            }
            ttl = headers
                .get("Nats-TTL")
                .map(|text| if config.allow_msg_ttl { ttl_ns(text) } else { Err(Refusal::ttl_disabled()) });
            self.check_expectations(subject, headers)?;
            if ["Nats-Batch-Id", "Nats-Batch-Sequence"].iter().any(|name| headers.has(name)) {
                return Err(Refusal::batch());
            }
            if headers.has("Nats-Incr") {
                return Err(Refusal::counter());
            }
            if headers.has("Nats-Schedule") {
                return Err(Refusal::schedules());
            }
            if let Some(sequence) = headers
                .get(MESSAGE_ID)
                .filter(|id| !id.is_empty())
                .and_then(|id| self.dedupe.find(id, wall, config.duplicate_window))
            {
                return Ok(Accepted::Duplicate(sequence));
            }
            if let Some(expected) = headers.get("Nats-Expected-Last-Msg-Id") {
                // The last message may have no id.
                let last = self.dedupe.last().filter(|(_, sequence)| *sequence == self.last);
                let actual = last.map_or("", |(id, _)| id);
                if actual != expected {
                    return Err(Refusal::wrong_last_id(actual));
                }
            }
        }
        let ttl = ttl.transpose()?.unwrap_or(0);
        let total = header.len() + payload_bytes;
        if StreamConfig::limit(config.max_msg_size).is_some_and(|max| total as u64 > max) {
            return Err(Refusal::message_too_large());
        }
        if header.len() > HEADER_BYTES_MAX {
            return Err(Refusal::header_too_large());
        }
        let sequence = self.last + 1;
        // An expired message leaves a marker, so its TTL may not be shorter than the marker's.
        let ttl = if ttl > 0 { ttl.max(config.subject_delete_marker_ttl) } else { 0 };
        let expires = if ttl > 0 { wall.saturating_add(ttl) } else { 0 };
        let bytes = counted_bytes(subject.len(), header.len(), payload_bytes);
        let Some(rollup) = headers.get("Nats-Rollup").filter(|word| !word.is_empty()) else {
            let (replaces, evicts) = self.make_room(subject, bytes, &[])?;
            return Ok(Accepted::Store { sequence, expires, replaces, evicts });
        };
        if !config.allow_rollup_hdrs {
            return Err(Refusal::rollup());
        }
        let filter = match rollup.to_ascii_lowercase().as_str() {
            "all" => None,
            "sub" => Some(subject),
            _ => return Err(Refusal::rollup_invalid(rollup)),
        };
        let mut evicts = self.purged(filter, None, None);
        if config.discard == Discard::New {
            // Like nats-server, check for room before anything is rolled up.
            self.make_room(subject, bytes, &[])?;
        } else {
            evicts.extend(self.make_room(subject, bytes, &evicts)?.1);
        }
        Ok(Accepted::Store { sequence, expires, replaces: 0, evicts })
    }

    fn check_expectations(&self, subject: &str, headers: HeaderBlock<'_>) -> Result<(), Refusal> {
        let expected = headers.get("Nats-Expected-Last-Subject-Sequence");
        if expected.is_none() && headers.has("Nats-Expected-Last-Subject-Sequence-Subject") {
            return Err(Refusal::expected_subject_alone());
        }
        if let Some(expected) = expected {
            let other = headers.get("Nats-Expected-Last-Subject-Sequence-Subject").unwrap_or(subject);
            let actual = self.last_of(other);
            if expected.parse() != Ok(actual) {
                return Err(Refusal::wrong_last_sequence(actual));
            }
        }
        if let Some(expected) = headers.get("Nats-Expected-Last-Sequence")
            && expected.parse() != Ok(self.last)
        {
            return Err(Refusal::wrong_last_sequence(self.last));
        }
        Ok(())
    }

    /// The last sequence of the messages that match a filter, 0 for none.
    pub(crate) fn last_of(&self, filter: &str) -> u64 {
        if crate::nats::is_literal(filter.as_bytes()) {
            return self.messages.ends(filter).map_or(0, |(_, last)| last);
        }
        let matching = self.messages.all_ends().filter(|(s, _)| crate::nats::matches(filter.as_bytes(), s.as_bytes()));
        matching.map(|(_, (_, last))| last).max().unwrap_or(0)
    }

    /// What to remove so that a message of `bytes` fits once the ranges in `gone` are removed, or why it
    /// does not fit.
    fn make_room(&self, subject: &str, bytes: u64, gone: &[(u64, u64)]) -> Result<(u64, Vec<(u64, u64)>), Refusal> {
        let config = &self.config;
        let (max_count, max_bytes) = (StreamConfig::limit(config.max_msgs), StreamConfig::limit(config.max_bytes));
        if !gone.is_empty() && max_count.is_none() && max_bytes.is_none() {
            return Ok((0, Vec::new()));
        }
        // The ranges are in order.
        let is_gone = |sequence: u64| {
            let next = gone.partition_point(|(_, to)| *to < sequence);
            gone.get(next).is_some_and(|(from, _)| *from <= sequence)
        };
        let of_range = |(from, to): &(u64, u64)| {
            let (from, to) = (*from, *to);
            self.messages.from(from).take_while(move |message| message.sequence() <= to)
        };
        let (gone_count, gone_bytes) = gone
            .iter()
            .flat_map(of_range)
            .fold((0, 0), |(count, bytes), one| (count + 1_u64, bytes + one.counted_bytes()));
        let discards_new = config.discard == Discard::New;
        let mut replaces = 0;
        if let Some(max) = StreamConfig::limit(config.max_msgs_per_subject)
            && gone.is_empty()
            && self.messages.count(subject) as u64 >= max
        {
            if discards_new && config.discard_new_per_subject {
                return Err(Refusal::limit("messages per subject"));
            }
            replaces = self.messages.ends(subject).map_or(0, |(first, _)| first);
        }
        let replaced = self.messages.get(replaces).map_or(0, Found::counted_bytes);
        let mut count = self.messages.len() as u64 - gone_count + 1 - u64::from(replaced > 0);
        let mut total = self.messages.bytes() - gone_bytes - replaced + bytes;
        let is_over = |count, total| {
            let messages = max_count.is_some_and(|max| count > max).then_some("messages");
            messages.or(max_bytes.is_some_and(|max| total > max).then_some("bytes"))
        };
        match is_over(count, total) {
            None => return Ok((replaces, Vec::new())),
            Some(which) if discards_new || max_bytes.is_some_and(|max| bytes > max) => {
                return Err(Refusal::limit(which));
            }
            Some(_) => {}
        }
        let mut last = 0;
        let goes = |message: &Found<'_>| message.sequence() != replaces && !is_gone(message.sequence());
        for message in self.messages.from(0).filter(goes) {
            last = message.sequence();
            count -= 1;
            total -= message.counted_bytes();
            if is_over(count, total).is_none() {
                break;
            }
        }
        Ok((replaces, vec![(0, last)]))
    }
}

impl Stream {
    /// Messages above the limits, which may have been lowered, as ranges of sequences.
    pub(crate) fn over_limits(&self) -> Vec<(u64, u64)> {
        let config = &self.config;
        let mut ranges = Vec::new();
        if let Some(max) = StreamConfig::limit(config.max_msgs_per_subject) {
            let over = self.messages.counts().filter(|(_, count)| *count as u64 > max);
            for (subject, count) in over {
                let surplus = count - max as usize;
                ranges.extend(self.messages.sequences(&subject, 0).take(surplus).map(|s| (s, s)));
            }
        }
        let (mut count, mut bytes) = (self.messages.len() as u64, self.messages.bytes());
        let (max_count, max_bytes) = (StreamConfig::limit(config.max_msgs), StreamConfig::limit(config.max_bytes));
        let mut last = 0;
        for message in self.messages.from(0) {
            if max_count.is_none_or(|max| count <= max) && max_bytes.is_none_or(|max| bytes <= max) {
                break;
            }
            last = message.sequence();
            count -= 1;
            bytes -= message.counted_bytes();
        }
        if last > 0 {
            ranges.push((0, last));
        }
        ranges
    }
}

/// `Nats-TTL`: seconds, a Go duration, or `never` (0).
fn ttl_ns(text: &str) -> Result<i64, Refusal> {
    if text == "never" {
        return Ok(0);
    }
    let seconds = text.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(1_000_000_000));
    let ttl = seconds.or_else(|| go_duration(text)).ok_or_else(Refusal::ttl_invalid)?;
    if ttl >= 1_000_000_000 { Ok(ttl) } else { Err(Refusal::ttl_invalid()) }
}

/// A duration as Go writes it, such as `1h2m3.5s`, in ns.
pub(crate) fn go_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let units = [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
        let (unit, ns) = units
            .into_iter()
            .find(|(unit, _)| rest.strip_prefix(unit).is_some_and(|after| !after.starts_with(char::is_alphabetic)))?;
        total += value * ns;
        rest = &rest[unit.len()..];
    }
    (total < i64::MAX as f64).then_some(total as i64)
}
