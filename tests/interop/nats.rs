//! The same once more, on a NATS server.

#[path = "main.rs"]
mod suite;
