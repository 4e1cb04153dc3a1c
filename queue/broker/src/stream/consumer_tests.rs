//! A consumer against a plain list, with any filters and any ack policy.

use std::time::Instant;

use proptest::prelude::*;

use super::consumer_config::DeliverPolicy;
use super::tests::name;
use super::*;
use crate::journal::change::{Change, LogPlace, Stored};

/// Consumer configurations, of few enough kinds that each occurs often.
fn wishes() -> impl Strategy<Value = (ConsumerConfig, Vec<&'static str>)> {
    let filters =
        prop_oneof![Just(vec![]), Just(vec!["s.0"]), Just(vec!["s.*"]), Just(vec!["s.1", "s.3"]), Just(vec!["t.>"]),];
    let policies = prop_oneof![
        Just(DeliverPolicy::All),
        Just(DeliverPolicy::Last),
        Just(DeliverPolicy::New),
        Just(DeliverPolicy::LastPerSubject),
        Just(DeliverPolicy::ByStartSequence),
    ];
    let acks = prop_oneof![Just(AckPolicy::None), Just(AckPolicy::All), Just(AckPolicy::Explicit)];
    (filters, policies, acks, 1_u64..20, 1_i64..5).prop_map(|(filters, deliver_policy, ack_policy, start, pending)| {
        let filters = match deliver_policy {
            DeliverPolicy::LastPerSubject if filters.is_empty() => vec!["s.*"],
            _ => filters,
        };
        let config = ConsumerConfig {
            durable_name: Some("c".into()),
            deliver_policy,
            ack_policy,
            opt_start_seq: if deliver_policy == DeliverPolicy::ByStartSequence { start } else { 0 },
            filter_subjects: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            max_ack_pending: pending,
            ..ConsumerConfig::default()
        };
        (config, filters)
    })
}

#[derive(Debug, Clone)]
enum Deed {
    Publish(u8),
    HandOut,
    /// Of the nth pending message.
    Ack(u8),
    Delete(u8),
    Purge(u8),
    Reset(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => (0_u8..4).prop_map(Deed::Publish),
        6 => Just(Deed::HandOut),
        3 => (0_u8..3).prop_map(Deed::Ack),
        1 => any::<u8>().prop_map(Deed::Delete),
        1 => (0_u8..4).prop_map(Deed::Purge),
        1 => (0_u8..20).prop_map(Deed::Reset),
    ]
}

/// A stream with one consumer, and a simple model of both.
struct Plain {
    stream: Stream,
    now: Now,
    /// Sequence and subject.
    messages: Vec<(u64, u8)>,
    filters: Vec<&'static str>,
    ack_policy: AckPolicy,
    pending_max: usize,
    cursor: u64,
    /// Up to here it wants only the last message of each subject.
    resume: u64,
    in_hand: Vec<u64>,
}

impl Plain {
    fn apply(&mut self, change: &Change<'_>) {
        let place = LogPlace { position: self.stream.last, bytes: 1 };
        self.stream.apply(change, Some(place), self.now, &mut Vec::new()).expect("applies");
        // With retention by interest, the broker removes messages that no consumer needs.
        let all: Vec<u64> = self.stream.messages.from(0).map(Found::sequence).collect();
        for (from, to) in self.stream.unneeded(all) {
            let gone = Change::Removed { stream: 1, from, to };
            self.stream.apply(&gone, None, self.now, &mut Vec::new()).expect("applies");
        }
    }

    fn publish(&mut self, subject: u8) {
        let (sequence, name) = (self.stream.last + 1, name(subject));
        self.messages.push((sequence, subject));
        let (subject, header, payload) = (name.as_bytes(), &b""[..], &b"x"[..]);
        let stored =
            Stored { stream: 1, sequence, time: 0, expires: 0, replaces: 0, moved: false, subject, header, payload };
        self.apply(&Change::Stored(stored));
    }

    fn matches(&self, subject: u8) -> bool {
        let name = name(subject);
        let is_it = |filter: &&&str| crate::nats::matches(filter.as_bytes(), name.as_bytes());
        self.filters.is_empty() || self.filters.iter().any(|filter| is_it(&filter))
    }

    /// Messages that are still to be delivered for the first time.
    fn unseen(&self) -> Vec<u64> {
        let is_last = |sequence: u64, subject: u8| {
            let later = |m: &&(u64, u8)| m.1 == subject && m.0 > sequence && m.0 <= self.resume;
            self.messages.iter().find(later).is_none()
        };
        let wanted = |(sequence, subject): &&(u64, u8)| {
            *sequence >= self.cursor
                && self.matches(*subject)
                && (*sequence > self.resume || is_last(*sequence, *subject))
        };
        self.messages.iter().filter(wanted).map(|(sequence, _)| *sequence).collect()
    }

    fn remove(&mut self, gone: impl Fn(u64, u8) -> bool) {
        let gone: Vec<u64> = self.messages.iter().filter(|m| gone(m.0, m.1)).map(|m| m.0).collect();
        self.messages.retain(|message| !gone.contains(&message.0));
        self.in_hand.retain(|sequence| !gone.contains(sequence));
        for sequence in gone {
            self.apply(&Change::Removed { stream: 1, from: sequence, to: sequence });
        }
    }

