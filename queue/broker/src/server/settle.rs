//! Settles deliveries: ack, nak, in progress or term.

use bytes::Bytes;
use serde::Deserialize;

use super::advise::DeliveryEnd;
use super::core::Core;
use crate::journal::Change;
use crate::nats::Publication;
use crate::stream::{AckPolicy, Now, go_duration};

/// How a client answers a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AckKind<'a> {
    Ack,
    /// Redeliver after this many ns.
    Nak(i64),
    Progress,
    Term(&'a str),
    /// Ack, and request the next message.
    Next(&'a [u8]),
    /// Not a known answer; the sender still gets a reply.
    Unknown,
}

impl<'a> AckKind<'a> {
    fn read(payload: &'a [u8]) -> Self {
        let rest = |word: &str| payload.strip_prefix(word.as_bytes()).map(<[u8]>::trim_ascii);
        if matches!(payload, b"" | b"+ACK" | b"+OK") {
            Self::Ack
        } else if payload == b"+WPI" {
            Self::Progress
        } else if let Some(delay) = rest("-NAK") {
            Self::Nak(nak_delay(delay))
        } else if let Some(reason) = rest("+TERM") {
            Self::Term(std::str::from_utf8(reason).unwrap_or_default())
        } else if let Some(pull) = rest("+NXT") {
            Self::Next(pull)
        } else {
            Self::Unknown
        }
    }
}

/// The delay of a nak: JSON or a Go duration; anything else means no delay.
fn nak_delay(text: &[u8]) -> i64 {
    #[derive(Deserialize)]
    struct Delay {
        delay: i64,
    }
    let json = serde_json::from_slice::<Delay>(text).ok().map(|options| options.delay);
    let delay = json.or_else(|| go_duration(std::str::from_utf8(text).ok()?));
    delay.unwrap_or(0).max(0)
}

/// Stream, consumer and sequence of an ack subject of either version; the other tokens are informational.
fn delivery(tokens: &[u8]) -> Option<(&str, &str, u64)> {
    let tokens: Vec<&str> = std::str::from_utf8(tokens).ok()?.split('.').collect();
    let fields = match tokens.len() {
        7 => &tokens[..],
        9.. => &tokens[2..],
        _ => return None,
    };
    Some((fields[0], fields[1], fields[3].parse().ok()?))
}

/// Settles a delivery, and answers the sender if it waits for that. `false`: not an ack subject, or the consumer
/// takes no acks.
pub(super) fn settle(core: &mut Core, tokens: &[u8], publication: &Publication, now: Now) -> bool {
    let Some((stream, consumer, sequence)) = delivery(tokens) else { return false };
    let found = core.stream(stream).and_then(|stream| stream.consumer(consumer));
    if found.is_some_and(|consumer| consumer.config.ack_policy == AckPolicy::None) {
        // Without acks there is nothing to settle; a request gets "no responders".
        return false;
    }
    let verdict = AckKind::read(&publication.payload);
    let applied = apply(core, stream, consumer, sequence, &verdict, publication.reply.is_some(), now);
    let Some(reply) = &publication.reply else { return true };
    if let AckKind::Next(pull) = verdict {
        core.pull(stream, consumer, Some(reply), pull, now);
    } else if applied {
        // Whether it was settled now or before, the answer means that this is on disk.
        core.journal.require_sync();
        core.tell(reply, &[], &Bytes::new());
    }
    true
}

/// Applies a client's answer. `false`: there was no disk space to record it.
fn apply(
    core: &mut Core,
    stream_name: &str,
    consumer_name: &str,
    sequence: u64,
    verdict: &AckKind<'_>,
    is_confirmed: bool,
    now: Now,
) -> bool {
    let Some(stream) = core.id_of(stream_name) else { return true };
    let Some(found) = core.streams.get_mut(&stream).and_then(|stream| stream.consumer_mut(consumer_name)) else {
        return true;
    };
    let consumer = found.id;
    let pending = match verdict {
        AckKind::Ack | AckKind::Next(_) | AckKind::Term(_) => found.pending_at(sequence),
        _ => found.pending_of(sequence),
    };
    let Some(pending) = pending.copied() else { return true };
    let settled = found.settled_by(sequence);
    let change = match verdict {
        AckKind::Ack | AckKind::Next(_) | AckKind::Term(_) => Change::Acked { stream, consumer, sequence },
        AckKind::Nak(_) if found.is_used_up(pending.count) => {
            found.give_up(sequence);
            core.advise_given_up(stream, consumer, &[(sequence, pending.count)], now);
            core.serve(stream, consumer, now);
            core.schedule(stream, consumer, now);
            return true;
        }
        AckKind::Nak(delay) => {
            let until = if *delay > 0 { now.wall.saturating_add(*delay) } else { 0 };
            core.advise_delivery((stream, consumer), DeliveryEnd::Naked, sequence, &pending, now);
            Change::Nakked { stream, consumer, sequence, until }
        }
        AckKind::Progress => {
            found.progress(sequence, now.clock);
            return true;
        }
        AckKind::Unknown => return true,
    };
    if core.change(&change, is_confirmed, now).is_err() {
        tracing::warn!(stream = stream_name, sequence, "disk full: end of a delivery not written");
        return false;
    }
    core.remove_unneeded(stream, &settled, now);
    match verdict {
        AckKind::Term(reason) => {
            core.advise_delivery((stream, consumer), DeliveryEnd::Terminated(reason), sequence, &pending, now);
        }
        AckKind::Ack | AckKind::Next(_) => core.sample_ack((stream, consumer), sequence, &pending, now),
        _ => {}
    }
    core.serve(stream, consumer, now);
    core.schedule(stream, consumer, now);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_as_clients_write_them() {
        for (payload, expected) in [
            ("", AckKind::Ack),
            ("+ACK", AckKind::Ack),
            ("-NAK", AckKind::Nak(0)),
            (r#"-NAK {"delay":1500}"#, AckKind::Nak(1500)),
            ("-NAK 1.5s", AckKind::Nak(1_500_000_000)),
            ("-NAK nonsense", AckKind::Nak(0)),
            ("+WPI", AckKind::Progress),
            ("+TERM bad image", AckKind::Term("bad image")),
            ("+NXT 3", AckKind::Next(b"3")),
            ("hello", AckKind::Unknown),
        ] {
            assert_eq!(AckKind::read(payload.as_bytes()), expected, "{payload}");
        }
    }

    #[test]
    fn deliveries_are_named_in_two_ways() {
        assert_eq!(delivery(b"s.c.1.22.3.4.5"), Some(("s", "c", 22)));
        assert_eq!(delivery(b"_.hash.s.c.1.22.3.4.5"), Some(("s", "c", 22)));
        assert_eq!(delivery(b"_.hash.s.c.1.22.3.4.5.token"), Some(("s", "c", 22)));
        assert_eq!((delivery(b"s.c.1.x.3.4.5"), delivery(b"s.c")), (None, None));
    }
}
