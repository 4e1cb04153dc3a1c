//! Finding topics. The streams are the registry; what was found is remembered, and looked at again
//! once a second or when a change is announced.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, Config};
use async_nats::jetstream::{Error, ErrorCode};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::{Queue, bounded};
use crate::topic::{Settings, records_stream, set_settings, topic_subject, workers_config};
use crate::{Priority, QueueError, Timestamp, Topic, TopicError, TopicName};

/// The stream is there already, with another configuration.
const NAME_IN_USE: ErrorCode = ErrorCode(10058);
pub(super) const STREAM_NOT_FOUND: ErrorCode = ErrorCode(10059);
/// A server without a cluster, and a cluster that is too small.
const TOO_MANY_REPLICAS: [ErrorCode; 2] = [ErrorCode(10074), ErrorCode(10005)];
/// How often all topics are read without an announced change.
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
        match self.create_topic(settings, Some(self.defaults.replicas)).await {
            Err(TopicError::Exists(_)) => self.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone())),
            created => created,
        }
    }

    /// Makes the partitions of a priority.
    pub(super) async fn add_priority(&self, name: &TopicName, priority: Priority) -> Result<Arc<Topic>, TopicError> {
        let add = |settings: &mut Settings| {
            // Another process may have been first.
            if !settings.has(priority) {
                settings.priorities.push(priority);
            }
        };
        self.alter_topic(name, None, add).await
    }

    /// The topic as it stands in the queue now, which must be there.
    ///
    /// # Errors
    /// [`TopicError::Unknown`] if it is not.
    pub(super) async fn existing_topic(&self, name: &TopicName) -> Result<Arc<Topic>, TopicError> {
        self.read_topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone()))
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
        Ok(self.read_topic_and_count(name).await?.map(|(topic, _)| topic))
    }

    /// The same, with how many records it holds.
    pub(super) async fn read_topic_and_count(&self, name: &TopicName) -> Result<Option<(Arc<Topic>, u64)>, QueueError> {
        let subject = format!("STREAM.INFO.{}", records_stream(name));
        match self.ask::<stream::Info>("find the topic", &subject, &json!({})).await {
            Ok(info) => {
                let topic = self.remember(Topic::from_records_stream(&info.config)?);
                Ok(Some((topic, info.state.messages)))
            }
            Err(error) if error.is_not_found() => {
                self.topics.write().expect("no panic holds this lock").remove(name);
                Ok(None)
            }
            Err(error) => Err(error.into()),
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
                // A foreign stream must not stop work.
                Err(error) => tracing::warn!(%error, "not a topic"),
            }
        }
        // A cluster leaves out whose leader is silent; only what is said to be gone is forgotten.
        let known: Vec<Arc<Topic>> = self.topics.read().expect("no panic holds this lock").values().cloned().collect();
        for topic in known.into_iter().filter(|topic| topic.replicas > 1) {
            if !found.contains_key(topic.name()) {
                let gone = tokio::time::timeout(LOOK_INTERVAL, self.read_topic(topic.name())).await;
                if !matches!(gone, Ok(Ok(None))) {
                    found.insert(topic.name().clone(), topic);
                }
            }
        }
        let mut topics: Vec<Arc<Topic>> = found.values().cloned().collect();
        *self.topics.write().expect("no panic holds this lock") = found;
        topics.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(topics)
    }

    /// Configurations of the streams that hold subjects of this kind.
    pub(super) async fn stream_configs(&self, subject: &str) -> Result<Vec<Config>, QueueError> {
        Ok(self.stream_infos(subject).await?.into_iter().map(|info| info.config).collect())
    }

    /// All that is known of the streams that hold subjects of this kind.
    pub(super) async fn stream_infos(&self, subject: &str) -> Result<Vec<stream::Info>, QueueError> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            streams: Option<Vec<Value>>,
        }
        let mut infos = Vec::new();
        loop {
            let wanted = json!({ "offset": infos.len(), "subject": subject });
            let asked = SystemTime::now();
            let page: Page = self.ask("list its topics", "STREAM.LIST", &wanted).await?;
            let listed = page.streams.unwrap_or_default();
            // Every description says when it was made, by the server's clock.
            if let Some(server) = listed.first().and_then(|first| first["ts"].as_str()?.parse().ok()) {
                Timestamp::compare(server, asked, SystemTime::now());
            }
            let damaged = |error: serde_json::Error| QueueError::Damaged {
                what: "the list of streams".into(),
                problem: error.to_string(),
            };
            let streams = listed.into_iter().map(serde_json::from_value).collect::<Result<Vec<stream::Info>, _>>();
            let streams = streams.map_err(damaged)?;
            let is_last = streams.is_empty();
            infos.extend(streams);
            if is_last || infos.len() >= page.total {
                return Ok(infos);
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

    /// Announces that a topic has changed. Processes also check by themselves.
    pub(super) async fn announce_topic(&self, name: &TopicName) {
        if let Err(error) = self.send(topic_subject(name), bytes::Bytes::new()).await {
            tracing::debug!(error, "topic change not announced");
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

    /// The same for a stream that every call needs: once a connection, since it stays.
    pub(super) async fn ensure_stream_once(&self, config: Config) -> Result<(), QueueError> {
        if !self.ensured.read().expect("no panic holds this lock").contains(&config.name) {
            let name = config.name.clone();
            self.ensure_stream(config).await?;
            self.ensured.write().expect("no panic holds this lock").insert(name);
        }
        Ok(())
    }

    /// The same, telling what the server can never do from what it cannot do now.
    pub(super) async fn make_stream(&self, config: Config) -> Result<(), TopicError> {
        let made: Result<Value, Ask> =
            self.ask("create a stream", &format!("STREAM.CREATE.{}", config.name), &config).await;
        match made {
            Err(Ask::Refused { error, .. }) if error.error_code() == NAME_IN_USE => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    pub(super) async fn ensure_workers(&self, stream: &str, settings: &Settings) -> Result<(), QueueError> {
        let stream = self.handle(stream).await?;
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
        let subject = format!("STREAM.UPDATE.{}", config.name);
        Ok(self.ask::<Value>("change a stream", &subject, &config).await.map(drop)?)
    }

    /// Asks the server for something, and tells its verdict from its silence.
    pub(super) async fn ask<V: DeserializeOwned>(
        &self,
        action: &'static str,
        subject: &str,
        payload: &impl Serialize,
    ) -> Result<V, Ask> {
        let answer = bounded(self.jetstream.request(subject.to_owned(), payload)).await;
        let answer = answer.map_err(QueueError::unavailable(action))?;
        match answer.map_err(QueueError::unavailable(action))? {
            Response::Ok(value) => Ok(value),
            Response::Err { error } => Err(Ask::Refused { action, error }),
        }
    }
}

/// No good answer to a request.
#[derive(Debug)]
pub(super) enum Ask {
    /// The server's verdict.
    Refused { action: &'static str, error: Error },
    /// No answer.
    Silent(QueueError),
}

impl Ask {
    /// Whether what was asked about is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.code() == 404)
    }
}

impl From<QueueError> for Ask {
    fn from(error: QueueError) -> Self {
        Self::Silent(error)
    }
}

impl From<Ask> for QueueError {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::Refused { action, error } => Self::unavailable(action)(error),
            Ask::Silent(error) => error,
        }
    }
}

impl From<Ask> for TopicError {
    fn from(ask: Ask) -> Self {
        match ask {
            // While a cluster has no leader, it can say nothing: 503.
            Ask::Refused { error, .. } if TOO_MANY_REPLICAS.contains(&error.error_code()) => {
                Self::Refused(format!("it has fewer servers than replicas; pass fewer --replicas: {error}"))
            }
            Ask::Refused { error, .. } if error.code() != 503 => Self::Refused(error.to_string()),
            other => Self::Queue(other.into()),
        }
    }
}
