//! Topics: made, changed, paused, emptied, removed, and described.
//!
//! A change is made under the topic's lease record, in an order that leaves something whole
//! wherever it is interrupted: streams, their consumers, then the settings, which are what others
//! go by, then the message that says so. Doing the same again goes on from there. Removing goes
//! the other way round, so that a topic that is half gone can still be seen and removed.

mod create;
mod alter;
mod delete;
mod purge;
mod describe;
mod depth;
mod lease;

pub use depth::PartitionDepth;
pub use describe::{Description, Partition, Replica};
pub use purge::Purged;

use super::role::role;

role! {
    /// Manages topics.
    Topics
}
