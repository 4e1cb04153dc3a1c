use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TERM: Duration = Duration::from_secs(6);

/// A server that keeps one record, and a network that delivers late.
#[derive(Default)]
struct World {
    record: Option<(u64, LeaseRecord)>,
    now_ms: u64,
    /// By due time and number: whose it is, when it was sent, what it does.
    mail: BTreeMap<(u64, usize), (usize, u64, Mail)>,
    letters: usize,
}

enum Mail {
    Read,
    Answer(Option<(Revision, LeaseRecord)>),
    Write(Revision),
    Wrote(Replaced),
}

impl World {
    fn send(&mut self, due_ms: u64, who: usize, mail: Mail, sent_ms: u64) {
        self.letters += 1;
        self.mail.insert((due_ms, self.letters), (who, sent_ms, mail));
    }

    fn write(&mut self, expected: Revision, id: &str) -> Replaced {
        if Revision::from(self.record.as_ref().map_or(0, |(revision, _)| *revision)) != expected {
            return Replaced::Refused;
        }
        let next = self.record.as_ref().map_or(1, |(revision, _)| revision + 1);
        self.record = Some((next, LeaseRecord { holder: Some(id.to_owned()) }));
        Replaced::Done(next.into())
    }
}

/// Runs `candidates` for ten minutes over a network that delays each letter by up to `delay_ms` and
/// loses a tenth; now and then each candidate pauses for up to 20 s. Returns how many seconds the
/// lease was held.
fn simulate(candidates: usize, delay_ms: u64, seed: u64) -> u64 {
    let mut state = seed | 1;
    let mut random = move |bound: u64| {
        // xorshift64*, good enough to shuffle a network.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    };
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut world = World::default();
    let mut all: Vec<Candidate> = (0..candidates).map(|n| Candidate::new(format!("c{n}"), TERM)).collect();
    let mut asleep_until = vec![0_u64; candidates];
    let mut held_seconds = 0;
    for now in (0..600_000).step_by(50) {
        world.now_ms = now;
        for (who, asleep_until) in asleep_until.iter_mut().enumerate() {
            if *asleep_until <= now && random(2_000) == 0 {
                *asleep_until = now + random(20_000);
            }
            if now % 1_000 == (who as u64 * 50) % 1_000 && *asleep_until <= now {
                let due = now + random(delay_ms);
                world.send(due, who, Mail::Read, now);
            }
        }
        while let Some(entry) = world.mail.first_entry().filter(|entry| entry.key().0 <= now) {
            let (who, sent, mail) = entry.remove();
            let lost = random(10) == 0;
            let due = now + random(delay_ms);
            match mail {
                Mail::Read if !lost => {
                    let answer = world.record.clone().map(|(revision, record)| (revision.into(), record));
                    world.send(due, who, Mail::Answer(answer), sent);
                }
                Mail::Write(expected) if !lost => {
                    let id = all[who].id().to_owned();
                    let outcome = world.write(expected, &id);
                    world.send(due, who, Mail::Wrote(outcome), sent);
                }
                // A process that sleeps reads its letters when it wakes.
                Mail::Answer(_) | Mail::Wrote(_) if asleep_until[who] > now => {
                    world.send(asleep_until[who], who, mail, sent);
                }
                Mail::Answer(answer) if !lost => {
                    if let LeaseAction::Write(expected) = all[who].step(answer, at(now)) {
                        world.send(due, who, Mail::Write(expected), now);
                    }
                }
                Mail::Wrote(outcome) if !lost => all[who].wrote(outcome, at(sent)),
                _ => {}
            }
        }
        let holders: Vec<&str> = all.iter().filter(|c| c.is_held(at(now))).map(Candidate::id).collect();
        assert!(holders.len() <= 1, "seed {seed}: at {now} ms two hold it: {holders:?}");
        held_seconds += u64::from(!holders.is_empty() && now % 1_000 == 0);
    }
    held_seconds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_lease_has_one_holder_at_most_whatever_the_network_does(candidates in 1_usize..8, seed in any::<u64>()) {
        simulate(candidates, 3_000, seed);
    }
}

#[test]
fn the_lease_is_held_most_of_the_time() {
    let held: u64 = (1..=20).map(|seed| simulate(5, 300, seed * 7_919)).sum();
    assert!(held > 20 * 600 / 2, "of 12,000 s it was held for {held}");
}

#[test]
fn a_lease_that_is_given_back_is_taken_at_once_and_a_silent_one_after_a_term() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let record = |holder: Option<&str>| Some((Revision::from(4), LeaseRecord { holder: holder.map(str::to_owned) }));
    let mut candidate = Candidate::new("a", TERM);
    assert_eq!(candidate.step(record(None), start), LeaseAction::Write(4.into()));
    candidate.wrote(Replaced::Refused, start);
    assert_eq!(candidate.step(record(Some("b")), after(1)), LeaseAction::Wait);
    assert_eq!(candidate.step(record(Some("b")), after(6)), LeaseAction::Wait);
    assert_eq!(candidate.step(record(Some("b")), after(8)), LeaseAction::Write(4.into()));
    candidate.wrote(Replaced::Done(5.into()), after(8));
    assert!(candidate.is_held(after(13)) && !candidate.is_held(after(14)));
}

#[test]
fn a_holder_renews_before_its_term_ends() {
    let start = Instant::now();
    let mut candidate = Candidate::new("a", TERM);
    assert_eq!(candidate.step(None, start), LeaseAction::Write(Revision::default()));
    candidate.wrote(Replaced::Done(1.into()), start);
    let own = || Some((Revision::from(1), LeaseRecord { holder: Some("a".into()) }));
    assert_eq!(candidate.step(own(), start + Duration::from_secs(1)), LeaseAction::Wait);
    assert_eq!(candidate.step(own(), start + Duration::from_secs(3)), LeaseAction::Write(1.into()));
}
