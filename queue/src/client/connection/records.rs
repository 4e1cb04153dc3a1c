//! Reading records, and changing them by compare-and-set.

use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream;
use bytes::Bytes;
use futures::StreamExt;

use super::messages::Message;
use super::revision::Revision;
use super::{Connection, PATIENCE, RETRY_PAUSE, WRITE_IN_FLIGHT, bounded, server_error};
use crate::error::chain;
use crate::topic::{job_subject, jobs_stream, record_subject, records_stream};
use crate::{JobId, QueueError, Record, Topic};

/// Pause while another write of the same record is in flight in a cluster.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(2);
/// Partitions that are asked for a job at a time.
const LOOKS_AT_ONCE: usize = 16;

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The record.
    pub record: Record,
    /// What a change must name to replace exactly this.
    pub revision: Revision,
}

/// Outcome of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// It is durable, as this revision.
    Done(Revision),
    /// Another process was faster: read again and decide.
    Refused,
}

impl Connection {
    /// A job's record, or `None` if there never was one or it has expired.
    ///
    /// Reads what the stream's leader has, so states never go back.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn find_record(&self, id: &JobId) -> Result<Option<Stored>, QueueError> {
        let Some(topic) = self.topic(id.topic()).await? else { return Ok(None) };
        let started = Instant::now();
        loop {
            let read = bounded(self.read(&topic, id)).await;
            match read.unwrap_or_else(|error| Err(QueueError::unavailable("read a record")(error))) {
                Err(error) if error.is_retryable() && started.elapsed() < PATIENCE => {
                    tracing::debug!(%error, "reading a record again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                verdict => return verdict,
            }
        }
    }

    /// A job's current state: from its record, or from its message while the record is not written yet.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn find_job(&self, id: &JobId) -> Result<Option<Stored>, QueueError> {
        if let Some(stored) = self.find_record(id).await? {
            return Ok(Some(stored));
        }
        let arriving = self.arriving(id).await;
        // Meanwhile the record may have been written and the message removed.
        match self.find_record(id).await? {
            Some(stored) => Ok(Some(stored)),
            None => arriving,
        }
    }

