//! Why a request is refused: the code, number and text that JetStream clients know.

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({error})")]
pub(crate) struct Refusal {
    /// Like an HTTP status.
    pub(crate) code: u16,
    /// JetStream's own number.
    pub(crate) error: u16,
    pub(crate) text: String,
}

/// Constructors, one per reason.
impl Refusal {
    fn new(code: u16, error: u16, text: impl Into<String>) -> Self {
        Self { code, error, text: text.into() }
    }

    pub(crate) fn bad_request() -> Self {
        Self::new(400, 10003, "bad request")
    }

    pub(crate) fn invalid_json(problem: &str) -> Self {
        Self::new(400, 10025, format!("invalid JSON: {problem}"))
    }

    pub(crate) fn not_empty() -> Self {
        Self::new(400, 10038, "expected an empty request payload")
    }

    pub(crate) fn unknown_field(name: &str) -> Self {
        Self::invalid_json(&format!("json: unknown field {name:?}"))
    }

    pub(crate) fn invalid_stream(problem: String) -> Self {
        Self::new(500, 10052, problem)
    }

    pub(crate) fn invalid_consumer(problem: String) -> Self {
        Self::new(500, 10012, problem)
    }

    pub(crate) fn name_mismatch() -> Self {
        Self::new(400, 10056, "stream name in subject does not match request")
    }

    pub(crate) fn name_in_use() -> Self {
        Self::new(400, 10058, "stream name already in use with a different configuration")
    }

    pub(crate) fn stream_not_found() -> Self {
        Self::new(404, 10059, "stream not found")
    }

    pub(crate) fn overlap() -> Self {
        Self::new(400, 10065, "subjects overlap with an existing stream")
    }

    pub(crate) fn replicas() -> Self {
        Self::new(500, 10074, "replicas > 1 not supported in non-clustered mode")
    }

    pub(crate) fn consumer_not_found() -> Self {
        Self::new(404, 10014, "consumer not found")
    }

    pub(crate) fn consumer_exists() -> Self {
        Self::new(400, 10148, "consumer already exists")
    }

    pub(crate) fn consumer_missing() -> Self {
        Self::new(400, 10149, "consumer does not exist")
    }

    pub(crate) fn consumer_name_mismatch() -> Self {
        Self::new(400, 10132, "consumer name does not match durable name")
    }

    /// The durable name in the body differs from the one in the subject.
    pub(crate) fn durable_not_in_subject() -> Self {
        Self::new(400, 10017, "consumer name in subject does not match durable name in request")
    }

    /// A durable name is required, but not set.
    pub(crate) fn durable_missing() -> Self {
        Self::new(400, 10018, "consumer expected to be durable but a durable name was not set")
    }

    /// A durable name is set, but not allowed.
    pub(crate) fn durable_unexpected() -> Self {
        Self::new(400, 10020, "consumer expected to be ephemeral but a durable name was set in request")
    }

    pub(crate) fn consumer_filter_mismatch() -> Self {
        Self::new(400, 10131, "Consumer create request did not match filtered subject from create subject")
    }

    pub(crate) fn consumer_bad_name() -> Self {
        Self::new(400, 10103, "durable name can not contain '.', '*', '>'")
    }

    pub(crate) fn consumers_reached() -> Self {
        Self::new(400, 10026, "maximum consumers limit reached")
    }

    pub(crate) fn backoff_too_long() -> Self {
        Self::new(400, 10116, "max deliver is required to be > length of backoff values")
    }

    pub(crate) fn work_queue_ack() -> Self {
        Self::new(400, 10098, "workqueue stream requires explicit ack")
    }

    pub(crate) fn work_queue_deliver() -> Self {
        Self::new(400, 10101, "consumer must be deliver all on workqueue stream")
    }

    pub(crate) fn work_queue_one() -> Self {
        Self::new(400, 10099, "multiple non-filtered consumers not allowed on workqueue stream")
    }

    pub(crate) fn work_queue_overlap() -> Self {
        Self::new(400, 10100, "filtered consumer not unique on workqueue stream")
    }

    pub(crate) fn filters_overlap() -> Self {
        Self::new(400, 10138, "consumer subject filters cannot overlap")
    }

    pub(crate) fn filters_twice() -> Self {
        Self::new(400, 10136, "consumer cannot have both FilterSubject and FilterSubjects specified")
    }

    pub(crate) fn filter_empty() -> Self {
        Self::new(400, 10139, "consumer filter in FilterSubjects cannot be empty")
    }

    pub(crate) fn invalid_policy(problem: &str) -> Self {
        Self::new(400, 10094, problem)
    }

    pub(crate) fn invalid_sampling(said: &str) -> Self {
        Self::new(400, 10095, format!("failed to parse consumer sampling configuration: {said:?}"))
    }

    pub(crate) fn deliver_subject_invalid() -> Self {
        Self::new(400, 10112, "invalid push consumer deliver subject")
    }

    pub(crate) fn deliver_wildcards() -> Self {
        Self::new(400, 10079, "consumer deliver subject has wildcards")
    }

    pub(crate) fn deliver_cycle() -> Self {
        Self::new(400, 10081, "consumer deliver subject forms a cycle")
    }

    pub(crate) fn push_max_waiting() -> Self {
        Self::new(400, 10080, "consumer in push mode can not set max waiting")
    }

    pub(crate) fn heartbeat_too_small() -> Self {
        Self::new(400, 10083, "consumer idle heartbeat needs to be >= 100ms")
    }

    pub(crate) fn heartbeat_needs_push() -> Self {
        Self::new(400, 10088, "consumer idle heartbeat requires a push based consumer")
    }

