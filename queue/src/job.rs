//! Names and positions of jobs: topics, partitions, sequences, ids.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

/// A text that is not a valid name or id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a topic's name.
    #[error("`{0}` is not a topic name; it must match ^[a-z0-9][a-z0-9-]{{0,62}}$")]
    Topic(String),
    /// Not a job's id.
    #[error("`{0}` is not a job id; it must be <topic>.<uuid>")]
    Job(String),
    /// Not a partition's id.
    #[error("`{0}` is not a partition; it must be a number from 0, followed by h or l for high or low priority")]
    Partition(String),
    /// Not a priority.
    #[error("`{0}` is not a priority; it must be high, normal or low")]
    Priority(String),
}

/// A topic's name, `^[a-z0-9][a-z0-9-]{0,62}$`: safe as a subject token, a stream name, a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(String);

impl TopicName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`IdError::Topic`].
    pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
        let name = name.into();
        let bytes = name.as_bytes();
        let allowed = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        if (1..=63).contains(&bytes.len()) && bytes[0] != b'-' && bytes.iter().all(allowed) {
            Ok(Self(name))
        } else {
            Err(IdError::Topic(name))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One shard of a topic: its priority, and its number among the partitions of that priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    index: u16,
    priority: Priority,
}

/// Priority of a job. Each priority has its own partitions, which workers serve in the shares of
/// [`Priority::share`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before the others, but not instead of them.
    High,
    /// The default of a job.
    #[default]
    Normal,
    /// Behind the others, but never starved by them.
    Low,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// How many of every 16 jobs a worker takes have this priority while jobs of all priorities wait.
    pub fn share(self) -> u64 {
        match self {
            Self::High => 12,
            Self::Normal => 3,
            Self::Low => 1,
        }
    }

    /// The name, as written in flags and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// For `skip_serializing_if`.
    pub(crate) fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

impl PartitionId {
    /// The partition of normal priority with this number.
    pub fn normal(index: u16) -> Self {
        Self::new(index, Priority::Normal)
    }

    /// The partition with this number among those of a priority.
    pub fn new(index: u16, priority: Priority) -> Self {
        Self { index, priority }
    }

    /// The partition of a job: chosen by its key, or spread evenly by its uuid.
    ///
    /// # Panics
    /// If `partitions` is 0; a topic has at least one.
    pub fn of_job(id: &JobId, key: Option<&str>, partitions: u16, priority: Priority) -> Self {
        assert!(partitions > 0, "a topic has at least one partition");
        let hash = crc32fast::hash(key.map_or(id.uuid.as_bytes(), str::as_bytes));
        Self::new((hash % u32::from(partitions)) as u16, priority)
    }

    /// The number, from 0.
    pub fn index(self) -> u16 {
        self.index
    }

    /// The priority of its jobs.
    pub fn priority(self) -> Priority {
        self.priority
    }
}

/// A position in a stream, from 1; 0 is before the first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// A job's id: topic and uuid, `efficientnet-lite0.0199d2a4-…`.
///
/// The topic is part of it, so that any process can look up any id with one read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    topic: TopicName,
    uuid: Uuid,
}

impl JobId {
    /// A new id: uuid version 7, time first and 74 random bits.
    pub fn random(topic: TopicName) -> Self {
        Self { topic, uuid: Uuid::now_v7() }
    }

    /// How long ago this id was created; `None` for a derived id.
    pub fn age(&self) -> Option<Duration> {
        let (seconds, nanoseconds) = self.uuid.get_timestamp()?.to_unix();
        let made = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        Some(SystemTime::now().duration_since(made).unwrap_or_default())
    }

    /// The id derived from `words`: the same words always give the same job.
    pub fn derived(topic: TopicName, words: &[&str]) -> Self {
        // Lengths are included; otherwise ["a", "bc"] and ["ab", "c"] would be one job.
        let name: String = words.iter().map(|word| format!("{}:{word}", word.len())).collect();
        Self { topic, uuid: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()) }
    }

    /// The topic that the job belongs to.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Identifies the job within its topic.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Reads `jobs.<topic>.<partition>.<uuid>`, the subject under which a job is queued.
    ///
    /// # Errors
    /// [`IdError`] when the subject has another shape.
    pub fn from_subject(subject: &str) -> Result<(Self, PartitionId), IdError> {
        let wrong = || IdError::Job(subject.to_owned());
        let mut tokens = subject.split('.');
        let mut token = || tokens.next().ok_or_else(wrong);
        if token()? != "jobs" {
            return Err(wrong());
        }
        let (topic, partition, uuid) = (token()?, token()?, token()?);
        Ok((format!("{topic}.{uuid}").parse()?, partition.parse()?))
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.priority {
            Priority::High => "h",
            Priority::Normal => "",
            Priority::Low => "l",
        };
        write!(f, "{}{suffix}", self.index)
    }
}

