//! Configuration of a consumer, as clients send it and as the broker returns it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Refusal;
use super::config::{
    DESCRIPTION_BYTES_MAX, Retention, SERVER_METADATA, StreamConfig, is_false, is_name, is_zero, is_zero_i, or_default,
    refuse_rest,
};
use crate::nats::{has_wildcards, is_valid, overlaps};

const ACK_WAIT: i64 = 30_000_000_000;
const WAITING_MAX: i64 = 512;
const ACK_PENDING_MAX: i64 = 1000;
const INACTIVE_THRESHOLD: i64 = 5_000_000_000;
const HEARTBEAT_MIN: i64 = 100_000_000;
const PIN_TIMEOUT: i64 = 120_000_000_000;
const GROUP_BYTES_MAX: usize = 16;
const UNSUPPORTED: [&str; 2] = ["direct", "pedantic"];

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeliverPolicy {
    #[default]
    All,
    /// With the last message that it wants.
    Last,
    New,
    ByStartSequence,
    ByStartTime,
    /// With the last message of each subject that it wants.
    LastPerSubject,
}

/// Which acks deliveries need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AckPolicy {
    /// None. The default of a new consumer, as in nats-server.
    #[default]
    None,
    /// An ack also settles all earlier deliveries.
    All,
    Explicit,
}

/// How fast old messages are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReplayPolicy {
    #[default]
    Instant,
    /// With the same pauses as when they were stored.
    Original,
}

/// Which of the waiting requests is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PriorityPolicy {
    #[default]
    None,
    /// A request that sets a minimum of outstanding messages waits until it is reached.
    Overflow,
    /// One client, as long as it keeps sending requests.
    PinnedClient,
    /// The lowest number first.
    Prioritized,
}

/// A consumer's configuration; durations are nanoseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
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
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) sample_freq: String,
    /// Bits per second, for push consumers only.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) rate_limit_bps: u64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_waiting: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_ack_pending: i64,
    /// Only the headers are delivered, with the payload's length.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) headers_only: bool,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_batch: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_expires: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) max_bytes: i64,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) inactive_threshold: i64,
    /// Subject that messages are pushed to; if empty, clients pull them.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) deliver_subject: String,
    /// Push each message to only one member of this queue group.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) deliver_group: String,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) flow_control: bool,
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) idle_heartbeat: i64,
    /// Nothing is delivered before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pause_until: Option<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) priority_groups: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_no_policy")]
    pub(crate) priority_policy: PriorityPolicy,
    /// How long a pinned client may be inactive.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub(crate) priority_timeout: i64,
    pub(crate) num_replicas: i64,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) mem_storage: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
    /// All other fields.
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, Value>,
}

fn is_no_policy(policy: &PriorityPolicy) -> bool {
    *policy == PriorityPolicy::None
}

