//! `sightline topics replay`: runs the messages of a log through another model.
//!
//! Each message becomes a job in the other model's topic. The job's id is derived from the message and the model's
//! digest, so that a repeated replay continues where it was interrupted.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use queue::client::{Message, Waited};
use queue::topic::Retention;
use queue::{JobId, JobOptions, Queue, Sequence, State, SubmitError, Topic, TopicName};
use serde::Serialize;
use serde_json::{Value, json};

use super::connect;
use crate::config::ReplayArgs;
use crate::output::outln;
use crate::produce::{find, spec};
use crate::setup::Models;

/// How long to wait before retrying a full queue.
const FULL_PAUSE: Duration = Duration::from_millis(500);
/// How long one request waits for a job.
const LOOK: Duration = Duration::from_secs(30);

/// How results differ.
#[derive(Debug, Default, Serialize)]
struct Summary {
    messages: u64,
    same: u64,
    different: u64,
    /// There was no result before.
    new: u64,
    failed: u64,
    /// Messages that are not images.
    skipped: u64,
}

/// Runs the replay. Exits with 1 if one of its jobs failed.
pub(crate) async fn run(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let models = Models::open(&args.models)?;
    let (model, version) = find(&models, &args.model)?;
    let queue = connect(&args.queue).await?;
    let log = queue.fresh_topic(&args.topic).await?.with_context(|| format!("topic {} does not exist", args.topic))?;
    ensure!(
        log.settings.retention != Retention::Work,
        "topic {} keeps nothing to replay: only a log does (topics create --retention log:24h)",
        args.topic
    );
    let target = queue.topics.ensure(&TopicName::new(model.name())?, model.name()).await?;
    let mut messages = Vec::new();
    for partition in log.partitions() {
        let last = queue.logs.bounds(log.name(), partition).await?.last;
        let (queue, log) = (queue.clone(), log.clone());
        messages.push(
            futures::stream::try_unfold(Sequence(1), move |from| {
                let (queue, log) = (queue.clone(), log.clone());
                async move {
                    let next = queue.logs.peek(log.name(), partition, from).await?;
                    let next = next.filter(|message| message.sequence <= last);
                    anyhow::Ok(next.map(|message| {
                        let after = Sequence(message.sequence.0 + 1);
                        (message, after)
                    }))
                }
            })
            .boxed(),
        );
    }
    let messages = futures::stream::iter(messages).flatten().take(args.max.unwrap_or(usize::MAX));
    let rerun = |message: anyhow::Result<Message>| {
        let (queue, target) = (&queue, &target);
        async move {
            let message = message?;
            let Some(original) = message.job_id() else { return Ok((message, None)) };
            let id = JobId::derived(target.name().clone(), &[&original.to_string(), &version.digest]);
            let options = message.spec().map(|spec| JobOptions { priority: Default::default(), ..spec.options });
            let Ok(spec) = spec(id, model, version, options.unwrap_or_default(), &message.payload) else {
                return Ok((message, None));
            };
            let after = run_one(queue, target, spec, &message).await?;
            let before = queue.find_record(&original).await?.map(|stored| stored.record.state);
            anyhow::Ok((message, Some((before, after))))
        }
    };
    let mut results = std::pin::pin!(messages.map(rerun).buffered(args.in_flight.get()));
    let mut summary = Summary::default();
    while let Some((message, states)) = results.try_next().await? {
        summary.messages += 1;
        let verdict = judge(states.as_ref(), &mut summary);
        if args.json {
            outln!(
                "{}",
                json!({ "id": message.job_id(), "sequence": message.sequence, "verdict": verdict.0, "detail": verdict.1 })
            );
        } else if verdict.0 != "same" {
            outln!("{}  {}  {}", message.subject, verdict.0, verdict.1);
        }
    }
    if args.json {
        outln!("{}", json!({ "summary": summary }));
    } else {
        outln!(
            "{} messages through {}: {} same, {} different, {} new, {} failed, {} skipped",
            summary.messages,
            args.model,
            summary.same,
            summary.different,
            summary.new,
            summary.failed,
            summary.skipped
        );
    }
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_one(queue: &Queue, target: &Arc<Topic>, spec: queue::JobSpec, message: &Message) -> anyhow::Result<State> {
    let id = spec.id.clone();
    // An earlier replay may have submitted it already.
    if queue.find_record(&id).await?.is_none() {
        while let Err(error) = queue.jobs.submit(target, spec.clone(), message.payload.clone()).await {
            match error {
                SubmitError::Full { .. } => tokio::time::sleep(FULL_PAUSE).await,
                error => return Err(error.into()),
            }
        }
    }
    loop {
        match queue.jobs.wait(&id, LOOK).await? {
            Waited::Finished(stored) => return Ok(stored.record.state),
            Waited::StillOpen(_) => {}
            Waited::Unknown => anyhow::bail!("the result of {id} has expired"),
        }
    }
}

/// Whether a result is the same as before, and how it differs.
fn judge(states: Option<&(Option<State>, State)>, summary: &mut Summary) -> (&'static str, String) {
    let (count, verdict) = match states {
        None => (&mut summary.skipped, ("skipped", "not an image".to_owned())),
        Some((_, State::Succeeded { result: after, .. })) => match states.and_then(|(before, _)| before.as_ref()) {
            Some(State::Succeeded { result: before, .. }) => match difference(before, after) {
                None => (&mut summary.same, ("same", String::new())),
                Some(difference) => (&mut summary.different, ("different", difference)),
            },
            _ => (&mut summary.new, ("new", best(after))),
        },
        Some((_, State::Failed { error, .. })) => {
            (&mut summary.failed, ("failed", format!("{}: {}", error.code, error.message)))
        }
        Some((_, other)) => (&mut summary.failed, ("failed", other.name().to_owned())),
    };
    *count += 1;
    verdict
}

/// How two results differ, or `None` if they mean the same.
fn difference(before: &Value, after: &Value) -> Option<String> {
    if before["type"] != after["type"] {
        return Some(format!("{} became {}", before["type"], after["type"]));
    }
    let labels = |result: &Value, list: &str| -> Vec<String> {
        let items = result[list].as_array().into_iter().flatten();
        items.filter_map(|item| item["label"].as_str()).map(str::to_owned).collect()
    };
    match after["type"].as_str() {
        Some("classification") => {
            let (old, new) = (best(before), best(after));
            let first = |text: &str| text.rsplit_once(' ').map(|(label, _)| label.to_owned());
            (first(&old) != first(&new)).then(|| format!("{old} became {new}"))
        }
        Some("detection") => {
            let (mut old, mut new) = (labels(before, "detections"), labels(after, "detections"));
            old.sort();
            new.sort();
            (old != new).then(|| format!("[{}] became [{}]", old.join(", "), new.join(", ")))
        }
        _ => (before != after).then(|| "other numbers".to_owned()),
    }
}

/// The first label with its score, or the result's type if it has no labels.
fn best(result: &Value) -> String {
    let first = ["predictions", "detections"].iter().find_map(|list| result[list].as_array()?.first());
    first.map_or_else(
        || result["type"].as_str().unwrap_or("result").to_owned(),
        |item| format!("{} {:.2}", item["label"].as_str().unwrap_or("?"), item["score"].as_f64().unwrap_or(0.0)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_differ_by_what_they_say_not_by_their_last_digit() {
        let classes = |label: &str, score: f64| json!({"type": "classification", "predictions": [{"label": label, "score": score}]});
        assert_eq!(difference(&classes("espresso", 0.9), &classes("espresso", 0.7)), None);
        let text = difference(&classes("espresso", 0.9), &classes("cup", 0.5)).expect("different");
        assert_eq!(text, "espresso 0.90 became cup 0.50");
        let boxes = |labels: &[&str]| json!({"type": "detection", "detections": labels.iter().map(|l| json!({"label": l})).collect::<Vec<_>>()});
        assert_eq!(difference(&boxes(&["cup", "table"]), &boxes(&["table", "cup"])), None);
        assert!(difference(&boxes(&["cup"]), &boxes(&[])).is_some());
        assert!(difference(&classes("cup", 0.5), &boxes(&["cup"])).expect("different").contains("became"));
    }
}