    pub(crate) fn flow_control_needs_push() -> Self {
        Self::new(400, 10089, "consumer flow control requires a push based consumer")
    }

    pub(crate) fn flow_control_needs_heartbeat() -> Self {
        Self::new(400, 10108, "consumer with flow control also needs heartbeats")
    }

    pub(crate) fn pull_rate_limit() -> Self {
        Self::new(400, 10086, "consumer in pull mode can not have rate limit set")
    }

    pub(crate) fn pull_needs_acks() -> Self {
        Self::new(400, 10084, "consumer in pull mode requires explicit ack policy on workqueue stream")
    }

    pub(crate) fn pending_over_limit(limit: i64) -> Self {
        Self::new(400, 10121, format!("consumer max ack pending exceeds system limit of {limit}"))
    }

    pub(crate) fn threshold_over_limit() -> Self {
        Self::new(400, 10153, "consumer inactive threshold exceeds system limit")
    }

    /// A push consumer that already has a subscriber.
    pub(crate) fn consumer_in_use() -> Self {
        Self::new(400, 10013, "consumer name already in use")
    }

    pub(crate) fn group_without_policy() -> Self {
        Self::new(400, 10196, "consumer can not have priority groups when policy is none")
    }

    pub(crate) fn policy_without_group() -> Self {
        Self::new(400, 10159, "Setting PriorityPolicy requires at least one PriorityGroup to be set")
    }

    pub(crate) fn group_empty() -> Self {
        Self::new(400, 10161, "Group name cannot be an empty string")
    }

    pub(crate) fn group_bad_name() -> Self {
        Self::new(
            400,
            10162,
            "Valid priority group name must match A-Z, a-z, 0-9, -_/=)+ and may not exceed 16 characters",
        )
    }

    pub(crate) fn group_unknown() -> Self {
        Self::new(400, 10160, "Provided priority group does not exist for this consumer")
    }

    pub(crate) fn push_with_group() -> Self {
        Self::new(400, 10178, "priority groups can not be used with push consumers")
    }

    pub(crate) fn pin_timeout_without_policy() -> Self {
        Self::new(400, 10197, "PinnedTTL cannot be set when PriorityPolicy is none")
    }

    pub(crate) fn reset_invalid(problem: &str) -> Self {
        Self::new(400, 10204, format!("invalid reset: {problem}"))
    }

    pub(crate) fn no_message() -> Self {
        Self::new(404, 10037, "no message found")
    }

    /// nats-server uses this code here too.
    pub(crate) fn nothing_to_delete() -> Self {
        Self::new(500, 10057, "no message found")
    }

    pub(crate) fn delete_denied() -> Self {
        Self::new(500, 10057, "message delete not permitted")
    }

    pub(crate) fn purge_denied() -> Self {
        Self::new(500, 10110, "stream purge not permitted")
    }

    pub(crate) fn sealed() -> Self {
        Self::new(400, 10109, "invalid operation on sealed stream")
    }

    pub(crate) fn expected_stream() -> Self {
        Self::new(400, 10060, "expected stream does not match")
    }

    pub(crate) fn wrong_last_sequence(actual: u64) -> Self {
        Self::new(400, 10071, format!("wrong last sequence: {actual}"))
    }

    pub(crate) fn wrong_last_id(actual: &str) -> Self {
        Self::new(400, 10070, format!("wrong last msg ID: {actual}"))
    }

    pub(crate) fn ttl_disabled() -> Self {
        Self::new(400, 10166, "per-message TTL is disabled")
    }

    pub(crate) fn ttl_invalid() -> Self {
        Self::new(400, 10165, "invalid per-message TTL")
    }

    pub(crate) fn rollup() -> Self {
        Self::new(500, 10111, "rollup not permitted")
    }

    pub(crate) fn rollup_invalid(word: &str) -> Self {
        Self::new(500, 10111, format!("rollup value invalid: {word:?}"))
    }

    pub(crate) fn expected_subject_alone() -> Self {
        Self::new(400, 10193, "missing sequence for expected last sequence per subject")
    }

    pub(crate) fn ack_wait_not_positive() -> Self {
        Self::new(400, 10183, "consumer ack wait needs to be positive")
    }

    pub(crate) fn replicas_negative() -> Self {
        Self::new(400, 10133, "replicas count cannot be negative")
    }

    pub(crate) fn backoff_not_positive() -> Self {
        Self::new(400, 10184, "consumer backoff needs to be positive")
    }

    pub(crate) fn consumer_description() -> Self {
        Self::new(400, 10107, "consumer description is too long, maximum allowed is 4096")
    }

    pub(crate) fn batch() -> Self {
        Self::new(400, 10174, "batch publish not enabled on stream")
    }

    pub(crate) fn counter() -> Self {
        Self::new(400, 10168, "message counters is disabled")
    }

    pub(crate) fn schedules() -> Self {
        Self::new(400, 10188, "message schedules is disabled")
    }

    pub(crate) fn message_too_large() -> Self {
        Self::new(400, 10054, "message size exceeds maximum allowed")
    }

    pub(crate) fn header_too_large() -> Self {
        Self::new(400, 10097, "header size exceeds maximum allowed of 64k")
    }

    pub(crate) fn limit(which: &str) -> Self {
        Self::new(503, 10077, format!("maximum {which} exceeded"))
    }

    pub(crate) fn no_room() -> Self {
        Self::new(503, 10047, "insufficient storage resources available")
    }

    pub(crate) fn level() -> Self {
        Self::new(412, 10185, "JetStream minimum api level required")
    }

    pub(crate) fn not_clustered() -> Self {
        Self::new(503, 10010, "JetStream clustering support required")
    }
}
