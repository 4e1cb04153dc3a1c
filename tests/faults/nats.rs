//! The same once more, with a NATS server in place of our own broker.

#[path = "main.rs"]
mod suite;
/// What only concerns a server that is a child process.
mod nats_server;
