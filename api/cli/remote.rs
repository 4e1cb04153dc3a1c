//! An API as commands ask it: one request, one answer, or the reason in one line.

use anyhow::{Context, bail};
use reqwest::{Method, Response};
use serde_json::Value;

use crate::config::ApiAddressArgs;
use crate::data;

/// A connection to one API.
pub(crate) struct Remote {
    http: reqwest::Client,
    base: String,
}

impl Remote {
    pub(crate) fn new(args: &ApiAddressArgs) -> anyhow::Result<Self> {
        // Only fails if somebody was first, with the same one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::Client::builder().build().context("start an HTTP client")?;
        let base = data::api_address(args.api.as_deref(), &args.data);
        Ok(Self { http, base: base.trim_end_matches('/').to_owned() })
    }

    /// The document at a path.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path).await
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        self.send(method, path).await?.json().await.context("read the answer")
    }

    /// The same for an answer that is read piece by piece.
    pub(crate) async fn send(&self, method: Method, path: &str) -> anyhow::Result<Response> {
        let asked = self.http.request(method, format!("{}{path}", self.base)).send().await;
        let answer =
            asked.with_context(|| format!("no API at {}; start one with `sightline up`, or say --api", self.base))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let problem: Value = answer.json().await.unwrap_or_default();
        bail!("{}", problem["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned))
    }
}

/// A field as people read it.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value of a query, safe between `&` and `=`.
pub(crate) fn escaped(value: &str) -> String {
    let mut safe = String::new();
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => safe.push(char::from(byte)),
            _ => safe.push_str(&format!("%{byte:02X}")),
        }
    }
    safe
}
