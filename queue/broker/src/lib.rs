//! The queue's own server: it speaks the part of NATS JetStream that the `queue` package and
//! ordinary NATS clients use, on one node, and what it acknowledges is on disk.
//!
//! Follow one message: a connection (`server`) reads it, the codec (`nats`) makes a command of it,
//! a `stream` decides what it changes, the `journal` writes the change and syncs
//! it, and only then the answer leaves. This package knows neither jobs nor the rest of Sightline.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod server;
mod nats;
mod stream;
mod journal;
mod platform;
mod panics;
// One source for both: a package of its own for one file would be one more to know.
#[path = "../../src/calendar.rs"]
#[expect(unreachable_pub, reason = "it is public in `queue`")]
mod calendar;
#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use server::{
    Auth, Broker, JournalUsage, Loss, Monitor, OpenError, Options, Permissions, Responses, Rules, Tls, User, backup,
    server_config,
};
