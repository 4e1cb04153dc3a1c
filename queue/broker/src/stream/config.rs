//! Configuration of a stream, as clients send it and as the broker returns it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::Refusal;
use crate::nats::{is_valid, overlaps};

const DEDUPE_WINDOW: i64 = 120_000_000_000;
const DURATION_MIN: i64 = 100_000_000;
const NAME_BYTES_MAX: usize = 255;
pub(super) const DESCRIPTION_BYTES_MAX: usize = 4096;
const MARKER_TTL_MIN: i64 = 1_000_000_000;
/// Prefix of metadata names that the server sets itself.
pub(crate) const SERVER_METADATA: &str = "_nats.";

/// When a stream removes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retention {
    #[default]
    Limits,
    /// With the ack of the last consumer that wants it.
    Interest,
    /// With the ack of its only consumer.
    WorkQueue,
}

/// Which messages are discarded when a limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discard {
    #[default]
    Old,
    New,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StorageKind {
    #[default]
    File,
    /// Accepted, but stored on disk all the same.
    Memory,
}

/// A stream's configuration. Limits of -1 and 0 mean no limit; durations are nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StreamConfig {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) subjects: Vec<String>,
    pub(crate) retention: Retention,
    pub(crate) max_consumers: i64,
    pub(crate) max_msgs: i64,
    pub(crate) max_bytes: i64,
    pub(crate) max_age: i64,
    pub(crate) max_msgs_per_subject: i64,
    pub(crate) max_msg_size: i64,
    pub(crate) discard: Discard,
    pub(crate) storage: StorageKind,
    pub(crate) num_replicas: i64,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) no_ack: bool,
    pub(crate) duplicate_window: i64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) compression: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) first_seq: u64,
    pub(crate) sealed: bool,
    pub(crate) deny_delete: bool,
    pub(crate) deny_purge: bool,
    pub(crate) allow_rollup_hdrs: bool,
    pub(crate) allow_direct: bool,
    pub(crate) mirror_direct: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) discard_new_per_subject: bool,
    pub(crate) allow_msg_ttl: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) consumer_limits: ConsumerLimits,
    /// TTL of the marker that an expired last message of a subject leaves.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) subject_delete_marker_ttl: i64,
    /// All other fields.
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, Value>,
}

/// Limits that a stream sets for its consumers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConsumerLimits {
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) inactive_threshold: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_ack_pending: i64,
}

/// Fields that nats-server knows and this broker does not support; it refuses any that is set.
const UNSUPPORTED: [&str; 14] = [
    "template_owner",
    "placement",
    "mirror",
    "sources",
    "subject_transform",
    "republish",
    "allow_msg_counter",
    "allow_atomic",
    "allow_batched",
    "allow_msg_schedules",
    "persist_mode",
    "async_flush",
    "direct",
    "pedantic",
];

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            description: None,
            subjects: Vec::new(),
            retention: Retention::default(),
            max_consumers: -1,
            max_msgs: -1,
            max_bytes: -1,
            max_age: 0,
            max_msgs_per_subject: -1,
            max_msg_size: -1,
            discard: Discard::default(),
            storage: StorageKind::default(),
            num_replicas: 1,
            no_ack: false,
            duplicate_window: 0,
            compression: "none".into(),
            first_seq: 0,
            sealed: false,
            deny_delete: false,
            deny_purge: false,
            allow_rollup_hdrs: false,
            allow_direct: false,
            mirror_direct: false,
            discard_new_per_subject: false,
            allow_msg_ttl: false,
            metadata: BTreeMap::new(),
            consumer_limits: ConsumerLimits::default(),
            subject_delete_marker_ttl: 0,
            rest: BTreeMap::new(),
        }
    }
}

