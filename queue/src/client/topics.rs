//! Making topics and finding them. The streams are the registry.

use std::sync::Arc;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::{ErrorCode, stream};
use futures::TryStreamExt;

use super::{Queue, bounded};
use crate::topic::{dead_config, jobs_config, records_config, records_stream, workers_config};
use crate::{QueueError, Topic, TopicName};

/// The stream is there already, with another configuration.
const NAME_IN_USE: ErrorCode = ErrorCode(10058);
const STREAM_NOT_FOUND: ErrorCode = ErrorCode(10059);

impl Queue {
    /// The topic of `model`, created with the defaults if it is not there.
    ///
    /// May be called by many processes at once, and again after a crash halfway: each step either
    /// makes its stream or finds it, and the records stream, which makes the topic visible, comes
    /// last.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer or refuses.
    pub async fn ensure_topic(&self, name: &TopicName, model: &str) -> Result<Arc<Topic>, QueueError> {
        if let Some(topic) = self.topic(name).await? {
            return Ok(topic);
        }
        let settings = self.defaults.settings(name.clone(), model);
        self.ensure_stream(dead_config(&settings, &self.defaults)).await?;
        for index in 0..settings.partitions {
            let config = jobs_config(&settings, crate::PartitionId::normal(index), &self.defaults);
            let stream = config.name.clone();
            self.ensure_stream(config).await?;
            self.ensure_workers(&stream, &settings).await?;
        }
        self.ensure_stream(records_config(&settings, &self.defaults)).await?;
        tracing::info!(topic = %name, partitions = settings.partitions, "topic created");
        // Read it back: another process may have been first, with other settings, and then ours
        // must not stand anywhere. Consumers take over what the topic says.
        let topic = self.topic(name).await?.ok_or_else(|| QueueError::Unavailable {
            action: "create the topic",
            problem: "it vanished right after it was made".into(),
        })?;
        for partition in topic.partitions() {
            self.ensure_workers(&crate::topic::jobs_stream(name, partition), &topic.settings).await?;
        }
        Ok(topic)
    }

    /// The topic, if it exists.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn topic(&self, name: &TopicName) -> Result<Option<Arc<Topic>>, QueueError> {
        if let Some(topic) = self.topics.read().expect("no panic holds this lock").get(name) {
            return Ok(Some(topic.clone()));
        }
        let unavailable = "find the topic";
        let stream = bounded(self.jetstream.get_stream(records_stream(name))).await;
        match stream.map_err(QueueError::unavailable(unavailable))? {
            Ok(stream) => Ok(Some(self.remember(Topic::from_records_stream(&stream.cached_info().config)?))),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == STREAM_NOT_FOUND => Ok(None),
                _ => Err(QueueError::unavailable(unavailable)(error)),
            },
        }
    }

    /// All topics, in the order of their names.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn topics(&self) -> Result<Vec<Arc<Topic>>, QueueError> {
        let unavailable = "list its topics";
        let streams =
            bounded(self.jetstream.streams().try_collect()).await.map_err(QueueError::unavailable(unavailable))?;
        let streams: Vec<stream::Info> = streams.map_err(QueueError::unavailable(unavailable))?;
        let mut topics = Vec::new();
        for info in streams.iter().filter(|info| info.config.name.starts_with("records_")) {
            match Topic::from_records_stream(&info.config) {
                Ok(topic) => topics.push(self.remember(topic)),
                // Somebody else's stream is no reason to stop work.
                Err(error) => tracing::warn!(%error, "not a topic"),
            }
        }
        topics.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(topics)
    }

    fn remember(&self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.topics.write().expect("no panic holds this lock").insert(topic.name().clone(), topic.clone());
        topic
    }

    async fn ensure_stream(&self, config: stream::Config) -> Result<(), QueueError> {
        match self.jetstream.create_stream(config).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                CreateStreamErrorKind::JetStream(refusal) if refusal.error_code() == NAME_IN_USE => Ok(()),
                _ => Err(QueueError::unavailable("create a stream")(error)),
            },
        }
    }

    async fn ensure_workers(&self, stream: &str, settings: &crate::topic::Settings) -> Result<(), QueueError> {
        let stream = self.jetstream.get_stream_no_info(stream).await;
        let stream = stream.map_err(QueueError::unavailable("find a stream"))?;
        // Creates it, or changes it to these settings.
        let consumer = stream.create_consumer(workers_config(settings)).await;
        consumer.map(drop).map_err(QueueError::unavailable("create a consumer"))
    }
}
