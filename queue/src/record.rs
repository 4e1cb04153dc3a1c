//! A job's durable state: one small record, changed only by compare-and-set.
//!
//! ```text
//!            start                succeed, fail
//!   queued ─────────▶ running ─────────────────▶ succeeded | failed
//!      ▲  │              │  │
//!      └──┼─── retry ────┘  └─ cancel ─▶ canceled
//!         └──── cancel ─────────────────▶ canceled
//! ```
//! `start` also leads from `running` to `running`: the previous worker was lost, its lease expired,
//! and its attempt is closed as `lost`. Only [`Record::again`] leaves a terminal state, when a
//! client retries the job: past attempts are kept, and the full number of attempts is allowed again.
//!
//! The methods are pure: record and time in, next record out. The queue ensures that the next record
//! replaces exactly the one it was made from ([`WorkerQueue::replace`](crate::WorkerQueue::replace)).
//! Together they make a job's history linear: the first terminal state wins.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JobId, PartitionId, Priority, Sequence, Timestamp};

/// Specification of a job. Fixed when the job is accepted; also part of the message, so that a worker can
/// create a record that the API had no time to write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobSpec {
    /// The job.
    pub id: JobId,
    /// Name of the model.
    pub model: String,
    /// Its version.
    pub model_version: u32,
    /// Its digest: equal digests give equal answers.
    pub model_digest: String,
    /// When the job was accepted.
    pub created_at: Timestamp,
    /// Member id of the API process, or name of the command, that accepted it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accepted_by: String,
    /// Facts about the input.
    pub image: ImageFacts,
    /// Options other than the defaults.
    #[serde(default, skip_serializing_if = "JobOptions::is_empty")]
    pub options: JobOptions,
    /// The client's own keys and values, returned unchanged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Owner and batch of the job.
    #[serde(flatten)]
    pub origin: Origin,
}

impl JobSpec {
    /// Whether both were written for the same request. Compares what was written; never guesses from times or
    /// positions.
    pub fn is_of_request(&self, other: &Self) -> bool {
        match (&self.origin.request, &other.origin.request) {
            // Written by older versions, or by tools that do not repeat requests.
            (None, None) => self == other,
            (one, other) => one == other,
        }
    }
}

/// Owner and batch of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// Name of the key that it was sent with; absent if the server had no keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// The client's id for it within the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// Partition chosen for it because its owner's own was full of others' jobs; absent: the owner's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<u16>,
    /// What tells the request that brought it from any other, also one for the same job at the same moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub request: Option<String>,
}

/// Facts about the input, read from its bytes on arrival.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFacts {
    /// Width of the upright image, pixels.
    pub width: u32,
    /// Height of the upright image, pixels.
    pub height: u32,
    /// `jpeg`, `png`, …
    pub format: String,
    /// Size of the file.
    pub bytes: u64,
    /// Checksum of the file, 64 hexadecimal digits.
    pub sha256: String,
}

/// Options of a job; absent ones use the topic's or the model's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobOptions {
    /// Most predictions or detections to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Lowest score to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Jobs of one key share a partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_key: Option<String>,
    /// Priority of the job.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Time limit of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Deadline for the start of the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_by: Option<Timestamp>,
    /// Time that the finished record is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_ttl_secs: Option<u64>,
    /// Webhook to notify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// Webhook of a job, and the states it is notified about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    /// URL to call.
    pub url: String,
    /// Names of states; empty: the final states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
}

impl JobOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A job: its specification, the position of its input, its attempts and its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The specification.
    #[serde(flatten)]
    pub spec: JobSpec,
    /// The partition whose message holds the input.
    pub partition: PartitionId,
    /// Position of that message. A delivery from any other position is a stray duplicate.
    pub sequence: Sequence,
    /// Every attempt so far, oldest first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// Number of attempts that do not count against the topic's limit: those before a client last retried the
    /// job, and those that a worker gave up because it had to shut down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts_forgiven: u32,
    /// The job's current state.
    #[serde(flatten)]
    pub state: State,
}

/// State of a job. Each variant carries only what is true in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Waits for a worker.
    Queued {
        /// Earliest time of the next attempt, after a failed one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<Timestamp>,
    },
    /// A worker runs it; the last attempt names the worker.
    Running {},
    /// Has a result. Terminal.
    Succeeded {
        /// What the model returned.
        result: serde_json::Value,
        /// Time of each stage.
        timings: Timings,
        /// When it was finished.
        finished_at: Timestamp,
    },
    /// Has an error. Terminal.
    Failed {
        /// Why.
        error: JobError,
        /// When it was finished.
        finished_at: Timestamp,
    },
    /// Was canceled. Terminal.
    Canceled {
        /// When it was canceled.
        finished_at: Timestamp,
    },
}