impl FromStr for PartitionId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (digits, priority) = match text.as_bytes().last() {
            Some(b'h') => (&text[..text.len() - 1], Priority::High),
            Some(b'l') => (&text[..text.len() - 1], Priority::Low),
            _ => (text, Priority::Normal),
        };
        let index = digits.parse().ok().filter(|index: &u16| index.to_string() == digits);
        index.map(|index| Self { index, priority }).ok_or_else(|| IdError::Partition(text.to_owned()))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.topic, self.uuid)
    }
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Job(text.chars().take(128).collect());
        let (topic, uuid) = text.split_once('.').ok_or_else(wrong)?;
        let parsed: Uuid = uuid.parse().map_err(|_| wrong())?;
        // One spelling per id: the id becomes part of subjects, and subjects are compared by bytes.
        if parsed.to_string() != uuid {
            return Err(wrong());
        }
        Ok(Self { topic: TopicName::new(topic).map_err(|_| wrong())?, uuid: parsed })
    }
}

macro_rules! serde_as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(JobId PartitionId TopicName);

macro_rules! text_schema {
    ($($name:ident, $pattern:literal, $example:literal, $what:literal;)*) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some($pattern));
                text.examples([$example]).description(Some($what)).into()
            }
        }
        impl ToSchema for $name {}
    )*};
}
text_schema! {
    JobId, "^[a-z0-9][a-z0-9-]{0,62}\\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        "efficientnet-lite0.0199d2a4-6f3e-7c41-9a52-1b6f0c8d7e21", "A job's id: its topic and a uuid.";
    PartitionId, "^(0|[1-9][0-9]{0,4})[hl]?$", "3h", "A partition: a number, and `h` or `l` for high or low priority.";
    TopicName, "^[a-z0-9][a-z0-9-]{0,62}$", "efficientnet-lite0", "A topic's name.";
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Priority {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let named = Self::ALL.into_iter().find(|priority| priority.name() == text);
        named.ok_or_else(|| IdError::Priority(text.chars().take(40).collect()))
    }
}

impl FromStr for TopicName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_break_a_subject_are_refused() {
        for good in ["a", "0", "efficientnet-lite0", &"x".repeat(63)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a*", ">", "a b", "a_b", "ä", "a\n", &"x".repeat(64)] {
            assert_eq!(TopicName::new(bad), Err(IdError::Topic(bad.into())));
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = JobId::random(TopicName::new("cats").expect("valid"));
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        let uuid = id.uuid();
        for bad in [
            String::new(),
            "cats".into(),
            format!("cats.{}", uuid.simple()),
            format!("cats.{uuid}.x"),
            format!("cats.{}", uuid.to_string().to_uppercase()),
            format!("Cats.{uuid}"),
            format!(".{uuid}"),
            "cats.>".into(),
        ] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subject_says_which_job_lies_where() {
        let id = JobId::random(TopicName::new("cats").expect("valid"));
        let read = JobId::from_subject(&format!("jobs.cats.2h.{}", id.uuid()));
        assert_eq!(read.map(|(id, p)| (id, p.to_string())), Ok((id.clone(), "2h".into())));
        for bad in ["jobs.cats.0", "jobs.cats.x.y", "jobs.cats.00.0199d2a4-0000-7000-8000-000000000000", "dead.cats"] {
            assert!(JobId::from_subject(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_always_lies_in_the_same_partition_and_ids_spread() {
        let topic = TopicName::new("cats").expect("valid");
        let of = |key| PartitionId::of_job(&JobId::random(topic.clone()), key, 3, Priority::Normal).index();
        assert!((0..100).all(|_| of(Some("camera 7")) == of(Some("camera 7"))));
        let mut counts = [0; 3];
        (0..3_000).for_each(|_| counts[usize::from(of(None))] += 1);
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }
}
