//! Parsed API requests, and answers in pages.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::stream::{Now, Refusal, config};

/// Entries per page.
pub(super) const NAMES_PAGE: usize = 1024;
pub(super) const LIST_PAGE: usize = 256;

/// The answer to a request.
pub(super) type Answer = Result<Value, Refusal>;

/// A parsed request.
pub(super) struct Request<'a> {
    pub(super) body: &'a [u8],
    pub(super) now: Now,
}

impl<'a> Request<'a> {
    /// Refuses a body with content, for requests that take none.
    pub(super) fn must_be_empty(&self) -> Result<(), Refusal> {
        match serde_json::from_slice(self.body) {
            Ok(Value::Object(fields)) if fields.is_empty() => Ok(()),
            _ if self.body.trim_ascii().is_empty() => Ok(()),
            _ => Err(Refusal::not_empty()),
        }
    }

    /// The body; an empty one and `null` count as `{}`.
    pub(super) fn read<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        match self.body.trim_ascii() {
            b"" | b"null" => Ok(T::default()),
            body => config::read(body),
        }
    }
}

/// Which page a request wants.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PageRequest {
    pub(super) offset: usize,
    pub(super) subject: Option<String>,
}

/// A page of a list.
pub(super) fn page(total: usize, offset: usize, limit: usize, name: &str, entries: Vec<Value>) -> Value {
    json!({"total": total, "offset": offset.min(total), "limit": limit, name: entries})
}
