//! Links in answers: paths of this server, behind what a proxy puts before them.

use std::sync::OnceLock;

/// The path under which clients reach this server; empty unless it was set.
static PREFIX: OnceLock<String> = OnceLock::new();

/// Sets the path that stands before all links, from the address under which clients reach this server. Links
/// are made deep inside (of results, of webhooks), so this is one of the process.
pub(crate) fn set_public_url(url: &reqwest::Url) {
    // A second server in one process has the first one's.
    drop(PREFIX.set(url.path().trim_end_matches('/').to_owned()));
}

/// The path that stands before all links.
pub(crate) fn prefix() -> &'static str {
    PREFIX.get().map_or("", String::as_str)
}

/// A path as clients have to ask for it.
pub(crate) fn to(path: &str) -> String {
    format!("{}{path}", prefix())
}
