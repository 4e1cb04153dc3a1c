//! Which receiver is called next: receivers share the calls of this process fairly, and one that fails delays no
//! other.
//!
//! A receiver is a host and port, for one owner. A healthy one gets a few calls at a time; further calls are put
//! off for about as long as the calls before them will take. One that fails gets a single call after a pause that
//! grows, and all other calls to it are put off until then. A call that is put off is back in the queue: it takes
//! no slot, and is not lost if this process stops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most calls at a time: in this process, for one owner, and to one receiver.
pub(super) const CALLS_MAX: usize = 128;
const OWNER_CALLS_MAX: usize = 32;
const RECEIVER_CALLS_MAX: usize = 8;
/// Pauses before a receiver that fails is called again; the last one repeats.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(2 * 60), Duration::from_secs(10 * 60)];
/// Gap between two calls that are put off, so that they do not all become due at once.
const GAP: Duration = Duration::from_millis(20);
/// Longest time that a call is put off.
const PUT_OFF_MAX: Duration = Duration::from_secs(60 * 60);
/// Receivers remembered before idle healthy ones are dropped.
const RECEIVERS_MAX: usize = 10_000;

/// A host and port, for one owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Receiver {
    pub(super) owner: Option<String>,
    pub(super) host: String,
    pub(super) port: u16,
}

/// What to do with a call.
#[derive(Debug)]
pub(super) enum CallPermit {
    /// Make it now, and keep the slot meanwhile.
    Now(CallSlot),
    /// Put it off for this long.
    Later(Duration),
}

/// All receivers; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Receivers(Arc<Mutex<ReceiverState>>);

#[derive(Debug, Default)]
struct ReceiverState {
    receivers: HashMap<Receiver, Health>,
    calls: usize,
    of_owner: HashMap<Option<String>, usize>,
}

#[derive(Debug, Default)]
struct Health {
    calls: usize,
    /// Calls that failed in a row.
    failures: usize,
    failing_since: Option<Instant>,
    /// When it may be called again.
    next_at: Option<Instant>,
    /// The latest moment to which a call was put off.
    put_off_until: Option<Instant>,
}

/// A call's slot, until it is dropped.
#[derive(Debug)]
pub(super) struct CallSlot {
    receivers: Receivers,
    receiver: Receiver,
}

impl Receivers {
    fn lock(&self) -> MutexGuard<'_, ReceiverState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a call may be made now.
    pub(super) fn turn(&self, receiver: &Receiver, now: Instant) -> CallPermit {
        let mut state = self.lock();
        let state = &mut *state;
        if state.receivers.len() >= RECEIVERS_MAX && !state.receivers.contains_key(receiver) {
            state.receivers.retain(|_, health| health.calls > 0 || health.failures > 0);
        }
        let of_owner = state.of_owner.entry(receiver.owner.clone()).or_default();
        let health = state.receivers.entry(receiver.clone()).or_default();
        let most = if health.failures > 0 { 1 } else { RECEIVER_CALLS_MAX };
        let is_due = health.next_at.is_none_or(|at| at <= now);
        if is_due && health.calls < most && *of_owner < OWNER_CALLS_MAX && state.calls < CALLS_MAX {
            (health.calls, *of_owner, state.calls) = (health.calls + 1, *of_owner + 1, state.calls + 1);
            return CallPermit::Now(CallSlot { receivers: self.clone(), receiver: receiver.clone() });
        }
        let earliest = health.next_at.filter(|at| *at > now).unwrap_or(now + PAUSES[0] / 5);
        let at = health.put_off_until.map_or(earliest, |until| until.max(earliest)) + GAP;
        health.put_off_until = Some(at);
        CallPermit::Later((at - now).min(PUT_OFF_MAX))
    }

