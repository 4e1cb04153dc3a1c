//! Requests that wait at a consumer.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// A request for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Where messages and statuses go.
    pub(crate) reply: Bytes,
    /// Messages that it still takes.
    pub(crate) batch: u32,
    /// Bytes that it still takes, if that is bounded.
    pub(crate) bytes: Option<u64>,
    pub(crate) expires: Option<Instant>,
    /// The pause after which a sign of life is due, and when the next one is.
    pub(crate) heartbeat: Option<(Duration, Instant)>,
    pub(crate) priority: Priority,
}

/// What a request says of its place among others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Priority {
    /// It helps out only when this many messages wait; 0 is always.
    pub(crate) min_pending: u64,
    /// It helps out only when this many messages are in hand; 0 is always.
    pub(crate) min_ack_pending: u64,
    /// The lowest number is served first.
    pub(crate) number: u8,
    /// It comes from the client that is pinned under this id.
    pub(crate) pin: Option<String>,
}

/// The one client that is served, until it is silent for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) id: String,
    /// Since when, Unix time in ns.
    pub(crate) since: i64,
    pub(crate) until: Instant,
}