impl StreamConfig {
    /// Fills in defaults and checks everything that can be checked without other streams.
    pub(crate) fn checked(mut self) -> Result<Self, Refusal> {
        let invalid = |problem: &str| Err(Refusal::invalid_stream(problem.to_owned()));
        if !is_name(&self.name) {
            return invalid("invalid stream name");
        }
        refuse_rest(&mut self.rest, &UNSUPPORTED, Refusal::invalid_stream)?;
        if self.first_seq > u64::MAX / 2 {
            return invalid("first sequence is too large");
        }
        if self.num_replicas < 0 {
            return Err(Refusal::replicas_negative());
        }
        if self.num_replicas > 1 {
            return Err(Refusal::replicas());
        }
        self.num_replicas = 1;
        for limit in [
            &mut self.max_consumers,
            &mut self.max_msgs,
            &mut self.max_bytes,
            &mut self.max_msgs_per_subject,
            &mut self.max_msg_size,
        ] {
            if *limit <= 0 {
                *limit = -1;
            }
        }
        if self.subjects.is_empty() {
            self.subjects.push(self.name.clone());
        }
        for (index, subject) in self.subjects.iter().enumerate() {
            let bytes = subject.as_bytes();
            if !is_valid(bytes) {
                return invalid("invalid subject");
            }
            if subject == ">" && !self.no_ack {
                return invalid("capturing all subjects requires no-ack to be true");
            }
            if ["$JS.>", "$SYS.>"].iter().any(|own| overlaps(own.as_bytes(), bytes)) && subject != ">" {
                return invalid("subjects that overlap with jetstream api require no-ack to be true");
            }
            if self.subjects[..index].iter().any(|other| overlaps(other.as_bytes(), bytes)) {
                return invalid("subjects overlap with each other");
            }
        }
        if self.max_age < 0 || (1..DURATION_MIN).contains(&self.max_age) {
            return invalid("max age needs to be >= 100ms");
        }
        if self.duplicate_window == 0 {
            self.duplicate_window = if self.max_age > 0 { DEDUPE_WINDOW.min(self.max_age) } else { DEDUPE_WINDOW };
        }
        if self.duplicate_window < DURATION_MIN {
            return invalid("duplicates window needs to be >= 100ms");
        }
        if self.max_age > 0 && self.duplicate_window > self.max_age {
            return invalid("duplicates window can not be larger then max age");
        }
        if self.discard_new_per_subject && self.discard != Discard::New {
            return invalid("discard new per subject requires discard new policy to be set");
        }
        if self.discard_new_per_subject && self.max_msgs_per_subject < 1 {
            return invalid("discard new per subject requires max msgs per subject > 0");
        }
        if self.allow_rollup_hdrs && self.deny_purge && self.subject_delete_marker_ttl == 0 {
            return invalid("roll-ups require the purge permission");
        }
        if self.subject_delete_marker_ttl != 0 {
            if self.subject_delete_marker_ttl < MARKER_TTL_MIN {
                let is_negative = self.subject_delete_marker_ttl < 0;
                let problem = if is_negative { "must not be negative" } else { "must be at least 1 second" };
                return invalid(&format!("subject delete marker TTL {problem}"));
            }
            // A marker expires by its own TTL, and replaces the messages before it.
            (self.allow_msg_ttl, self.allow_rollup_hdrs) = (true, true);
        }
        // The server adds these names to its answers itself.
        self.metadata.retain(|name, _| !name.starts_with(SERVER_METADATA));
        match self.compression.as_str() {
            "none" => {}
            // Messages are stored as received.
            "s2" => return invalid("compression is not supported by this server"),
            _ => return Err(Refusal::invalid_json("unknown compression")),
        }
        if self.mirror_direct {
            return invalid("stream has no mirror but does have mirror direct");
        }
        if self.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
            return invalid("stream description is too long, maximum allowed is 4096");
        }
        if self.sealed {
            // A sealed stream accepts no messages and removes none.
            (self.deny_delete, self.deny_purge, self.discard) = (true, true, Discard::New);
        }
        Ok(self)
    }

    /// Checks that this may replace `old`.
    pub(crate) fn check_update(&self, old: &Self) -> Result<(), Refusal> {
        let invalid = |problem: &str| Err(Refusal::invalid_stream(problem.to_owned()));
        if self.storage != old.storage {
            return invalid("stream configuration update can not change storage type");
        }
        let is_work_queue = |config: &Self| config.retention == Retention::WorkQueue;
        if is_work_queue(self) != is_work_queue(old) {
            return invalid("stream configuration update can not change retention policy to/from workqueue");
        }
        if old.sealed && !self.sealed {
            return invalid("stream configuration update can not unseal a sealed stream");
        }
        if old.deny_delete && !self.deny_delete {
            return invalid("stream configuration update can not cancel deny message deletes");
        }
        if old.deny_purge && !self.deny_purge {
            return invalid("stream configuration update can not cancel deny purge");
        }
        if old.allow_msg_ttl && !self.allow_msg_ttl {
            return invalid("message TTL status can not be disabled");
        }
        Ok(())
    }

    /// The limit, if one is set.
    pub(crate) fn limit(value: i64) -> Option<u64> {
        u64::try_from(value).ok().filter(|limit| *limit > 0)
    }
}

