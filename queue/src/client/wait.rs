//! Waiting for a job by doorbell.
//!
//! Every write of a record is also a plain message on the record's subject. Whoever waits
//! subscribes first and reads then, so nothing falls between. The message is only a doorbell: a
//! write that is refused rings it too, so the answer is always read from the stream.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::{Queue, Stored};
use crate::error::chain;
use crate::topic::record_subject;
use crate::{JobId, QueueError};

/// How often to look without a ring; rings are plain messages and may get lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What a wait came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// The job is finished.
    Finished(Stored),
    /// Time is up; this is how the job stands.
    StillOpen(Stored),
    /// There is no such job.
    Unknown,
}

impl Queue {
    /// Waits until the job is finished, for at most `patience`.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn wait(&self, id: &JobId, patience: Duration) -> Result<Waited, QueueError> {
        let deadline = Instant::now() + patience;
        let subscribed = self.client().subscribe(record_subject(id)).await;
        let mut rings =
            subscribed.map_err(|error| QueueError::Unavailable { action: "watch the job", problem: chain(&error) })?;
        loop {
            let Some(stored) = self.record(id).await? else { return Ok(Waited::Unknown) };
            if stored.record.is_terminal() {
                return Ok(Waited::Finished(stored));
            }
            if Instant::now() >= deadline {
                return Ok(Waited::StillOpen(stored));
            }
            let look_at = deadline.min(Instant::now() + LOOK_INTERVAL);
            if let Ok(None) = tokio::time::timeout_at(look_at, rings.next()).await {
                // The connection is closed; look from time to time.
                tokio::time::sleep_until(look_at).await;
            }
        }
    }
}
