//! All routes, in the order in which a job meets them. Each handler declares its method and path, which are also in
//! the API's description.

use axum::extract::Request;
use axum::{Extension, Router};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::state::Shared;
use crate::{batches, catalog, dead, health, jobs, keys, members, middleware, openapi, scrape, topics, webhooks};

/// The routes with their middleware.
pub(crate) fn router(state: Shared) -> Router {
    let (routes, document) = routes().split_for_parts();
    let routes = routes
        .layer(Extension(openapi::Served::of(document)))
        .merge(openapi::page())
        .fallback(|request: Request| async move { ApiError::RouteUnknown(request.uri().path().to_owned()) })
        .method_not_allowed_fallback(|request: Request| async move { ApiError::Method(request.method().to_string()) });
    middleware::around(routes.with_state(state.clone()), state)
}

/// The API's description, as `sightline openapi` prints it.
pub fn description() -> String {
    openapi::text(routes().into_openapi())
}

/// The routes and their description.
fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(jobs::submit::submit, jobs::list::list))
        .routes(routes!(jobs::status::status, jobs::cancel::cancel))
        .routes(routes!(jobs::events::events))
        .routes(routes!(jobs::image::image))
        .routes(routes!(webhooks::deliveries::of_job))
        .routes(routes!(jobs::retry::retry))
        .routes(routes!(batches::receive::create, batches::list::list))
        .routes(routes!(batches::list::show, batches::receive::put, batches::cancel::cancel))
        .routes(routes!(batches::results::results))
        .routes(routes!(batches::verify::verify, batches::verify::verify_expected))
        .routes(routes!(webhooks::deliveries::of_batch))
        .routes(routes!(webhooks::gone::list, webhooks::gone::restore))
        .routes(routes!(catalog::list))
        .routes(routes!(catalog::show))
        .routes(routes!(members::list))
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
        .routes(routes!(keys::list::list, keys::create::create))
        .routes(routes!(keys::revoke::revoke))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::index))
        .routes(routes!(scrape::show))
        .routes(routes!(openapi::show))
}

#[cfg(test)]
mod tests {
    /// The description that clients were generated from must not change unnoticed.
    #[test]
    fn the_committed_description_is_the_one_that_is_served() {
        let committed = include_str!("../openapi.json");
        let is_same = committed == super::description();
        assert!(is_same, "the API changed: cargo run -- openapi > api/openapi.json, and look at the difference");
    }
}
