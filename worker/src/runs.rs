//! Jobs that run here, so that each can be stopped when it is canceled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use queue::{JobId, QueueError, State, WorkerQueue};
use tokio_util::sync::CancellationToken;

/// The jobs that this process has begun; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(Arc<Mutex<HashMap<JobId, CancellationToken>>>);

/// A job's entry, removed when this is dropped.
pub(crate) struct RunGuard {
    id: JobId,
    runs: Runs,
    canceled: CancellationToken,
}

impl Runs {
    /// Enters a job; the returned guard resolves when the job is canceled.
    pub(crate) fn enter(&self, id: &JobId) -> RunGuard {
        let canceled = CancellationToken::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), canceled.clone());
        RunGuard { id: id.clone(), runs: self.clone(), canceled }
    }

    /// Subscribes to cancellations for as long as it is awaited. A message is only a hint; the record decides.
    pub(crate) async fn keep(self, queue: WorkerQueue) -> Result<(), QueueError> {
        let mut cancels = queue.cancels().await?;
        while let Some(id) = cancels.next().await {
            let Some(token) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned() else { continue };
            match queue.find_record(&id).await {
                Ok(Some(stored)) if matches!(stored.record.state, State::Canceled { .. }) => token.cancel(),
                Ok(_) => {}
                Err(error) => tracing::warn!(job_id = %id, %error, "unknown whether the job was canceled"),
            }
        }
        Ok(())
    }
}

impl RunGuard {
    /// Returns when the job is canceled.
    pub(crate) async fn canceled(&self) {
        self.canceled.cancelled().await;
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.runs.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
