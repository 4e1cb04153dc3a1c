//! All routes, in the order in which a job meets them.

use axum::Router;
use axum::extract::Request;
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::state::Shared;
use crate::{catalog, health, jobs, metrics, middleware, roster};

/// The routes with everything around them.
pub(crate) fn router(state: Shared) -> Router {
    let routes = Router::new()
        .route("/v1/jobs", post(jobs::submit))
        .route("/v1/jobs/{id}", get(jobs::status))
        .route("/v1/models", get(catalog::list))
        .route("/v1/models/{name}", get(catalog::show))
        .route("/v1/members", get(roster::list))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::show))
        .fallback(|request: Request| async move { ApiError::RouteUnknown(request.uri().path().to_owned()) })
        .method_not_allowed_fallback(|request: Request| async move { ApiError::Method(request.method().to_string()) });
    middleware::around(routes.with_state(state.clone()), state)
}