/// One attempt to run a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// The worker's member id.
    pub worker: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended; for a lost attempt, when the loss was detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How it ended; absent while it runs.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = OutcomeFields)]
    pub outcome: Option<Outcome>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// With a result.
    Succeeded {},
    /// For good, or to be tried again.
    Failed {
        /// Why.
        error: JobError,
    },
    /// The worker never said: it died, or was gone longer than its lease.
    Lost {},
    /// The job was canceled.
    Canceled {},
}

/// [`Outcome`] as optional fields of an [`Attempt`].
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only says how another type looks")]
struct OutcomeFields {
    /// `succeeded`, `failed`, `lost` or `canceled`; absent while it runs.
    #[schema(pattern = "^(succeeded|failed|lost|canceled)$")]
    outcome: Option<String>,
    /// Why it failed.
    error: Option<JobError>,
}

/// Why a job or an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobError {
    /// Stable, for programs: `image_corrupt`, `attempts_exhausted`, …
    pub code: String,
    /// For people.
    pub message: String,
}

impl JobError {
    /// An error with a stable code and a message for people.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// Time of each stage of a successful job, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timings {
    /// From acceptance to the start of the attempt that succeeded.
    pub queue_ms: f64,
    /// Bytes to pixels.
    pub decode_ms: f64,
    /// Pixels to tensor.
    pub preprocess_ms: f64,
    /// The model.
    pub inference_ms: f64,
    /// Outputs to answer.
    pub postprocess_ms: f64,
    /// From acceptance to the result.
    pub total_ms: f64,
}

/// A transition that is not in the diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} cannot {step}")]
pub struct InvalidTransition {
    /// The state that the job is in.
    pub from: &'static str,
    /// The transition that was attempted.
    pub step: &'static str,
}

impl Record {
    /// The first record of a job.
    pub fn queued(spec: JobSpec, partition: PartitionId, sequence: Sequence) -> Self {
        Self {
            spec,
            partition,
            sequence,
            attempts: Vec::new(),
            attempts_forgiven: 0,
            state: State::Queued { retry_at: None },
        }
    }

    /// Whether the job will never change again.
    pub fn is_terminal(&self) -> bool {
        match self.state {
            State::Queued { .. } | State::Running {} => false,
            State::Succeeded { .. } | State::Failed { .. } | State::Canceled { .. } => true,
        }
    }

    /// Why the job fails without a run, if the deadline for its first attempt passed before that started.
    pub fn overdue(&self, now: Timestamp) -> Option<JobError> {
        let start_by = self.spec.options.start_by.filter(|by| now > *by)?;
        let waits = matches!(self.state, State::Queued { .. }) && self.attempts.is_empty();
        waits.then(|| JobError::new("start_by_passed", format!("no worker was free before {start_by}")))
    }

    /// Attempts that count against the topic's limit.
    pub fn tries(&self) -> u32 {
        (self.attempts.len() as u32).saturating_sub(self.attempts_forgiven)
    }

