//! Messages as stored in a stream, read without being taken.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};

use super::{ANSWER_TIMEOUT, Connection, Revision, bounded};
use crate::client::headers::{AGAIN_HEADER, ATTEMPTS_HEADER, ERROR_HEADER, KEY_HEADER, SPEC_HEADER};
use crate::record::Attempt;
use crate::topic::{job_filter, job_subject, jobs_stream};
use crate::{JobId, JobSpec, PartitionId, QueueError, Sequence, Timestamp, TopicName};

const STREAM_NOT_FOUND: ErrorCode = ErrorCode(10059);

/// Messages that one request of a scan returns.
const SCAN_BATCH: usize = 500;
/// Bytes that one request of a scan returns, approximately.
const SCAN_BYTES: usize = 16 << 20;
/// How long the server keeps a scan that is not continued.
const SCAN_IDLE: Duration = Duration::from_secs(60);

/// A message as stored in a stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its subject; the last token is a job's uuid.
    pub subject: String,
    /// Its position in its stream.
    pub sequence: Sequence,
    /// When it was stored.
    pub time: Timestamp,
    /// What was stored; empty if only headers were requested.
    pub payload: Bytes,
    headers: HeaderMap,
}

impl Message {
    /// The job that it belongs to.
    pub fn job_id(&self) -> Option<JobId> {
        let mut tokens = self.subject.split('.').skip(1);
        let (topic, uuid) = (tokens.next()?, self.subject.rsplit('.').next()?);
        format!("{topic}.{uuid}").parse().ok()
    }

    /// The job's specification, if it is a job's message.
    pub fn spec(&self) -> Option<JobSpec> {
        serde_json::from_str(self.header(SPEC_HEADER)?).ok()
    }

    /// The key that it was produced with.
    pub fn key(&self) -> Option<String> {
        // As JSON, since headers are ASCII.
        let plain = self.header(KEY_HEADER).and_then(|json| serde_json::from_str(json).ok());
        plain.or_else(|| self.spec().and_then(|spec| spec.options.partition_key))
    }

    /// Why its job failed, if it is a dead letter.
    pub fn error(&self) -> Option<&str> {
        self.header(ERROR_HEADER)
    }

    /// The revision of the record that it replaces, if it retries a finished job.
    pub(in crate::client) fn again(&self) -> Option<Revision> {
        Some(Revision::from(self.header(AGAIN_HEADER)?.parse::<u64>().ok()?))
    }

    /// Its job's attempts, if it is a dead letter.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.header(ATTEMPTS_HEADER).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    }

    /// Bytes of its payload, even if only headers were requested.
    pub fn payload_bytes(&self) -> u64 {
        let said = self.header("Nats-Msg-Size").and_then(|size| size.parse().ok());
        said.unwrap_or(self.payload.len() as u64)
    }

