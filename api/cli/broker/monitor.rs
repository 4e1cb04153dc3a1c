//! The broker's monitoring port: plain HTTP, read-only, with the paths and fields of NATS servers.

use ::broker::Monitor;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const CONNECTIONS_PAGE: usize = 1024;

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Details {
    streams: String,
    consumers: String,
}

impl Default for Details {
    fn default() -> Self {
        Self { streams: "0".into(), consumers: "0".into() }
    }
}

/// Serves until stopped.
pub(super) async fn serve(monitor: Monitor, listener: TcpListener, stop: CancellationToken) {
    let routes = Router::new()
        .route("/varz", get(async |State(monitor): State<Monitor>| Json(monitor.varz())))
        .route("/connz", get(connz))
        .route("/jsz", get(jsz))
        .route("/subsz", get(async |State(monitor): State<Monitor>| Json(monitor.subsz())))
        .route("/healthz", get(healthz))
        .with_state(monitor);
    let serving = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "monitoring port failed");
    }
}

async fn connz(State(monitor): State<Monitor>, Query(page): Query<Page>) -> Json<Value> {
    Json(monitor.connz(page.offset, page.limit.unwrap_or(CONNECTIONS_PAGE).min(CONNECTIONS_PAGE)))
}

async fn jsz(State(monitor): State<Monitor>, Query(details): Query<Details>) -> Json<Value> {
    let is_on = |text: &str| matches!(text, "1" | "true");
    Json(monitor.jsz(is_on(&details.streams) || is_on(&details.consumers)))
}

async fn healthz(State(monitor): State<Monitor>) -> (StatusCode, Json<Value>) {
    match monitor.healthz() {
        Ok(()) => (StatusCode::OK, Json(json!({"status": "ok"}))),
        Err(problem) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"status": "unavailable", "status_code": 503, "error": problem})),
        ),
    }
}
