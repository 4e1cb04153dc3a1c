//! From an image to a job that cannot be lost.
//!
//! Two durable writes, in this order: the message that holds the image and, in a header, all that
//! the record needs; then the record. A crash between them leaves a job that a worker can start by
//! itself; the other order would leave a record without an image.
//!
//! In a cluster each stream has a leader, and when its server dies the stream has no leader for some
//! seconds. Neither write waits for that: a job that is not bound to a partition is published to the
//! next one, and the record is written as soon as possible; until then the job is known by its message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::Jobs;
use crate::client::connection::{Message, PATIENCE, RETRY_PAUSE, Refusal, Replaced, Revision, refusal};
use crate::client::headers::{AGAIN_HEADER, SPEC_HEADER, ascii_json};
use crate::client::topics::Topics;
use crate::error::chain;
use crate::topic::{Retention, job_subject, jobs_stream};
use crate::{
    JobError, JobSpec, PartitionId, Priority, QueueError, Record, Sequence, SubmitError, Timestamp, Topic, TopicError,
};

/// How long a stream with replicas may take to acknowledge before its leader is considered lost.
const LEADER_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a job waits for a connection to the queue.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(2);
/// Partitions that a job may be offered to.
const PLACES_MAX: usize = 3;

/// A job that is in the queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// Queued by this request.
    New(Record),
    /// Queued by an earlier or a faster request.
    Existing(Record),
}

impl Submitted {
    /// `asked` is the specification that this request wrote.
    fn of(record: Record, asked: &JobSpec) -> Self {
        if record.spec.is_of_request(asked) { Self::New(record) } else { Self::Existing(record) }
    }

    /// The job's record, whichever request submitted it.
    pub fn into_record(self) -> Record {
        match self {
            Self::New(record) | Self::Existing(record) => record,
        }
    }
}

impl Jobs {
    /// Queues a job. When this returns a record, the image and all that the record holds are durable;
    /// so is the record itself, unless the topic has replicas and its records stream has no leader now.
    ///
    /// If another request for the same job was first, this returns [`Submitted::Existing`] with that request's
    /// record.
    ///
    /// # Errors
    /// After [`SubmitError::Full`] and [`SubmitError::TooLarge`] nothing was queued. After
    /// [`SubmitError::Queue`] it is not known whether the job will run.
    pub async fn submit(&self, topic: &Arc<Topic>, spec: JobSpec, image: Bytes) -> Result<Submitted, SubmitError> {
        let asked = spec.clone();
        let topic = &self.with_priority(topic, spec.options.priority).await?;
        let placed = self.publish_job(topic, &spec, &places(topic, &spec), image, None).await?;
        let partition = placed.partition;
        // If the message is another request's for this job, we write that request's record: its image is
        // the one that will run.
        let record = Record::queued(placed.theirs.map_or(spec, |theirs| *theirs), partition, placed.sequence);
        let record = match self.create_soon(topic, &record).await? {
            Some(Replaced::Done(_)) | None => record,
            // A worker was faster: the job is known.
            Some(Replaced::Refused) => match self.find_record(&record.spec.id).await? {
                Some(stored) => stored.record,
                None => record,
            },
        };
        self.wake(&record.spec.id, partition).await;
        Ok(Submitted::of(record, &asked))
    }

    /// Records a job that cannot be run as failed, without queueing it, so that a count of a batch's jobs
    /// misses none. Another request may have been first.
    ///
    /// # Errors
    /// [`SubmitError`] when the outcome is unknown.
    pub async fn reject(&self, topic: &Topic, spec: JobSpec, error: JobError) -> Result<Submitted, SubmitError> {
        let place = PartitionId::of_job(&spec.id, None, topic.settings.partitions, spec.options.priority);
        let queued = Record::queued(spec.clone(), place, Sequence(0));
        let failed = queued.fail(error, Timestamp::now()).expect("it has not ended");
        if self.create(&failed).await? == Replaced::Refused
            && let Some(stored) = self.find_record(&failed.spec.id).await?
        {
            return Ok(Submitted::of(stored.record, &spec));
        }
        Ok(Submitted::New(failed))
    }

