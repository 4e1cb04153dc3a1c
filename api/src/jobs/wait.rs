//! Waiting for a job's end: the longest wait, and how a client asks for one.

use std::time::Duration;

use axum::http::HeaderMap;
use queue::client::Waited;
use queue::{JobId, QueueError};

use crate::state::AppState;

/// The longest time that a request may wait for its job.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

/// Waits for a job to end, but only until this process stops.
pub(super) async fn wait_for(state: &AppState, id: &JobId, patience: Duration) -> Result<Waited, QueueError> {
    tokio::select! {
        waited = state.queue.jobs.wait(id, patience) => waited,
        () = state.stop.cancelled() => state.queue.jobs.wait(id, Duration::ZERO).await,
    }
}

/// `wait=N` out of `Prefer` headers (RFC 7240), in seconds, at most [`WAIT_MAX`].
pub(super) fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split([',', ';'])).map(str::trim);
    let seconds = preferences.find_map(|preference| preference.strip_prefix("wait="))?;
    let seconds: u64 = seconds.trim_matches('"').parse().ok()?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

/// A whole number; one that is too large becomes `u64::MAX`.
pub(super) fn whole(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[track_caller]
    fn prefers(values: &[&'static str], seconds: Option<u64>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        assert_eq!(preferred(&headers), seconds.map(Duration::from_secs), "{values:?}");
    }

    #[test]
    fn a_preferred_wait_is_read_and_bounded() {
        prefers(&[], None);
        prefers(&["wait=10"], Some(10));
        prefers(&["respond-async, wait=5"], Some(5));
        prefers(&["respond-async", "wait=\"7\""], Some(7));
        prefers(&["wait=100000"], Some(60));
        prefers(&["wait=-1"], None);
        prefers(&["wait=soon"], None);
    }
}
