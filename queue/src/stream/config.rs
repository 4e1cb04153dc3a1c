//! Configurations of streams and consumers, as clients write them and as they are answered.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::Refusal;
use crate::nats::{is_valid, overlaps};

const DEDUPE_WINDOW: i64 = 120_000_000_000;
const DURATION_MIN: i64 = 100_000_000;
const ACK_WAIT: i64 = 30_000_000_000;
const WAITING_MAX: i64 = 512;
const ACK_PENDING_MAX: i64 = 1000;
const NAME_BYTES_MAX: usize = 255;

/// When a message leaves a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retention {
    #[default]
    Limits,
    /// With the last consumer's ack.
    Interest,
    /// With its one consumer's ack.
    WorkQueue,
}

/// What gives way when a limit is reached.
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
    /// Taken and kept on disk all the same.
    Memory,
}

/// A stream's configuration. Limits of -1 and 0 are none; durations are nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
    #[serde(flatten)]
    pub(crate) unsupported: UnsupportedStream,
}

/// Bounds that a stream sets for its consumers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConsumerLimits {
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) inactive_threshold: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_ack_pending: i64,
}

/// What this broker has not; any of it set is refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UnsupportedStream {
    #[serde(skip_serializing)]
    template_owner: Option<Value>,
    #[serde(skip_serializing)]
    placement: Option<Value>,
    #[serde(skip_serializing)]
    mirror: Option<Value>,
    #[serde(skip_serializing)]
    sources: Option<Value>,
    #[serde(skip_serializing)]
    subject_transform: Option<Value>,
    #[serde(skip_serializing)]
    republish: Option<Value>,
    #[serde(skip_serializing)]
    subject_delete_marker_ttl: Option<Value>,
    #[serde(skip_serializing)]
    allow_msg_counter: Option<Value>,
    #[serde(skip_serializing)]
    allow_atomic: Option<Value>,
    #[serde(skip_serializing)]
    allow_batched: Option<Value>,
    #[serde(skip_serializing)]
    allow_msg_schedules: Option<Value>,
    #[serde(skip_serializing)]
    persist_mode: Option<Value>,
    #[serde(skip_serializing)]
    pedantic: Option<Value>,
}

impl UnsupportedStream {
    fn first(&self) -> Option<&'static str> {
        let fields = [
            ("template_owner", &self.template_owner),
            ("placement", &self.placement),
            ("mirror", &self.mirror),
            ("sources", &self.sources),
            ("subject_transform", &self.subject_transform),
            ("republish", &self.republish),
            ("subject_delete_marker_ttl", &self.subject_delete_marker_ttl),
            ("allow_msg_counter", &self.allow_msg_counter),
            ("allow_atomic", &self.allow_atomic),
            ("allow_batched", &self.allow_batched),
            ("allow_msg_schedules", &self.allow_msg_schedules),
            ("persist_mode", &self.persist_mode),
        ];
        fields.into_iter().find(|(_, value)| value.as_ref().is_some_and(is_set)).map(|(name, _)| name)
    }
}

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
            unsupported: UnsupportedStream::default(),
        }
    }
}

impl StreamConfig {
    /// Fills in defaults and checks everything that can be checked without other streams.
    pub(crate) fn checked(mut self) -> Result<Self, Refusal> {
        let invalid = |problem: &str| Err(Refusal::invalid_stream(problem));
        if !is_name(&self.name) {
            return invalid("invalid stream name");
        }
        if let Some(field) = self.unsupported.first() {
            return Err(Refusal::invalid_stream(format!("{field} is not supported by this server")));
        }
        self.unsupported = UnsupportedStream::default();
        if self.first_seq > u64::MAX / 2 {
            return invalid("first sequence is too large");
        }
        if self.retention == Retention::Interest {
            return invalid("interest retention is not supported by this server");
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
        if self.allow_rollup_hdrs && self.deny_purge {
            return invalid("roll-ups require the purge permission");
        }
        // Messages are kept as they came.
        "none".clone_into(&mut self.compression);
        Ok(self)
    }

    /// Whether this may take the place of `old`.
    pub(crate) fn check_update(&self, old: &Self) -> Result<(), Refusal> {
        let invalid = |problem: &str| Err(Refusal::invalid_stream(problem));
        if self.storage != old.storage {
            return invalid("stream configuration update can not change storage type");
        }
        if self.retention != old.retention {
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

    /// A limit, if there is one.
    pub(crate) fn limit(value: i64) -> Option<u64> {
        u64::try_from(value).ok().filter(|limit| *limit > 0)
    }
}

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeliverPolicy {
    #[default]
    All,
    Last,
    New,
    ByStartSequence,
    ByStartTime,
    LastPerSubject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AckPolicy {
    /// What a consumer is created with when its creator says nothing, as nats-server has it.
    #[default]
    None,
    All,
    Explicit,
}

/// A consumer's configuration; durations are nanoseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConsumerConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) durable_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    pub(crate) deliver_policy: DeliverPolicy,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) opt_start_seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) opt_start_time: Option<String>,
    pub(crate) ack_policy: AckPolicy,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) ack_wait: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_deliver: i64,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) backoff: Vec<i64>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) filter_subject: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) filter_subjects: Vec<String>,
    pub(crate) replay_policy: ReplayPolicy,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_waiting: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_ack_pending: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_batch: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_expires: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_bytes: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) inactive_threshold: i64,
    pub(crate) num_replicas: i64,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) mem_storage: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(crate) unsupported: UnsupportedConsumer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReplayPolicy {
    #[default]
    Instant,
    Original,
}

