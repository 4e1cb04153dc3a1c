//! Waiting for a job by notification.
//!
//! Every write of a record is also a plain message on the record's subject. A waiting client
//! subscribes first and then reads. The message only notifies: a refused write sends it too, so
//! the answer is always read from the stream. A server may also notify before it has stored the
//! write (a NATS server with `sync_interval: always` does). So after a notification that the job
//! has ended, we read the record until it has, or until the write must have been refused.

use std::time::Duration;

use async_nats::Message;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use tokio::time::Instant;

use super::Jobs;
use crate::client::connection::{Revision, Stored};
use crate::topic::record_subject;
use crate::{JobId, QueueError};

/// Pause before the second read after a notification; doubles with each read.
const ECHO_FIRST: Duration = Duration::from_millis(1);
/// The last of these pauses; together they last a quarter of a second.
const ECHO_LAST: Duration = Duration::from_millis(128);
/// Pauses between reads without a notification: the first covers one that was sent just before we
/// subscribed, later ones cover one that was lost, since plain messages may be lost.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_LAST: Duration = Duration::from_secs(5);

/// Outcome of a wait.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// The job is finished.
    Finished(Stored),
    /// The time has elapsed; this is the job's current state.
    StillOpen(Stored),
    /// The job does not exist.
    Unknown,
}

impl Jobs {
    /// Waits until the job is finished, for at most `patience`.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn wait(&self, id: &JobId, patience: Duration) -> Result<Waited, QueueError> {
        let deadline = Instant::now() + patience;
        let unavailable = |problem| QueueError::Unavailable { action: "watch the job", problem };
        let mut rings = self.listen(record_subject(id)).await.map_err(unavailable)?;
        let mut look = LOOK_FIRST;
        let mut echo = None;
        loop {
            let Some(stored) = self.find_job(id).await? else { return Ok(Waited::Unknown) };
            if stored.record.is_terminal() {
                return Ok(Waited::Finished(stored));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Waited::StillOpen(stored));
            }
            if let Some(pause) = echo {
                tokio::time::sleep_until(deadline.min(now + pause)).await;
                echo = Some(pause * 2).filter(|pause| *pause <= ECHO_LAST);
                continue;
            }
            match tokio::time::timeout_at(deadline.min(now + look), next_end(&mut rings)).await {
                Ok(true) => echo = Some(ECHO_FIRST),
                // The connection is closed for good; `find_job` will return the error.
                Ok(false) => tokio::time::sleep(LOOK_FIRST).await,
                Err(_) => look = (look * 10).min(LOOK_LAST),
            }
        }
    }
}

/// A client that follows one job's changes.
struct Follower {
    jobs: Jobs,
    id: JobId,
    rings: async_nats::Subscriber,
    seen: Revision,
    has_ended: bool,
}

impl Jobs {
    /// A job's states from now on, each once, up to the last one: first its current state, unless that
    /// is `after` already. `None` if the job does not exist.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn changes(
        &self,
        id: &JobId,
        after: Revision,
    ) -> Result<Option<impl Stream<Item = Result<Stored, QueueError>> + Send + use<>>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "watch the job", problem };
        let rings = self.listen(record_subject(id)).await.map_err(unavailable)?;
        let Some(now) = self.find_job(id).await? else { return Ok(None) };
        // A client that reconnects after the end gets the final state, unless it has it, and the stream ends.
        let has_ended = now.record.is_terminal();
        let is_new = now.revision > after || now.revision == Revision::default();
        let follower = Follower { jobs: self.clone(), id: id.clone(), rings, seen: now.revision, has_ended };
        let first = futures::stream::iter(is_new.then_some(Ok(now)));
        let rest = futures::stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await.transpose()?;
            Some((next, follower))
        });
        Ok(Some(first.chain(rest)))
    }
}

impl Follower {
    /// The next state; `None` after the last one.
    async fn next(&mut self) -> Result<Option<Stored>, QueueError> {
        let mut look = LOOK_FIRST;
        let mut echo: Option<Duration> = None;
        while !self.has_ended {
            match echo {
                Some(pause) => {
                    tokio::time::sleep(pause).await;
                    echo = Some(pause * 2).filter(|pause| *pause <= ECHO_LAST);
                }
                None => match tokio::time::timeout(look, self.rings.next()).await {
                    Ok(Some(_)) => echo = Some(ECHO_FIRST),
                    Ok(None) => tokio::time::sleep(LOOK_FIRST).await,
                    Err(_) => look = (look * 10).min(LOOK_LAST),
                },
            }
            // Its record has expired, or its topic was deleted.
            let Some(stored) = self.jobs.find_job(&self.id).await.inspect_err(|_| self.has_ended = true)? else {
                return Ok(None);
            };
            if stored.revision > self.seen {
                (self.seen, self.has_ended) = (stored.revision, stored.record.is_terminal());
                return Ok(Some(stored));
            }
        }
        Ok(None)
    }
}

/// Waits for a notification that the job has ended, and ignores others. `false` when no more will
/// come.
async fn next_end(rings: &mut (impl StreamExt<Item = Message> + Unpin)) -> bool {
    while let Some(ring) = rings.next().await {
        let promise: Promise = serde_json::from_slice(&ring.payload).unwrap_or_default();
        if !matches!(promise.state.as_str(), "queued" | "running") {
            return true;
        }
    }
    false
}

/// The only part of a notification that is read, as a hint.
#[derive(Default, Deserialize)]
struct Promise {
    #[serde(default)]
    state: String,
}
