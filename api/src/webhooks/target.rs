//! URLs that may be called.

use super::guard;
use crate::error::ApiError;

/// Longest URL, bytes.
const URL_MAX: usize = 2_048;

/// Refuses a URL that names an address which will never be called. What a host name resolves to is checked when it
/// is called.
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
    let parsed = reqwest::Url::parse(url).map_err(|error| refuse(&format!("it is not a URL: {error}")))?;
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