/// What this broker has not; any of it set is refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UnsupportedConsumer {
    #[serde(skip_serializing)]
    deliver_subject: Option<Value>,
    #[serde(skip_serializing)]
    deliver_group: Option<Value>,
    #[serde(skip_serializing)]
    flow_control: Option<Value>,
    #[serde(skip_serializing)]
    idle_heartbeat: Option<Value>,
    #[serde(skip_serializing)]
    headers_only: Option<Value>,
    #[serde(skip_serializing)]
    rate_limit_bps: Option<Value>,
    #[serde(skip_serializing)]
    sample_freq: Option<Value>,
    #[serde(skip_serializing)]
    pause_until: Option<Value>,
    #[serde(skip_serializing)]
    priority_groups: Option<Value>,
    #[serde(skip_serializing)]
    priority_policy: Option<Value>,
    #[serde(skip_serializing)]
    priority_timeout: Option<Value>,
    #[serde(skip_serializing)]
    direct: Option<Value>,
}

impl UnsupportedConsumer {
    fn first(&self) -> Option<&'static str> {
        let fields = [
            ("deliver_subject", &self.deliver_subject),
            ("deliver_group", &self.deliver_group),
            ("flow_control", &self.flow_control),
            ("idle_heartbeat", &self.idle_heartbeat),
            ("headers_only", &self.headers_only),
            ("rate_limit_bps", &self.rate_limit_bps),
            ("sample_freq", &self.sample_freq),
            ("pause_until", &self.pause_until),
            ("priority_groups", &self.priority_groups),
            ("priority_policy", &self.priority_policy),
            ("priority_timeout", &self.priority_timeout),
            ("direct", &self.direct),
        ];
        fields.into_iter().find(|(_, value)| value.as_ref().is_some_and(is_set)).map(|(name, _)| name)
    }
}

