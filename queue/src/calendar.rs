//! The date that expiry uses, which follows the clock with care.
//!
//! Messages expire by date, so a clock that leaps ahead because of a wrong time server or a dead battery
//! would delete everything at once. A leap is therefore not believed at once: the date that expiry uses
//! follows it by at most a day per hour. A leap that is corrected soon costs little.

use std::time::{Duration, Instant};

/// Longest step ahead that is believed at once, ns.
const STEP_MAX: i64 = 60_000_000_000;
/// How many times faster than real time the believed date follows a leap.
const CATCH_UP: u32 = 24;

/// The date that expiry uses.
#[derive(Debug)]
pub struct Calendar {
    /// Unix time, ns.
    believed: i64,
    at: Instant,
    is_behind: bool,
}

impl Calendar {
    /// Starts from the newest date known to have passed, Unix time in ns; 0 if none is known: then the
    /// clock is believed.
    pub fn since(newest: i64, wall: i64, now: Instant) -> Self {
        let believed = if newest == 0 { wall } else { wall.min(newest) };
        Self { believed, at: now, is_behind: false }
    }

    /// The believed date when the clock shows `wall`, both Unix time in ns.
    pub fn look(&mut self, wall: i64, now: Instant) -> i64 {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        let expected = self.believed.saturating_add(nanos(passed)).saturating_add(STEP_MAX);
        let is_leap = wall > expected;
        let days = (wall - self.believed) / 86_400_000_000_000;
        if is_leap && !self.is_behind && days > 0 {
            tracing::warn!(days, "clock jumped ahead; messages expire slowly until it agrees");
        }
        self.is_behind = is_leap;
        self.believed = match is_leap {
            true => wall.min(self.believed.saturating_add(nanos(passed.saturating_mul(CATCH_UP)))),
            false => wall,
        };
        self.believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const DAY: i64 = 86_400 * SECOND;

    #[test]
    fn a_leap_is_followed_slowly_and_its_end_at_once() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut calendar = Calendar::since(0, 1_000 * DAY, start);
        assert_eq!(calendar.look(1_000 * DAY + 5 * SECOND, at(5)), 1_000 * DAY + 5 * SECOND);
        // Ten days ahead: an hour moves the date by one day, however often we look.
        for minute in 1..=60_u64 {
            let wall = 1_010 * DAY + (minute * 60) as i64 * SECOND;
            assert!(
                calendar.look(wall, at(5 + minute * 60)) <= 1_000 * DAY + 5 * SECOND + minute as i64 * 24 * 60 * SECOND
            );
        }
        let back = 1_000 * DAY + 3_700 * SECOND;
        assert_eq!(calendar.look(back, at(3_700)), back);
        // A clock that is really ahead is believed in the end.
        let mut days = 0;
        let mut now = 3_700;
        while calendar.look(1_010 * DAY, at(now)) < 1_010 * DAY {
            (now, days) = (now + 3_600, days + 1);
        }
        assert!((9..=11).contains(&days), "{days}");
    }

    #[test]
    fn after_a_restart_a_clock_that_leapt_meanwhile_is_not_believed_and_a_short_pause_is() {
        let now = Instant::now();
        assert_eq!(Calendar::since(100 * DAY, 200 * DAY, now).look(200 * DAY, now), 100 * DAY);
        assert_eq!(
            Calendar::since(100 * DAY, 100 * DAY + 30 * SECOND, now).look(100 * DAY + 30 * SECOND, now),
            100 * DAY + 30 * SECOND
        );
        assert_eq!(Calendar::since(100 * DAY, 99 * DAY, now).look(99 * DAY, now), 99 * DAY, "behind is believed");
    }
}
