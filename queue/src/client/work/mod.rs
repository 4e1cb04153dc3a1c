//! Jobs from inside: what a worker does with them.

mod fetch;
mod settle;

pub use fetch::Fetcher;
pub use settle::{AckSubject, Delivery};

use futures::{Stream, StreamExt};

use super::connection::{Replaced, Revision};
use super::role::role;
use crate::{JobId, QueueError, Record};

role! {
    /// Fetches jobs, updates their records and settles them. It can create, change or remove nothing else.
    WorkerQueue
}

impl WorkerQueue {
    /// Writes a job's first record, if it has none.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn create(&self, record: &Record) -> Result<Replaced, QueueError> {
        self.0.create(record).await
    }

    /// Replaces exactly the record that was read as `revision`.
    ///
    /// A terminal record is given the topic's result TTL; others never expire.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn replace(&self, revision: Revision, record: &Record) -> Result<Replaced, QueueError> {
        self.0.replace(revision, record).await
    }

    /// Jobs that are canceled while the stream is read.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn cancels(&self) -> Result<impl Stream<Item = JobId> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for canceled jobs", problem };
        let messages = self.listen("cancels.*.*".into()).await.map_err(unavailable)?;
        Ok(messages.filter_map(|message| {
            let id = message.subject.strip_prefix("cancels.").and_then(|id| id.parse().ok());
            std::future::ready(id)
        }))
    }
}