    /// A message as a consumer hands it out.
    pub(in crate::client) fn delivered(message: &async_nats::jetstream::Message) -> Result<Self, QueueError> {
        let info = message
            .info()
            .map_err(|error| QueueError::Unavailable { action: "find a message", problem: error.to_string() })?;
        Ok(Self {
            sequence: Sequence(info.stream_sequence),
            time: timestamp(info.published),
            subject: message.subject.to_string(),
            payload: message.payload.clone(),
            headers: message.headers.clone().unwrap_or_default(),
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }
}

impl From<StreamMessage> for Message {
    fn from(message: StreamMessage) -> Self {
        Self {
            subject: message.subject.into_string(),
            sequence: Sequence(message.sequence),
            time: timestamp(message.time),
            payload: message.payload,
            headers: message.headers,
        }
    }
}

/// Converts a moment of the client's type.
pub(in crate::client) fn timestamp(time: async_nats::datetime::DateTime) -> Timestamp {
    Timestamp::from_millis((time.unix_timestamp_nanos() / 1_000_000) as i64)
}

/// Whether a read failed because the stream does not exist.
pub(in crate::client) fn is_without_stream(kind: LastRawMessageErrorKind) -> bool {
    matches!(kind, LastRawMessageErrorKind::JetStream(verdict) if verdict.error_code() == STREAM_NOT_FOUND)
}

impl Connection {
    /// The last message of a subject. `from_leader` is for streams with replicas, since a replica that
    /// lags may answer a direct get.
    pub(in crate::client) async fn last_message(
        &self,
        action: &'static str,
        stream: &str,
        subject: String,
        from_leader: bool,
    ) -> Result<Option<Message>, QueueError> {
        let stream = self.handle(stream).await?;
        if from_leader {
            let read = bounded(stream.get_last_raw_message_by_subject(&subject)).await;
            return match read.map_err(QueueError::unavailable(action))? {
                Ok(message) => Ok(Some(message.into())),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                // The stream was removed with all its messages.
                Err(error) if is_without_stream(error.kind()) => Ok(None),
                Err(error) => Err(QueueError::unavailable(action)(error)),
            };
        }
        let read = bounded(stream.direct_get_last_for_subject(subject)).await;
        match read.map_err(QueueError::unavailable(action))? {
            Ok(message) => Ok(Some(message.into())),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(QueueError::unavailable(action)(error)),
        }
    }

    /// The next message of a consumer, if one waits.
    pub(in crate::client) async fn fetch_one(
        action: &'static str,
        consumer: &PullConsumer,
    ) -> Result<Option<async_nats::jetstream::Message>, QueueError> {
        let unavailable = |problem: String| QueueError::Unavailable { action, problem };
        let page = bounded(consumer.fetch().max_messages(1).expires(ANSWER_TIMEOUT).messages()).await;
        let page = page.map_err(QueueError::unavailable(action))?;
        let mut page = page.map_err(|error| unavailable(error.to_string()))?;
        page.next().await.transpose().map_err(|error| unavailable(error.to_string()))
    }

    /// All messages of a stream from the first to the current last one, each once. Not for work queues,
    /// whose messages are handed out to workers only.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer; an item is an error when it stops answering.
    pub(in crate::client) async fn scan(
        &self,
        stream: &str,
        headers_only: bool,
    ) -> Result<impl Stream<Item = Result<Message, QueueError>> + use<>, QueueError> {
        self.scan_from(stream, Sequence(1), headers_only).await
    }

    /// The same, from a position on.
    pub(in crate::client) async fn scan_from(
        &self,
        stream: &str,
        start: Sequence,
        headers_only: bool,
    ) -> Result<impl Stream<Item = Result<Message, QueueError>> + use<>, QueueError> {
        const ACTION: &str = "read a stream";
        let handle = self.handle(stream).await?;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: start.0 },
            inactive_threshold: SCAN_IDLE,
            memory_storage: true,
            num_replicas: 1,
            headers_only,
            ..pull::Config::default()
        };
        let consumer = bounded(handle.create_consumer(config))
            .await
            .map_err(QueueError::unavailable(ACTION))?
            .map_err(QueueError::unavailable(ACTION))?;
        let left = consumer.cached_info().num_pending;
        let name = consumer.cached_info().name.clone();
        let pages = futures::stream::try_unfold((consumer, left, 0_u32), move |(consumer, left, empty)| {
            let (handle, name) = (handle.clone(), name.clone());
            async move {
                if left == 0 {
                    drop(handle.delete_consumer(&name).await);
                    return Ok::<_, QueueError>(None);
                }
                if empty > 1 {
                    let problem = format!("{left} messages did not come");
                    return Err(QueueError::Unavailable { action: ACTION, problem });
                }
                let page = consumer
                    .fetch()
                    .max_messages(SCAN_BATCH)
                    .max_bytes(SCAN_BYTES)
                    .expires(ANSWER_TIMEOUT)
                    .messages()
                    .await;
                let mut page = page.map_err(QueueError::unavailable("read a stream"))?;
                let mut messages = Vec::new();
                let mut last_left = left;
                while let Some(message) = page.next().await {
                    let message = message.map_err(|error| QueueError::Unavailable {
                        action: "read a stream",
                        problem: error.to_string(),
                    })?;
                    last_left = message.info().map_or(0, |info| info.pending);
                    messages.push(Message::delivered(&message));
                }
                let empty = if messages.is_empty() { empty + 1 } else { 0 };
                if empty > 0 {
                    // Messages that are removed while we read never arrive: ask how many remain.
                    let info = bounded(handle.consumer_info(&name)).await.map_err(QueueError::unavailable(ACTION))?;
                    last_left = info.map_err(QueueError::unavailable(ACTION))?.num_pending;
                }
                Ok(Some((futures::stream::iter(messages), (consumer, last_left, empty))))
            }
        });
        Ok(futures::TryStreamExt::try_flatten(pages))
    }

    /// Ids of the jobs whose messages are in a partition.
    pub(in crate::client) async fn queued_ids(
        &self,
        name: &TopicName,
        partition: PartitionId,
    ) -> Result<Vec<JobId>, QueueError> {
        const ACTION: &str = "list a partition's jobs";
        let stream = self.handle(&jobs_stream(name, partition)).await?;
        let mut subjects =
            stream.info_with_subjects(job_filter(name, partition)).await.map_err(QueueError::unavailable(ACTION))?;
        let mut ids = Vec::new();
        while let Some((subject, _)) = subjects.try_next().await.map_err(QueueError::unavailable(ACTION))? {
            if let Ok((id, _)) = JobId::from_subject(&subject) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// The position of a job's message, if it is in the partition.
    pub(in crate::client) async fn message_sequence(
        &self,
        id: &JobId,
        partition: PartitionId,
    ) -> Result<Option<Sequence>, QueueError> {
        let stream = jobs_stream(id.topic(), partition);
        let message = self.last_message("find the job", &stream, job_subject(id, partition), true).await?;
        Ok(message.map(|message| message.sequence))
    }
}