/// Whether this is a valid name for a stream or consumer.
pub(crate) fn is_name(name: &str) -> bool {
    let is_wrong = |c: char| matches!(c, '.' | '*' | '>' | '/' | '\\' | '"') || c.is_whitespace() || c.is_control();
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(is_wrong)
}

/// Request fields that nats-server parses by hand and that therefore must not be `null`.
const NEVER_NULL: [&str; 9] = [
    "action",
    "retention",
    "discard",
    "storage",
    "compression",
    "ack_policy",
    "deliver_policy",
    "replay_policy",
    "priority_policy",
];

/// Reads a request's JSON like nats-server: refuses unknown fields, and treats `null` like a missing field.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Refusal> {
    let invalid = |error: serde_json::Error| {
        let text = error.to_string();
        match text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
            Some(field) => Refusal::unknown_field(field),
            None => Refusal::invalid_json(&text),
        }
    };
    let mut value: Value = serde_json::from_slice(json).map_err(invalid)?;
    // serde would read an array as the fields in their order.
    if !value.is_object() {
        return Err(Refusal::invalid_json("an object is expected"));
    }
    // An unknown field is refused even if it is `null`, so this comes before nulls are dropped.
    for name in value.as_object().into_iter().flatten().filter(|(_, value)| value.is_null()).map(|(name, _)| name) {
        let probe = T::deserialize(Value::Object([(name.clone(), Value::Bool(true))].into_iter().collect()));
        if probe.is_err_and(|error| error.to_string().starts_with("unknown field")) {
            return Err(Refusal::unknown_field(name));
        }
    }
    if !forget_nulls(&mut value) {
        return Err(Refusal::invalid_json("can not unmarshal a value of another kind"));
    }
    T::deserialize(value).map_err(invalid)
}

/// Removes nulls. Returns false if a null or an array is where none is allowed.
fn forget_nulls(value: &mut Value) -> bool {
    match value {
        Value::Object(fields) => {
            // serde would read an array as the fields in their order here too.
            if fields.get("consumer_limits").is_some_and(Value::is_array) {
                return false;
            }
            if NEVER_NULL.iter().any(|name| fields.get(*name).is_some_and(Value::is_null)) {
                return false;
            }
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().all(forget_nulls)
        }
        Value::Array(values) => values.iter_mut().all(forget_nulls),
        _ => true,
    }
}

/// Refuses fields that are unknown, and fields that are set but not supported.
pub(super) fn refuse_rest(
    rest: &mut BTreeMap<String, Value>,
    unsupported: &[&str],
    refusal: fn(String) -> Refusal,
) -> Result<(), Refusal> {
    for (name, value) in std::mem::take(rest) {
        if !unsupported.contains(&name.as_str()) {
            return Err(Refusal::unknown_field(&name));
        }
        if is_set(&value) {
            return Err(refusal(format!("{name} is not supported by this server")));
        }
    }
    Ok(())
}

/// Reads `null` as the default.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Whether a JSON value is set: null, false, 0 and empty values are not.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(value) => !value.is_empty(),
        Value::Object(value) => !value.is_empty(),
    }
}

pub(super) fn is_false(value: &bool) -> bool {
    !value
}

pub(super) fn is_zero(value: &u64) -> bool {
    *value == 0
}

pub(super) fn is_zero_i(value: &i64) -> bool {
    *value == 0
}
