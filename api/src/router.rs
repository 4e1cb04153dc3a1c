//! All routes, in the order in which a job meets them. Method and path stand at each handler, and in
//! the API's description.

use axum::Router;
use axum::extract::Request;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::state::Shared;
use crate::{batches, catalog, dead, health, jobs, keys, metrics, middleware, openapi, roster, topics, webhooks};

/// The routes with everything around them.
pub(crate) fn router(state: Shared) -> Router {
    let routes = Router::from(routes())
        .merge(openapi::page())
        .fallback(|request: Request| async move { ApiError::RouteUnknown(request.uri().path().to_owned()) })
        .method_not_allowed_fallback(|request: Request| async move { ApiError::Method(request.method().to_string()) });
    middleware::around(routes.with_state(state.clone()), state)
}

/// The routes and their description.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(jobs::submit::submit, jobs::list::list))
        .routes(routes!(jobs::status::status, jobs::manage::cancel))
        .routes(routes!(jobs::events::events))
        .routes(routes!(jobs::manage::image))
        .routes(routes!(webhooks::send::deliveries))
        .routes(routes!(jobs::manage::retry))
        .routes(routes!(batches::receive::create, batches::manage::list))
        .routes(routes!(batches::manage::show, batches::receive::put, batches::manage::cancel))
        .routes(routes!(batches::results::results))
        .routes(routes!(batches::manage::verify, batches::manage::verify_expected))
        .routes(routes!(webhooks::send::batch_deliveries))
        .routes(routes!(webhooks::gone::list, webhooks::gone::restore))
        .routes(routes!(catalog::list))
        .routes(routes!(catalog::show))
        .routes(routes!(roster::list))
        .routes(routes!(topics::list, topics::create))
        .routes(routes!(topics::describe, topics::alter, topics::delete))
        .routes(routes!(topics::purge))
        .routes(routes!(topics::pause))
        .routes(routes!(topics::resume))
        .routes(routes!(dead::list))
        .routes(routes!(dead::redrive_all))
        .routes(routes!(dead::show))
        .routes(routes!(dead::image))
        .routes(routes!(dead::redrive))
        .routes(routes!(keys::manage::list, keys::manage::create))
        .routes(routes!(keys::manage::revoke))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::index))
        .routes(routes!(metrics::show))
        .routes(routes!(openapi::show))
}
