//! The queue's own server, for one node. It implements the part of NATS JetStream that the `queue`
//! package and ordinary NATS clients use, and acknowledges only what is on disk.
//!
//! The path of a message: a connection (`server`) reads it, the codec (`nats`) parses it into a
//! command, a `stream` decides what it changes, the `journal` writes and syncs the change, and only
//! then the server answers. This package knows neither jobs nor the rest of Sightline.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod server;
mod nats;
mod stream;
mod journal;
mod platform;
mod panics;
// Shared with `queue`: one file does not justify a package of its own.
#[path = "../../src/calendar.rs"]
#[expect(unreachable_pub, reason = "it is public in `queue`")]
mod calendar;
#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use server::{
    Auth, Broker, JournalUsage, Loss, Monitor, OpenError, Options, Permissions, Responses, Rules, Tls, User, backup,
    server_config,
};
