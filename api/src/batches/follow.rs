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

use super::cancel::cancel_jobs;
use crate::index::{Counts, Index, IndexError};

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// In a cluster records may be written this much later than their jobs are accepted, at the latest. An
/// item without a row has a result that has expired, from then on.
const RECORDS_LATE_MAX: Duration = Duration::from_secs(60);
/// How long a sender may take to notice that its batch was canceled: it looks each second.
const SENDER_LATE_MAX: Duration = Duration::from_secs(5);
/// How long a batch that was canceled is looked after, should a sender have been asleep for longer.
const LOOKED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Follows batches.
pub(crate) struct Follower {
    queue: Queue,
    index: Index,
    /// The last change of any batch that is known.
    seen: Revision,
    /// Batches of which something is to be awaited.
    open: BTreeMap<String, (Batch, Revision)>,
}

/// What is to be done about a batch.
#[derive(Debug, PartialEq, Eq)]
enum BatchAction {
    /// Nothing yet.
    Wait,
    /// Too many of its jobs have failed.
    Stop,
    /// It was canceled, and some of its jobs were not, or not yet.
    CancelRest,
    /// All of it has ended.
    Finish,
}

/// Whether anything may have to be done about a batch, now or later.
fn is_of_interest(batch: &Batch, now: Timestamp) -> bool {
    let is_ending = batch.total.is_some() || batch.failures_max.is_some() || batch.canceled_at.is_some();
    let was_just_canceled = batch.canceled_at.is_some_and(|at| !has_passed(at, LOOKED_AFTER, now));
    (batch.finished_at.is_none() && is_ending) || was_just_canceled
}

fn step(batch: &Batch, counts: &Counts, now: Timestamp) -> BatchAction {
    let open = counts.queued + counts.running;
    if let Some(canceled) = batch.canceled_at {
        return match open {
            0 if batch.finished_at.is_none() && has_passed(canceled, SENDER_LATE_MAX, now) => BatchAction::Finish,
            0 => BatchAction::Wait,
            _ => BatchAction::CancelRest,
        };
    }
    if batch.failures_max.is_some_and(|failures_max| counts.failed > failures_max) {
        return BatchAction::Stop;
    }
    match batch.total {
        Some(total) if open == 0 => {
            let is_late = batch.complete_at.is_some_and(|complete| has_passed(complete, RECORDS_LATE_MAX, now));
            if counts.total() >= total || is_late { BatchAction::Finish } else { BatchAction::Wait }
        }
        Some(_) | None => BatchAction::Wait,
    }
}

fn has_passed(since: Timestamp, span: Duration, now: Timestamp) -> bool {
    u128::from(now.millis_since(since)) > span.as_millis()
}

impl Follower {
    pub(crate) fn new(queue: Queue, index: Index) -> Self {
        Self { queue, index, seen: Revision::default(), open: BTreeMap::new() }
    }

