//! A job's life in sentences: which worker took it, why it waited, each attempt, how it ended.
//!
//! [`explain`] is pure: the past comes from the record, and the present is looked up when a client asks.

use queue::client::{Description, Partition};
use queue::members::{Announcement, Stage};
use queue::record::Outcome;
use queue::watchdog::Stall;
use queue::{Record, Sequence, State, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::AppState;

/// An event or state in a job's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = LifeEvent)]
pub(crate) struct Event {
    /// When it started.
    at: Timestamp,
    /// Stable: `accepted`, `waited`, `attempt`, `waits`, `runs`, `ended`.
    what: &'static str,
    /// In words.
    text: String,
}

/// The current situation around a job.
#[derive(Debug, Default)]
struct Situation {
    paused: bool,
    ordered: bool,
    /// Its partition, if the queue reported it.
    partition: Option<Partition>,
    /// Members that have the job's model.
    workers: Vec<Announcement>,
    stall: Option<Stall>,
}

/// A job's life, as events.
pub(super) async fn life(state: &AppState, record: &Record) -> Vec<Event> {
    let mut situation = Situation::default();
    if !record.is_terminal() {
        // What cannot be found out is left out.
        situation = Situation::of(state, record, state.queue.topics.describe(record.spec.id.topic()).await.ok());
    }
    explain(record, &situation, Timestamp::now())
}

/// What a queued job waits for, or which worker runs a running one, from the last look at its topic.
pub(super) fn progress(state: &AppState, record: &Record) -> Option<String> {
    let seen = || state.watch.topics().iter().find(|topic| topic.name == *record.spec.id.topic()).cloned();
    match record.state {
        State::Queued { retry_at } => {
            Some(why_it_waits(record, retry_at, &Situation::of(state, record, seen()), Timestamp::now()))
        }
        State::Running {} => Some(where_it_runs(record, &Situation::of(state, record, None))),
        State::Succeeded { .. } | State::Failed { .. } | State::Canceled { .. } => None,
    }
}

impl Situation {
    fn of(state: &AppState, record: &Record, topic: Option<Description>) -> Self {
        let mut situation = Self::default();
        if let Some(topic) = topic {
            (situation.paused, situation.ordered) = (topic.paused, topic.ordered);
            situation.partition = topic.partitions.into_iter().find(|one| one.partition == record.partition);
        }
        situation.workers = state.roster.serving(&record.spec.model);
        let mut stalls = state.watch.stalls_of(record.spec.id.topic()).into_iter();
        situation.stall = stalls.find(|stall| stall.partition == record.partition);
        situation
    }
}

fn explain(record: &Record, situation: &Situation, now: Timestamp) -> Vec<Event> {
    let spec = &record.spec;
    let by = if spec.accepted_by.is_empty() { "an API process" } else { &spec.accepted_by };
    let place = format!("partition {} at {}", record.partition, record.sequence);
    // A batch item that is not an image was never queued.
    let was_queued = record.sequence != Sequence(0);
    let went =
        if was_queued { format!("went to {place} of topic {}", spec.id.topic()) } else { "was not queued".into() };
    let mut events = vec![Event { at: spec.created_at, what: "accepted", text: format!("by {by}; its input {went}") }];
    let mut since = spec.created_at;
    let mut reason = "until a worker took it";
    for attempt in &record.attempts {
        let waited = attempt.started_at.millis_since(since);
        events.push(Event { at: since, what: "waited", text: format!("{} {reason}", millis(waited)) });
        let took = attempt.ended_at.map(|ended| millis(ended.millis_since(attempt.started_at)));
        let took = took.unwrap_or_default();
        let (how, next) = match &attempt.outcome {
            None => ("runs".to_owned(), ""),
            Some(Outcome::Succeeded {}) => (format!("succeeded after {took}"), ""),
            Some(Outcome::Failed { error }) => {
                let stage = stage(&error.code);
                (format!("failed after {took} {stage}: {}: {}", error.code, error.message), "before it was retried")
            }
            Some(Outcome::Lost {}) => (
                format!("was lost: its worker died or stopped renewing its lease, detected after {took}"),
                "for the next worker",
            ),
            Some(Outcome::Canceled {}) => (format!("was canceled after {took}"), ""),
        };
        let text = format!("{} by {} {how}", attempt.number, attempt.worker);
        events.push(Event { at: attempt.started_at, what: "attempt", text });
        since = attempt.ended_at.unwrap_or(now);
        reason = next;
    }
    match &record.state {
        State::Queued { retry_at } => {
            let text = format!(
                "{} so far: {}",
                millis(now.millis_since(since)),
                why_it_waits(record, *retry_at, situation, now)
            );
            events.push(Event { at: since, what: "waits", text });
        }
        State::Running {} => events.push(Event { at: now, what: "runs", text: where_it_runs(record, situation) }),
        State::Succeeded { timings, finished_at, .. } => events.push(Event {
            at: *finished_at,
            what: "ended",
            text: format!(
                "succeeded, {} after it was accepted: decode {} ms, preprocess {} ms, model {} ms, postprocess {} ms",
                millis(timings.total_ms as u64),
                timings.decode_ms,
                timings.preprocess_ms,
                timings.inference_ms,
                timings.postprocess_ms
            ),
        }),
        State::Failed { error, finished_at } => {
            let kept = if was_queued { "is a dead letter" } else { "was not kept" };
            let text = format!("failed: {}: {}; its input {kept}", error.code, error.message);
            events.push(Event { at: *finished_at, what: "ended", text });
        }
        State::Canceled { finished_at } => {
            events.push(Event { at: *finished_at, what: "ended", text: "canceled".into() });
        }
    }
    events
}

fn why_it_waits(record: &Record, retry_at: Option<Timestamp>, situation: &Situation, now: Timestamp) -> String {
    if situation.paused {
        return "the topic is paused".into();
    }
    if let Some(at) = retry_at.filter(|at| *at > now) {
        return format!("it is retried in {}", millis(at.millis_since(now)));
    }
    if situation.workers.is_empty() {
        return format!("no worker has the model {}", record.spec.model);
    }
    let spec = &record.spec;
    if !situation.workers.iter().any(|worker| worker.can_run(spec)) {
        let digest = spec.model_digest.get(..12).unwrap_or(&spec.model_digest);
        return format!(
            "it needs model {} version {} with the digest {digest}…, and no worker has these files",
            spec.model, spec.model_version
        );
    }
    if let Some(stall) = &situation.stall {
        return stall.reason.to_string();
    }
    let holder = situation.workers.iter().find(|member| member.work.iter().any(|work| work.job == record.spec.id));
    if let Some(holder) = holder {
        return format!("{} has prefetched it and runs another job first", holder.id);
    }
    match &situation.partition {
        Some(partition) if situation.ordered && partition.in_work > 0 => {
            "the topic is ordered, and the job before it in its partition is not finished".into()
        }
        Some(partition) => {
            let ahead = partition.queued.saturating_sub(partition.last.0.saturating_sub(record.sequence.0) + 1);
            format!(
                "about {ahead} jobs of its partition are ahead, {} workers serve the topic",
                situation.workers.len()
            )
        }
        None => "its position is unknown".into(),
    }
}

fn where_it_runs(record: &Record, situation: &Situation) -> String {
    let worker = record.attempts.last().map_or("a worker", |attempt| attempt.worker.as_str());
    let Some(member) = situation.workers.iter().find(|member| member.id == worker) else {
        return format!("{worker} no longer answers; the job is redelivered when its lease expires");
    };
    let stage = member.work.iter().find(|work| work.job == record.spec.id).map(|work| work.stage);
    match stage {
        Some(Stage::InHand | Stage::Running) => format!("{worker} runs it"),
        Some(Stage::Settling) => format!("{worker} is storing its result"),
        None => format!("{worker} is running but has not reported this job recently"),
    }
}

/// The stage in which an attempt failed, as far as its error code shows.
fn stage(code: &str) -> &'static str {
    match code {
        code if code.starts_with("image_") => "while decoding",
        "model_output" => "while reading the model's outputs",
        "model_unavailable" => "while loading the model",
        "inference_failed" => "in the model",
        _ => "while running",
    }
}

