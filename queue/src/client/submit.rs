//! From an image to a job that cannot be lost.
//!
//! Two durable writes, in this order: the message that holds the image and, in a header, all that
//! the record needs; then the record. A crash between them leaves a job that a worker can begin by
//! itself; the other order would leave a record whose image is nowhere.
//!
//! In a cluster each stream has a leader, and when its server dies the stream has no leader for some
//! seconds. Neither write waits for that: a job that is bound to no partition goes to the next one,
//! and the record is written once it can be, while the job is known by its message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures::StreamExt;

use super::read::{KEY_HEADER, Message};
use super::{LIMIT_REACHED, PATIENCE, Queue, RETRY_PAUSE, Replaced, Revision, Stored, server_error};
use crate::error::chain;
use crate::topic::{Retention, job_subject, jobs_stream};
use crate::{JobId, JobSpec, PartitionId, Priority, QueueError, Record, Sequence, SubmitError, Topic, TopicError};

/// The header that holds the job's [`JobSpec`] as JSON.
pub(crate) const SPEC_HEADER: &str = "Sl-Job";
/// The header of a message that asks for a finished job to be run again: the revision of the record
/// that it takes back.
pub(crate) const AGAIN_HEADER: &str = "Sl-Again";

/// How long a stream with copies may take to acknowledge before its leader is taken for gone.
const LEADER_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a job waits for a connection to the queue.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(2);
/// Partitions that are asked for a job at a time.
const LOOKS_AT_ONCE: usize = 16;
/// Places that a job may be offered to.
const PLACES_MAX: usize = 3;

/// A job that is in the queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// By this request.
    New(Record),
    /// By an earlier request, or one that was faster.
    Existing(Record),
}

impl Submitted {
    /// `asked` is the specification that this request wrote.
    pub(super) fn of(record: Record, asked: &JobSpec) -> Self {
        if record.spec.is_of_request(asked) { Self::New(record) } else { Self::Existing(record) }
    }

    /// The job's record, whoever submitted it.
    pub fn into_record(self) -> Record {
        match self {
            Self::New(record) | Self::Existing(record) => record,
        }
    }
}

impl Queue {
    /// Queues a job. When this returns a record, the image is durable together with all that the
    /// record says; so is the record, unless the topic has copies and its records no leader now.
    ///
    /// Another request for the same job may have been first: then it is [`Submitted::Existing`], with the record of
    /// that one.
    ///
    /// # Errors
    /// [`SubmitError::Full`] and [`SubmitError::TooLarge`] queue nothing. After
    /// [`SubmitError::Queue`] it is not known whether the job will run.
    pub async fn submit(&self, topic: &Arc<Topic>, spec: JobSpec, image: Bytes) -> Result<Submitted, SubmitError> {
        let asked = spec.clone();
        let topic = &self.with_priority(topic, spec.options.priority).await?;
        let placed = self.publish_job(topic, &spec, &places(topic, &spec), image, None).await?;
        let partition = placed.partition;
        // Where the message of another request for this job stands, its record is written: that image is
        // what will run.
        let record = Record::queued(placed.theirs.map_or(spec, |theirs| *theirs), partition, placed.sequence);
        let record = match self.create_soon(topic, &record).await? {
            Some(Replaced::Done(_)) | None => record,
            // A worker was faster than we were: the job is known.
            Some(Replaced::Refused) => match self.record(&record.spec.id).await? {
                Some(stored) => stored.record,
                None => record,
            },
        };
        self.wake(&record.spec.id, partition).await;
        Ok(Submitted::of(record, &asked))
    }

