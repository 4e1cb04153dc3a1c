//! All routes, in the order in which a job meets them.

use axum::Router;
use axum::extract::Request;
use axum::routing::{delete, get, post};

use crate::error::ApiError;
use crate::state::Shared;
use crate::{batches, catalog, dead, health, jobs, keys, metrics, middleware, roster, topics, webhooks};

/// The routes with everything around them.
pub(crate) fn router(state: Shared) -> Router {
    let routes = Router::new()
        .route("/v1/jobs", post(jobs::submit).get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::status).delete(jobs::cancel))
        .route("/v1/jobs/{id}/events", get(jobs::events))
        .route("/v1/jobs/{id}/image", get(jobs::image))
        .route("/v1/jobs/{id}/deliveries", get(webhooks::deliveries))
        .route("/v1/jobs/{id}/retry", post(jobs::retry))
        .route("/v1/batches", post(batches::create).get(batches::list))
        .route("/v1/batches/{id}", get(batches::show).put(batches::put).delete(batches::cancel))
        .route("/v1/batches/{id}/results", get(batches::results))
        .route("/v1/batches/{id}/verify", get(batches::verify))
        .route("/v1/models", get(catalog::list))
        .route("/v1/models/{name}", get(catalog::show))
        .route("/v1/members", get(roster::list))
        .route("/v1/topics", get(topics::list).post(topics::create))
        .route("/v1/topics/{name}", get(topics::describe).patch(topics::alter).delete(topics::delete))
        .route("/v1/topics/{name}/purge", post(topics::purge))
        .route("/v1/topics/{name}/pause", post(topics::pause))
        .route("/v1/topics/{name}/resume", post(topics::resume))
        .route("/v1/dead", get(dead::list))
        .route("/v1/dead/redrive", post(dead::redrive_all))
        .route("/v1/dead/{id}", get(dead::show))
        .route("/v1/dead/{id}/image", get(dead::image))
        .route("/v1/dead/{id}/redrive", post(dead::redrive))
        .route("/v1/keys", get(keys::list).post(keys::create))
        .route("/v1/keys/{id}", delete(keys::revoke))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::show))
        .fallback(|request: Request| async move { ApiError::RouteUnknown(request.uri().path().to_owned()) })
        .method_not_allowed_fallback(|request: Request| async move { ApiError::Method(request.method().to_string()) });
    middleware::around(routes.with_state(state.clone()), state)
}
