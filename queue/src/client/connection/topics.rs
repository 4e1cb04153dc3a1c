//! Finding topics. The streams are the registry; topics that were found are cached, and read again
//! once a second or when a change is announced.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream;
use futures::StreamExt;
use serde_json::json;
use tokio::time::MissedTickBehavior;

use super::Connection;
use crate::topic::{records_stream, topic_subject};
use crate::{QueueError, Topic, TopicError, TopicName};

/// How often all topics are read without an announced change.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Connection {
    /// The topic, if it exists.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn topic(&self, name: &TopicName) -> Result<Option<Arc<Topic>>, QueueError> {
        if let Some(topic) = self.topics.read().expect("no panic holds this lock").get(name) {
            return Ok(Some(topic.clone()));
        }
        self.fresh_topic(name).await
    }

    /// The same, read from the queue and not from the cache.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn fresh_topic(&self, name: &TopicName) -> Result<Option<Arc<Topic>>, QueueError> {
        Ok(self.fresh_topic_and_count(name).await?.map(|(topic, _)| topic))
    }

    /// The same, with the number of its records.
    pub(in crate::client) async fn fresh_topic_and_count(
        &self,
        name: &TopicName,
    ) -> Result<Option<(Arc<Topic>, u64)>, QueueError> {
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

    /// The topic, read from the queue; it must exist.
    ///
    /// # Errors
    /// [`TopicError::Unknown`] if it does not.
    pub(in crate::client) async fn existing_topic(&self, name: &TopicName) -> Result<Arc<Topic>, TopicError> {
        self.fresh_topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone()))
    }

    /// All topics, sorted by name.
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
        // A cluster leaves out streams whose leader is silent; only topics known to be deleted are forgotten.
        let known: Vec<Arc<Topic>> = self.topics.read().expect("no panic holds this lock").values().cloned().collect();
        for topic in known.into_iter().filter(|topic| topic.replicas > 1) {
            if !found.contains_key(topic.name()) {
                let gone = tokio::time::timeout(LOOK_INTERVAL, self.fresh_topic(topic.name())).await;
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

    /// Keeps the cached topics up to date, for as long as it is awaited.
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

    /// Names of topics whose settings have just changed, or that were deleted.
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

    fn remember(&self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.topics.write().expect("no panic holds this lock").insert(topic.name().clone(), topic.clone());
        topic
    }

    /// Removes a deleted topic from the cache.
    pub(in crate::client) fn forget(&self, name: &TopicName) {
        self.topics.write().expect("no panic holds this lock").remove(name);
    }

    /// Announces that a topic has changed. Processes also check by themselves.
    pub(in crate::client) async fn announce_topic(&self, name: &TopicName) {
        if let Err(error) = self.send(topic_subject(name), bytes::Bytes::new()).await {
            tracing::debug!(error, "topic change not announced");
        }
    }
}
