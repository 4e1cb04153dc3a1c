//! Whether every job of a topic is accounted for.
//!
//! A job leaves traces in three places: its message, its record, its dead letter. An audit reads and
//! compares all three, and checks a job that looks wrong again, since jobs move while they are counted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures::TryStreamExt;
use serde::Serialize;

use super::Admin;
use crate::client::connection::Stored;
use crate::client::jobs::Jobs;
use crate::topic::{Retention, dead_stream, records_stream};
use crate::{JobId, QueueError, Record, Sequence, State, Timestamp, Topic, TopicError, TopicName};

/// How often a job that looks wrong is checked again, and the pause between two checks.
const LOOKS: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(300);
/// How long another worker may take to remove a message whose lease has expired.
const SETTLE_MAX: Duration = Duration::from_secs(15);
/// Most jobs that an audit names as wrong.
const NAMED_MAX: usize = 1_000;

/// Result of an audit of a topic.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Audit {
    /// Known jobs: by their record, their message, or from the caller's list.
    pub accepted: u64,
    /// How many are in each state: `queued`, `running`, `succeeded`, `failed`, `canceled`.
    pub states: BTreeMap<&'static str, u64>,
    /// Jobs that are just being accepted: their message has no record yet.
    pub arriving: u64,
    /// Finished jobs whose message is removed once the lease of a dead worker has expired; they are
    /// counted under their states too.
    pub settling: u64,
    /// What does not add up.
    pub wrong: Vec<Wrong>,
}

/// A job that does not add up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// Which.
    pub id: JobId,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// It was accepted, but no trace of it is left. (Or its result has expired.)
    Unknown,
    /// It is queued or running, but its input does not exist.
    InputGone,
    /// It is finished, but its message is still in the queue.
    NotSettled,
    /// It failed, and its input was not kept.
    NoDeadLetter,
    /// Its record cannot be read.
    Unreadable,
}

impl Audit {
    /// Whether everything adds up.
    pub fn is_balanced(&self) -> bool {
        self.wrong.is_empty() && self.accepted == self.states.values().sum::<u64>()
    }
}

/// What one check of a job finds.
struct Seen {
    has_message: bool,
    has_letter: bool,
    is_log: bool,
}

/// What is wrong with a job. Pure.
fn problem(record: Option<&Record>, seen: &Seen) -> Option<Problem> {
    match record.map(|record| &record.state) {
        None => (!seen.has_message).then_some(Problem::Unknown),
        Some(State::Queued { .. } | State::Running {}) => (!seen.has_message).then_some(Problem::InputGone),
        // A job that was never queued had no input to keep.
        Some(State::Failed { .. }) if !seen.has_letter && !seen.is_log && !was_rejected(record) => {
            Some(Problem::NoDeadLetter)
        }
        // A log keeps its messages.
        Some(_) => (seen.has_message && !seen.is_log).then_some(Problem::NotSettled),
    }
}

fn was_rejected(record: Option<&Record>) -> bool {
    record.is_some_and(|record| record.sequence == Sequence(0))
}

