use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::journal::change::{Change, LogPlace, Stored};

const ACK_WAIT: u64 = 30;

/// An operation on a stream.
#[derive(Debug, Clone)]
enum Op {
    /// To one of a few subjects; optionally with an expected last sequence, right or wrong, or an id.
    Publish {
        subject: u8,
        expects: Option<bool>,
        id: Option<u8>,
        bytes: u16,
    },
    HandOut,
    /// Of the nth pending message.
    Ack(u8),
    Nak(u8, u8),
    Progress(u8),
    Purge(u8),
    Delete(u8),
    /// Seconds pass.
    Pass(u8),
    /// The stream is rebuilt from its log, or from a snapshot and the rest of the log.
    Restart {
        with_snapshot: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0_u8..5, proptest::option::weighted(0.3, any::<bool>()), proptest::option::weighted(0.2, 0_u8..3), 0_u16..300)
            .prop_map(|(subject, expects, id, bytes)| Op::Publish { subject, expects, id, bytes }),
        5 => Just(Op::HandOut),
        3 => (0_u8..4).prop_map(Op::Ack),
        2 => (0_u8..4, 0_u8..40).prop_map(|(nth, delay)| Op::Nak(nth, delay)),
        1 => (0_u8..4).prop_map(Op::Progress),
        1 => (0_u8..5).prop_map(Op::Purge),
        1 => any::<u8>().prop_map(Op::Delete),
        2 => (1_u8..50).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(|with_snapshot| Op::Restart { with_snapshot }),
    ]
}

/// The simple model: everything is a list that is searched from its start.
#[derive(Debug, Default)]
struct Model {
    /// Sequence, subject, counted bytes.
    messages: Vec<(u64, u8, u64)>,
    last: u64,
    cursor: u64,
    /// Sequence, number of deliveries, second at which it is due.
    in_hand: Vec<(u64, u32, u64)>,
    ids: BTreeMap<u8, u64>,
    second: u64,
}

impl Model {
    fn remove(&mut self, sequence: u64) {
        self.messages.retain(|message| message.0 != sequence);
        self.in_hand.retain(|held| held.0 != sequence);
    }

    fn next(&self, ack_pending_max: usize) -> Option<(u64, u32)> {
        let due = self.in_hand.iter().filter(|held| held.2 <= self.second).min();
        if let Some((sequence, count, _)) = due {
            return Some((*sequence, count + 1));
        }
        let new = self.messages.iter().map(|message| message.0).filter(|sequence| *sequence >= self.cursor).min();
        new.filter(|_| self.in_hand.len() < ack_pending_max).map(|sequence| (sequence, 1))
    }
}

/// A stream with its log.
struct Bed {
    stream: Stream,
    log: Vec<(u8, Vec<u8>, LogPlace)>,
    start: Now,
    model: Model,
}