    /// Records how a call ended: whether the receiver is healthy.
    pub(super) fn note(&self, receiver: &Receiver, is_well: bool, now: Instant) {
        let mut state = self.lock();
        let Some(health) = state.receivers.get_mut(receiver) else { return };
        if is_well {
            let calls = health.calls;
            *health = Health { calls, ..Health::default() };
            return;
        }
        // Calls that were made at the same time fail for the same reason and count once.
        if health.next_at.is_some_and(|at| at > now) {
            return;
        }
        let pause = PAUSES[health.failures.min(PAUSES.len() - 1)];
        health.failures += 1;
        health.failing_since.get_or_insert(now);
        health.next_at = Some(now + pause);
    }

    /// How long a receiver has been failing without a success.
    pub(super) fn failing_for(&self, receiver: &Receiver, now: Instant) -> Duration {
        let state = self.lock();
        state
            .receivers
            .get(receiver)
            .and_then(|health| health.failing_since)
            .map_or(Duration::ZERO, |since| now - since)
    }
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        let mut state = self.receivers.lock();
        state.calls -= 1;
        if let Some(of_owner) = state.of_owner.get_mut(&self.receiver.owner) {
            *of_owner -= 1;
            if *of_owner == 0 {
                state.of_owner.remove(&self.receiver.owner);
            }
        }
        if let Some(health) = state.receivers.get_mut(&self.receiver) {
            health.calls -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(owner: &str, host: &str) -> Receiver {
        Receiver { owner: Some(owner.into()), host: host.into(), port: 443 }
    }

    #[test]
    fn a_receiver_that_hangs_leaves_slots_to_others() {
        let (receivers, now) = (Receivers::default(), Instant::now());
        let turns: Vec<CallPermit> = (0..300).map(|_| receivers.turn(&receiver("ann", "hangs"), now)).collect();
        let going = turns.iter().filter(|turn| matches!(turn, CallPermit::Now(_))).count();
        assert_eq!(going, RECEIVER_CALLS_MAX);
        let longest =
            turns.iter().filter_map(|turn| if let CallPermit::Later(pause) = turn { Some(*pause) } else { None });
        assert!(longest.max().expect("some") > GAP * 200, "they come back one after the other");
        assert!(matches!(receivers.turn(&receiver("ann", "other"), now), CallPermit::Now(_)));
        assert!(matches!(receivers.turn(&receiver("ben", "hangs"), now), CallPermit::Now(_)));
    }

    #[test]
    fn an_owner_with_many_receivers_leaves_slots_to_others() {
        let (receivers, now) = (Receivers::default(), Instant::now());
        let host = |number: usize| receiver("ann", &format!("host{number}"));
        let held: Vec<CallPermit> = (0..CALLS_MAX).map(|number| receivers.turn(&host(number), now)).collect();
        assert_eq!(held.iter().filter(|turn| matches!(turn, CallPermit::Now(_))).count(), OWNER_CALLS_MAX);
        assert!(matches!(receivers.turn(&receiver("ben", "host"), now), CallPermit::Now(_)));
        drop(held);
        assert!(receivers.lock().of_owner.is_empty() && receivers.lock().calls == 0);
    }

    #[test]
    fn one_that_fails_is_tried_alone_and_less_and_less_often_until_it_is_well() {
        let (receivers, mut now, down) = (Receivers::default(), Instant::now(), receiver("ann", "down"));
        for pause in [5, 30, 120, 600, 600] {
            let CallPermit::Now(place) = receivers.turn(&down, now) else { panic!("it is due") };
            assert!(!matches!(receivers.turn(&down, now), CallPermit::Now(_)) || pause == 5, "one at a time");
            receivers.note(&down, false, now);
            drop(place);
            let CallPermit::Later(put_off) = receivers.turn(&down, now) else { panic!("it failed just now") };
            assert!(put_off >= Duration::from_secs(pause), "{put_off:?}");
            now += Duration::from_secs(pause);
        }
        assert_eq!(receivers.failing_for(&down, now), Duration::from_secs(5 + 30 + 120 + 600 + 600));
        receivers.note(&down, true, now);
        assert!(matches!(receivers.turn(&down, now), CallPermit::Now(_)));
        assert_eq!(receivers.failing_for(&down, now), Duration::ZERO);
    }
}
