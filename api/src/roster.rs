//! The processes that announced themselves to this one recently.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use queue::members::{Announcement, MemberState, Role, Table, Totals};
use queue::{Queue, QueueError};

/// The member table of this process, kept up to date in the background.
#[derive(Clone, Default)]
pub(crate) struct Roster(Arc<Mutex<Table>>);

impl Roster {
    /// The current members.
    pub(crate) fn members(&self) -> Vec<Announcement> {
        self.with(|table| table.members().cloned().collect())
    }

    /// Workers that can run the model.
    pub(crate) fn serving(&self, model: &str) -> Vec<Announcement> {
        let serves =
            |member: &&Announcement| member.role == Role::Worker && member.models.iter().any(|name| name == model);
        self.with(|table| table.members().filter(serves).cloned().collect())
    }

    /// How many workers have the model loaded.
    pub(crate) fn workers_of(&self, model: &str) -> usize {
        let serves = |member: &&Announcement| {
            member.role == Role::Worker
                && member.state == MemberState::Ready
                && member.models.iter().any(|name| name == model)
        };
        self.with(|table| table.members().filter(serves).count())
    }

    /// Counts of all workers together.
    pub(crate) fn totals(&self) -> Totals {
        self.with(|table| table.totals())
    }

    fn with<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.expire(Instant::now());
        look(&table)
    }

    /// Collects announcements and announces this process, until the future is dropped.
    pub(crate) async fn keep(self, queue: Queue, own: Announcement) -> Result<(), QueueError> {
        let mut heard = queue.announcements().await?;
        let mut due = queue.announcement_times().await?;
        loop {
            tokio::select! {
                () = due.next() => queue.announce(&own).await,
                Some(announcement) = heard.next() => {
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).hear(announcement, Instant::now());
                }
            }
        }
    }
}