impl Admin {
    /// Audits a topic. `told` lists jobs that must be known, because a client got a `202` for them.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn audit(&self, name: &TopicName, told: &[JobId]) -> Result<Audit, TopicError> {
        let topic = self.existing_topic(name).await?;
        // Messages first: a job that is accepted meanwhile has a record by the time we read records.
        let mut messages = HashSet::new();
        for partition in topic.partitions() {
            messages.extend(self.queued_ids(name, partition).await?);
        }
        let letters: HashSet<JobId> = self
            .scan(&dead_stream(name), true)
            .await?
            .try_filter_map(|message| std::future::ready(Ok(message.job_id())))
            .try_collect()
            .await?;
        let mut audit = Audit::default();
        let mut suspects: BTreeSet<JobId> = BTreeSet::new();
        let mut states: HashMap<JobId, &'static str> = HashMap::new();
        let mut records = std::pin::pin!(self.scan(&records_stream(name), false).await?);
        let is_log = topic.settings.retention != Retention::Work;
        while let Some(message) = records.try_next().await? {
            let Some(id) = message.job_id() else { continue };
            let Ok(record) = serde_json::from_slice::<Record>(&message.payload) else {
                suspects.insert(id);
                continue;
            };
            let seen = Seen { has_message: messages.contains(&id), has_letter: letters.contains(&id), is_log };
            if problem(Some(&record), &seen).is_some() {
                suspects.insert(id.clone());
            }
            states.insert(id, record.state.name());
        }
        suspects.extend(messages.into_iter().filter(|id| !states.contains_key(id)));
        suspects.extend(told.iter().filter(|id| id.topic() == name && !states.contains_key(*id)).cloned());
        for (id, verdict) in self.look_again(&topic, suspects).await? {
            match verdict {
                Finding::Well(state) => drop(states.insert(id, state)),
                Finding::Settling(state) => {
                    states.insert(id, state);
                    audit.settling += 1;
                }
                Finding::Arriving => {
                    states.remove(&id);
                    audit.arriving += 1;
                }
                Finding::Wrong(problem) => {
                    if problem == Problem::Unknown || problem == Problem::Unreadable {
                        states.remove(&id);
                        audit.accepted += 1;
                    }
                    audit.wrong.push(Wrong { id, problem });
                }
            }
        }
        audit.accepted += states.len() as u64;
        for state in ["queued", "running", "succeeded", "failed", "canceled"] {
            audit.states.insert(state, 0);
        }
        states.values().for_each(|state| *audit.states.entry(state).or_default() += 1);
        audit.wrong.sort_by(|a, b| (a.problem, &a.id).cmp(&(b.problem, &b.id)));
        audit.wrong.truncate(NAMED_MAX);
        Ok(audit)
    }

    async fn look_again(
        &self,
        topic: &Topic,
        mut suspects: BTreeSet<JobId>,
    ) -> Result<Vec<(JobId, Finding)>, QueueError> {
        let mut verdicts = Vec::new();
        for look in 1..=LOOKS {
            for id in std::mem::take(&mut suspects) {
                match self.look_at_job(topic, &id).await? {
                    Finding::Well(state) => verdicts.push((id, Finding::Well(state))),
                    verdict if look == LOOKS => verdicts.push((id, verdict)),
                    _ => drop(suspects.insert(id)),
                }
            }
            if suspects.is_empty() {
                break;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(verdicts)
    }

    /// Checks one job in its current state.
    async fn look_at_job(&self, topic: &Topic, id: &JobId) -> Result<Finding, QueueError> {
        let record = match self.find_record(id).await {
            Ok(stored) => stored.map(|Stored { record, .. }| record),
            Err(QueueError::Damaged { .. }) => return Ok(Finding::Wrong(Problem::Unreadable)),
            Err(error) => return Err(error),
        };
        let is_log = topic.settings.retention != Retention::Work;
        let has_message = match &record {
            Some(record) => self.has_message(id, record).await?,
            None => {
                let mut found = false;
                for partition in topic.partitions() {
                    found = found || self.message_sequence(id, partition).await?.is_some();
                }
                found
            }
        };
        let has_letter = match &record {
            Some(Record { state: State::Failed { .. }, .. }) => Jobs::of(&self.0).dead_letter(id).await?.is_some(),
            _ => false,
        };
        Ok(match (problem(record.as_ref(), &Seen { has_message, has_letter, is_log }), record) {
            (Some(Problem::NotSettled), Some(record)) if is_leased(&record, topic, Timestamp::now()) => {
                Finding::Settling(record.state.name())
            }
            (Some(problem), _) => Finding::Wrong(problem),
            (None, Some(record)) => Finding::Well(record.state.name()),
            (None, None) => Finding::Arriving,
        })
    }

    /// Whether the message that holds a job's input is in the queue.
    async fn has_message(&self, id: &JobId, record: &Record) -> Result<bool, QueueError> {
        Ok(self.message_sequence(id, record.partition).await? == Some(record.sequence))
    }
}

/// Whether the lease under which a job was finished may still be valid: the message is redelivered
/// to another worker, which removes it, only after the lease has expired. Pure.
fn is_leased(record: &Record, topic: &Topic, now: Timestamp) -> bool {
    let lease = Duration::from_millis(topic.settings.lease_ms) + SETTLE_MAX;
    record.state.finished_at().is_some_and(|finished| u128::from(now.millis_since(finished)) < lease.as_millis())
}

enum Finding {
    Well(&'static str),
    Settling(&'static str),
    Arriving,
    Wrong(Problem),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageFacts, JobError, JobOptions, JobSpec, PartitionId, Timings};

    fn record() -> Record {
        let spec = JobSpec {
            origin: crate::Origin::default(),
            id: JobId::random(TopicName::new("cats").expect("valid")),
            model: "cats".into(),
            model_version: 1,
            model_digest: "d".into(),
            created_at: Timestamp::from_millis(0),
            accepted_by: String::new(),
            image: ImageFacts { width: 1, height: 1, format: "png".into(), bytes: 1, sha256: "s".into() },
            options: JobOptions::default(),
            metadata: BTreeMap::new(),
        };
        Record::queued(spec, PartitionId::normal(0), Sequence(1))
    }

    #[test]
    fn a_job_adds_up_only_where_message_record_and_letter_agree() {
        let now = Timestamp::from_millis(1);
        let running = record().start("w", now).expect("starts");
        let done = running.succeed(1.into(), Timings::default(), now).expect("succeeds");
        let failed = running.fail(JobError::new("x", "y"), now).expect("fails");
        let seen = |has_message, has_letter, is_log| Seen { has_message, has_letter, is_log };
        for (record, seen, expected) in [
            (Some(&record()), seen(true, false, false), None),
            (Some(&record()), seen(false, false, false), Some(Problem::InputGone)),
            (Some(&running), seen(false, false, true), Some(Problem::InputGone)),
            (Some(&done), seen(false, false, false), None),
            (Some(&done), seen(true, false, false), Some(Problem::NotSettled)),
            (Some(&done), seen(true, false, true), None),
            (Some(&failed), seen(false, true, false), None),
            (Some(&failed), seen(false, false, false), Some(Problem::NoDeadLetter)),
            (Some(&failed), seen(true, true, false), Some(Problem::NotSettled)),
            (None, seen(true, false, false), None),
            (None, seen(false, false, false), Some(Problem::Unknown)),
        ] {
            assert_eq!(problem(record, &seen), expected);
        }
    }
}
