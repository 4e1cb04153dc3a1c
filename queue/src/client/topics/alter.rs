//! Changing a topic while it is in use.

use std::sync::Arc;

use async_nats::jetstream::stream::Config;

use super::Topics;
use super::lease::{check_replicas, lease_name};
use crate::client::connection::Exclusive;
use crate::topic::{Settings, dead_stream, jobs_config, jobs_stream, records_stream, set_settings};
use crate::{PartitionId, Priority, Topic, TopicError, TopicName};

impl Topics {
    /// Changes a topic's settings, and its replicas if a number is given.
    ///
    /// # Errors
    /// [`TopicError`]. After `Queue` the change may be partly made; a repeated call completes it.
    pub async fn alter(
        &self,
        name: &TopicName,
        replicas: Option<usize>,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Arc<Topic>, TopicError> {
        check_replicas(replicas)?;
        let mut lease = self.exclusive(&lease_name(name)).await?;
        let result = self.alter_held(&mut lease, name, replicas, change).await;
        lease.give_back().await;
        result?;
        self.announce_topic(name).await;
        self.existing_topic(name).await
    }

    async fn alter_held(
        &self,
        lease: &mut Exclusive,
        name: &TopicName,
        replicas: Option<usize>,
        change: impl FnOnce(&mut Settings),
    ) -> Result<(), TopicError> {
        let topic = self.existing_topic(name).await?;
        let mut next = topic.settings.clone();
        change(&mut next);
        next.check().map_err(TopicError::Invalid)?;
        topic.settings.check_change(&next).map_err(TopicError::Refused)?;
        let replicas = replicas.unwrap_or(topic.replicas);
        let first = self.stream_config(&jobs_stream(name, PartitionId::normal(0))).await?;
        // A tool does not know the system's limit per topic, but the streams do.
        let present = u64::try_from(first.max_bytes).ok();
        let present = present.map(|bytes| bytes.saturating_mul(topic.settings.partitions_of_all().count() as u64));
        let bytes_max = next.bytes_max.or(present);
        for partition in next.partitions_of_all() {
            lease.keep().await?;
            let wanted = jobs_config(&next, partition, bytes_max, replicas);
            self.make_partition(&next, partition, replicas).await?;
            self.fit_stream(&wanted).await?;
        }
        let mut dead = self.stream_config(&dead_stream(name)).await?;
        if dead.num_replicas != replicas {
            dead.num_replicas = replicas;
            self.update_stream(dead).await?;
        }
        let mut records = self.stream_config(&records_stream(name)).await?;
        records.num_replicas = replicas;
        lease.must_hold()?;
        self.write_settings(records, &next).await
    }

    /// Changes a partition's stream to match the topic's settings, if it differs.
    async fn fit_stream(&self, wanted: &Config) -> Result<(), TopicError> {
        let mut config = self.stream_config(&wanted.name).await?;
        let now = (config.max_bytes, config.max_age, config.num_replicas);
        if now != (wanted.max_bytes, wanted.max_age, wanted.num_replicas) {
            (config.max_bytes, config.max_age, config.num_replicas) =
                (wanted.max_bytes, wanted.max_age, wanted.num_replicas);
            self.update_stream(config).await?;
        }
        Ok(())
    }

    /// Creates the partitions of a priority.
    pub(in crate::client) async fn add_priority(
        &self,
        name: &TopicName,
        priority: Priority,
    ) -> Result<Arc<Topic>, TopicError> {
        let add = |settings: &mut Settings| {
            // Another process may have been first.
            if !settings.has(priority) {
                settings.priorities.push(priority);
            }
        };
        self.alter(name, None, add).await
    }

    /// Stops a topic's workers from taking jobs, or lets them continue. Jobs are accepted meanwhile.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn pause(&self, name: &TopicName, paused: bool) -> Result<Arc<Topic>, TopicError> {
        let lease = self.exclusive(&lease_name(name)).await?;
        let result = self.pause_held(&lease, name, paused).await;
        lease.give_back().await;
        result?;
        self.announce_topic(name).await;
        self.existing_topic(name).await
    }

    async fn pause_held(&self, lease: &Exclusive, name: &TopicName, paused: bool) -> Result<(), TopicError> {
        let mut next = self.existing_topic(name).await?.settings.clone();
        next.paused = paused;
        let records = self.stream_config(&records_stream(name)).await?;
        lease.must_hold()?;
        self.write_settings(records, &next).await
    }

    /// Writes a topic's settings into its records stream, whose configuration is otherwise `config`.
    async fn write_settings(&self, mut config: Config, settings: &Settings) -> Result<(), TopicError> {
        set_settings(&mut config, settings);
        self.update_stream(config).await
    }
}
