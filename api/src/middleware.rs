//! What every request passes: an id, a span, the clock, and the checks against other people's
//! pages.
//!
//! A page anywhere can make a browser on this machine send requests here. Two checks stop that
//! without keys: `Host` must name this server (a foreign name that points at 127.0.0.1 is DNS
//! rebinding), and a write that carries an `Origin` must come from the same host.

use std::net::IpAddr;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tracing::Instrument;

use crate::error::ApiError;
use crate::state::Shared;
use crate::{incoming, keys, metrics};

/// Bodies that are read whole and are not images: settings of topics, of keys, and such.
const SMALL_BODY_MAX: usize = 64 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts the layers around the routes. The last one added is the first to see a request.
pub(crate) fn around(routes: Router, state: Shared) -> Router {
    routes
        .layer(CatchPanicLayer::custom(|_| ApiError::Internal.into_response()))
        .layer(from_fn_with_state(state.clone(), keys::guard))
        .layer(from_fn_with_state(state.clone(), guard))
        .layer(from_fn_with_state(state, incoming::guard))
        .layer(DefaultBodyLimit::max(SMALL_BODY_MAX))
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
    let response = next.run(request).instrument(span.clone()).await;
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
    let text = |name| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    // A proxy request has the authority in its first line.
    let host = request.uri().authority().map(Authority::to_string).or_else(|| text(header::HOST)).unwrap_or_default();
    let authority: Authority = host.parse().map_err(|_| ApiError::Host(host.clone()))?;
    if !is_own_host(authority.host(), &state.config) {
        return Err(ApiError::Host(host));
    }
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    match text(header::ORIGIN) {
        Some(origin) if !reads && !is_same_host(&origin, &authority) => Err(ApiError::Origin(origin)),
        _ => Ok(()),
    }
}

fn is_own_host(host: &str, config: &crate::Config) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<IpAddr>() {
        // An address cannot be rebound. A server that listens everywhere does not know its own.
        Ok(address) => address.is_loopback() || config.listen_ip.is_unspecified() || address == config.listen_ip,
        Err(_) => name == "localhost" || config.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(&name)),
    }
}

fn is_same_host(origin: &str, host: &Authority) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
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
        let host = Authority::from_static("localhost:8080");
        assert!(is_same_host("http://localhost:8080", &host));
        for foreign in
            ["null", "http://localhost", "http://localhost:8081", "http://evil.example", "localhost:8080", ""]
        {
            assert!(!is_same_host(foreign, &host), "{foreign}");
        }
    }
}
