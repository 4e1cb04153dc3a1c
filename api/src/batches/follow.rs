//! Batches on their way: notices that one has ended, or that too many of its jobs have failed.
//!
//! Each API process may follow them; a lease record chooses one. What it finds it writes into the
//! batch's record, so another goes on where it stopped. The call that is owed for a batch's end is
//! noted before the end is: a crash between the two notes it twice, under one message id.

use std::collections::BTreeMap;
use std::time::Duration;

use queue::client::{About, Batch, Hook, Replaced, Revision};
use queue::{JobError, Queue, QueueError, Timestamp};
use tokio::time::MissedTickBehavior;

use super::manage::cancel_jobs;
use crate::index::{Counts, Index, IndexError};

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Follows batches.
pub(crate) struct Follower {
    queue: Queue,
    index: Index,
    /// The last change of any batch that is known.
    seen: Revision,
    /// Batches that have not ended.
    open: BTreeMap<String, (Batch, Revision)>,
}

/// What is to be done about a batch.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing yet.
    Wait,
    /// Too many of its jobs have failed.
    Stop,
    /// It was called off, and some of its jobs were not, or not yet.
    CancelRest,
    /// All of it has ended.
    Finish,
}

fn step(batch: &Batch, counts: &Counts) -> Step {
    let open = counts.queued + counts.running;
    let is_over = |failures_max| counts.failed > failures_max;
    match batch.total {
        _ if batch.canceled_at.is_some() => {
            if open == 0 {
                Step::Finish
            } else {
                Step::CancelRest
            }
        }
        _ if batch.failures_max.is_some_and(is_over) => Step::Stop,
        Some(total) if counts.total() - open >= total => Step::Finish,
        Some(_) | None => Step::Wait,
    }
}

impl Follower {
    pub(crate) fn new(queue: Queue, index: Index) -> Self {
        Self { queue, index, seen: Revision::default(), open: BTreeMap::new() }
    }

    /// Follows for as long as it is awaited.
    pub(crate) async fn keep(mut self) -> Result<(), QueueError> {
        let chosen = self.queue.singleton("batches");
        let mut due = tokio::time::interval(LOOK_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            if !chosen.is_held() {
                continue;
            }
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "batches were not looked at");
            }
        }
    }

    async fn look(&mut self) -> Result<(), IndexError> {
        let end = self.queue.batches_end().await?;
        if end != self.seen {
            let batches = self.queue.batches().await?;
            let open = batches.into_iter().filter(|(batch, _)| batch.finished_at.is_none());
            self.open = open.map(|(batch, revision)| (batch.id.clone(), (batch, revision))).collect();
            self.seen = end;
        }
        if self.open.is_empty() {
            return Ok(());
        }
        self.index.catch_up(&self.queue).await?;
        for (batch, revision) in self.open.values() {
            match step(batch, &self.index.counts(&batch.id).await?) {
                Step::Wait => {}
                Step::Stop => self.stop(batch, *revision).await?,
                Step::CancelRest => cancel_jobs(&self.queue, &self.index, &batch.id).await?,
                Step::Finish => self.finish(batch, *revision).await?,
            }
        }
        Ok(())
    }

    async fn stop(&self, batch: &Batch, revision: Revision) -> Result<(), QueueError> {
        let limit = batch.failures_max.unwrap_or_default();
        let error = JobError::new("too_many_failures", format!("more than {limit} of its jobs have failed"));
        let next = Batch { canceled_at: Some(Timestamp::now()), error: Some(error), ..batch.clone() };
        // If somebody else has written, the next look sees what.
        if let Replaced::Done(_) = self.queue.write_batch(revision, &next).await? {
            tracing::warn!(batch = batch.id, limit, "called off: too many of its jobs have failed");
        }
        Ok(())
    }

    async fn finish(&self, batch: &Batch, revision: Revision) -> Result<(), QueueError> {
        if let Some(url) = &batch.webhook {
            let (about, url) = (About::Batch(batch.id.clone()), url.clone());
            self.queue.owe(&Hook { about, state: "finished".into(), revision: revision.into(), url }).await?;
        }
        let next = Batch { finished_at: Some(Timestamp::now()), ..batch.clone() };
        self.queue.write_batch(revision, &next).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_when_all_of_it_has_and_stops_when_too_much_has_failed() {
        let batch = Batch {
            id: "b".into(),
            model: "m".into(),
            topic: "m".parse().expect("valid"),
            owner: None,
            created_at: Timestamp::from_millis(0),
            total: None,
            canceled_at: None,
            error: None,
            failures_max: Some(2),
            webhook: None,
            finished_at: None,
        };
        let counts = |queued, succeeded, failed| Counts { queued, running: 0, succeeded, failed, canceled: 0 };
        let complete = Batch { total: Some(5), ..batch.clone() };
        let canceled = Batch { canceled_at: Some(Timestamp::from_millis(1)), ..batch.clone() };
        for (batch, counts, expected) in [
            (&batch, counts(0, 5, 0), Step::Wait),
            (&batch, counts(0, 2, 3), Step::Stop),
            (&complete, counts(1, 4, 0), Step::Wait),
            // The index has not seen the fifth yet.
            (&complete, counts(0, 4, 0), Step::Wait),
            (&complete, counts(0, 3, 2), Step::Finish),
            (&complete, counts(0, 2, 3), Step::Stop),
            (&canceled, counts(1, 0, 3), Step::CancelRest),
            (&canceled, counts(0, 1, 3), Step::Finish),
        ] {
            assert_eq!(step(batch, &counts), expected, "{batch:?} {counts:?}");
        }
    }
}