    /// Writes a new job's record. `None` if its stream has no leader now: then the record is written
    /// once it has one, or by the job's worker if this process ends before that.
    async fn create_soon(&self, topic: &Topic, record: &Record) -> Result<Option<Replaced>, QueueError> {
        if topic.replicas < 2 {
            return self.create(record).await.map(Some);
        }
        // Two requests may submit the same job if its id is derived: only the record decides between them.
        let is_contested = record.spec.id.age().is_none();
        let (queue, record) = (self.clone(), record.clone());
        let mut writing = tokio::spawn(async move { queue.create_in_the_end(&record).await });
        let patience = if is_contested { PATIENCE } else { LEADER_PATIENCE };
        match tokio::time::timeout(patience, &mut writing).await {
            Ok(Ok(written)) => Ok(Some(written)),
            Ok(Err(error)) => Err(QueueError::Unavailable { action: "write a record", problem: error.to_string() }),
            Err(_) if is_contested => {
                let problem = "its stream has no leader".to_owned();
                Err(QueueError::Unavailable { action: "write a record", problem })
            }
            Err(_) => Ok(None),
        }
    }

    /// Writes a new job's record, however long that takes.
    async fn create_in_the_end(&self, record: &Record) -> Replaced {
        loop {
            match self.create(record).await {
                Ok(replaced) => return replaced,
                // The topic was removed, and the job with it.
                Err(_) if matches!(self.fresh_topic(record.spec.id.topic()).await, Ok(None)) => {
                    return Replaced::Refused;
                }
                Err(error) => {
                    tracing::warn!(job_id = %record.spec.id, %error, "record not written yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// The topic with partitions for this priority, which are created with their first job.
    async fn with_priority(&self, topic: &Arc<Topic>, priority: Priority) -> Result<Arc<Topic>, SubmitError> {
        if topic.has(priority) {
            return Ok(topic.clone());
        }
        if topic.settings.ordered {
            return Err(SubmitError::OnePriority(topic.name().clone()));
        }
        Topics::of(&self.0).add_priority(topic.name(), priority).await.map_err(|error| match error {
            TopicError::Unknown(name) => SubmitError::NoTopic(name),
            TopicError::Queue(error) => error.into(),
            other => {
                QueueError::Unavailable { action: "make room for the priority", problem: other.to_string() }.into()
            }
        })
    }

    /// Publishes a job's message to the first of these partitions that has a leader; waits while none
    /// has one. `again` is given for a job that was finished: the revision of the record that this
    /// replaces, and the previous position of the input.
    ///
    /// A partition may store the message without confirming it in time, and then another one stores it
    /// too: the record names one of them, and a worker removes the other.
    pub(in crate::client) async fn publish_job(
        &self,
        topic: &Topic,
        spec: &JobSpec,
        places: &[PartitionId],
        image: Bytes,
        again: Option<(Revision, Sequence)>,
    ) -> Result<Placed, SubmitError> {
        let header = ascii_json(spec);
        let started = Instant::now();
        // Only its leaders know whether the topic still exists, and asking takes long while there
        // are none.
        let (patience, asking_after) =
            if topic.replicas > 1 { (LEADER_PATIENCE, 2 * LEADER_PATIENCE) } else { (PATIENCE, Duration::ZERO) };
        // Without a connection the client would keep the message and send it after we have reported a failure.
        while !self.is_connected() {
            if started.elapsed() > CONNECTION_PATIENCE {
                let problem = "not connected to it; nothing was accepted".to_owned();
                return Err(QueueError::Unavailable { action: "take the job", problem }.into());
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        // Whether a message may be stored that was not confirmed.
        let mut is_unknown = false;
        // In a log: position of the subject's last message, which this one must follow.
        let mut before = again.map_or(0, |(_, before)| before.0);
        for (turn, partition) in places.iter().copied().enumerate().cycle() {
            let has_next = turn + 1 < places.len() && started.elapsed() < PATIENCE && self.is_connected();
            let mut message = PublishMessage::build().header(SPEC_HEADER, header.as_str()).payload(image.clone());
            if let Some((revision, _)) = again {
                message = message.header(AGAIN_HEADER, u64::from(revision).to_string().as_str());
            }
            if topic.settings.retention != Retention::Work {
                // A work queue's stream accepts only one message per subject anyway.
                message = message.expected_last_subject_sequence(before);
            }
            let publishing = self.publish_acked(job_subject(&spec.id, partition), message);
            let error = match tokio::time::timeout(patience, publishing).await {
                Ok(Ok(sequence)) => return Ok(Placed { theirs: None, partition, sequence }),
                Ok(Err(error)) => error,
                Err(_) => PublishError::new(PublishErrorKind::TimedOut),
            };
            match refusal(&error) {
                Some(Refusal::AlreadyThere) => match self.message_there(spec, partition).await? {
                    // Our earlier message was stored and only its answer was lost; or another request was first.
                    Some(message) if again.is_none_or(|(revision, _)| message.again() == Some(revision)) => {
                        let sequence = message.sequence;
                        let stored = message.spec().filter(|stored| stored.id == spec.id);
                        let stored = stored.ok_or_else(|| QueueError::Damaged {
                            what: format!("the message of {}", spec.id),
                            problem: "it names no request".into(),
                        })?;
                        let is_ours = again.is_some() || stored.is_of_request(spec);
                        let theirs = (!is_ours).then(|| Box::new(stored));
                        return Ok(Placed { theirs, partition, sequence });
                    }
                    // The message of the earlier run that this one replaces: it is no longer needed.
                    Some(message) if topic.settings.retention == Retention::Work => {
                        self.remove_message(&spec.id, partition, message.sequence).await?;
                    }
                    Some(message) => before = message.sequence.0,
                    // It has aged out of the log; or its worker has just removed it.
                    None if started.elapsed() > PATIENCE => {
                        return Err(QueueError::unavailable("take the job")(error).into());
                    }
                    None => {
                        before = 0;
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                },
                // In a cluster: this partition has no leader now; another one may have one.
                Some(Refusal::NoStream) | None if has_next => {
                    is_unknown |= refusal(&error).is_none();
                    tracing::debug!(job_id = %spec.id, %partition, error = chain(&error), "trying another partition");
                }
                Some(Refusal::Full) if is_unknown => return Err(QueueError::unavailable("take the job")(error).into()),
                Some(Refusal::Full) => return Err(SubmitError::Full { topic: spec.id.topic().to_string() }),
                Some(Refusal::TooLarge) => {
                    return Err(SubmitError::TooLarge { bytes: image.len(), max_payload: self.max_payload() });
                }
                Some(Refusal::NoStream)
                    if started.elapsed() >= asking_after
                        && matches!(self.fresh_topic(spec.id.topic()).await, Ok(None)) =>
                {
                    return Err(SubmitError::NoTopic(spec.id.topic().clone()));
                }
                // In a cluster: retry until the stream has a leader again.
                Some(Refusal::NoStream) if started.elapsed() > PATIENCE => {
                    return Err(QueueError::unavailable("take the job")(error).into());
                }
                Some(Refusal::NoStream) => tokio::time::sleep(RETRY_PAUSE).await,
                None if started.elapsed() > PATIENCE => {
                    return Err(QueueError::unavailable("take the job")(error).into());
                }
                None => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
        unreachable!("every job has a place, and they are gone round for ever")
    }

    /// A job's message, read from the partition that refused a second one.
    async fn message_there(&self, spec: &JobSpec, partition: PartitionId) -> Result<Option<Message>, QueueError> {
        let stream = jobs_stream(spec.id.topic(), partition);
        self.last_message("find the job", &stream, job_subject(&spec.id, partition), true).await
    }
}

/// The partition that a job belongs to. Jobs of one owner share a partition, so that a heavy user delays
/// others in that partition only: workers take from all partitions in turn.
pub fn place(topic: &Topic, spec: &JobSpec) -> PartitionId {
    let (count, priority) = (topic.settings.partitions, spec.options.priority);
    match (&spec.options.partition_key, spec.origin.lane) {
        (None, Some(lane)) if lane < count => PartitionId::new(lane, priority),
        (key, _) => PartitionId::of_job(
            &spec.id,
            key.as_ref().or(spec.origin.owner.as_ref()).map(String::as_str),
            count,
            priority,
        ),
    }
}

/// The partitions that may take a new job, the one that it belongs to first. That is the only one if
/// the job's key, its order or its position in a log matters, or if the topic has no replicas:
/// another one would be on the same server, which does not answer.
fn places(topic: &Topic, spec: &JobSpec) -> Vec<PartitionId> {
    let (own, count) = (place(topic, spec), topic.settings.partitions);
    let is_bound = spec.options.partition_key.is_some() || topic.settings.ordered;
    if is_bound || topic.settings.retention != Retention::Work || topic.replicas < 2 {
        return vec![own];
    }
    (0..count).map(|step| PartitionId::new((own.index() + step) % count, own.priority())).take(PLACES_MAX).collect()
}

/// Where a job's message is.
pub(in crate::client) struct Placed {
    /// The specification in the message, if another request published it.
    pub(in crate::client) theirs: Option<Box<JobSpec>>,
    pub(in crate::client) partition: PartitionId,
    pub(in crate::client) sequence: Sequence,
}
