//! Pull requests that wait at a consumer.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// A request for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Subject for messages and statuses.
    pub(crate) reply: Bytes,
    /// Messages that it still accepts.
    pub(crate) batch: u32,
    /// Bytes that it still accepts, if limited.
    pub(crate) bytes: Option<u64>,
    pub(crate) expires: Option<Instant>,
    /// Interval of idle heartbeats, and when the next one is due.
    pub(crate) heartbeat: Option<(Duration, Instant)>,
    pub(crate) priority: Priority,
}

/// Priority of a request among others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Priority {
    /// Serve it only if at least this many messages are undelivered; 0 disables this.
    pub(crate) min_pending: u64,
    /// Serve it only if at least this many messages are pending; 0 disables this.
    pub(crate) min_ack_pending: u64,
    /// The lowest number is served first.
    pub(crate) number: u8,
    /// Id under which its client is pinned.
    pub(crate) pin: Option<String>,
}

/// The only client that is served, until it is inactive for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) id: String,
    /// Since when, Unix time in ns.
    pub(crate) since: i64,
    pub(crate) until: Instant,
}
