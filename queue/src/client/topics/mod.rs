//! Topics: created, altered, paused, purged, deleted, and described.
//!
//! A change is made under the topic's lease record, in an order that leaves a usable topic wherever
//! it is interrupted: streams, their consumers, then the settings, which others rely on, then the
//! message that announces the change. Repeating the change continues from there. Deleting removes
//! the settings last, so that a partly deleted topic can still be seen and deleted.

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
