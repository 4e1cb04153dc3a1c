//! Making, changing and removing topics.
//!
//! A change is made under the topic's lease record, in an order that leaves something whole
//! wherever it is interrupted: streams, their consumers, then the settings, which are what others
//! go by, then the message that says so. Doing the same again goes on from there. Removing goes
//! the other way round, so that a topic that is half gone can still be seen and removed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::jetstream::stream::Config;
use futures::{StreamExt, TryStreamExt};

use super::leases::{self, Exclusive};
use super::{Queue, Replaced};
use crate::balance::Move;
use crate::topic::{
    Settings, dead_config, dead_stream, job_filter, jobs_config, jobs_stream, records_config, records_stream,
    streams_of,
};
use crate::{JobId, PartitionId, QueueError, State, Timestamp, Topic, TopicError, TopicName};

/// Jobs that are canceled at a time.
const PURGE_WIDTH: usize = 32;
/// What stands for no bound of a topic's own.
pub(super) const UNBOUNDED: u64 = u64::MAX;
/// Copies that a server can keep.
const REPLICAS_MAX: usize = 5;

impl Queue {
    /// Makes a topic; without a number of replicas, with as many as the system keeps of its own streams.
    ///
    /// # Errors
    /// [`TopicError`]; `Refused` when the server cannot give this many replicas or so much room.
    pub async fn create_topic(&self, settings: Settings, replicas: Option<usize>) -> Result<Arc<Topic>, TopicError> {
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
            // Holding a lease, we know that this stream is there.
            None => self.stream_config(leases::STREAM).await?.num_replicas,
        };
        if self.read_topic(name).await?.is_some() {
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

    async fn make_partition(
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

    /// Changes a topic's settings, and its replicas if a number is given.
    ///
    /// # Errors
    /// [`TopicError`]. After `Queue` the change may be made in part; doing it again completes it.
    pub async fn alter_topic(
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
        // A tool does not know what the system gives each topic, but the streams do.
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

    /// Bytes that a topic's queue may take in all.
    fn bytes_max_of(&self, settings: &Settings) -> Option<u64> {
        let given = self.topic_bytes_max.load(Ordering::Relaxed);
        settings.bytes_max.or((given != UNBOUNDED).then_some(given))
    }

    /// Gives each topic that asked for no bound of its own this many bytes, from now on; `None` where the
    /// broker bounds all together.
    ///
    /// # Errors
    /// [`TopicError`]; some topics may have their new bound already.
    pub async fn fit_topics(&self, bytes_max: Option<u64>) -> Result<(), TopicError> {
        self.topic_bytes_max.store(bytes_max.unwrap_or(UNBOUNDED), Ordering::Relaxed);
        for topic in self.topics().await? {
            for partition in topic.settings.partitions_of_all() {
                let bytes_max = self.bytes_max_of(&topic.settings);
                let wanted = jobs_config(&topic.settings, partition, bytes_max, topic.replicas);
                let fitted = match self.stream_config(&wanted.name).await {
                    // Nothing else of it: an `alter` may be under way.
                    Ok(config) if config.max_bytes != wanted.max_bytes => {
                        self.update_stream(Config { max_bytes: wanted.max_bytes, ..config }).await
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
                match fitted {
                    // It was removed just now, or is being made.
                    Err(TopicError::Unknown(_)) => {}
                    fitted => fitted?,
                }
            }
        }
        Ok(())
    }

    /// Bytes of inputs that wait in all topics.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn queued_bytes(&self) -> Result<u64, QueueError> {
        Ok(self.stream_infos("jobs.>").await?.iter().map(|info| info.state.bytes).sum())
    }

    /// Changes a partition's stream to what the topic's settings want of it, if it is different.
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

    /// Stops a topic's workers from taking jobs, or lets them go on. Jobs are accepted meanwhile.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn pause_topic(&self, name: &TopicName, paused: bool) -> Result<Arc<Topic>, TopicError> {
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

    /// Makes a partition's consumer if it is missing, and wakes its workers.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn repair_partition(&self, name: &TopicName, partition: PartitionId) -> Result<(), TopicError> {
        let topic = self.existing_topic(name).await?;
        self.ensure_workers(&jobs_stream(name, partition), &topic.settings).await?;
        self.wake_partition(name, partition).await;
        Ok(())
    }

    /// Lets another server lead a partition, as the cluster sees fit if that one cannot. What is
    /// under way pauses for some milliseconds.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn move_leader(&self, step: &Move) -> Result<(), TopicError> {
        let subject = format!("STREAM.LEADER.STEPDOWN.{}", jobs_stream(&step.topic, step.partition));
        let wish = serde_json::json!({"placement": {"preferred": step.to}});
        self.ask::<serde_json::Value>("move a partition's leader", &subject, &wish).await?;
        Ok(())
    }

    /// Removes a topic with all that is in it.
    ///
    /// # Errors
    /// [`TopicError`]. After `Queue` a part may be gone; doing it again completes it.
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), TopicError> {
        let lease = self.exclusive(&lease_name(name)).await?;
        let result = self.delete_held(&lease, name).await;
        lease.give_back().await;
        self.announce_topic(name).await;
        result
    }

    async fn delete_held(&self, lease: &Exclusive, name: &TopicName) -> Result<(), TopicError> {
        self.existing_topic(name).await?;
        let records = records_stream(name);
        for stream in self.stream_names_of(name).await?.iter().filter(|stream| **stream != records) {
            lease.must_hold()?;
            self.delete_stream(stream).await?;
        }
        self.delete_stream(&records).await?;
        self.topics.write().expect("no panic holds this lock").remove(name);
        tracing::info!(topic = %name, "topic deleted");
        Ok(())
    }

    /// Cancels every job that waits, and empties a log. Jobs that run go on. Returns how many
    /// jobs were canceled, and how many messages are gone.
    ///
    /// # Errors
    /// [`TopicError`]; doing it again goes on.
    pub async fn purge_topic(&self, name: &TopicName) -> Result<Purged, TopicError> {
        let topic = self.existing_topic(name).await?;
        let mut purged = Purged::default();
        for partition in topic.partitions() {
            if topic.settings.model.is_none() {
                let stream = self.handle(&jobs_stream(name, partition)).await?;
                let answer = stream.purge().await.map_err(QueueError::unavailable("empty a stream"))?;
                purged.messages += answer.purged;
                continue;
            }
            let ids = self.queued_ids(name, partition).await?;
            let mut ends = futures::stream::iter(ids.into_iter().map(|id| self.purge_job(id, partition)))
                .buffer_unordered(PURGE_WIDTH);
            while let Some((canceled, messages)) = ends.try_next().await? {
                purged.canceled += u64::from(canceled);
                purged.messages += messages;
            }
        }
        Ok(purged)
    }

    /// Cancels one job that waits and removes its message. Both may be done twice.
    async fn purge_job(&self, id: JobId, partition: PartitionId) -> Result<(bool, u64), QueueError> {
        loop {
            // Without a record it is just being accepted.
            let Some(stored) = self.find(&id).await? else { return Ok((false, 0)) };
            let record = match &stored.record.state {
                // Its message is its worker's to end.
                State::Running {} => return Ok((false, 0)),
                State::Succeeded { .. } | State::Failed { .. } | State::Canceled { .. } => {
                    let removed = self.remove_message(&id, partition, stored.record.sequence).await?;
                    return Ok((false, removed));
                }
                State::Queued { .. } => stored.record.cancel(Timestamp::now()).expect("it is queued"),
            };
            if let Replaced::Done(_) = self.replace(stored.revision, &record).await? {
                return Ok((true, self.remove_message(&id, partition, record.sequence).await?));
            }
        }
    }

    /// Ids of the jobs whose messages lie in a partition.
    pub(super) async fn queued_ids(&self, name: &TopicName, partition: PartitionId) -> Result<Vec<JobId>, QueueError> {
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

    /// All streams of a topic, also those that an interrupted change has left.
    async fn stream_names_of(&self, name: &TopicName) -> Result<Vec<String>, QueueError> {
        let mut names = Vec::new();
        for kind in ["jobs", "dead", "records"] {
            let configs = self.stream_configs(&format!("{kind}.{name}.>")).await?;
            names.extend(configs.into_iter().map(|config| config.name));
        }
        let is_own = streams_of(name);
        names.retain(|stream| is_own(stream));
        Ok(names)
    }

    async fn delete_stream(&self, stream: &str) -> Result<(), TopicError> {
        match self
            .ask::<serde_json::Value>("remove a stream", &format!("STREAM.DELETE.{stream}"), &serde_json::json!({}))
            .await
        {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => Ok(deleted.map(drop)?),
        }
    }

    async fn stream_config(&self, stream: &str) -> Result<Config, TopicError> {
        Ok(self.stream_info(stream).await?.config)
    }
}

/// Result of a purge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Purged {
    /// Canceled jobs.
    pub canceled: u64,
    /// Removed messages.
    pub messages: u64,
}

fn check_replicas(replicas: Option<usize>) -> Result<(), TopicError> {
    match replicas {
        Some(replicas) if !(1..=REPLICAS_MAX).contains(&replicas) => {
            Err(TopicError::Invalid(format!("replicas must be 1 to {REPLICAS_MAX}")))
        }
        _ => Ok(()),
    }
}

fn lease_name(topic: &TopicName) -> String {
    format!("topic-{topic}")
}