    /// When the first attempt started.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.attempts.first().map(|attempt| attempt.started_at)
    }

    /// A worker begins the next attempt.
    ///
    /// # Errors
    /// [`InvalidTransition`] from a terminal state.
    pub fn start(&self, worker: &str, now: Timestamp) -> Result<Self, InvalidTransition> {
        let mut next = self.step("start", now, Outcome::Lost {})?;
        let number = next.attempts.len() as u32 + 1;
        let worker = worker.to_owned();
        next.attempts.push(Attempt { number, worker, started_at: now, ended_at: None, outcome: None });
        next.state = State::Running {};
        Ok(next)
    }

    /// The running attempt failed, but another one may succeed.
    ///
    /// # Errors
    /// [`InvalidTransition`] unless running.
    pub fn retry(&self, error: JobError, now: Timestamp, retry_at: Timestamp) -> Result<Self, InvalidTransition> {
        self.must_run("retry")?;
        let mut next = self.step("retry", now, Outcome::Failed { error })?;
        next.state = State::Queued { retry_at: Some(retry_at) };
        Ok(next)
    }

    /// The worker gave up the running attempt through no fault of the job: the attempt does not count against the
    /// limit, and the job may be retried at once.
    ///
    /// # Errors
    /// [`InvalidTransition`] unless running.
    pub fn hand_back(&self, error: JobError, now: Timestamp) -> Result<Self, InvalidTransition> {
        self.must_run("hand back")?;
        let mut next = self.step("hand back", now, Outcome::Failed { error })?;
        next.attempts_forgiven += 1;
        next.state = State::Queued { retry_at: None };
        Ok(next)
    }

    /// The running attempt produced a result.
    ///
    /// # Errors
    /// [`InvalidTransition`] unless running.
    pub fn succeed(
        &self,
        result: serde_json::Value,
        timings: Timings,
        now: Timestamp,
    ) -> Result<Self, InvalidTransition> {
        self.must_run("succeed")?;
        let mut next = self.step("succeed", now, Outcome::Succeeded {})?;
        next.state = State::Succeeded { result, timings, finished_at: now };
        Ok(next)
    }

    /// The job cannot succeed: bad input, or no attempts left.
    ///
    /// # Errors
    /// [`InvalidTransition`] from a terminal state.
    pub fn fail(&self, error: JobError, now: Timestamp) -> Result<Self, InvalidTransition> {
        let mut next = self.step("fail", now, Outcome::Failed { error: error.clone() })?;
        next.state = State::Failed { error, finished_at: now };
        Ok(next)
    }

    /// No attempts are left. `last_error` is why the running attempt failed; `None` when its
    /// worker was lost.
    ///
    /// # Errors
    /// [`InvalidTransition`] from a terminal state.
    pub fn exhaust(&self, last_error: Option<JobError>, now: Timestamp) -> Result<Self, InvalidTransition> {
        let outcome = last_error.map_or(Outcome::Lost {}, |error| Outcome::Failed { error });
        let mut next = self.step("exhaust", now, outcome)?;
        let reason = match next.attempts.last().and_then(|attempt| attempt.outcome.as_ref()) {
            Some(Outcome::Failed { error }) => format!("{}: {}", error.code, error.message),
            _ => "the worker was lost".into(),
        };
        let message = format!("{0} of {0} attempts failed; last error: {reason}", next.tries());
        next.state = State::Failed { error: JobError::new("attempts_exhausted", message), finished_at: now };
        Ok(next)
    }

    /// The job is canceled.
    ///
    /// # Errors
    /// [`InvalidTransition`] from a terminal state.
    pub fn cancel(&self, now: Timestamp) -> Result<Self, InvalidTransition> {
        let mut next = self.step("cancel", now, Outcome::Canceled {})?;
        next.state = State::Canceled { finished_at: now };
        Ok(next)
    }

    /// A client retries a job that has failed or was canceled; its input has a
    /// new position.
    ///
    /// # Errors
    /// [`InvalidTransition`] from any other state.
    pub fn again(&self, partition: PartitionId, sequence: Sequence) -> Result<Self, InvalidTransition> {
        match self.state {
            State::Failed { .. } | State::Canceled { .. } => {}
            _ => return Err(InvalidTransition { from: self.state.name(), step: "retried" }),
        }
        let attempts_forgiven = self.attempts.len() as u32;
        let state = State::Queued { retry_at: None };
        let mut next = Self { partition, sequence, attempts_forgiven, state, ..self.clone() };
        // The client wants the retry even though the deadline has passed.
        next.spec.options.start_by = None;
        Ok(next)
    }

    fn must_run(&self, step: &'static str) -> Result<(), InvalidTransition> {
        match self.state {
            State::Running {} => Ok(()),
            _ => Err(InvalidTransition { from: self.state.name(), step }),
        }
    }

    /// A copy in which the running attempt, if any, is closed with `outcome`.
    fn step(&self, step: &'static str, now: Timestamp, outcome: Outcome) -> Result<Self, InvalidTransition> {
        if self.is_terminal() {
            return Err(InvalidTransition { from: self.state.name(), step });
        }
        let mut next = self.clone();
        if let Some(running) = next.attempts.last_mut().filter(|attempt| attempt.outcome.is_none()) {
            running.ended_at = Some(now);
            running.outcome = Some(outcome);
        }
        Ok(next)
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl State {
    /// The name, as written in records and responses.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Running {} => "running",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Canceled { .. } => "canceled",
        }
    }

    /// When a job in this state ended, if it has.
    pub fn finished_at(&self) -> Option<Timestamp> {
        match self {
            Self::Queued { .. } | Self::Running {} => None,
            Self::Succeeded { finished_at, .. } | Self::Failed { finished_at, .. } | Self::Canceled { finished_at } => {
                Some(*finished_at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TopicName;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn queued() -> Record {
        let spec = JobSpec {
            origin: crate::Origin::default(),
            id: JobId::random(TopicName::new("cats").expect("valid")),
            model: "cats".into(),
            model_version: 1,
            model_digest: "d".into(),
            created_at: at(0),
            accepted_by: String::new(),
            image: ImageFacts { width: 1, height: 2, format: "png".into(), bytes: 3, sha256: "s".into() },
            options: JobOptions { threshold: Some(0.1), ..JobOptions::default() },
            metadata: BTreeMap::from([("k".into(), "v\n\u{1F431}".into())]),
        };
        Record::queued(spec, PartitionId::normal(1), Sequence(7))
    }

    fn oops() -> JobError {
        JobError::new("oops", "it broke")
    }

    #[test]
    fn a_job_runs_and_succeeds() {
        let running = queued().start("w1", at(5)).expect("starts");
        assert_eq!((running.attempts.len(), running.started_at()), (1, Some(at(5))));
        let done = running.succeed(serde_json::json!({"x": 1}), Timings::default(), at(9)).expect("succeeds");
        assert_eq!(done.attempts[0].outcome, Some(Outcome::Succeeded {}));
        assert!(done.is_terminal());
    }

    #[test]
    fn a_failed_attempt_is_retried_and_both_are_kept() {
        let first = queued().start("w1", at(1)).expect("starts");
        let waiting = first.retry(oops(), at(2), at(50)).expect("retries");
        assert_eq!(waiting.state, State::Queued { retry_at: Some(at(50)) });
        let second = waiting.start("w2", at(60)).expect("starts");
        assert_eq!(second.attempts.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(second.attempts[0].outcome, Some(Outcome::Failed { error: oops() }));
    }

    #[test]
    fn a_lost_attempt_is_closed_by_the_next_one() {
        let second = queued().start("w1", at(1)).and_then(|r| r.start("w2", at(40))).expect("starts");
        assert_eq!(second.attempts[0].outcome, Some(Outcome::Lost {}));
        assert_eq!(second.attempts[0].ended_at, Some(at(40)));
        assert_eq!(second.attempts[1].outcome, None);
    }

    #[test]
    fn exhaustion_names_the_last_reason() {
        let code = |record: Record| match record.exhaust(None, at(9)).expect("fails").state {
            State::Failed { error, .. } => (error.code, error.message),
            other => panic!("{other:?}"),
        };
        let lost = queued().start("w1", at(1)).expect("starts");
        assert_eq!(code(lost).1, "1 of 1 attempts failed; last error: the worker was lost");
        let failed = queued().start("w1", at(1)).and_then(|r| r.retry(oops(), at(2), at(3))).expect("retries");
        assert_eq!(
            code(failed),
            ("attempts_exhausted".into(), "1 of 1 attempts failed; last error: oops: it broke".into())
        );
    }

    #[test]
    fn terminal_states_have_no_way_out_and_nothing_ends_unstarted() {
        let ends = [
            queued().start("w", at(1)).and_then(|r| r.succeed(1.into(), Timings::default(), at(2))).expect("ends"),
            queued().fail(oops(), at(2)).expect("ends"),
        ];
        for end in ends {
            assert!(end.start("w", at(3)).is_err());
            assert!(end.retry(oops(), at(3), at(4)).is_err());
            assert!(end.succeed(2.into(), Timings::default(), at(3)).is_err());
            assert!(end.fail(oops(), at(3)).is_err());
            assert!(end.exhaust(None, at(3)).is_err());
        }
        let unstarted = queued().succeed(1.into(), Timings::default(), at(2));
        assert_eq!(unstarted, Err(InvalidTransition { from: "queued", step: "succeed" }));
    }

    #[test]
    fn a_record_comes_back_from_json_as_it_went_in() {
        let running = queued().start("w1", at(5)).expect("starts");
        for record in [
            queued(),
            running.clone(),
            running.retry(oops(), at(6), at(7)).expect("retries"),
            running.succeed(serde_json::json!({"score": 0.25}), Timings::default(), at(9)).expect("succeeds"),
            running.fail(oops(), at(9)).expect("fails"),
        ] {
            let json = serde_json::to_string(&record).expect("writes");
            assert_eq!(serde_json::from_str::<Record>(&json).expect("reads"), record, "{json}");
        }
    }
}
