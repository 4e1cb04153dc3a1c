//! How far webhook calls have been noted for the changes of a topic's records.
//!
//! The job index notes which calls are owed as it follows the records, and it may be rebuilt from them. A call
//! that was noted once must not be noted again, whatever its age. So this progress is stored in the queue,
//! and does not depend on the index's own position or on any clock. It is one small record per topic, written
//! when the topic is created and after that only when a call was owed.

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::connection::{Connection, Replaced, Revision};
use super::hooks::Hooks;
use crate::{QueueError, TopicName};

const STREAM: &str = "told";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    /// Revision of the topic's records up to which calls have been noted.
    revision: u64,
}

impl Hooks {
    /// The revision of a topic's records up to which calls have been noted. `None` for topics of older versions.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn told(&self, topic: &TopicName) -> Result<Option<Revision>, QueueError> {
        Ok(self.read_told(topic).await?.map(|(told, _)| told.revision.into()))
    }

    async fn read_told(&self, topic: &TopicName) -> Result<Option<(Told, Revision)>, QueueError> {
        const ACTION: &str = "read how far calls are noted";
        let subject = subject(topic);
        self.read_document(ACTION, config(self.defaults.replicas), subject.clone(), &subject).await
    }

    /// Stores that calls have been noted for all records up to this one. The revision never decreases.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn note_told(&self, topic: &TopicName, up_to: Revision) -> Result<(), QueueError> {
        loop {
            let (told, over) = self.read_told(topic).await?.unwrap_or_default();
            if told.revision >= u64::from(up_to) {
                return Ok(());
            }
            let next = Told { revision: up_to.into() };
            if self.write_over("note how far calls are noted", subject(topic), over, &next).await? != Replaced::Refused
            {
                return Ok(());
            }
        }
    }
}

impl Connection {
    /// Starts with a topic that is being created: no calls were noted, whatever an earlier topic of its name had.
    pub(in crate::client) async fn begin_told(&self, topic: &TopicName) -> Result<(), QueueError> {
        self.ensure_stream_once(config(self.defaults.replicas)).await?;
        let payload = Bytes::from(serde_json::to_vec(&Told::default()).expect("a number is JSON"));
        let written = self.publish_acked(subject(topic), PublishMessage::build().payload(payload)).await;
        written.map(drop).map_err(QueueError::unavailable("note how far calls are noted"))
    }
}

fn subject(topic: &TopicName) -> String {
    format!("{STREAM}.{topic}")
}

fn config(replicas: usize) -> stream::Config {
    stream::Config {
        name: STREAM.into(),
        subjects: vec![format!("{STREAM}.*")],
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::Old,
        allow_direct: true,
        ..stream::Config::default()
    }
}
