//! The same once more, with a NATS server in place of our own broker.

#[path = "main.rs"]
mod suite;
/// A queue that somebody else set up.
mod foreign_queue;
