//! Links in answers: paths of this server, with the prefix that a proxy adds.

use std::sync::OnceLock;

/// The path under which clients reach this server; empty unless it was set.
static PREFIX: OnceLock<String> = OnceLock::new();

/// Sets the prefix of all links, from the URL under which clients reach this server. Links are made deep inside (in
/// results, in webhooks), so the whole process shares one prefix.
pub(crate) fn set_public_url(url: &reqwest::Url) {
    // A second server in one process keeps the first one's.
    drop(PREFIX.set(url.path().trim_end_matches('/').to_owned()));
}

/// The prefix of all links.
pub(crate) fn prefix() -> &'static str {
    PREFIX.get().map_or("", String::as_str)
}

/// A path as clients must request it.
pub(crate) fn to(path: &str) -> String {
    format!("{}{path}", prefix())
}