impl Bed {
    fn new(config: StreamConfig) -> Self {
        let start = Now { wall: 1_700_000_000_000_000_000, clock: Instant::now() };
        let config = config.checked().expect("a good configuration");
        let mut bed = Self {
            stream: Stream::new(1, config, start.wall),
            log: Vec::new(),
            start,
            model: Model { cursor: 1, ..Model::default() },
        };
        let consumer = ConsumerConfig {
            durable_name: Some("workers".into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT as i64 * 1_000_000_000,
            max_ack_pending: 4,
            ..ConsumerConfig::default()
        };
        let consumer = consumer.checked(&bed.stream.config).expect("a good configuration");
        let (id, start) = bed.stream.admit_consumer(&consumer).expect("the first one");
        let json = serde_json::to_vec(&consumer).expect("writes");
        let (start, resume) = (start.cursor, start.resume);
        bed.apply(&Change::ConsumerPut { stream: 1, consumer: id, created: 0, start, resume, config: &json });
        bed
    }

    fn now(&self) -> Now {
        let passed = Duration::from_secs(self.model.second);
        Now { wall: self.start.wall + passed.as_nanos() as i64, clock: self.start.clock + passed }
    }

    fn apply(&mut self, change: &Change<'_>) {
        let mut body = BytesMut::new();
        let kind = change.encode(&mut body);
        let place = LogPlace { position: self.log.len() as u64, bytes: 1 };
        self.log.push((kind, body.to_vec(), place));
        let now = self.now();
        self.stream.apply(change, Some(place), now, &mut Vec::new()).expect("applies");
    }

    /// Expires deadlines that have passed, as a timer does in the broker.
    fn expire(&mut self) {
        let now = self.now();
        let given_up = self.stream.consumer_mut("workers").expect("there").expire(now.clock);
        assert!(given_up.is_empty(), "nothing is ever given up without max_deliver");
    }

    /// Rebuilds the stream from its log, or from a snapshot and the log from `skip` on.
    fn restart(&mut self, with_snapshot: bool) {
        let now = self.now();
        let mut fresh = Stream::new(1, self.stream.config.clone(), self.stream.created);
        let mut skip = 0;
        if with_snapshot {
            let mut records = BytesMut::new();
            self.stream.snapshot_head(&mut records);
            self.stream.snapshot_ids().iter().for_each(|known| put_id(known, 1, &mut records));
            // In portions, as the broker does.
            let mut next = Some(0);
            while let Some(from) = next {
                next = self.stream.snapshot_messages(from, 3, &mut records);
            }
            self.stream.snapshot_tail(&mut records);
            let mut rest = &records[..];
            while let Some((head, after)) = rest.split_first_chunk::<5>() {
                let bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
                let change = Change::decode(head[4], &after[..bytes]).expect("decodes");
                fresh.apply(&change, None, now, &mut Vec::new()).expect("applies");
                rest = &after[bytes..];
            }
            // As if the snapshot began some changes ago and already includes them: they are applied twice.
            skip = self.log.len().saturating_sub(7);
        }
        for (kind, body, place) in &self.log[skip..] {
            let change = Change::decode(*kind, body).expect("decodes");
            fresh.apply(&change, Some(*place), now, &mut Vec::new()).expect("applies");
        }
        fresh.recovered();
        let shape = |stream: &Stream| {
            let messages: Vec<_> = stream.messages.from(0).map(|m| (m.take_out(), m.expires())).collect();
            let consumer = stream.consumer("workers").expect("there");
            let counts: Vec<_> = consumer.pending.iter().map(|(s, p)| (*s, p.count)).collect();
            let numbers = (consumer.cursor, consumer.unseen, consumer.consumer_sequence);
            (messages, stream.last, stream.messages.bytes(), counts, numbers)
        };
        assert_eq!(shape(&fresh), shape(&self.stream), "a restart (snapshot: {with_snapshot}) changed something");
        // Leases restart at their full length; a delay is kept.
        for held in &mut self.model.in_hand {
            let pending = fresh.consumer("workers").expect("there").pending_of(held.0).expect("held");
            held.2 = match pending.until() {
                None => self.model.second,
                Some(until) => (until - self.start.clock).as_secs(),
            };
        }
        self.stream = fresh;
    }

    fn run(&mut self, op: &Op, limits: bool) {
        match *op {
            Op::Publish { subject, expects, id, bytes } => self.publish(subject, expects, id, bytes, limits),
            Op::HandOut => {
                let Some(handout) = self.stream.next_handout(1) else { return };
                let (count, time) = (handout.count, self.now().wall);
                let (sequence, consumer_sequence) = (handout.sequence, handout.consumer_sequence);
                self.apply(&Change::Delivered { stream: 1, consumer: 1, sequence, consumer_sequence, count, time });
                self.model.in_hand.retain(|held| held.0 != sequence);
                self.model.in_hand.push((sequence, count, self.model.second + ACK_WAIT));
                self.model.cursor = self.model.cursor.max(sequence + 1);
            }
            Op::Ack(nth) => {
                let Some((sequence, ..)) = self.model.in_hand.get(usize::from(nth)).copied() else { return };
                self.apply(&Change::Acked { stream: 1, consumer: 1, sequence });
                if limits {
                    self.model.in_hand.retain(|held| held.0 != sequence);
                } else {
                    self.model.remove(sequence);
                }
            }
            Op::Nak(nth, delay) => {
                let now = self.now();
                let second = self.model.second;
                let Some(held) = self.model.in_hand.get_mut(usize::from(nth)) else { return };
                held.2 = second + u64::from(delay);
                let sequence = held.0;
                let until = if delay == 0 { 0 } else { now.wall + i64::from(delay) * 1_000_000_000 };
                self.apply(&Change::Nakked { stream: 1, consumer: 1, sequence, until });
            }
            Op::Progress(nth) => {
                let (now, second) = (self.now(), self.model.second);
                let Some(held) = self.model.in_hand.get_mut(usize::from(nth)) else { return };
                // Too late: it is already due and stays due.
                if held.2 > second {
                    held.2 = second + ACK_WAIT;
                }
                let sequence = held.0;
                self.stream.consumer_mut("workers").expect("there").progress(sequence, now.clock);
            }
            Op::Purge(subject) => {
                for (from, to) in self.stream.purged(Some(&name(subject)), None, None) {
                    self.apply(&Change::Removed { stream: 1, from, to });
                }
                let gone: Vec<u64> = self.model.messages.iter().filter(|m| m.1 == subject).map(|m| m.0).collect();
                gone.into_iter().for_each(|sequence| self.model.remove(sequence));
            }
            Op::Delete(nth) => {
                let Some((sequence, ..)) = self.model.messages.get(usize::from(nth)).copied() else { return };
                self.apply(&Change::Removed { stream: 1, from: sequence, to: sequence });
                self.model.remove(sequence);
            }
            Op::Pass(seconds) => self.model.second += u64::from(seconds),
            Op::Restart { with_snapshot } => self.restart(with_snapshot),
        }
        self.expire();
    }

    fn publish(&mut self, subject: u8, expects: Option<bool>, id: Option<u8>, bytes: u16, limits: bool) {
        let name = name(subject);
        let of_subject: Vec<u64> = self.model.messages.iter().filter(|m| m.1 == subject).map(|m| m.0).collect();
        let actual = of_subject.last().copied().unwrap_or(0);
        let mut header = String::new();
        if let Some(is_right) = expects {
            let expected = if is_right { actual } else { actual + 1 };
            header += &format!("Nats-Expected-Last-Subject-Sequence: {expected}\r\n");
        }
        if let Some(id) = id {
            header += &format!("Nats-Msg-Id: id-{id}\r\n");
        }
        let header = if header.is_empty() { header } else { format!("NATS/1.0\r\n{header}\r\n") };
        let payload = vec![1; bytes.into()];
        let decided = self.stream.decide_publish(&name, header.as_bytes(), payload.len(), self.now().wall);
        if expects == Some(false) {
            assert_eq!(decided, Err(Refusal::wrong_last_sequence(actual)));
            return;
        }
        if let Some(sequence) = id.and_then(|id| self.model.ids.get(&id)) {
            assert_eq!(decided, Ok(Accepted::Duplicate(*sequence)));
            return;
        }
        if !limits && !of_subject.is_empty() {
            assert_eq!(decided, Err(Refusal::limit("messages per subject")));
            return;
        }
        let Ok(Accepted::Store { sequence, expires, replaces, evicts }) = decided else {
            panic!("{decided:?} for {name}")
        };
        assert_eq!(sequence, self.model.last + 1);
        let (header, time) = (header.as_bytes(), self.now().wall);
        let (subject_bytes, payload) = (name.as_bytes(), &payload[..]);
        let stored = Stored {
            stream: 1,
            sequence,
            time,
            expires,
            replaces,
            moved: false,
            subject: subject_bytes,
            header,
            payload,
        };
        self.apply(&Change::Stored(stored));
        for (from, to) in evicts {
            self.apply(&Change::Removed { stream: 1, from, to });
        }
        if limits && of_subject.len() >= 2 {
            self.model.remove(of_subject[0]);
        }
        let counted = messages::counted_bytes(name.len(), header.len(), payload.len());
        self.model.messages.push((sequence, subject, counted));
        self.model.last = sequence;
        if let Some(id) = id {
            self.model.ids.insert(id, sequence);
        }
        let bytes = |model: &Model| model.messages.iter().map(|message| message.2).sum::<u64>();
        while limits && (self.model.messages.len() > 6 || bytes(&self.model) > 1500) {
            self.model.remove(self.model.messages[0].0);
        }
    }

    fn check(&mut self) {
        let found: Vec<(u64, String)> =
            self.stream.messages.from(0).map(|m| (m.sequence(), m.subject().into_owned())).collect();
        let expected: Vec<(u64, String)> =
            self.model.messages.iter().map(|(s, subject, _)| (*s, name(*subject))).collect();
        assert_eq!(found, expected);
        assert_eq!(self.stream.messages.bytes(), self.model.messages.iter().map(|message| message.2).sum::<u64>());
        let next = self.stream.next_handout(1).map(|handout| (handout.sequence, handout.count));
        assert_eq!(next, self.model.next(4), "{:?}", self.model);
        let consumer = self.stream.consumer("workers").expect("there");
        let unseen = self.model.messages.iter().filter(|message| message.0 >= self.model.cursor).count();
        assert_eq!(consumer.unseen(), unseen as u64);
        assert_eq!(consumer.in_hand(), self.model.in_hand.len());
    }
}

pub(super) fn name(subject: u8) -> String {
    format!("s.{subject}")
}

pub(super) fn config(limits: bool) -> StreamConfig {
    let base = StreamConfig {
        name: "s".into(),
        subjects: vec!["s.*".into()],
        // Longer than any test lasts.
        duplicate_window: i64::MAX / 2,
        ..StreamConfig::default()
    };
    if limits {
        StreamConfig { max_msgs: 6, max_bytes: 1500, max_msgs_per_subject: 2, ..base }
    } else {
        StreamConfig {
            retention: config::Retention::WorkQueue,
            discard: config::Discard::New,
            max_msgs_per_subject: 1,
            discard_new_per_subject: true,
            ..base
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_work_queue_does_what_a_plain_list_does(ops in proptest::collection::vec(op(), 1..80)) {
        let mut bed = Bed::new(config(false));
        for op in &ops {
            bed.run(op, false);
            bed.check();
        }
    }

    #[test]
    fn a_bounded_stream_does_what_a_plain_list_does(ops in proptest::collection::vec(op(), 1..80)) {
        let mut bed = Bed::new(config(true));
        for op in &ops {
            bed.run(op, true);
            bed.check();
        }
    }
}

#[test]
fn a_message_is_given_up_after_as_many_deliveries_as_it_may_have() {
    let mut bed = Bed::new(config(false));
    bed.publish(0, None, None, 3, false);
    bed.stream.consumer_mut("workers").expect("there").config.max_deliver = 2;
    for count in 1..=2 {
        bed.run(&Op::HandOut, false);
        bed.model.second += ACK_WAIT;
        let now = bed.now();
        let given_up = bed.stream.consumer_mut("workers").expect("there").expire(now.clock);
        assert_eq!(given_up, if count == 2 { vec![(1, 2)] } else { Vec::new() });
    }
    assert_eq!(bed.stream.next_handout(1), None);
    assert_eq!(bed.stream.messages.len(), 1, "it stays in the stream");
}

#[test]
fn durations_are_read_as_go_writes_them() {
    for (text, expected) in [
        ("1s", Some(1_000_000_000)),
        ("1h2m3.5s", Some(3_723_500_000_000)),
        ("250ms", Some(250_000_000)),
        ("", None),
        ("5", None),
        ("x", None),
    ] {
        assert_eq!(go_duration(text), expected, "{text}");
    }
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    let check = |change: fn(&mut StreamConfig), text: &str| {
        let mut config = config(false);
        change(&mut config);
        let refusal = config.checked().expect_err(text);
        assert!(refusal.text.contains(text), "{refusal}");
    };
    check(|config| config.name = "a.b".into(), "invalid stream name");
    check(|config| config.subjects = vec!["a..b".into()], "invalid subject");
    check(|config| config.subjects = vec!["a.*".into(), "*.b".into()], "overlap");
    check(|config| config.subjects = vec!["$JS.API.x".into()], "jetstream api");
    check(|config| config.num_replicas = 3, "replicas > 1");
    check(|config| config.max_age = 5, "max age");
    check(|config| config.discard = config::Discard::Old, "discard new");
    check(|config| config.subject_delete_marker_ttl = 5, "marker TTL must be at least");
    let unknown: StreamConfig = config::read(br#"{"name":"x","nonsense":1}"#).expect("reads");
    let unknown = unknown.checked().expect_err("refused");
    assert_eq!((unknown.error, unknown.text.as_str()), (10025, r#"invalid JSON: json: unknown field "nonsense""#));
    let mirror: StreamConfig = config::read(br#"{"name":"x","mirror":{"name":"y"}}"#).expect("reads");
    assert!(mirror.checked().expect_err("refused").text.contains("mirror is not supported"));
}
