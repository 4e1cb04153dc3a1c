//! How a broker runs.

use std::path::PathBuf;
use std::time::Duration;

use super::auth::Auth;
use super::tls::Tls;

/// How a broker runs.
#[derive(Clone)]
pub struct Options {
    /// The folder of its journal.
    pub folder: PathBuf,
    /// Who may come in.
    pub auth: Auth,
    /// How connections are encrypted, if they are.
    pub tls: Option<Tls>,
    /// The largest message, headers and payload together, bytes.
    pub max_payload: usize,
    /// Bytes that the messages of all streams which refuse when full may take together; `None`: half of what
    /// they and the free disk have, at any moment, and 32 GiB at most.
    pub queue_bytes_max: Option<u64>,
    /// Bytes that may wait for one client before it is cut.
    pub outbox_bytes_max: usize,
    /// Clients at a time.
    pub connections_max: usize,
    /// Subscriptions of one client at a time.
    pub subscriptions_max: usize,
    /// How long clients that were told that the broker leaves may take their leave.
    pub lame_duck: Duration,
    /// How long a client has to say who it is.
    pub auth_timeout: Duration,
    /// How long a client may be silent before it is asked for a sign of life.
    pub ping_interval: Duration,
    /// No client of an earlier run is left: what was in hand is handed out again at the start, without waiting
    /// for its lease to end. A client that is left all the same may do a job twice.
    pub release_at_start: bool,
    /// Length of the journal's segments; by default it goes by the size of the disk.
    pub segment_bytes: Option<u64>,
    /// Off, an acknowledgement means nothing. For tests that show what this costs and saves.
    pub sync: bool,
}

impl Options {
    /// The usual settings on a folder.
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
