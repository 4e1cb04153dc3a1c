//! What every request passes: a request id, a span, a duration metric, and the checks against foreign pages.
//!
//! Any web page can make a browser on this machine send requests here. Two checks stop that without keys: `Host`
//! must name this server (a foreign name that points at 127.0.0.1 is DNS rebinding), and a write that carries an
//! `Origin` must come from the same host.

use std::net::IpAddr;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tracing::Instrument;

use crate::error::ApiError;
use crate::json::SETTINGS_BYTES_MAX;
use crate::state::Shared;
use crate::{incoming, keys, metrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts the layers around the routes. The last one added is the first to see a request.
pub(crate) fn around(routes: Router, state: Shared) -> Router {
    routes
        .layer(CatchPanicLayer::custom(|_| ApiError::Internal.into_response()))
        .layer(from_fn_with_state(state.clone(), keys::guard))
        .layer(from_fn_with_state(state.clone(), guard))
        .layer(from_fn_with_state(state, incoming::guard))
        .layer(DefaultBodyLimit::max(SETTINGS_BYTES_MAX))
        .layer(from_fn(observe))
        .layer(CatchPanicLayer::custom(|_| ApiError::Internal.into_response()))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
}

/// Span and request metrics.
async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let id = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let span = tracing::info_span!("request", request_id = id, %method, route);
    let mut response = next.run(request).instrument(span.clone()).await;
    // Browsers must never run our answers as scripts or show them inside another page.
    let own_headers = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in own_headers {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    metrics::request(&route, &method, response.status(), started.elapsed());
    span.in_scope(|| {
        tracing::debug!(status = response.status().as_u16(), ms = started.elapsed().as_millis() as u64, "answered");
    });
    response
}

/// Refuses foreign hosts, and writes from foreign pages.
async fn guard(State(state): State<Shared>, request: Request, next: Next) -> Response {
    match check(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(state: &Shared, request: &Request) -> Result<(), ApiError> {
    let (headers, config) = (request.headers(), &state.config);
    // A path with a NUL matches nothing, so only the query is checked.
    if request.uri().query().is_some_and(|text| text.contains("%00")) {
        return Err(ApiError::Nul);
    }
    // If such a header is sent twice, a proxy in front of us may use the other value.
    for name in [header::HOST, header::ORIGIN, header::AUTHORIZATION] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Err(ApiError::HeaderTwice(name));
        }
    }
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    // A proxy-style request has the host in its first line.
    let host = request.uri().authority().map(Authority::to_string).or_else(|| text(header::HOST));
    if host.is_none() && reads && request.version() == Version::HTTP_10 {
        // Health checks of load balancers omit `Host`; browsers never do.
        return Ok(());
    }
    let host = host.unwrap_or_default();
    let mut authority = own_host(host, config)?;
    if config.behind_proxy
        && let Some(forwarded) = forwarded_host(headers)
    {
        authority = own_host(forwarded, config)?;
    }
    match text(header::ORIGIN) {
        Some(origin) if !reads && !is_same_host(&origin, &authority, config) => {
            Err(ApiError::Origin { origin, host: authority.to_string() })
        }
        _ => Ok(()),
    }
}

fn own_host(host: String, config: &crate::Config) -> Result<Authority, ApiError> {
    let authority: Authority = host.parse().map_err(|_| ApiError::Host(host.clone()))?;
    if is_own_host(authority.host(), config) { Ok(authority) } else { Err(ApiError::Host(host)) }
}

/// The host that a client asked the proxy for. The proxy itself wrote the last entry.
fn forwarded_host(headers: &HeaderMap) -> Option<String> {
    let value = headers.get_all("x-forwarded-host").iter().next_back()?.to_str().ok()?;
    value.rsplit(',').next().map(|host| host.trim().to_owned()).filter(|host| !host.is_empty())
}

fn is_own_host(host: &str, config: &crate::Config) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<IpAddr>() {
        // An address cannot be rebound. A server that listens on all addresses does not know its own.
        Ok(address) => address.is_loopback() || config.listen_ip.is_unspecified() || address == config.listen_ip,
        Err(_) => {
            let public = config.public_url.as_ref().and_then(|url| url.host_str());
            let mut allowed = config.allowed_hosts.iter().map(String::as_str).chain(public);
            name == "localhost" || allowed.any(|allowed| allowed.eq_ignore_ascii_case(&name))
        }
    }
}

fn is_same_host(origin: &str, host: &Authority, config: &crate::Config) -> bool {
    let public = config.public_url.as_ref().map(|url| url.origin().ascii_serialization());
    if public.is_some_and(|public| public.eq_ignore_ascii_case(origin)) {
        return true;
    }
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let Some(authority) = authority.and_then(|authority| authority.parse::<Authority>().ok()) else { return false };
    // Proxies are often configured to leave the port out.
    let is_same_port = authority.port_u16() == host.port_u16() || (config.behind_proxy && host.port().is_none());
    authority.host().eq_ignore_ascii_case(host.host()) && is_same_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> crate::Config {
        let listen_ip = listen.parse().expect("an address");
        crate::Config { listen_ip, allowed_hosts: vec!["Sight.example".into()], ..crate::Config::default() }
    }

    #[test]
    fn names_that_others_own_are_foreign() {
        let local = config("127.0.0.1");
        for own in ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "[::1]", "127.0.0.2", "sight.example"] {
            assert!(is_own_host(own, &local), "{own}");
        }
        for foreign in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", ""] {
            assert!(!is_own_host(foreign, &local), "{foreign}");
        }
        assert!(is_own_host("10.0.0.1", &config("0.0.0.0")));
    }

    #[test]
    fn an_origin_is_the_same_only_with_host_and_port() {
        let (host, local) = (Authority::from_static("localhost:8080"), config("127.0.0.1"));
        assert!(is_same_host("http://localhost:8080", &host, &local));
        for foreign in
            ["null", "http://localhost", "http://localhost:8081", "http://evil.example", "localhost:8080", ""]
        {
            assert!(!is_same_host(foreign, &host, &local), "{foreign}");
        }
        let proxied = crate::Config { behind_proxy: true, ..config("127.0.0.1") };
        let forwarded = Authority::from_static("sight.example");
        assert!(is_same_host("https://sight.example:8443", &forwarded, &proxied));
        assert!(!is_same_host("https://sight.example:8443", &forwarded, &local));
        let url = reqwest::Url::parse("https://public.example/vision").ok();
        let public = crate::Config { public_url: url, ..config("127.0.0.1") };
        assert!(is_same_host("https://public.example", &host, &public));
        assert!(is_own_host("public.example", &public) && !is_same_host("http://public.example", &host, &public));
    }
}
