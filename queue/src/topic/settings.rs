//! Settings of topics, and their defaults.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{PartitionId, Priority, TopicName};

/// Most partitions of one priority in a topic.
const PARTITIONS_MAX: u16 = 512;
const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Settings of a topic; durations in milliseconds so that they are stored without loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The topic.
    pub topic: TopicName,
    /// The model that its jobs run on; `None` for a plain log.
    #[serde(default)]
    pub model: Option<String>,
    /// Partitions of each priority, at least 1.
    pub partitions: u16,
    /// Priorities other than normal that have their own partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub priorities: Vec<Priority>,
    /// Lease a worker holds on a job before it must renew.
    pub lease_ms: u64,
    /// Attempts before a job fails for good.
    pub attempts_max: u32,
    /// Time limit of one attempt, unless the job sets one.
    pub run_timeout_ms: u64,
    /// How long a finished job's record is kept.
    pub result_ttl_secs: u64,
    /// Delays between attempts.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// One delivery at a time per partition: jobs with the same key finish in order of arrival.
    #[serde(default)]
    pub ordered: bool,
    /// What happens to the inputs of finished jobs.
    #[serde(default)]
    pub retention: Retention,
    /// Most bytes of inputs in all partitions together, if set for this topic; otherwise the system's limit per
    /// topic applies.
    #[serde(default, rename = "max_bytes", skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// The same, as earlier versions wrote it: they also stored here for good what they computed from the free
    /// disk at the time. It still bounds logs, which nothing else does.
    #[serde(default, rename = "bytes_max", skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_max_before: Option<u64>,
    /// Its workers take no jobs; uploads are still accepted.
    #[serde(default)]
    pub paused: bool,
}

/// What happens to a job's input once the job has finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Retention {
    /// It is deleted.
    #[default]
    Work,
    /// It is kept and can be read again; the oldest are dropped by age or size, whether they were run or not.
    Log {
        /// How long it is kept.
        age_secs: u64,
    },
}

/// Delays between the attempts of one job: doubling, with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetryPolicy {
    /// Before the second attempt.
    pub first_ms: u64,
    /// The longest.
    pub max_ms: u64,
    /// Random variation of a delay in percent.
    pub jitter_percent: u8,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { first_ms: 1_000, max_ms: 60_000, jitter_percent: 50 }
    }
}

impl RetryPolicy {
    /// The pause after attempt number `attempts`; `chance` is a random number in 0..1.
    pub fn pause(&self, attempts: u32, chance: f64) -> Duration {
        let doubled = self.first_ms.saturating_mul(1 << attempts.saturating_sub(1).min(32)).min(self.max_ms);
        let jitter = f64::from(self.jitter_percent) / 100.0;
        Duration::from_millis(doubled).mul_f64(1.0 + jitter * (2.0 * chance.clamp(0.0, 1.0) - 1.0))
    }
}

/// Settings to apply to a topic, new or existing; absent ones stay unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// See [`Settings::partitions`].
    pub partitions: Option<u16>,
    /// See [`Settings::retention`].
    pub retention: Option<Retention>,
    /// See [`Settings::bytes_max`].
    pub bytes_max: Option<u64>,
    /// See [`Settings::lease_ms`].
    pub lease: Option<Duration>,
    /// See [`Settings::attempts_max`].
    pub attempts_max: Option<u32>,
    /// See [`Settings::run_timeout_ms`].
    pub run_timeout: Option<Duration>,
    /// See [`Settings::result_ttl_secs`].
    pub result_ttl: Option<Duration>,
    /// See [`RetryPolicy::first_ms`].
    pub retry_first: Option<Duration>,
    /// See [`RetryPolicy::max_ms`].
    pub retry_max: Option<Duration>,
    /// See [`RetryPolicy::jitter_percent`].
    pub jitter_percent: Option<u8>,
}

impl Change {
    /// Applies the settings that are present.
    pub fn apply(&self, settings: &mut Settings) {
        fn set<T>(field: &mut T, said: Option<T>) {
            if let Some(said) = said {
                *field = said;
            }
        }
        set(&mut settings.partitions, self.partitions);
        set(&mut settings.retention, self.retention);
        settings.bytes_max = self.bytes_max.or(settings.bytes_max);
        set(&mut settings.lease_ms, self.lease.map(millis));
        set(&mut settings.attempts_max, self.attempts_max);
        set(&mut settings.run_timeout_ms, self.run_timeout.map(millis));
        set(&mut settings.result_ttl_secs, self.result_ttl.map(|ttl| ttl.as_secs()));
        set(&mut settings.retry.first_ms, self.retry_first.map(millis));
        set(&mut settings.retry.max_ms, self.retry_max.map(millis));
        set(&mut settings.retry.jitter_percent, self.jitter_percent);
    }
}

