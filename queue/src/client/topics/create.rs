//! Creating a topic.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Topics;
use super::lease::{check_replicas, lease_name};
use crate::client::connection::{Connection, Exclusive, LEASES, UNBOUNDED, bounded};
use crate::topic::{Settings, dead_config, jobs_config, jobs_stream, records_config, streams_of, workers_config};
use crate::{PartitionId, QueueError, Topic, TopicError, TopicName};

impl Topics {
    /// The topic of `model`, created with the defaults if it does not exist.
    ///
    /// May be called by many processes at once, and again after a crash halfway.
    ///
    /// # Errors
    /// [`TopicError`] when the queue does not answer or refuses.
    pub async fn ensure(&self, name: &TopicName, model: &str) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = self.topic(name).await? {
            return Ok(topic);
        }
        let settings = self.defaults.settings(name.clone(), Some(model));
        match self.create(settings, Some(self.defaults.replicas)).await {
            Err(TopicError::Exists(_)) => self.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone())),
            created => created,
        }
    }

    /// Creates a topic; without a number of replicas, it gets the number that the system's own streams have.
    ///
    /// # Errors
    /// [`TopicError`]; `Refused` when the server cannot provide this many replicas or this much space.
    pub async fn create(&self, settings: Settings, replicas: Option<usize>) -> Result<Arc<Topic>, TopicError> {
        settings.check().map_err(TopicError::Invalid)?;
        check_replicas(replicas)?;
        let name = settings.topic.clone();
        let mut lease = self.exclusive(&lease_name(&name)).await?;
        let result = self.create_held(&mut lease, settings, replicas).await;
        lease.give_back().await;
        result?;
        self.announce_topic(&name).await;
        self.existing_topic(&name).await
    }

    async fn create_held(
        &self,
        lease: &mut Exclusive,
        settings: Settings,
        replicas: Option<usize>,
    ) -> Result<(), TopicError> {
        let name = &settings.topic;
        let replicas = match replicas {
            Some(number) => number,
            // We hold a lease, so this stream exists.
            None => self.stream_config(LEASES).await?.num_replicas,
        };
        if self.fresh_topic(name).await?.is_some() {
            return Err(TopicError::Exists(name.clone()));
        }
        // Streams left by an interrupted creation or deletion hold no accepted job: no record could be
        // written without the records stream.
        for stream in self.stream_names_of(name).await? {
            self.delete_stream(&stream).await?;
        }
        self.make_stream(dead_config(&settings, &self.defaults, replicas)).await?;
        for partition in settings.partitions_of_all() {
            lease.keep().await?;
            self.make_partition(&settings, partition, replicas).await?;
        }
        self.begin_told(name).await?;
        lease.must_hold()?;
        self.make_stream(records_config(&settings, replicas)).await?;
        tracing::info!(topic = %name, partitions = settings.partitions, "topic created");
        Ok(())
    }

    pub(in crate::client) async fn make_partition(
        &self,
        settings: &Settings,
        partition: PartitionId,
        replicas: usize,
    ) -> Result<(), TopicError> {
        let bytes_max = self.bytes_max_of(settings);
        self.make_stream(jobs_config(settings, partition, bytes_max, replicas)).await?;
        if settings.model.is_some() {
            self.ensure_workers(&jobs_stream(&settings.topic, partition), settings).await?;
        }
        Ok(())
    }

    /// All streams of a topic, including those that an interrupted change has left.
    pub(super) async fn stream_names_of(&self, name: &TopicName) -> Result<Vec<String>, QueueError> {
        let mut names = Vec::new();
        for kind in ["jobs", "dead", "records"] {
            let configs = self.stream_configs(&format!("{kind}.{name}.>")).await?;
            names.extend(configs.into_iter().map(|config| config.name));
        }
        let is_own = streams_of(name);
        names.retain(|stream| is_own(stream));
        Ok(names)
    }

    pub(super) async fn delete_stream(&self, stream: &str) -> Result<(), TopicError> {
        match self
            .ask::<serde_json::Value>("remove a stream", &format!("STREAM.DELETE.{stream}"), &serde_json::json!({}))
            .await
        {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => Ok(deleted.map(drop)?),
        }
    }
}

impl Connection {
    /// Most bytes of a topic's queue in all.
    pub(in crate::client) fn bytes_max_of(&self, settings: &Settings) -> Option<u64> {
        let given = self.topic_bytes_max.load(Ordering::Relaxed);
        settings.bytes_max.or((given != UNBOUNDED).then_some(given))
    }

    pub(in crate::client) async fn ensure_workers(&self, stream: &str, settings: &Settings) -> Result<(), QueueError> {
        let stream = self.handle(stream).await?;
        // Creates it, or changes it to these settings.
        let consumer = bounded(stream.create_consumer(workers_config(settings))).await;
        let consumer = consumer.map_err(QueueError::unavailable("create a consumer"))?;
        consumer.map(drop).map_err(QueueError::unavailable("create a consumer"))
    }
}