impl ConsumerConfig {
    /// Fills in defaults and checks what can be checked without other consumers.
    pub(crate) fn checked(mut self, stream: &StreamConfig) -> Result<Self, Refusal> {
        refuse_rest(&mut self.rest, &UNSUPPORTED, Refusal::invalid_consumer)?;
        self.check_name()?;
        if self.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
            return Err(Refusal::consumer_description());
        }
        if self.is_push() {
            self.check_push(stream)?
        } else {
            self.check_pull()?
        }
        self.check_priority()?;
        // With ack policy none, these are stored as given and have no effect.
        if self.ack_policy != AckPolicy::None {
            if self.backoff.iter().any(|pause| *pause < 0) {
                return Err(Refusal::backoff_not_positive());
            }
            if let Some(first) = self.backoff.first() {
                self.ack_wait = *first;
            }
            if self.ack_wait < 0 {
                return Err(Refusal::ack_wait_not_positive());
            }
            if self.ack_wait == 0 {
                self.ack_wait = ACK_WAIT;
            }
            let bound = stream.consumer_limits.max_ack_pending;
            if self.max_ack_pending == 0 {
                self.max_ack_pending = if bound > 0 { bound } else { ACK_PENDING_MAX };
            } else if bound > 0 && self.max_ack_pending > bound {
                return Err(Refusal::pending_over_limit(bound));
            }
        }
        if self.max_deliver <= 0 {
            self.max_deliver = -1;
        } else if self.backoff.len() as i64 > self.max_deliver {
            return Err(Refusal::backoff_too_long());
        }
        if self.num_replicas < 0 {
            return Err(Refusal::replicas_negative());
        }
        for bound in [&mut self.max_batch, &mut self.max_expires, &mut self.max_bytes, &mut self.idle_heartbeat] {
            *bound = (*bound).max(0);
        }
        if self.num_replicas > 1 {
            return Err(Refusal::replicas());
        }
        if !self.sample_freq.is_empty() && self.sample_percent().is_none() {
            return Err(Refusal::invalid_sampling(&self.sample_freq));
        }
        let threshold_max = stream.consumer_limits.inactive_threshold;
        if threshold_max > 0 && self.inactive_threshold > threshold_max {
            return Err(Refusal::threshold_over_limit());
        }
        if self.inactive_threshold <= 0 {
            let usual = if self.durable_name.is_none() { INACTIVE_THRESHOLD } else { 0 };
            self.inactive_threshold = if threshold_max > 0 { threshold_max } else { usual };
        }
        self.check_start()?;
        self.check_filters()?;
        if stream.retention == Retention::WorkQueue {
            if self.ack_policy != AckPolicy::Explicit {
                let is_pull_without = !self.is_push() && self.ack_policy == AckPolicy::None;
                return Err(if is_pull_without { Refusal::pull_needs_acks() } else { Refusal::work_queue_ack() });
            }
            if self.deliver_policy != DeliverPolicy::All {
                return Err(Refusal::work_queue_deliver());
            }
        }
        self.metadata.retain(|name, _| !name.starts_with(SERVER_METADATA));
        Ok(self)
    }

    fn check_name(&mut self) -> Result<(), Refusal> {
        if let (Some(durable), Some(name)) = (&self.durable_name, &self.name)
            && durable != name
        {
            return Err(Refusal::consumer_name_mismatch());
        }
        self.durable_name = self.durable_name.take().filter(|name| !name.is_empty());
        self.name = self.durable_name.clone().or(self.name.take()).filter(|name| !name.is_empty());
        if self.name.as_ref().is_some_and(|name| !is_name(name)) {
            return Err(Refusal::consumer_bad_name());
        }
        Ok(())
    }

    fn check_push(&self, stream: &StreamConfig) -> Result<(), Refusal> {
        let subject = self.deliver_subject.as_bytes();
        if !is_valid(subject) {
            return Err(Refusal::deliver_subject_invalid());
        }
        if has_wildcards(subject) {
            return Err(Refusal::deliver_wildcards());
        }
        if !stream.no_ack && stream.subjects.iter().any(|own| overlaps(own.as_bytes(), subject)) {
            return Err(Refusal::deliver_cycle());
        }
        if self.max_waiting != 0 {
            return Err(Refusal::push_max_waiting());
        }
        if self.idle_heartbeat > 0 && self.idle_heartbeat < HEARTBEAT_MIN {
            return Err(Refusal::heartbeat_too_small());
        }
        if self.flow_control && self.idle_heartbeat <= 0 {
            return Err(Refusal::flow_control_needs_heartbeat());
        }
        Ok(())
    }

    fn check_pull(&mut self) -> Result<(), Refusal> {
        if self.rate_limit_bps > 0 {
            return Err(Refusal::pull_rate_limit());
        }
        if self.idle_heartbeat != 0 {
            return Err(Refusal::heartbeat_needs_push());
        }
        if self.flow_control {
            return Err(Refusal::flow_control_needs_push());
        }
        if self.max_waiting <= 0 {
            self.max_waiting = WAITING_MAX;
        }
        Ok(())
    }

    fn check_priority(&mut self) -> Result<(), Refusal> {
        if self.priority_policy == PriorityPolicy::None {
            return match (self.priority_groups.is_empty(), self.priority_timeout) {
                (true, 0) => Ok(()),
                (true, _) => Err(Refusal::pin_timeout_without_policy()),
                (false, _) => Err(Refusal::group_without_policy()),
            };
        }
        if self.is_push() {
            return Err(Refusal::push_with_group());
        }
        let is_pinned = self.priority_policy == PriorityPolicy::PinnedClient;
        if is_pinned && self.priority_timeout <= 0 {
            self.priority_timeout = PIN_TIMEOUT;
        }
        if is_pinned && self.priority_groups.len() > 1 {
            return Err(Refusal::invalid_consumer("more than one pinned priority group is not supported".into()));
        }
        let is_group = |name: &String| {
            let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/' | b'=');
            name.len() <= GROUP_BYTES_MAX && name.bytes().all(is_letter)
        };
        match &self.priority_groups[..] {
            [] => Err(Refusal::policy_without_group()),
            names if names.iter().any(String::is_empty) => Err(Refusal::group_empty()),
            names if names.iter().all(is_group) => Ok(()),
            _ => Err(Refusal::group_bad_name()),
        }
    }

    fn check_start(&self) -> Result<(), Refusal> {
        let starts_at_sequence = self.deliver_policy == DeliverPolicy::ByStartSequence;
        if starts_at_sequence != (self.opt_start_seq > 0) {
            let what = if starts_at_sequence {
                "consumer delivery policy is deliver by start sequence, but optional start sequence is not set"
            } else {
                "consumer delivery policy does not fit, but optional start sequence is also set"
            };
            return Err(Refusal::invalid_policy(what));
        }
        let starts_at_time = self.deliver_policy == DeliverPolicy::ByStartTime;
        if starts_at_time != self.opt_start_time.is_some() || (starts_at_time && self.start_time().is_none()) {
            let what = if starts_at_time {
                "consumer delivery policy is deliver by start time, but optional start time is not set"
            } else {
                "consumer delivery policy does not fit, but optional start time is also set"
            };
            return Err(Refusal::invalid_policy(what));
        }
        if self.deliver_policy == DeliverPolicy::LastPerSubject && self.filters().next().is_none() {
            let what = "consumer delivery policy is deliver last per subject, but optional filter subject is not set";
            return Err(Refusal::invalid_policy(what));
        }
        Ok(())
    }

    fn check_filters(&self) -> Result<(), Refusal> {
        if !self.filter_subject.is_empty() && !self.filter_subjects.is_empty() {
            return Err(Refusal::filters_twice());
        }
        for (index, filter) in self.filters().enumerate() {
            if filter.is_empty() {
                return Err(Refusal::filter_empty());
            }
            if !is_valid(filter.as_bytes()) {
                return Err(Refusal::invalid_consumer("consumer filter subject is not a valid subject".into()));
            }
            if self.filters().take(index).any(|other| overlaps(other.as_bytes(), filter.as_bytes())) {
                return Err(Refusal::filters_overlap());
            }
        }
        Ok(())
    }

    /// Checks that this may replace `old`.
    pub(crate) fn check_update(&self, old: &Self) -> Result<(), Refusal> {
        let fixed = [
            // The journal records a durable consumer from its start on, and others not at all.
            ("durable name", self.durable_name == old.durable_name),
            (
                "deliver policy",
                (self.deliver_policy, self.opt_start_seq, &self.opt_start_time)
                    == (old.deliver_policy, old.opt_start_seq, &old.opt_start_time),
            ),
            ("ack policy", self.ack_policy == old.ack_policy),
            ("replay policy", self.replay_policy == old.replay_policy),
            ("heart beats", self.idle_heartbeat == old.idle_heartbeat),
            ("flow control", self.flow_control == old.flow_control),
            ("max waiting", self.max_waiting == old.max_waiting),
        ];
        if let Some((what, _)) = fixed.into_iter().find(|(_, is_same)| !is_same) {
            return Err(Refusal::invalid_consumer(format!("{what} can not be updated")));
        }
        match (old.is_push(), self.is_push()) {
            (true, false) => Err(Refusal::invalid_consumer("can not update push consumer to pull based".into())),
            (false, true) => Err(Refusal::invalid_consumer("can not update pull consumer to push based".into())),
            _ => Ok(()),
        }
    }

    /// Checks that a consumer may be reset to this sequence.
    pub(crate) fn check_reset(&self, sequence: u64) -> Result<(), Refusal> {
        match self.deliver_policy {
            DeliverPolicy::All | DeliverPolicy::ByStartTime => Ok(()),
            DeliverPolicy::ByStartSequence if sequence >= self.opt_start_seq => Ok(()),
            DeliverPolicy::ByStartSequence => Err(Refusal::reset_invalid("below start seq")),
            DeliverPolicy::New | DeliverPolicy::Last | DeliverPolicy::LastPerSubject => {
                Err(Refusal::reset_invalid("not allowed"))
            }
        }
    }

    pub(crate) fn is_push(&self) -> bool {
        !self.deliver_subject.is_empty()
    }

    /// The queue group that it pushes to, so that one member gets each message. Subscribers whose group
    /// differs are not its receivers.
    pub(crate) fn group(&self) -> Option<&[u8]> {
        Some(self.deliver_group.as_bytes()).filter(|group| !group.is_empty())
    }

    /// All its filters; none means every message.
    pub(crate) fn filters(&self) -> impl Iterator<Item = &String> + use<'_> {
        let one = (!self.filter_subject.is_empty()).then_some(&self.filter_subject);
        one.into_iter().chain(&self.filter_subjects)
    }

    /// Its start time, Unix time in ns.
    pub(crate) fn start_time(&self) -> Option<i64> {
        unix_nanos(self.opt_start_time.as_deref()?)
    }

    /// Until when it is paused, Unix time in ns; 0 is not paused.
    pub(crate) fn paused_until(&self) -> i64 {
        self.pause_until.as_deref().and_then(unix_nanos).unwrap_or(0)
    }

    /// How long the `count`th delivery of a message may wait for its ack.
    pub(crate) fn ack_wait(&self, count: u32) -> Duration {
        let later = self.backoff.get((count.max(1) as usize - 1).min(self.backoff.len().max(1) - 1));
        Duration::from_nanos((*later.unwrap_or(&self.ack_wait)).max(0) as u64)
    }

    /// Percentage of acks that are reported.
    pub(crate) fn sample_percent(&self) -> Option<u8> {
        self.sample_freq.trim_end_matches('%').parse().ok().filter(|percent| *percent <= 100)
    }
}

/// An RFC 3339 time as Unix time in ns.
pub(crate) fn unix_nanos(text: &str) -> Option<i64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos()).ok()
}