    /// A job that only its message shows: just accepted, its record not yet written. It can be changed
    /// like a record that was read as revision 0.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    async fn arriving(&self, id: &JobId) -> Result<Option<Stored>, QueueError> {
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
        // It may be in the partition that did not answer.
        silent.map_or(Ok(None), Err)
    }

    async fn read(&self, topic: &Topic, id: &JobId) -> Result<Option<Stored>, QueueError> {
        Ok(match self.read_raw(topic, id).await? {
            Some((payload, revision)) => {
                let damaged = |problem: serde_json::Error| QueueError::Damaged {
                    what: format!("record of {id}"),
                    problem: problem.to_string(),
                };
                Some(Stored { record: serde_json::from_slice(&payload).map_err(damaged)?, revision })
            }
            None => None,
        })
    }

    async fn read_raw(&self, topic: &Topic, id: &JobId) -> Result<Option<(Bytes, Revision)>, QueueError> {
        let (stream, from_leader) = (records_stream(id.topic()), topic.replicas > 1);
        let message = self.last_message("read a record", &stream, record_subject(id), from_leader).await?;
        Ok(message.map(|message| (message.payload, Revision::from(message.sequence.0))))
    }

    /// Writes a job's first record, if it has none.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub(in crate::client) async fn create(&self, record: &Record) -> Result<Replaced, QueueError> {
        self.replace(Revision::default(), record).await
    }

    /// Replaces exactly the record that was read as `revision`.
    ///
    /// A terminal record is given the topic's result TTL; others never expire.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub(in crate::client) async fn replace(&self, revision: Revision, record: &Record) -> Result<Replaced, QueueError> {
        let id = &record.spec.id;
        let topic = self.topic(id.topic()).await?.ok_or_else(|| QueueError::Unavailable {
            action: "write a record",
            problem: format!("topic {} does not exist", id.topic()),
        })?;
        let payload = Bytes::from(serde_json::to_vec(record).expect("a record holds JSON values only"));
        let ttl = record.is_terminal().then(|| topic.record_ttl(&record.spec.options));
        let started = Instant::now();
        loop {
            let mut message =
                PublishMessage::build().payload(payload.clone()).expected_last_subject_sequence(revision.into());
            if let Some(ttl) = ttl {
                message = message.ttl(ttl);
            }
            let error = match self.publish_acked(record_subject(id), message).await {
                Ok(sequence) => return Ok(Replaced::Done(Revision::from(sequence.0))),
                Err(error) => error,
            };
            match verdict(&error) {
                // Perhaps by our own earlier write whose answer was lost; then the stored bytes
                // are ours.
                WriteOutcome::Outrun => {
                    return Ok(match self.read_raw(&topic, id).await? {
                        Some((stored, revision)) if stored == payload => Replaced::Done(revision),
                        _ => Replaced::Refused,
                    });
                }
                WriteOutcome::Unknown if started.elapsed() > PATIENCE => {
                    return Err(QueueError::unavailable("write a record")(error));
                }
                WriteOutcome::Unknown => {
                    tracing::debug!(job_id = %id, error = chain(&error), "writing a record again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                WriteOutcome::InFlight if started.elapsed() <= PATIENCE => tokio::time::sleep(IN_FLIGHT_PAUSE).await,
                WriteOutcome::InFlight => return Err(QueueError::unavailable("write a record")(error)),
                WriteOutcome::TooLarge => {
                    let max_payload = self.max_payload();
                    return Err(QueueError::TooLarge { bytes: payload.len(), max_payload });
                }
            }
        }
    }

    /// The document under a subject, and the revision that a change of it must name; `None` if it does not
    /// exist. Creates the stream if it is missing. `what` names the document in an error.
    pub(in crate::client) async fn read_document<T: serde::de::DeserializeOwned>(
        &self,
        action: &'static str,
        config: stream::Config,
        subject: String,
        what: &str,
    ) -> Result<Option<(T, Revision)>, QueueError> {
        let name = config.name.clone();
        self.ensure_stream_once(config).await?;
        let Some(message) = self.last_message(action, &name, subject, true).await? else { return Ok(None) };
        let document = serde_json::from_slice(&message.payload);
        let document =
            document.map_err(|error| QueueError::Damaged { what: what.to_owned(), problem: error.to_string() })?;
        Ok(Some((document, Revision::from(message.sequence.0))))
    }

    /// Replaces exactly the small record that was read as `over`, without retries.
    pub(in crate::client) async fn write_over(
        &self,
        action: &'static str,
        subject: String,
        over: Revision,
        record: &impl serde::Serialize,
    ) -> Result<Replaced, QueueError> {
        let payload = Bytes::from(serde_json::to_vec(record).expect("a record holds JSON values only"));
        let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(over.into());
        match self.publish_acked(subject, message).await {
            Ok(sequence) => Ok(Replaced::Done(Revision::from(sequence.0))),
            Err(error) => match verdict(&error) {
                // `InFlight`, in a cluster: another write has begun, and will be the first.
                WriteOutcome::Outrun | WriteOutcome::InFlight => Ok(Replaced::Refused),
                WriteOutcome::TooLarge | WriteOutcome::Unknown => Err(QueueError::unavailable(action)(error)),
            },
        }
    }
}

enum WriteOutcome {
    Outrun,
    InFlight,
    TooLarge,
    Unknown,
}

fn verdict(error: &PublishError) -> WriteOutcome {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => return WriteOutcome::Outrun,
        PublishErrorKind::MaxPayloadExceeded => return WriteOutcome::TooLarge,
        _ => {}
    }
    match server_error(error) {
        Some(refusal) if refusal.error_code() == WRITE_IN_FLIGHT => WriteOutcome::InFlight,
        _ => WriteOutcome::Unknown,
    }
}
