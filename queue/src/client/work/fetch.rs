//! A worker asks one partition for one job.
//!
//! Each request is `no_wait` with a short `expires`, and is answered before the next one is sent:
//! open pull requests hoard jobs for a worker that is busy, and lose them when they are withdrawn.
//! `expires` is needed because a consumer with too many unacknowledged jobs does not answer
//! `no_wait` at all. `Client::request` cannot be used, because a job arrives under its own subject;
//! all answers arrive at one lasting subscription.
//!
//! Invariant: at most one request is unanswered on an inbox, so any message that arrives answers it.
//! After a timeout that no longer holds, and a new inbox replaces the old one; a job in transit to
//! the old one is redelivered when its lease expires.

use std::time::{Duration, Instant};

use async_nats::Subscriber;
use bytes::Bytes;
use futures::StreamExt;

use super::{Delivery, WorkerQueue};
use crate::client::connection::bounded;
use crate::error::chain;
use crate::topic::{WORKERS, jobs_stream};
use crate::{FetchError, Lease, PartitionId, Topic};

/// How long the server may hold a request that it cannot answer. A NATS server holds every
/// `no_wait` request that has an expiry for this long, so a request to an empty partition takes this long.
const EXPIRES: Duration = Duration::from_millis(10);
/// How long we wait for an answer on top of that.
const GRACE: Duration = Duration::from_secs(2);

/// Status codes of an answer that is not a job.
const NO_MESSAGES: u16 = 404;
const TIMED_OUT: u16 = 408;
const NO_RESPONDERS: u16 = 503;

/// Asks for jobs, one at a time.
#[derive(Debug)]
pub struct Fetcher {
    work: WorkerQueue,
    inbox: String,
    answers: Subscriber,
    /// A request was sent and has not been answered.
    unanswered: bool,
}

impl Fetcher {
    /// Subscribes to the inbox that receives all answers.
    ///
    /// # Errors
    /// [`FetchError::Refused`] when the connection is closed.
    pub async fn new(work: WorkerQueue) -> Result<Self, FetchError> {
        let (inbox, answers) = fresh_inbox(&work).await?;
        Ok(Self { work, inbox, answers, unanswered: false })
    }

    /// One job of the partition, or `None` if none is waiting.
    ///
    /// # Errors
    /// [`FetchError`]; all but `Refused` are worth a retry after a pause.
    pub async fn fetch(&mut self, topic: &Topic, partition: PartitionId) -> Result<Option<Delivery>, FetchError> {
        if self.unanswered {
            // The old subscription ends with the assignment.
            (self.inbox, self.answers) = fresh_inbox(&self.work).await?;
        }
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{WORKERS}", jobs_stream(topic.name(), partition));
        let body = format!(r#"{{"batch":1,"no_wait":true,"expires":{}}}"#, EXPIRES.as_nanos());
        let asked_at = Instant::now();
        self.unanswered = true;
        let sending = self.work.client().publish_with_reply(subject, self.inbox.clone(), Bytes::from(body));
        bounded(sending).await.map_err(refused)?.map_err(refused)?;
        let answer = match tokio::time::timeout(EXPIRES + GRACE, self.answers.next()).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(FetchError::Refused("the connection is closed".into())),
            Err(_) => return Err(FetchError::Silent(EXPIRES + GRACE)),
        };
        self.unanswered = false;
        match answer.status.map(|status| status.as_u16()) {
            None => Delivery::read(answer, Lease::new(asked_at, topic.lease()), &self.work).await.map(Some),
            Some(NO_MESSAGES | TIMED_OUT) => Ok(None),
            Some(NO_RESPONDERS) => Err(FetchError::NoPartition),
            Some(code) => Err(FetchError::Refused(format!("{code} {}", answer.description.unwrap_or_default()))),
        }
    }
}

async fn fresh_inbox(work: &WorkerQueue) -> Result<(String, Subscriber), FetchError> {
    let inbox = work.client().new_inbox();
    let answers = work.listen(inbox.clone()).await.map_err(FetchError::Refused)?;
    Ok((inbox, answers))
}

fn refused(error: impl std::error::Error) -> FetchError {
    FetchError::Refused(chain(&error))
}
