//! Webhooks: we POST an event to a client's server when its job or batch ends.
//!
//! The index follows the records. For each change with a webhook it stores a call that is due, before it stores
//! its own position. So no change is missed if a process dies, and a change stored twice is one message. Calls are
//! retried for hours, signed by Standard Webhooks (<https://www.standardwebhooks.com>), and each attempt is in the
//! delivery log.

mod guard;
mod receivers;
pub(crate) mod send;
pub(crate) mod gone;

pub(crate) use gone::Gone;
pub(crate) use send::{Delivery, Sender};

use std::time::Duration;

use queue::client::{About, Hook, Revision};
use queue::{Record, Timestamp};

use crate::error::ApiError;

/// See [`is_recent`].
const NEWS_MAX: Duration = Duration::from_secs(60 * 60);
/// Length of a URL.
const URL_MAX: usize = 2_048;

/// The call that a record's change owes, if any. Pure.
pub(crate) fn owed(record: &Record, revision: Revision) -> Option<Hook> {
    let wish = record.spec.options.webhook.as_ref()?;
    let state = record.state.name();
    let is_wanted = if wish.events.is_empty() { record.is_terminal() } else { wish.events.iter().any(|e| e == state) };
    is_wanted.then(|| Hook {
        about: About::Job(record.spec.id.clone()),
        state: state.to_owned(),
        revision: revision.into(),
        url: wish.url.clone(),
        owner: record.spec.origin.owner.clone(),
    })
}

/// Whether a change is recent. Only of topics that an older version made it is not known otherwise what was
/// told of them: an index that is made anew is no news.
pub(crate) fn is_recent(record: &Record, now: Timestamp) -> bool {
    let changed_at = record.state.finished_at().or(record.started_at()).unwrap_or(record.spec.created_at);
    u128::from(now.millis_since(changed_at)) < NEWS_MAX.as_millis()
}

/// Refuses a URL that names an address which will never be called. What a name stands for is seen when it is
/// called.
pub(crate) fn check_target(url: &str, allowed: &[String]) -> Result<(), ApiError> {
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    match guard::private(&host, allowed) {
        Some(problem) => Err(ApiError::Option { name: "webhook".into(), problem }),
        None => Ok(()),
    }
}

/// A URL that may be called, as far as its text shows.
pub(crate) fn checked(url: &str) -> Result<String, ApiError> {
    let refuse = |problem: &str| ApiError::Option { name: "webhook".into(), problem: problem.into() };
    let parsed = reqwest::Url::parse(url).map_err(|error| refuse(&format!("it is no URL: {error}")))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(refuse("it must begin with https:// or http:// and name a host"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(refuse("it must not hold a password; calls are signed instead"));
    }
    if url.len() > URL_MAX {
        return Err(refuse("it is too long"));
    }
    Ok(parsed.into())
}
