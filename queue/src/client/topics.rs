//! Finding topics. The streams are the registry; what was found is remembered, and looked at again
//! once a second or when somebody says that it has changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, Config};
use async_nats::jetstream::{Error, ErrorCode};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::time::MissedTickBehavior;

use super::{Queue, bounded, server_error};
use crate::error::chain;
use crate::topic::{Settings, records_stream, set_settings, topic_subject, workers_config};
use crate::{Priority, QueueError, Topic, TopicError, TopicName};

/// The stream is there already, with another configuration.
const NAME_IN_USE: ErrorCode = ErrorCode(10058);
pub(super) const STREAM_NOT_FOUND: ErrorCode = ErrorCode(10059);
/// How often all topics are looked at, whether or not somebody said that one has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Queue {
    /// The topic of `model`, created with the defaults if it is not there.
    ///
    /// May be called by many processes at once, and again after a crash halfway.
    ///
    /// # Errors
    /// [`TopicError`] when the queue does not answer or refuses.
    pub async fn ensure_topic(&self, name: &TopicName, model: &str) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = self.topic(name).await? {
            return Ok(topic);
        }
        let settings = self.defaults.settings(name.clone(), Some(model));
        match self.create_topic(settings, self.defaults.replicas).await {
            Err(TopicError::Exists(_)) => self.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone())),
            created => created,
        }
    }

    /// The topic, with partitions of this priority.
    ///
    /// # Errors
    /// [`TopicError`] when they are not there and cannot be made.
    pub async fn ensure_priority(&self, topic: &Arc<Topic>, priority: Priority) -> Result<Arc<Topic>, TopicError> {
        if topic.has(priority) {
            return Ok(topic.clone());
        }
        let add = |settings: &mut Settings| {
            if !settings.has(priority) {
                settings.priorities.push(priority);
            }
        };
        self.alter_topic(topic.name(), None, add).await
    }

    /// The topic, if it exists.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn topic(&self, name: &TopicName) -> Result<Option<Arc<Topic>>, QueueError> {
        if let Some(topic) = self.topics.read().expect("no panic holds this lock").get(name) {
            return Ok(Some(topic.clone()));
        }
        self.read_topic(name).await
    }

    /// The same, as it stands in the queue now.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn read_topic(&self, name: &TopicName) -> Result<Option<Arc<Topic>>, QueueError> {
        let unavailable = "find the topic";
        let stream = bounded(self.jetstream.get_stream(records_stream(name))).await;
        match stream.map_err(QueueError::unavailable(unavailable))? {
            Ok(stream) => Ok(Some(self.remember(Topic::from_records_stream(&stream.cached_info().config)?))),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == STREAM_NOT_FOUND => {
                    self.topics.write().expect("no panic holds this lock").remove(name);
                    Ok(None)
                }
                _ => Err(QueueError::unavailable(unavailable)(error)),
            },
        }
    }

    /// All topics, in the order of their names.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn topics(&self) -> Result<Vec<Arc<Topic>>, QueueError> {
        let mut found = HashMap::new();
        for config in self.stream_configs("records.>").await? {
            match Topic::from_records_stream(&config) {
                Ok(topic) => drop(found.insert(topic.name().clone(), Arc::new(topic))),
                // Somebody else's stream is no reason to stop work.
                Err(error) => tracing::warn!(%error, "not a topic"),
            }
        }
        let mut topics: Vec<Arc<Topic>> = found.values().cloned().collect();
        *self.topics.write().expect("no panic holds this lock") = found;
        topics.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(topics)
    }

    /// Configurations of the streams that hold subjects of this kind.
    pub(super) async fn stream_configs(&self, subject: &str) -> Result<Vec<Config>, QueueError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Page {
            Streams { total: usize, streams: Option<Vec<stream::Info>> },
            Refused { error: Error },
        }
        const ACTION: &str = "list its topics";
        let mut configs = Vec::new();
        loop {
            let wanted = json!({ "offset": configs.len(), "subject": subject });
            let page = bounded(self.jetstream.request("STREAM.LIST", &wanted))
                .await
                .map_err(QueueError::unavailable(ACTION))?;
            match page.map_err(QueueError::unavailable(ACTION))? {
                Page::Refused { error } => return Err(QueueError::unavailable(ACTION)(error)),
                Page::Streams { total, streams } => {
                    let streams = streams.unwrap_or_default();
                    let is_last = streams.is_empty();
                    configs.extend(streams.into_iter().map(|info| info.config));
                    if is_last || configs.len() >= total {
                        return Ok(configs);
                    }
                }
            }
        }
    }

    /// Keeps what is remembered of topics true, for as long as it is awaited.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn follow_topics(&self) -> Result<(), QueueError> {
        let mut changes = self.topic_changes().await?;
        let mut due = tokio::time::interval(LOOK_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = due.tick() => {}
                change = changes.next() => {
                    if change.is_none() {
                        let problem = "the connection is closed".to_owned();
                        return Err(QueueError::Unavailable { action: "follow topics", problem });
                    }
                }
            }
            if let Err(error) = self.topics().await {
                tracing::debug!(%error, "topics not listed");
            }
        }
    }

    /// Names of topics whose settings have just changed, or that are gone.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn topic_changes(&self) -> Result<impl futures::Stream<Item = TopicName> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for changed topics", problem };
        let messages = self.listen("topics.*".into()).await.map_err(unavailable)?;
        Ok(messages.filter_map(|message| {
            std::future::ready(message.subject.strip_prefix("topics.").and_then(|name| name.parse().ok()))
        }))
    }

    pub(super) fn remember(&self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.topics.write().expect("no panic holds this lock").insert(topic.name().clone(), topic.clone());
        topic
    }

    /// Tells everybody that a topic has changed. They also look by themselves.
    pub(super) async fn announce_topic(&self, name: &TopicName) {
        if let Err(error) = self.send(topic_subject(name), bytes::Bytes::new()).await {
            tracing::debug!(error, "a changed topic was not announced");
        }
    }

    /// Makes a stream, or finds it as it is.
    pub(super) async fn ensure_stream(&self, config: Config) -> Result<(), QueueError> {
        match self.make_stream(config).await {
            Ok(()) => Ok(()),
            Err(TopicError::Queue(error)) => Err(error),
            Err(error) => Err(QueueError::Unavailable { action: "create a stream", problem: error.to_string() }),
        }
    }

    /// The same, telling what the server can never do from what it cannot do now.
    pub(super) async fn make_stream(&self, config: Config) -> Result<(), TopicError> {
        let created = bounded(self.jetstream.create_stream(config)).await;
        match created.map_err(QueueError::unavailable("create a stream"))? {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                CreateStreamErrorKind::JetStream(refusal) if refusal.error_code() == NAME_IN_USE => Ok(()),
                _ => Err(refused("create a stream", &error)),
            },
        }
    }

    pub(super) async fn ensure_workers(&self, stream: &str, settings: &Settings) -> Result<(), QueueError> {
        let stream = self.handle(&stream).await?;
        // Creates it, or changes it to these settings.
        let consumer = bounded(stream.create_consumer(workers_config(settings))).await;
        let consumer = consumer.map_err(QueueError::unavailable("create a consumer"))?;
        consumer.map(drop).map_err(QueueError::unavailable("create a consumer"))
    }

    /// Writes a topic's settings into its records stream, as `alter` has them.
    pub(super) async fn write_settings(&self, mut config: Config, settings: &Settings) -> Result<(), TopicError> {
        set_settings(&mut config, settings);
        self.update_stream(config).await
    }

    pub(super) async fn update_stream(&self, config: Config) -> Result<(), TopicError> {
        let updated = bounded(self.jetstream.update_stream(config)).await;
        let updated = updated.map_err(QueueError::unavailable("change a stream"))?;
        updated.map(drop).map_err(|error| refused("change a stream", &error))
    }
}

/// A server's verdict, or that it cannot say anything now: while a cluster has no leader, it is 503.
pub(super) fn refused(action: &'static str, error: &(dyn std::error::Error + 'static)) -> TopicError {
    match server_error(error) {
        Some(verdict) if verdict.code() != 503 => TopicError::Refused(verdict.to_string()),
        _ => QueueError::Unavailable { action, problem: chain(error) }.into(),
    }
}
