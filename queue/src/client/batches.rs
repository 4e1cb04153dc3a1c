//! Batches: many jobs that were sent together.
//!
//! A batch's record holds what its jobs do not show: whether the batch is complete, and whether it
//! was canceled. Everything else is counted from the jobs, which name their batch.

use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::connection::{Message, Replaced, Revision};
use super::role::role;
use crate::{JobError, QueueError, Sequence, Timestamp, TopicError, TopicName};

const STREAM: &str = "batches";
/// How long a batch's record is kept after its last change.
pub const BATCHES_KEPT: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 60 * 60);

/// What is known of a batch besides its jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its id: letters, digits, `-` and `_`.
    pub id: String,
    /// The model that its jobs run on.
    pub model: String,
    /// Their topic.
    pub topic: TopicName,
    /// Its owner; `None` if the server had no keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Number of its jobs, once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// When it became complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_at: Option<Timestamp>,
    /// Entries that are not meant as images: folders, and files that file managers leave behind.
    #[serde(default, skip_serializing_if = "Skipped::is_empty")]
    pub skipped: Skipped,
    /// When it was canceled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canceled_at: Option<Timestamp>,
    /// Why it was canceled, if no client asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// The batch is canceled once more of its jobs than this have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_max: Option<u64>,
    /// URL to notify when all its jobs have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
    /// When we noticed that all its jobs had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// Entries of a batch's body that were skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BatchSkipped)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// Names of the first ones.
    pub names: Vec<String>,
}

impl Skipped {
    /// Most names that are kept.
    const NAMES_MAX: usize = 100;

    /// Whether nothing was skipped.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Counts one more entry.
    pub fn note(&mut self, name: String) {
        self.count += 1;
        if self.names.len() < Self::NAMES_MAX {
            self.names.push(name);
        }
    }
}

role! {
    /// Reads and writes the records of batches.
    Batches
}

impl Batches {
    /// A batch's record, and the revision that a change of it must name.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<(Batch, Revision)>, QueueError> {
        let what = format!("batch {id}");
        self.read_document("read a batch", config(self.defaults.replicas), subject(id), &what).await
    }

    /// All batches that were changed after a revision, oldest change first, each with the revision that a
    /// change of it must name.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn after(&self, after: Revision) -> Result<Vec<(Batch, Revision)>, QueueError> {
        self.ensure_stream_once(config(self.defaults.replicas)).await?;
        let start = Sequence(u64::from(after) + 1);
        let messages: Vec<_> = self.scan_from(STREAM, start, false).await?.try_collect().await?;
        let read = |message: &_| {
            let message: &Message = message;
            Some((serde_json::from_slice(&message.payload).ok()?, message.sequence.0.into()))
        };
        Ok(messages.iter().filter_map(read).collect())
    }

    /// The revision of the last change of any batch.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn end(&self) -> Result<Revision, QueueError> {
        const ACTION: &str = "look for batches";
        self.ensure_stream_once(config(self.defaults.replicas)).await?;
        let info = self.stream_info(STREAM).await;
        let unavailable = |error: TopicError| QueueError::Unavailable { action: ACTION, problem: error.to_string() };
        Ok(info.map_err(unavailable)?.state.last_sequence.into())
    }

    /// Replaces exactly the batch record that was read as `over`, which is 0 if none exists yet.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn write(&self, over: Revision, batch: &Batch) -> Result<Replaced, QueueError> {
        self.write_over("write a batch", subject(&batch.id), over, batch).await
    }
}

fn subject(id: &str) -> String {
    format!("batches.{id}")
}

fn config(replicas: usize) -> stream::Config {
    stream::Config {
        name: STREAM.into(),
        subjects: vec!["batches.*".into()],
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages_per_subject: 1,
        max_age: BATCHES_KEPT,
        discard: DiscardPolicy::Old,
        allow_direct: true,
        ..stream::Config::default()
    }
}
