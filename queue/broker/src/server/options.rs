//! Settings of a broker.

use std::path::PathBuf;
use std::time::Duration;

use super::auth::Auth;
use super::tls::Tls;

/// Settings of a broker.
#[derive(Clone)]
pub struct Options {
    /// The journal's folder.
    pub folder: PathBuf,
    /// Which clients may connect, and what they may do.
    pub auth: Auth,
    /// TLS settings; `None`: connections are not encrypted.
    pub tls: Option<Tls>,
    /// Size limit of a message, headers and payload together, in bytes.
    pub max_payload: usize,
    /// Bytes that the messages of all streams that refuse new messages when full may take together; `None`: half of
    /// what they use plus what is free on disk, computed anew each time, and at most 32 GiB.
    pub queue_bytes_max: Option<u64>,
    /// Bytes that may wait to be sent to one client before it is disconnected.
    pub outbox_bytes_max: usize,
    /// Concurrent connections, at most.
    pub connections_max: usize,
    /// Concurrent subscriptions of one client, at most.
    pub subscriptions_max: usize,
    /// How long clients have to disconnect once the broker has announced that it is stopping.
    pub lame_duck: Duration,
    /// How long a client has to authenticate.
    pub auth_timeout: Duration,
    /// How long a client may be silent before the broker pings it.
    pub ping_interval: Duration,
    /// Asserts that no client of an earlier run is left: at the start, delivered jobs are redelivered at once, without
    /// waiting for their leases to expire. If such a client does run on, a job may be done twice.
    pub release_at_start: bool,
    /// Length of the journal's segments; by default it depends on the size of the disk.
    pub segment_bytes: Option<u64>,
    /// If off, an acknowledged message may be lost. For tests that measure what syncing costs and saves.
    pub sync: bool,
}

impl Options {
    /// Default settings for a folder.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            auth: Auth::default(),
            tls: None,
            max_payload: 32 << 20,
            queue_bytes_max: None,
            outbox_bytes_max: 128 << 20,
            connections_max: 4096,
            subscriptions_max: 65_536,
            lame_duck: Duration::ZERO,
            auth_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(120),
            release_at_start: false,
            segment_bytes: None,
            sync: true,
        }
    }
}

impl std::fmt::Debug for Options {
    /// Without token and passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("folder", &self.folder).finish_non_exhaustive()
    }
}
