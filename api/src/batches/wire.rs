//! A batch as clients see it.

use std::time::{Duration, Instant};

use queue::client::{Batch, Skipped};
use queue::{JobError, Timestamp, TopicName};
use serde::Serialize;
use utoipa::ToSchema;

use crate::index::{Counts, Index, IndexError};
use crate::links;
use crate::state::AppState;

/// The batch document.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Batch)]
pub(crate) struct Document {
    id: String,
    model: String,
    topic: TopicName,
    /// `receiving` until all items have arrived, `running` until all have ended, then `finished`; or `canceled`.
    #[schema(value_type = String)]
    state: BatchState,
    created_at: Timestamp,
    /// When its last job ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    counts: Counted,
    /// Skipped entries (folders, files of file managers) of the last time it was sent.
    #[serde(skip_serializing_if = "Skipped::is_empty")]
    skipped: Skipped,
    /// Failed jobs beyond which the batch is canceled.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_failures: Option<u64>,
    /// Why it was canceled, if no client did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobError>,
    /// Seconds until all jobs have ended, at the current rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<u64>,
    urls: Urls,
}

/// State of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum BatchState {
    /// Items are still arriving.
    Receiving,
    /// Some jobs have not ended.
    Running,
    /// All jobs have ended.
    Finished,
    /// It was canceled.
    Canceled,
}

impl Document {
    /// Whether all of its jobs have ended.
    pub(super) fn is_finished(&self) -> bool {
        self.state == BatchState::Finished
    }
}

/// Items by state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchCounts)]
struct Counted {
    /// Known once all items have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    queued: u64,
    running: u64,
    succeeded: u64,
    failed: u64,
    canceled: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchUrls)]
struct Urls {
    #[serde(rename = "self")]
    this: String,
    results: String,
}

/// The URL of a batch.
pub(super) fn batch_url(id: &str) -> String {
    links::to(&format!("/v1/batches/{id}"))
}

/// A batch's document, with an estimate of the remaining time.
pub(super) async fn shown(state: &AppState, batch: &Batch) -> Result<Document, IndexError> {
    let mut document = document(&state.index, batch).await?;
    if document.state == BatchState::Running {
        let counts = &document.counts;
        let ended = counts.succeeded + counts.failed + counts.canceled;
        let age = Duration::from_millis(Timestamp::now().millis_since(batch.created_at));
        let left = counts.queued + counts.running;
        document.eta_seconds = state.rates.look(&batch.id, ended, left, age, Instant::now());
    }
    Ok(document)
}

/// A batch's document, without an estimate of the remaining time.
pub(crate) async fn document(index: &Index, batch: &Batch) -> Result<Document, IndexError> {
    let counts = index.counts(&batch.id).await?;
    Ok(describe(batch, &counts))
}

fn describe(batch: &Batch, counts: &Counts) -> Document {
    let ended = counts.succeeded + counts.failed + counts.canceled;
    // The index lags slightly: items that it does not know yet count as queued.
    let queued = match batch.total {
        // Results may expire before the batch's record does.
        _ if batch.finished_at.is_some() => counts.queued,
        Some(total) => total.saturating_sub(ended + counts.running),
        None => counts.queued,
    };
    let state = match batch.total {
        _ if batch.canceled_at.is_some() => BatchState::Canceled,
        None => BatchState::Receiving,
        Some(total) if ended < total && batch.finished_at.is_none() => BatchState::Running,
        Some(_) => BatchState::Finished,
    };
    Document {
        id: batch.id.clone(),
        model: batch.model.clone(),
        topic: batch.topic.clone(),
        state,
        created_at: batch.created_at,
        finished_at: batch.finished_at,
        max_failures: batch.failures_max,
        error: batch.error.clone(),
        skipped: batch.skipped.clone(),
        counts: Counted {
            total: batch.total,
            queued,
            running: counts.running,
            succeeded: counts.succeeded,
            failed: counts.failed,
            canceled: counts.canceled,
        },
        eta_seconds: None,
        urls: Urls { this: batch_url(&batch.id), results: format!("{}/results", batch_url(&batch.id)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_told_by_what_has_come_and_what_has_ended() {
        let mut batch = Batch {
            id: "b".into(),
            model: "m".into(),
            topic: TopicName::new("m").expect("valid"),
            owner: None,
            created_at: Timestamp::from_millis(0),
            total: None,
            complete_at: None,
            skipped: Skipped::default(),
            canceled_at: None,
            error: None,
            failures_max: None,
            webhook: None,
            finished_at: None,
        };
        let counts = Counts { queued: 1, running: 1, succeeded: 3, failed: 1, canceled: 0 };
        let at = |batch: &Batch| describe(batch, &counts);
        assert_eq!(
            (at(&batch).state, at(&batch).counts.queued, at(&batch).eta_seconds),
            (BatchState::Receiving, 1, None)
        );
        batch.total = Some(9);
        // Five are left, three of which the index has not seen.
        assert_eq!((at(&batch).state, at(&batch).counts.queued), (BatchState::Running, 4));
        batch.total = Some(4);
        assert_eq!(at(&batch).state, BatchState::Finished);
        batch.canceled_at = Some(Timestamp::from_millis(1));
        assert_eq!(at(&batch).state, BatchState::Canceled);
    }
}
