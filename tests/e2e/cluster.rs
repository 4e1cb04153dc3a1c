//! Topics and coordination once more, on a cluster of three NATS servers with three replicas.

#[path = "../harness/mod.rs"]
mod harness;

/// Who gets what, who notices what is wrong, and what follows.
mod coordination;
/// Topics, logs, dead letters.
mod topics;
