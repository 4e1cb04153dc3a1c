//! The only client of the queue: JetStream through `async-nats`, whatever the server.
//!
//! A process [connects](Queue::connect) once and gives each of its parts the handle that its role needs: a
//! part that [works](WorkerQueue) on jobs cannot delete a topic.

mod address;
mod connection;
mod role;
mod headers;
mod jobs;
mod work;
mod topics;
mod logs;
mod batches;
mod hooks;
mod told;
mod keys;
mod admin;

use std::sync::Arc;

pub use address::Address;
pub use admin::{Admin, Aged, Audit, Problem, Singleton, Wrong};
pub use batches::{BATCHES_KEPT, Batch, Batches, Skipped};
pub use connection::{Connection, Doubt, Message, Replaced, Revision, Server, Stored};
pub use hooks::{About, Hook, Hooks, OwedCall};
pub use jobs::{Canceled, DeadLetter, Jobs, RedriveError, Redriven, Submitted, Waited, place};
pub use keys::Keys;
pub use logs::{Bounds, GroupMessage, GroupOffset, GroupReader, Logs, Offsets, Position};
pub use topics::{Description, Partition, PartitionDepth, Purged, Replica, Topics};
pub use work::{AckSubject, Delivery, Fetcher, WorkerQueue};

use crate::ConnectError;
use crate::topic::Defaults;

/// The queue with all its handles; clones share one connection. It also has every method of [`Connection`].
#[derive(Debug, Clone)]
pub struct Queue {
    connection: Arc<Connection>,
    /// Submitting jobs and reading them.
    pub jobs: Jobs,
    /// Working on jobs.
    pub work: WorkerQueue,
    /// Managing topics.
    pub topics: Topics,
    /// Writing and reading logs.
    pub logs: Logs,
    /// Records of batches.
    pub batches: Batches,
    /// Webhook calls that are owed.
    pub hooks: Hooks,
    /// API keys.
    pub keys: Keys,
    /// Repairs and checks.
    pub admin: Admin,
}

impl Queue {
    /// Connects; a connection that is lost later is restored in the background.
    ///
    /// The server shows this client as `name`; new topics are created with `defaults`.
    ///
    /// # Errors
    /// [`ConnectError`] with the address and the problem.
    pub async fn connect(address: &Address, name: &str, defaults: Defaults) -> Result<Self, ConnectError> {
        let connection = Arc::new(Connection::connect(address, name, defaults).await?);
        Ok(Self {
            jobs: Jobs::of(&connection),
            work: WorkerQueue::of(&connection),
            topics: Topics::of(&connection),
            logs: Logs::of(&connection),
            batches: Batches::of(&connection),
            hooks: Hooks::of(&connection),
            keys: Keys::of(&connection),
            admin: Admin::of(&connection),
            connection,
        })
    }
}

impl std::ops::Deref for Queue {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}
