//! How commands call the API: one request, one answer, or the error in one line.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Method, Response, StatusCode};
use serde_json::Value;

use crate::config::ApiAddressArgs;
use crate::{data, trust};

/// A connection to one API.
pub(crate) struct Remote {
    http: reqwest::Client,
    base: String,
}

impl Remote {
    pub(crate) fn new(args: &ApiAddressArgs) -> anyhow::Result<Self> {
        let http = client(args)?;
        let base = data::api_address(args.api.as_deref(), &args.data)?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned() })
    }

    /// The document at a path.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path).await
    }

    /// Sends a document.
    pub(crate) async fn post(&self, path: &str, document: &Value) -> anyhow::Result<Value> {
        let asked = self.http.post(format!("{}{path}", self.base)).json(document).send().await;
        self.read(asked).await?.json().await.context("read the answer")
    }

    /// Sends a body of bytes, which may be a stream.
    pub(crate) async fn send_bytes(&self, method: Method, path: &str, kind: &str, body: Body) -> anyhow::Result<Value> {
        let request = self.http.request(method, format!("{}{path}", self.base)).header(CONTENT_TYPE, kind).body(body);
        self.read(request.send().await).await?.json().await.context("read the answer")
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        self.send(method, path).await?.json().await.context("read the answer")
    }

    /// The same, for an answer that is read piece by piece.
    pub(crate) async fn send(&self, method: Method, path: &str) -> anyhow::Result<Response> {
        let asked = self.http.request(method, format!("{}{path}", self.base)).send().await;
        self.read(asked).await
    }

    async fn read(&self, asked: reqwest::Result<Response>) -> anyhow::Result<Response> {
        let answer =
            asked.with_context(|| format!("no API at {}; start one with `sightline up`, or pass --api", self.base))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let problem: Value = answer.json().await.unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            bail!("{}", needs_key(&problem));
        }
        bail!("{}", problem["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned))
    }
}

/// An HTTP client that sends the key with every request, and trusts the given certificate authority.
pub(crate) fn client(args: &ApiAddressArgs) -> anyhow::Result<reqwest::Client> {
    // Fails only if a provider is set already, which is the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut headers = HeaderMap::new();
    if let Some(key) = &args.key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).context("--key is not an API key")?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = reqwest::Client::builder().default_headers(headers).connect_timeout(Duration::from_secs(10));
    if let Some(path) = &args.api_ca {
        builder = builder.tls_backend_preconfigured(trust::trusting(path)?);
    }
    builder.build().context("start an HTTP client")
}

/// What to do about a key that is missing, or that the API does not know.
pub(crate) fn needs_key(problem: &Value) -> &'static str {
    if problem["code"] == "key_missing" {
        "this API needs a key: pass --key sl_…, or set SIGHTLINE_KEY"
    } else {
        "this API does not know the key: look at --key and SIGHTLINE_KEY"
    }
}

/// A field's value, for people.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value that is escaped for a query, between `&` and `=`.
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