/// Default settings of new topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// See [`Settings::partitions`].
    pub partitions: u16,
    /// See [`Settings::lease_ms`].
    pub lease: Duration,
    /// See [`Settings::attempts_max`].
    pub attempts_max: u32,
    /// See [`Settings::run_timeout_ms`].
    pub run_timeout: Duration,
    /// See [`Settings::result_ttl_secs`].
    pub result_ttl: Duration,
    /// Most bytes of the queued jobs of one topic, divided evenly among its partitions; `None` if the broker
    /// bounds all topics together.
    pub topic_bytes_max: Option<u64>,
    /// Most bytes of the dead letters of one topic; the oldest are dropped first.
    pub dead_bytes_max: u64,
    /// How long dead letters are kept.
    pub dead_ttl: Duration,
    /// Copies of every stream; more than 1 needs a cluster.
    pub replicas: usize,
}

impl Default for Defaults {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            partitions: 3,
            lease: Duration::from_secs(30),
            attempts_max: 5,
            run_timeout: Duration::from_secs(60),
            result_ttl: 7 * DAY,
            topic_bytes_max: None,
            dead_bytes_max: 4 * GIB,
            dead_ttl: 7 * DAY,
            replicas: 1,
        }
    }
}

impl Defaults {
    /// The settings of a new topic.
    pub fn settings(&self, topic: TopicName, model: Option<&str>) -> Settings {
        Settings {
            topic,
            model: model.map(str::to_owned),
            partitions: self.partitions.max(1),
            priorities: Vec::new(),
            lease_ms: millis(self.lease),
            attempts_max: self.attempts_max.max(1),
            run_timeout_ms: millis(self.run_timeout),
            result_ttl_secs: self.result_ttl.as_secs().max(1),
            retry: RetryPolicy::default(),
            ordered: false,
            retention: Retention::Work,
            bytes_max: None,
            bytes_max_before: None,
            paused: false,
        }
    }
}

impl Settings {
    /// All partitions: by priority, then by number.
    pub(crate) fn partitions_of_all(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let (count, priorities) = (self.partitions, self.priorities.clone());
        let kept = Priority::ALL.into_iter().filter(move |p| *p == Priority::Normal || priorities.contains(p));
        kept.flat_map(move |priority| (0..count).map(move |index| PartitionId::new(index, priority)))
    }

    /// Whether there are partitions of this priority.
    pub(crate) fn has(&self, priority: Priority) -> bool {
        priority == Priority::Normal || self.priorities.contains(&priority)
    }

    /// Most bytes of one partition, out of `bytes_max` for all of them.
    pub(crate) fn partition_share(&self, bytes_max: u64) -> u64 {
        (bytes_max / self.partitions_of_all().count() as u64).max(1)
    }