fn millis(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { format!("{} s", millis / 1_000) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::members::{ModelFiles, Role};
    use queue::{ImageFacts, JobError, JobId, JobSpec, PartitionId, Sequence, TopicName};

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn queued() -> Record {
        let spec = JobSpec {
            origin: queue::Origin::default(),
            id: JobId::random(TopicName::new("cats").expect("valid")),
            model: "cats".into(),
            model_version: 1,
            model_digest: "d".into(),
            created_at: at(0),
            accepted_by: "a-1".into(),
            image: ImageFacts { width: 1, height: 1, format: "png".into(), bytes: 1, sha256: "s".into() },
            options: queue::JobOptions::default(),
            metadata: std::collections::BTreeMap::new(),
        };
        Record::queued(spec, PartitionId::normal(2), Sequence(7))
    }

    fn texts(record: &Record, situation: &Situation) -> Vec<String> {
        let events = explain(record, situation, at(60_000));
        events.into_iter().map(|event| format!("{} {}", event.what, event.text)).collect()
    }

    #[test]
    fn a_life_is_told_in_order() {
        let first = queued().start("w-1", at(100)).expect("starts");
        let second = first.start("w-2", at(30_100)).expect("starts");
        let error = JobError::new("timeout", "the run took longer than 1s");
        let waiting = second.retry(error, at(31_100), at(90_000)).expect("retries");
        assert_eq!(
            texts(&waiting, &Situation::default()),
            [
                "accepted by a-1; its input went to partition 2 at 7 of topic cats",
                "waited 100 ms until a worker took it",
                "attempt 1 by w-1 was lost: its worker died or stopped renewing its lease, detected after 30 s",
                "waited 0 ms for the next worker",
                "attempt 2 by w-2 failed after 1000 ms while running: timeout: the run took longer than 1s",
                "waits 28 s so far: it is retried in 30 s",
            ]
        );
    }

    #[test]
    fn the_reason_for_waiting_is_the_first_that_holds() {
        let mut worker = Announcement::new(Role::Worker, &["cats".into()]);
        let other = Situation { workers: vec![worker.clone()], ..Situation::default() };
        worker.files = vec![ModelFiles { model: "cats".into(), version: 1, digest: "d".into() }];
        let last = |situation: &Situation| texts(&queued(), situation).pop().expect("events");
        assert!(last(&Situation::default()).ends_with("no worker has the model cats"));
        assert!(last(&other).ends_with("version 1 with the digest d…, and no worker has these files"));
        let served = || Situation { workers: vec![worker.clone()], ..Situation::default() };
        assert!(last(&served()).contains("its position is unknown"));
        assert!(last(&Situation { paused: true, ..served() }).ends_with("the topic is paused"));
    }

    #[test]
    fn a_running_job_says_where_and_whether_its_worker_is_heard() {
        let running = queued().start("w-1", at(100)).expect("starts");
        let gone = texts(&running, &Situation::default()).pop().expect("events");
        assert!(gone.contains("w-1 no longer answers"), "{gone}");
    }
}