    /// Follows for as long as it is awaited.
    pub(crate) async fn keep(mut self) -> Result<(), QueueError> {
        let chosen = self.queue.admin.singleton("batches");
        let mut due = tokio::time::interval(LOOK_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            if !chosen.is_held() {
                continue;
            }
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "batches not checked");
            }
        }
    }

    async fn look(&mut self) -> Result<(), IndexError> {
        let end = self.queue.batches.end().await?;
        if end != self.seen {
            for (batch, revision) in self.queue.batches.after(self.seen).await? {
                self.open.insert(batch.id.clone(), (batch, revision));
            }
            self.seen = end;
        }
        let now = Timestamp::now();
        self.open.retain(|_, (batch, _)| batch.total.is_none() || is_of_interest(batch, now));
        let of_interest = || self.open.values().filter(|(batch, _)| is_of_interest(batch, now));
        if of_interest().next().is_none() {
            return Ok(());
        }
        self.index.catch_up(&self.queue).await?;
        for (batch, revision) in of_interest() {
            // One that cannot be dealt with now keeps no other waiting.
            if let Err(error) = self.deal_with(batch, *revision, now).await {
                tracing::debug!(batch = batch.id, %error, "batch not checked");
            }
        }
        Ok(())
    }

    async fn deal_with(&self, batch: &Batch, revision: Revision, now: Timestamp) -> Result<(), IndexError> {
        match step(batch, &self.index.counts(&batch.id).await?, now) {
            BatchAction::Wait => Ok(()),
            BatchAction::Stop => Ok(self.stop(batch, revision).await?),
            BatchAction::CancelRest => cancel_jobs(&self.queue, &self.index, &batch.id).await,
            BatchAction::Finish => Ok(self.finish(batch, revision).await?),
        }
    }

    async fn stop(&self, batch: &Batch, revision: Revision) -> Result<(), QueueError> {
        let limit = batch.failures_max.unwrap_or_default();
        let error = JobError::new("too_many_failures", format!("more than {limit} of its jobs have failed"));
        let next = Batch { canceled_at: Some(Timestamp::now()), error: Some(error), ..batch.clone() };
        // If another process has written, the next round sees it.
        if let Replaced::Done(_) = self.queue.batches.write(revision, &next).await? {
            tracing::warn!(batch = batch.id, limit, "batch canceled: too many of its jobs failed");
        }
        Ok(())
    }

    async fn finish(&self, batch: &Batch, revision: Revision) -> Result<(), QueueError> {
        if let Some(url) = &batch.webhook {
            let (about, url) = (About::Batch(batch.id.clone()), url.clone());
            // A batch that grows after its end ends once more.
            let size = batch.total.unwrap_or_default();
            let owner = batch.owner.clone();
            self.queue.hooks.owe(&Hook { about, state: "finished".into(), revision: size, url, owner }).await?;
        }
        let next = Batch { finished_at: Some(Timestamp::now()), ..batch.clone() };
        self.queue.batches.write(revision, &next).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_when_all_of_it_has_and_stops_when_too_much_has_failed() {
        let at = Timestamp::from_millis;
        let batch = Batch {
            id: "b".into(),
            model: "m".into(),
            topic: "m".parse().expect("valid"),
            owner: None,
            created_at: at(0),
            total: None,
            complete_at: None,
            skipped: queue::client::Skipped::default(),
            canceled_at: None,
            error: None,
            failures_max: Some(2),
            webhook: None,
            finished_at: None,
        };
        let counts = |queued, succeeded, failed| Counts { queued, running: 0, succeeded, failed, canceled: 0 };
        let complete = Batch { total: Some(5), complete_at: Some(at(0)), ..batch.clone() };
        let canceled = Batch { canceled_at: Some(at(0)), ..batch.clone() };
        let over = Batch { finished_at: Some(at(0)), ..canceled.clone() };
        for (batch, counts, millis, expected) in [
            (&batch, counts(0, 5, 0), 9_000, BatchAction::Wait),
            (&batch, counts(0, 2, 3), 9_000, BatchAction::Stop),
            (&complete, counts(1, 4, 0), 9_000, BatchAction::Wait),
            // The fifth may not have been written yet; later it must have expired.
            (&complete, counts(0, 4, 0), 9_000, BatchAction::Wait),
            (&complete, counts(0, 4, 0), 90_000, BatchAction::Finish),
            (&complete, counts(1, 3, 0), 90_000, BatchAction::Wait),
            (&complete, counts(0, 3, 2), 9_000, BatchAction::Finish),
            (&complete, counts(0, 2, 3), 9_000, BatchAction::Stop),
            (&canceled, counts(1, 0, 3), 1_000, BatchAction::CancelRest),
            // A client may still be sending.
            (&canceled, counts(0, 1, 3), 1_000, BatchAction::Wait),
            (&canceled, counts(0, 1, 3), 9_000, BatchAction::Finish),
            (&over, counts(1, 1, 3), 9_000, BatchAction::CancelRest),
            (&over, counts(0, 1, 3), 9_000, BatchAction::Wait),
        ] {
            assert_eq!(step(batch, &counts, at(millis)), expected, "{batch:?} {counts:?} {millis}");
        }
        assert!(!is_of_interest(&Batch { failures_max: None, ..batch }, at(0)), "it is only being received");
        assert!(is_of_interest(&over, at(9_000)) && !is_of_interest(&over, at(10_000_000)));
    }
}