impl ConsumerConfig {
    /// Fills in defaults and checks what can be checked without other consumers.
    pub(crate) fn checked(mut self, stream: &StreamConfig) -> Result<Self, Refusal> {
        let invalid = |problem: &str| Err(Refusal::invalid_consumer(problem));
        if let Some(field) = self.unsupported.first() {
            return Err(Refusal::invalid_consumer(format!("{field} is not supported by this server")));
        }
        self.unsupported = UnsupportedConsumer::default();
        if self.ack_policy == AckPolicy::All || self.deliver_policy == DeliverPolicy::LastPerSubject {
            return invalid("ack policy all and deliver policy last_per_subject are not supported by this server");
        }
        if self.replay_policy == ReplayPolicy::Original {
            return invalid("replay policy original is not supported by this server");
        }
        if let (Some(durable), Some(name)) = (&self.durable_name, &self.name)
            && durable != name
        {
            return Err(Refusal::consumer_name_mismatch());
        }
        self.name = self.durable_name.clone().or(self.name).filter(|name| !name.is_empty());
        if self.name.as_ref().is_some_and(|name| !is_name(name)) {
            return Err(Refusal::consumer_bad_name());
        }
        if self.ack_policy == AckPolicy::Explicit {
            if let Some(first) = self.backoff.first() {
                self.ack_wait = *first;
            }
            if self.ack_wait <= 0 {
                self.ack_wait = ACK_WAIT;
            }
            if self.max_ack_pending == 0 {
                let bound = stream.consumer_limits.max_ack_pending;
                self.max_ack_pending = if bound > 0 { bound } else { ACK_PENDING_MAX };
            }
        }
        if self.max_deliver <= 0 {
            self.max_deliver = -1;
        } else if self.backoff.len() as i64 > self.max_deliver {
            return Err(Refusal::backoff_too_long());
        }
        if self.max_waiting <= 0 {
            self.max_waiting = WAITING_MAX;
        }
        self.num_replicas = self.num_replicas.max(0);
        if self.num_replicas > 1 {
            return Err(Refusal::replicas());
        }
        if self.durable_name.is_none() && self.inactive_threshold <= 0 {
            self.inactive_threshold = 5_000_000_000;
        }
        let starts_at_sequence = self.deliver_policy == DeliverPolicy::ByStartSequence;
        if starts_at_sequence != (self.opt_start_seq > 0) {
            return invalid("consumer delivery policy and start sequence do not fit");
        }
        let starts_at_time = self.deliver_policy == DeliverPolicy::ByStartTime;
        if starts_at_time != self.opt_start_time.is_some() || (starts_at_time && self.start_time().is_none()) {
            return invalid("consumer delivery policy and start time do not fit");
        }
        if !self.filter_subject.is_empty() && !self.filter_subjects.is_empty() {
            return invalid("consumer cannot have both FilterSubject and FilterSubjects specified");
        }
        for (index, filter) in self.filters().enumerate() {
            if !is_valid(filter.as_bytes()) {
                return invalid("consumer filter subject is not a valid subject");
            }
            if self.filters().take(index).any(|other| overlaps(other.as_bytes(), filter.as_bytes())) {
                return Err(Refusal::filters_overlap());
            }
        }
        if stream.retention == Retention::WorkQueue {
            if self.ack_policy != AckPolicy::Explicit {
                return Err(Refusal::work_queue_ack());
            }
            if self.deliver_policy != DeliverPolicy::All {
                return Err(Refusal::work_queue_deliver());
            }
        }
        Ok(self)
    }

    /// Whether this may take the place of `old`.
    pub(crate) fn check_update(&self, old: &Self) -> Result<(), Refusal> {
        let fixed = [
            ("deliver policy", self.deliver_policy == old.deliver_policy),
            ("start sequence", self.opt_start_seq == old.opt_start_seq),
            ("start time", self.opt_start_time == old.opt_start_time),
            ("ack policy", self.ack_policy == old.ack_policy),
            ("max waiting", self.max_waiting == old.max_waiting),
        ];
        match fixed.into_iter().find(|(_, is_same)| !is_same) {
            Some((what, _)) => Err(Refusal::invalid_consumer(format!("{what} can not be updated"))),
            None => Ok(()),
        }
    }

    /// All its filters; none means every message.
    pub(crate) fn filters(&self) -> impl Iterator<Item = &String> + use<'_> {
        let one = (!self.filter_subject.is_empty()).then_some(&self.filter_subject);
        one.into_iter().chain(&self.filter_subjects)
    }

    /// Its start time, Unix time in ns.
    pub(crate) fn start_time(&self) -> Option<i64> {
        let text = self.opt_start_time.as_deref()?;
        let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos()).ok()
    }

    /// How long a delivery may take, the first time or the `count`th.
    pub(crate) fn ack_wait(&self, count: u32) -> Duration {
        let later = self.backoff.get((count.max(1) as usize - 1).min(self.backoff.len().max(1) - 1));
        Duration::from_nanos((*later.unwrap_or(&self.ack_wait)).max(0) as u64)
    }
}

/// Whether this can be the name of a stream or consumer.
pub(crate) fn is_name(name: &str) -> bool {
    let is_wrong = |c: char| matches!(c, '.' | '*' | '>' | '/' | '\\' | '"') || c.is_whitespace() || c.is_control();
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(is_wrong)
}

/// Reads a request's JSON in the way the server does: unknown names are refused.
pub(crate) fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(json).map_err(|error| {
        let text = error.to_string();
        match text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
            Some(field) => Refusal::invalid_json(&format!("json: unknown field {field:?}")),
            None => Refusal::invalid_json(&text),
        }
    })
}

/// `null` stands for what was not said.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Whether a JSON value says anything.
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

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_zero_i(value: &i64) -> bool {
    *value == 0
}