    /// Writes a new job's record. `None`: its stream has no leader now; it is written when it has.
    /// Should this process end before, the job's worker writes it.
    async fn create_soon(&self, topic: &Topic, record: &Record) -> Result<Option<Replaced>, QueueError> {
        if topic.replicas < 2 {
            return self.create(record).await.map(Some);
        }
        // Two requests may be for a job whose id follows from something: only its record decides between them.
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
                Err(_) if matches!(self.read_topic(record.spec.id.topic()).await, Ok(None)) => {
                    return Replaced::Refused;
                }
                Err(error) => {
                    tracing::warn!(job_id = %record.spec.id, %error, "record not written yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// A job as its message shows it: accepted just now, its record not yet written. A change may be
    /// made to it like to one that was read as revision 0.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub(super) async fn arriving(&self, id: &JobId) -> Result<Option<Stored>, QueueError> {
        let Some(topic) = self.topic(id.topic()).await?.filter(|topic| topic.replicas > 1) else { return Ok(None) };
        let looks = topic.partitions().map(|partition| async move {
            let stream = jobs_stream(id.topic(), partition);
            let found = self.last_message("look for the job", &stream, job_subject(id, partition), true).await?;
            let spec = found.as_ref().and_then(Message::spec).filter(|spec| spec.id == *id);
            Ok(found.zip(spec).map(|(message, spec)| Record::queued(spec, partition, message.sequence)))
        });
        let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let mut silent = None;
        while let Some(look) = looks.next().await {
            match look {
                Ok(Some(record)) => return Ok(Some(Stored { record, revision: Revision::default() })),
                Ok(None) => {}
                Err(error) => silent = Some(error),
            }
        }
        // It may lie in the partition that did not answer.
        silent.map_or(Ok(None), Err)
    }

    /// The topic with partitions for this priority, which are made with their first job.
    async fn with_priority(&self, topic: &Arc<Topic>, priority: Priority) -> Result<Arc<Topic>, SubmitError> {
        if topic.has(priority) {
            return Ok(topic.clone());
        }
        if topic.settings.ordered {
            return Err(SubmitError::OnePriority(topic.name().clone()));
        }
        self.add_priority(topic.name(), priority).await.map_err(|error| match error {
            TopicError::Unknown(name) => SubmitError::NoTopic(name),
            TopicError::Queue(error) => error.into(),
            other => {
                QueueError::Unavailable { action: "make room for the priority", problem: other.to_string() }.into()
            }
        })
    }

    /// Writes one message to a plain log. Messages of one key lie in one partition, in order.
    ///
    /// # Errors
    /// [`SubmitError`]. After [`SubmitError::Queue`] it is not known whether it is written.
    pub async fn append(
        &self,
        topic: &Topic,
        key: Option<&str>,
        payload: Bytes,
    ) -> Result<(JobId, PartitionId, Sequence), SubmitError> {
        let id = JobId::random(topic.name().clone());
        let partition = PartitionId::of_job(&id, key, topic.settings.partitions, Priority::Normal);
        let bytes = payload.len();
        let started = Instant::now();
        let sequence = loop {
            let mut message = PublishMessage::build().payload(payload.clone()).expected_last_subject_sequence(0);
            if let Some(key) = key {
                message = message.header(KEY_HEADER, ascii_json(&key).as_str());
            }
            let error = match self.publish_acked(job_subject(&id, partition), message).await {
                Ok(sequence) => break sequence,
                Err(error) => error,
            };
            match refusal(&error) {
                Some(Refusal::NoStream) if matches!(self.read_topic(topic.name()).await, Ok(None)) => {
                    return Err(SubmitError::NoTopic(topic.name().clone()));
                }
                // In a cluster: until there is a leader, or until all servers know the new stream.
                Some(Refusal::NoStream) if started.elapsed() < PATIENCE => tokio::time::sleep(RETRY_PAUSE).await,
                Some(Refusal::TooLarge) => {
                    return Err(SubmitError::TooLarge { bytes, max_payload: self.max_payload() });
                }
                Some(Refusal::Full) => return Err(SubmitError::Full { topic: topic.name().to_string() }),
                _ => return Err(QueueError::unavailable("write the message")(error).into()),
            }
        };
        self.wake(&id, partition).await;
        Ok((id, partition, sequence))
    }

    /// Publishes a job's message to the first of these places that has a leader; where none has,
    /// waits. `again` is given for one that was finished: the revision of the record that this takes
    /// back, and where the input lay before.
    ///
    /// A message may be stored at a place that did not say so in time, and then at another one too:
    /// the record names one of them, and a worker lets the other go.
    pub(super) async fn publish_job(
        &self,
        topic: &Topic,
        spec: &JobSpec,
        places: &[PartitionId],
        image: Bytes,
        again: Option<(Revision, Sequence)>,
    ) -> Result<Placed, SubmitError> {
        let header = ascii_json(spec);
        let started = Instant::now();
        // Whether the topic is still there is for its leaders to say, and they take long if they are
        // what is missing.
        let (patience, asking_after) =
            if topic.replicas > 1 { (LEADER_PATIENCE, 2 * LEADER_PATIENCE) } else { (PATIENCE, Duration::ZERO) };
        // Without a connection the client would keep the message and send it later, after all was said.
        while !self.is_connected() {
            if started.elapsed() > CONNECTION_PATIENCE {
                let problem = "not connected to it; nothing was accepted".to_owned();
                return Err(QueueError::Unavailable { action: "take the job", problem }.into());
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        // A message may be stored of which we do not know.
        let mut is_unknown = false;
        // Where the subject's last message lies that this one is to follow, in a log.
        let mut before = again.map_or(0, |(_, before)| before.0);
        for (turn, partition) in places.iter().copied().enumerate().cycle() {
            let has_next = turn + 1 < places.len() && started.elapsed() < PATIENCE && self.is_connected();
            let mut message = PublishMessage::build().header(SPEC_HEADER, header.as_str()).payload(image.clone());
            if let Some((revision, _)) = again {
                message = message.header(AGAIN_HEADER, u64::from(revision).to_string().as_str());
            }
            if topic.settings.retention != Retention::Work {
                // A work queue's stream takes one message a subject by itself.
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
                    // An earlier try was stored, only its answer was lost; or another request was first.
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
                    // The message of the run that this one takes back: it is no longer needed.
                    Some(message) if topic.settings.retention == Retention::Work => {
                        self.remove_message(&spec.id, partition, message.sequence).await?;
                    }
                    Some(message) => before = message.sequence.0,
                    // It has aged out of the log; or its worker has just let it go.
                    None if started.elapsed() > PATIENCE => {
                        return Err(QueueError::unavailable("take the job")(error).into());
                    }
                    None => {
                        before = 0;
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                },
                // In a cluster: this one has no leader now, another one may have.
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
                        && matches!(self.read_topic(spec.id.topic()).await, Ok(None)) =>
                {
                    return Err(SubmitError::NoTopic(spec.id.topic().clone()));
                }
                // In a cluster: until there is a leader again.
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

    /// Publishes and waits for the acknowledgement, which means that the message is durable.
    pub(super) async fn publish_acked(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Result<Sequence, PublishError> {
        let ack = self.jetstream.send_publish(subject, message).await?.await?;
        Ok(Sequence(ack.sequence))
    }

    /// A job's message, read where it was said to be.
    async fn message_there(&self, spec: &JobSpec, partition: PartitionId) -> Result<Option<Message>, QueueError> {
        let stream = jobs_stream(spec.id.topic(), partition);
        self.last_message("find the job", &stream, job_subject(&spec.id, partition), true).await
    }

    /// The position of a job's message, if it is in the partition.
    pub(super) async fn message_sequence(
        &self,
        id: &JobId,
        partition: PartitionId,
    ) -> Result<Option<Sequence>, QueueError> {
        let stream = jobs_stream(id.topic(), partition);
        let message = self.last_message("find the job", &stream, job_subject(id, partition), true).await?;
        Ok(message.map(|message| message.sequence))
    }
}

/// The partition that a job belongs to. Jobs of one owner lie together, so that one who floods a topic
/// makes others wait in one partition only: workers take from all of them in turn.
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

/// The partitions that may take a new job, the one that it belongs to first. Where its key, its
/// order or its place in a log matters, that is the only one; and without copies it would be on the
/// same server that does not answer.
fn places(topic: &Topic, spec: &JobSpec) -> Vec<PartitionId> {
    let (own, count) = (place(topic, spec), topic.settings.partitions);
    let is_bound = spec.options.partition_key.is_some() || topic.settings.ordered;
    if is_bound || topic.settings.retention != Retention::Work || topic.replicas < 2 {
        return vec![own];
    }
    (0..count).map(|step| PartitionId::new((own.index() + step) % count, own.priority())).take(PLACES_MAX).collect()
}

/// Where a job's message is.
pub(super) struct Placed {
    /// What the message says of itself, if another request has published it.
    pub(super) theirs: Option<Box<JobSpec>>,
    pub(super) partition: PartitionId,
    pub(super) sequence: Sequence,
}

enum Refusal {
    AlreadyThere,
    Full,
    TooLarge,
    NoStream,
}

/// What a failed publish says, if it is a verdict and not only a lost answer.
fn refusal(error: &PublishError) -> Option<Refusal> {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => return Some(Refusal::TooLarge),
        PublishErrorKind::WrongLastSequence => return Some(Refusal::AlreadyThere),
        PublishErrorKind::StreamNotFound => return Some(Refusal::NoStream),
        _ => {}
    }
    let refused = server_error(error).filter(|refusal| refusal.error_code() == LIMIT_REACHED)?;
    // One code for all limits; the text tells them apart.
    let per_subject = refused.to_string().contains("per subject");
    Some(if per_subject { Refusal::AlreadyThere } else { Refusal::Full })
}

/// JSON with every character above ASCII escaped, since headers are not meant for others.
pub(super) fn ascii_json(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_string(value).expect("what goes into headers holds strings and numbers only");
    let mut ascii = String::with_capacity(json.len());
    for unit in json.chars() {
        if unit.is_ascii() {
            ascii.push(unit);
        } else {
            let mut units = [0; 2];
            unit.encode_utf16(&mut units).iter().for_each(|unit| ascii.push_str(&format!("\\u{unit:04x}")));
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_header_is_plain_ascii_and_reads_back() {
        let mut spec: crate::JobSpec = serde_json::from_value(serde_json::json!({
            "id": "cats.0199d2a4-0000-7000-8000-000000000000", "model": "cats", "model_version": 1,
            "model_digest": "d", "created_at": "2026-11-23T17:00:00Z",
            "image": {"width": 1, "height": 1, "format": "png", "bytes": 1, "sha256": "s"},
        }))
        .expect("reads");
        spec.metadata.insert("Käse".into(), "\u{1F431}\r\nNats-Rollup: all".into());
        let header = super::ascii_json(&spec);
        assert!(header.is_ascii() && !header.contains(['\r', '\n']), "{header}");
        assert_eq!(serde_json::from_str::<crate::JobSpec>(&header).expect("reads"), spec);
    }
}
