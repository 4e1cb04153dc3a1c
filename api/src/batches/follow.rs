//! Follows open batches: notices when one has ended, or when too many of its jobs have failed.
//!
//! Every API process can follow batches; a lease record elects one. It writes what it finds into the batch's
//! record, so another process can continue from there. The webhook call for a batch's end is stored before the end
//! itself: a crash between the two stores the call twice, under one message id.

use std::collections::BTreeMap;
use std::time::Duration;

use queue::client::{About, Batch, Hook, Replaced, Revision};
use queue::{JobError, Queue, QueueError, Timestamp};
use tokio::time::MissedTickBehavior;

use super::cancel::cancel_jobs;
use crate::index::{Counts, Index, IndexError};

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// In a cluster, a record is written at most this long after its job is accepted. If an item still has no row after
/// that, its result has expired.
const RECORDS_LATE_MAX: Duration = Duration::from_secs(60);
/// How long a sender may take to notice that its batch was canceled: it checks every second.
const SENDER_LATE_MAX: Duration = Duration::from_secs(5);
/// How long a canceled batch is still followed, in case a sender stalls for longer than `SENDER_LATE_MAX`.
const LOOKED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Follows batches.
pub(crate) struct Follower {
    queue: Queue,
    index: Index,
    /// The last known change of any batch.
    seen: Revision,
    /// Batches that may still need an action.
    open: BTreeMap<String, (Batch, Revision)>,
}

/// What to do about a batch.
#[derive(Debug, PartialEq, Eq)]
enum BatchAction {
    /// Nothing yet.
    Wait,
    /// Too many of its jobs have failed.
    Stop,
    /// It was canceled, but some of its jobs are still open.
    CancelRest,
    /// All of its jobs have ended.
    Finish,
}

/// Whether a batch may need an action, now or later.
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

    /// Follows batches until the future is dropped.
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
            // A batch that cannot be handled now does not delay the others.
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
        // If another process wrote first, the next round sees its change.
        if let Replaced::Done(_) = self.queue.batches.write(revision, &next).await? {
            tracing::warn!(batch = batch.id, limit, "batch canceled: too many of its jobs failed");
        }
        Ok(())
    }

    async fn finish(&self, batch: &Batch, revision: Revision) -> Result<(), QueueError> {
        if let Some(url) = &batch.webhook {
            let (about, url) = (About::Batch(batch.id.clone()), url.clone());
            // A batch that grows after its end will end again.
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
            // The fifth record may not have been written yet; later it must have expired.
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
