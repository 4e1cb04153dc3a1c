//! What every handler can reach.

use std::net::IpAddr;
use std::sync::Arc;

use models::Repository;
use queue::Queue;
use queue::tasks::Tasks;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::batches::{Memory, Rates};
use crate::bodies::Bodies;
use crate::config::Config;
use crate::index::Index;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::roster::Roster;
use crate::watch::Watch;

/// Handed to each handler; clones are cheap.
pub(crate) type Shared = Arc<AppState>;

/// Everything that outlives a request.
pub(crate) struct AppState {
    pub(crate) queue: Queue,
    pub(crate) repository: Repository,
    pub(crate) config: Config,
    /// The member id of this process.
    pub(crate) member: String,
    pub(crate) roster: Roster,
    pub(crate) watch: Watch,
    pub(crate) index: Index,
    pub(crate) keys: Keys,
    pub(crate) metrics: Metrics,
    /// Memory for bodies of uploads.
    pub(crate) bodies: Bodies,
    /// The same for items of batches, which may wait long for room in the queue.
    pub(crate) batch_bodies: Memory,
    /// Permits for reading archives.
    pub(crate) archives: Arc<Semaphore>,
    /// How fast batches progress.
    pub(crate) rates: Rates,
    /// The background tasks.
    pub(crate) tasks: Tasks,
    /// Canceled when the process is stopping: requests that wait answer with the current state.
    pub(crate) stop: CancellationToken,
}

impl AppState {
    /// Whether memory for uploads, or for items of batches, is short, so that clients that hold some must be quick.
    /// Neither kind affects the other.
    pub(crate) fn is_short_of_memory(&self, is_batch: bool, client: Option<IpAddr>) -> bool {
        if is_batch { self.batch_bodies.is_short() } else { self.bodies.is_short(client) }
    }
}