    /// Checks these settings.
    ///
    /// # Errors
    /// One sentence for the user: what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let range = |what: &str, value: Duration, from: Duration| {
            if (from..=100 * YEAR).contains(&value) {
                return Ok(());
            }
            Err(format!("{what} must be {} to 100 years", humantime::format_duration(from)))
        };
        let second = Duration::from_secs(1);
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            return Err(format!("partitions must be 1 to {PARTITIONS_MAX}"));
        }
        range("the lease", Duration::from_millis(self.lease_ms), second)?;
        range("the run timeout", Duration::from_millis(self.run_timeout_ms), Duration::from_millis(1))?;
        range("the result TTL", Duration::from_secs(self.result_ttl_secs), second)?;
        if let Retention::Log { age_secs } = self.retention {
            range("the age of a log", Duration::from_secs(age_secs), second)?;
        }
        if self.attempts_max == 0 {
            return Err("attempts must be at least 1".into());
        }
        if self.retry.first_ms > self.retry.max_ms {
            return Err("the first pause between attempts must not be longer than the longest".into());
        }
        if self.retry.jitter_percent > 100 {
            return Err("the jitter must be 0 to 100 percent".into());
        }
        if self.bytes_max == Some(0) {
            return Err("max-bytes must be more than 0".into());
        }
        if self.ordered && !self.priorities.is_empty() {
            return Err("an ordered topic has one priority".into());
        }
        match (&self.model, self.retention) {
            (None, Retention::Work) => {
                Err("a topic without a model is a plain log; pass --retention log:24h, or name a model".into())
            }
            (None, _) if self.ordered => Err("a plain log is always in order, a partition at a time".into()),
            _ => Ok(()),
        }
    }

    /// Checks whether a topic with these settings can be changed to `next`.
    ///
    /// # Errors
    /// One sentence for the user: what is wrong.
    pub fn check_change(&self, next: &Self) -> Result<(), String> {
        let kind = |retention: &Retention| matches!(retention, Retention::Work);
        if next.partitions < self.partitions {
            return Err(format!("partitions only grow: there are {}", self.partitions));
        }
        if self.ordered && next.partitions != self.partitions {
            return Err("an ordered topic does not grow: its keys would change places".into());
        }
        if self.ordered != next.ordered {
            return Err("whether a topic is ordered is set when it is created and cannot be changed".into());
        }
        if self.model != next.model {
            return Err("a topic keeps its model".into());
        }
        if kind(&self.retention) != kind(&next.retention) {
            return Err("a work topic cannot become a log, nor the other way round".into());
        }
        Ok(())
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work => f.write_str("work"),
            Self::Log { age_secs } => {
                let age = humantime::format_duration(Duration::from_secs(*age_secs)).to_string();
                write!(f, "log:{}", age.replace(' ', ""))
            }
        }
    }
}

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "work" {
            return Ok(Self::Work);
        }
        let age = text.strip_prefix("log:").ok_or("it must be work, or log: and a time, such as log:24h")?;
        let age = humantime::parse_duration(age).map_err(|error| format!("the age in `{text}`: {error}"))?;
        Ok(Self::Log { age_secs: age.as_secs() })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Defaults::default().settings(TopicName::new("cats").expect("valid"), Some("cats"))
    }

    #[test]
    fn what_an_older_version_wrote_is_read() {
        let old = r#"{"topic":"cats","model":"cats","partitions":3,"lease_ms":30000,"attempts_max":5,"bytes_max":1,
            "run_timeout_ms":60000,"result_ttl_secs":604800}"#;
        let read: Settings = serde_json::from_str(old).expect("reads");
        assert_eq!(read, Settings { bytes_max_before: Some(1), ..settings() }, "it bounds logs, and nothing else");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_with_a_reason() {
        let refused = |change: &dyn Fn(&mut Settings), words: &str| {
            let mut next = settings();
            change(&mut next);
            let error = next.check().and_then(|()| settings().check_change(&next)).expect_err(words);
            assert!(error.contains(words), "{error}");
        };
        refused(&|next| next.partitions = 0, "partitions must be 1 to");
        refused(&|next| next.partitions = 2, "only grow");
        refused(&|next| next.ordered = true, "when it is created");
        refused(&|next| next.model = Some("dogs".into()), "keeps its model");
        refused(&|next| next.retention = Retention::Log { age_secs: 60 }, "cannot become a log");
        refused(&|next| next.lease_ms = 10, "the lease must be 1s to");
        refused(&|next| next.bytes_max = Some(0), "more than 0");
        let mut ordered = settings();
        ordered.ordered = true;
        let mut grown = ordered.clone();
        grown.partitions = 4;
        assert!(ordered.check_change(&grown).expect_err("refused").contains("does not grow"));
        let plain = Settings { model: None, ..settings() };
        assert!(plain.check().expect_err("refused").contains("plain log"));
        let grown = Settings { partitions: 12, paused: true, ..settings() };
        assert_eq!(settings().check_change(&grown), Ok(()));
    }

    #[test]
    fn retention_is_written_as_it_is_read() {
        for text in ["work", "log:1day", "log:1h30m"] {
            assert_eq!(text.parse::<Retention>().expect(text).to_string(), text);
        }
        for bad in ["", "log", "log:", "log:x", "Work", "24h"] {
            assert!(bad.parse::<Retention>().is_err(), "{bad}");
        }
    }

    #[test]
    fn priorities_get_partitions_of_their_own_in_order() {
        let mut settings = settings();
        settings.partitions = 2;
        settings.priorities = vec![Priority::Low, Priority::High];
        let names: Vec<String> = settings.partitions_of_all().map(|partition| partition.to_string()).collect();
        assert_eq!(names, ["0h", "1h", "0", "1", "0l", "1l"]);
    }

    #[test]
    fn pauses_double_up_to_the_longest_give_or_take_the_jitter() {
        let policy = RetryPolicy::default();
        let seconds = |attempts, chance| policy.pause(attempts, chance).as_secs_f64();
        assert_eq!([1, 2, 3, 4].map(|n| seconds(n, 0.5)), [1.0, 2.0, 4.0, 8.0]);
        assert_eq!((seconds(1, 0.0), seconds(1, 1.0)), (0.5, 1.5));
        assert_eq!(seconds(u32::MAX, 0.5), 60.0);
    }
}