    /// With retention by interest, removes messages that the only consumer no longer needs.
    fn forget(&mut self, retention: config::Retention) {
        if retention == config::Retention::Interest {
            let unseen = self.unseen();
            let kept = |message: &(u64, u8)| self.in_hand.contains(&message.0) || unseen.contains(&message.0);
            self.messages = self.messages.iter().copied().filter(kept).collect();
        }
    }

    fn run(&mut self, deed: &Deed) {
        match *deed {
            Deed::Publish(subject) => self.publish(subject),
            Deed::HandOut => {
                let found = self.stream.next_handout(1).map(|handout| handout.sequence);
                let is_full = self.in_hand.len() >= self.pending_max && self.ack_policy != AckPolicy::None;
                let expected = self.unseen().first().copied().filter(|_| !is_full);
                assert_eq!(found, expected);
                let Some(sequence) = found else { return };
                let consumer_sequence = self.stream.consumer("c").expect("there").consumer_sequence + 1;
                if self.ack_policy != AckPolicy::None {
                    self.in_hand.push(sequence);
                }
                self.cursor = sequence + 1;
                let delivered =
                    Change::Delivered { stream: 1, consumer: 1, sequence, consumer_sequence, count: 1, time: 0 };
                self.apply(&delivered);
            }
            Deed::Ack(nth) => {
                let Some(sequence) = self.in_hand.get(usize::from(nth)).copied() else { return };
                let all = self.ack_policy == AckPolicy::All;
                self.in_hand.retain(|held| if all { *held > sequence } else { *held != sequence });
                self.apply(&Change::Acked { stream: 1, consumer: 1, sequence });
            }
            Deed::Delete(nth) => {
                let Some((sequence, _)) = self.messages.get(usize::from(nth)).copied() else { return };
                self.remove(|other, _| other == sequence);
            }
            Deed::Purge(subject) => self.remove(|_, other| other == subject),
            Deed::Reset(start) => {
                let start = u64::from(start) + 1;
                self.in_hand.clear();
                self.cursor = start;
                self.apply(&Change::ConsumerReset { stream: 1, consumer: 1, start });
            }
        }
    }

    fn check(&self) {
        let found: Vec<u64> = self.stream.messages.from(0).map(Found::sequence).collect();
        assert_eq!(found, self.messages.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>());
        let consumer = self.stream.consumer("c").expect("there");
        assert_eq!(consumer.unseen(), self.unseen().len() as u64, "unseen");
        assert_eq!(consumer.in_hand(), self.in_hand.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// With any filters and ack policy, a consumer delivers the messages that a plain search of all messages
    /// finds, each once and in order.
    #[test]
    fn a_consumer_hands_out_what_a_plain_look_says(
        before in proptest::collection::vec(0_u8..4, 0..12),
        (config, filters) in wishes(),
        interest in any::<bool>(),
        deeds in proptest::collection::vec(deed(), 0..60),
    ) {
        let retention = if interest { config::Retention::Interest } else { config::Retention::Limits };
        let limits = StreamConfig { retention: config::Retention::Limits, subjects: vec!["s.*".into(), "t.>".into()], ..super::tests::config(true) };
        let limits = StreamConfig { max_msgs: -1, max_bytes: -1, max_msgs_per_subject: -1, ..limits };
        let limits = limits.checked().expect("a good configuration");
        let now = Now { wall: 1_700_000_000_000_000_000, clock: Instant::now() };
        let mut plain = Plain {
            stream: Stream::new(1, limits, now.wall),
            now,
            messages: Vec::new(),
            ack_policy: config.ack_policy,
            pending_max: config.max_ack_pending as usize,
            filters,
            cursor: 1,
            resume: 0,
            in_hand: Vec::new(),
        };
        before.iter().for_each(|subject| plain.publish(*subject));
        let last = plain.stream.last;
        let matching: Vec<(u64, u8)> = plain.messages.iter().copied().filter(|m| plain.matches(m.1)).collect();
        let checked = config.checked(&plain.stream.config).expect("a good configuration");
        plain.cursor = match checked.deliver_policy {
            DeliverPolicy::All | DeliverPolicy::ByStartTime => 1,
            DeliverPolicy::Last => matching.last().map_or(last + 1, |(sequence, _)| *sequence),
            DeliverPolicy::New => last + 1,
            DeliverPolicy::ByStartSequence => checked.opt_start_seq,
            DeliverPolicy::LastPerSubject => {
                plain.resume = last;
                let lasts = (0..4).filter_map(|subject| matching.iter().rev().find(|m| m.1 == subject));
                lasts.map(|(sequence, _)| *sequence).min().unwrap_or(last + 1)
            }
        };
        let (_, start) = plain.stream.admit_consumer(&checked).expect("the first one");
        prop_assert_eq!((start.cursor, start.resume), (plain.cursor, plain.resume));
        let json = serde_json::to_vec(&checked).expect("writes");
        let (start, resume) = (start.cursor, start.resume);
        plain.apply(&Change::ConsumerPut { stream: 1, consumer: 1, created: 0, start, resume, config: &json });
        plain.check();
        // Only from here on, as if by an update of the stream.
        plain.stream.config.retention = retention;
        for deed in &deeds {
            plain.run(deed);
            plain.forget(retention);
            plain.apply(&Change::Counted { stream: 1, last: 0, last_time: 0 });
            plain.check();
        }
    }
}
