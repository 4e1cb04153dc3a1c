//! The same once more, with a NATS server in place of our own broker.

#[path = "main.rs"]
mod suite;
/// A queue that another operator set up.
mod foreign_queue;
