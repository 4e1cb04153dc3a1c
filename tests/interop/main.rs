//! Ordinary NATS clients and operators cannot tell our broker from a NATS server: the same programs
//! and the same assertions, once on each.

#[path = "../harness/mod.rs"]
mod harness;

/// A server with a configuration of its own, and a bare connection to it.
mod launch;
/// Clients in Python and JavaScript, fetched with pip and npm.
mod clients;
/// The Rust client: KV, object store, push and ordered consumers, priority groups.
mod rust;
/// The same requests to both, answer by answer.
mod answers;
/// What a server says and refuses: errors, users, encryption, limits, monitoring.
mod server;
