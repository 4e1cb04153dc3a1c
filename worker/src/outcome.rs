//! What becomes of a job after a run. Pure: record, run and time in, next record and effect out.

use std::time::Duration;

use queue::record::{Attempt, InvalidTransition};
use queue::topic::RetryPolicy;
use queue::{JobError, Record, Timestamp, Timings};

use crate::engine::{Answer, Stages};
use crate::error::RunError;

/// What to write, and what to do with the message once it is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) record: Record,
    pub(crate) settlement: Settlement,
}

/// What to do with the message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Settlement {
    /// The job succeeded: its input may be removed.
    Ack,
    /// The job failed: its input becomes a dead letter.
    Bury {
        /// Why, in one line.
        reason: String,
        /// All of its attempts.
        attempts: Vec<Attempt>,
    },
    /// The job is to be retried.
    Nak {
        /// Delay before the next attempt.
        delay: Duration,
    },
}

impl Settlement {
    /// The name under which it is counted.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ack => "succeeded",
            Self::Bury { .. } => "failed",
            Self::Nak { .. } => "retried",
        }
    }
}

/// Decides what follows a run of `running`. `chance` is a random number in 0..1.
pub(crate) fn decide(
    running: &Record,
    run: &Result<Answer, RunError>,
    attempts_max: u32,
    retry: &RetryPolicy,
    chance: f64,
    now: Timestamp,
) -> Result<Outcome, InvalidTransition> {
    let error = match run {
        Ok(answer) => {
            let record = running.succeed(to_json(answer), timings(running, &answer.stages, now), now)?;
            return Ok(Outcome { record, settlement: Settlement::Ack });
        }
        Err(error) => error,
    };
    let reason = JobError::new(error.code(), error.to_string());
    let tries = running.tries();
    if matches!(error, RunError::Leaving) {
        return Ok(Outcome {
            record: running.hand_back(reason, now)?,
            settlement: Settlement::Nak { delay: Duration::ZERO },
        });
    }
    if error.is_retryable() && tries < attempts_max {
        let delay = retry.pause(tries, chance);
        let record = running.retry(reason, now, now.plus(delay))?;
        return Ok(Outcome { record, settlement: Settlement::Nak { delay } });
    }
    let record = if error.is_retryable() { running.exhaust(Some(reason), now)? } else { running.fail(reason, now)? };
    Ok(Outcome { settlement: bury(&record), record })
}

/// How to settle the message of a failed job.
pub(crate) fn bury(record: &Record) -> Settlement {
    let reason = match &record.state {
        queue::State::Failed { error, .. } => format!("{}: {}", error.code, error.message),
        other => other.name().to_owned(),
    };
    Settlement::Bury { reason, attempts: record.attempts.clone() }
}

/// Converts by way of text, in which an `f32` keeps its short form: 0.95, not 0.949999988079071.
fn to_json(answer: &Answer) -> serde_json::Value {
    let text = serde_json::to_string(&answer.output).expect("an output holds strings and finite numbers");
    serde_json::from_str(&text).expect("it was written just now")
}

fn timings(running: &Record, stages: &Stages, now: Timestamp) -> Timings {
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    let started = running.attempts.last().map_or(now, |attempt| attempt.started_at);
    Timings {
        queue_ms: started.millis_since(running.spec.created_at) as f64,
        decode_ms: ms(stages.decode),
        preprocess_ms: ms(stages.preprocess),
        inference_ms: ms(stages.inference),
        postprocess_ms: ms(stages.postprocess),
        total_ms: now.millis_since(running.spec.created_at) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::{ImageError, Output};
    use queue::{ImageFacts, JobId, JobSpec, PartitionId, Sequence, State, TopicName};

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn running(attempts: u32) -> Record {
        let spec = JobSpec {
            origin: queue::Origin::default(),
            id: JobId::random(TopicName::new("cats").expect("valid")),
            model: "cats".into(),
            model_version: 1,
            model_digest: "d".into(),
            created_at: at(1_000),
            accepted_by: String::new(),
            image: ImageFacts { width: 1, height: 1, format: "png".into(), bytes: 1, sha256: "s".into() },
            options: queue::JobOptions::default(),
            metadata: std::collections::BTreeMap::new(),
        };
        let queued = Record::queued(spec, PartitionId::normal(0), Sequence(1));
        (0..attempts).fold(queued, |record, n| record.start("w", at(2_000 + i64::from(n))).expect("starts"))
    }

    #[test]
    fn a_result_is_written_with_its_timings() {
        let output = Output::Embedding { vector: vec![0.95] };
        let stages = Stages { decode: Duration::from_micros(2_500), ..Stages::default() };
        let outcome = decide(&running(1), &Ok(Answer { output, stages }), 5, &RetryPolicy::default(), 0.5, at(2_020))
            .expect("decides");
        assert_eq!(outcome.settlement, Settlement::Ack);
        let State::Succeeded { result, timings, .. } = outcome.record.state else { panic!("not succeeded") };
        assert_eq!(result.to_string(), r#"{"type":"embedding","vector":[0.95]}"#);
        assert_eq!((timings.queue_ms, timings.decode_ms, timings.total_ms), (1_000.0, 2.5, 1_020.0));
    }

    #[test]
    fn bad_input_fails_at_once_and_is_buried() {
        let outcome = decide(&running(1), &Err(ImageError::Empty.into()), 5, &RetryPolicy::default(), 0.5, at(2_020))
            .expect("decides");
        assert!(matches!(&outcome.settlement, Settlement::Bury { reason, .. } if reason.starts_with("image_empty: ")));
        assert!(matches!(outcome.record.state, State::Failed { error, .. } if error.code == "image_empty"));
    }

    #[test]
    fn a_passing_fault_is_tried_again_until_attempts_run_out() {
        let fault = || Err(RunError::Timeout(Duration::from_secs(1)));
        let outcome = decide(&running(4), &fault(), 5, &RetryPolicy::default(), 0.5, at(3_000)).expect("decides");
        assert_eq!(outcome.settlement, Settlement::Nak { delay: Duration::from_secs(8) });
        assert_eq!(outcome.record.state, State::Queued { retry_at: Some(at(11_000)) });
        let outcome = decide(&running(5), &fault(), 5, &RetryPolicy::default(), 0.5, at(3_000)).expect("decides");
        assert!(matches!(outcome.settlement, Settlement::Bury { .. }));
        let State::Failed { error, .. } = outcome.record.state else { panic!("not failed") };
        assert!(error.code == "attempts_exhausted" && error.message.contains("timeout"), "{error:?}");
    }
}
