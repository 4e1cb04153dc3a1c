//! Logs: topics that keep their messages, written and read at will.

mod read;
mod groups;
mod append;

pub use groups::{GroupMessage, GroupOffset, GroupReader, Offsets, Position};
pub use read::Bounds;

use super::role::role;

role! {
    /// Writes and reads logs.
    Logs
}
