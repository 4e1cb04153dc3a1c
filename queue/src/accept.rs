//! What a server does when connections cannot be accepted.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// Pause after an error of `accept`, which mostly means that file descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that is logged.
const WARNING_PAUSE: Duration = Duration::from_secs(60);

/// Errors of one listener's `accept`. The connections that are open go on; further ones wait in the system's
/// queue.
#[derive(Debug, Default)]
pub struct AcceptErrors {
    warned: Option<Instant>,
}

impl AcceptErrors {
    /// Logs an error, once a minute, and waits before the next try. `open` is how many connections there are.
    pub async fn pause(&mut self, error: &io::Error, open: usize) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARNING_PAUSE) {
            tracing::warn!(%error, open, "connections not accepted; they will wait");
            self.warned = Some(Instant::now());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
