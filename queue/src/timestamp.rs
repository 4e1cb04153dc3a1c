//! Wall-clock time in milliseconds, as written in records and responses.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

/// How far the clock of the queue's server is ahead of this machine's.
static AHEAD_MILLIS: AtomicI64 = AtomicI64::new(0);
/// A comparison that took longer is too inaccurate to use, milliseconds.
const COMPARED_WITHIN: i64 = 500;
/// Clocks that differ by at most this much agree, milliseconds.
const AGREE_WITHIN: i64 = 250;

/// Milliseconds since 1970 in UTC; written as RFC 3339 (`2026-11-23T17:00:00.123Z`).
///
/// Wall clocks jump: timestamps are for people to read and compare, never for leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Now, by the clock of the queue's server, so that spans between timestamps of different machines are
    /// correct. Until this process knows that clock, now by its own machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let own = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(own.saturating_add(AHEAD_MILLIS.load(Ordering::Relaxed)))
    }

    /// Takes note of what the clock of the queue's server showed between two moments of this machine's clock.
    pub(crate) fn compare(server: Self, asked: SystemTime, answered: SystemTime) {
        let millis = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let (asked, answered) = (millis(asked), millis(answered));
        let took = answered - asked;
        if !(0..=COMPARED_WITHIN).contains(&took) {
            return;
        }
        let ahead = server.0 - (asked + took / 2);
        // Small differences are normal: clocks are set over a network, and answers take time. The known offset stays
        // until a measurement contradicts it.
        let before = AHEAD_MILLIS.load(Ordering::Relaxed);
        if (ahead - before).abs() <= took / 2 + AGREE_WITHIN {
            return;
        }
        let ahead = if ahead.abs() <= took / 2 + AGREE_WITHIN { 0 } else { ahead };
        AHEAD_MILLIS.store(ahead, Ordering::Relaxed);
        if (ahead == 0) != (before == 0) {
            tracing::warn!(ahead_ms = ahead, "clocks of this machine and the queue's server differ");
        }
    }

    /// A moment by its distance from 1970, clamped to the years 0 to 9999, the range of RFC 3339.
    pub fn from_millis(millis: i64) -> Self {
        const YEAR_0: i64 = -62_167_219_200_000;
        const YEAR_9999_END: i64 = 253_402_300_799_999;
        Self(millis.clamp(YEAR_0, YEAR_9999_END))
    }

    /// Milliseconds since 1970.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The moment that is `later` after this one.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(i64::try_from(later.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Milliseconds from `earlier` to this moment; 0 if the clock was set back in between.
    pub fn millis_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

/// A text that is not a timestamp.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a time such as 2026-11-23T17:00:00Z: {0}")]
pub struct NoMoment(String);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).map_err(|_| fmt::Error)?;
        let (date, clock) = (time.date(), time.time());
        let (hour, minute, second, milli) = clock.as_hms_milli();
        write!(f, "{date}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        let format = Some(SchemaFormat::KnownFormat(KnownFormat::DateTime));
        ObjectBuilder::new().schema_type(Type::String).format(format).examples(["2026-11-23T17:00:00.123Z"]).into()
    }
}

impl ToSchema for Timestamp {}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Timestamp {
    type Err = NoMoment;

    /// Reads RFC 3339.
    fn from_str(text: &str) -> Result<Self, NoMoment> {
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| NoMoment(error.to_string()))?;
        let millis = i64::try_from(time.unix_timestamp_nanos() / 1_000_000);
        Ok(Self::from_millis(millis.map_err(|error| NoMoment(error.to_string()))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_and_read_as_rfc_3339() {
        let json = |millis| serde_json::to_string(&Timestamp::from_millis(millis)).expect("writes");
        assert_eq!(json(1_795_453_200_123), "\"2026-11-23T17:00:00.123Z\"");
        for millis in [0, 7, -1, i64::MIN, i64::MAX] {
            let back: Timestamp = serde_json::from_str(&json(millis)).expect("reads");
            assert_eq!(back, Timestamp::from_millis(millis));
        }
    }
}
