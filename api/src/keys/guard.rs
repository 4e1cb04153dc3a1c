//! What every request passes once keys exist: checks of its key, scope and limits, and of the owner of the id that
//! it names.

use std::time::Instant;

use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{RequestExt, body::Body};

use super::caller::Caller;
use super::scope::Scope;
use crate::connections::client_address;
use crate::error::ApiError;
use crate::metrics;
use crate::openapi;
use crate::path::is_batch_id;
use crate::state::{AppState, Shared};

/// Routes that need no key: health, and the API's description.
const OPEN: [&str; 6] = ["/healthz", "/readyz", openapi::PATH, openapi::DOCS, "/docs/", "/docs/{*rest}"];

/// Lets a request through, with its [`Caller`] among its extensions, or refuses it with the reason.
pub(crate) async fn guard(State(state): State<Shared>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let is_free = OPEN.contains(&route.as_str())
        || match state.keys.are_needed_now(&state.queue).await {
            Ok(are_needed) => !are_needed,
            Err(error) => return ApiError::from(error).into_response(),
        };
    if is_free {
        let caller = Caller::anonymous(client_address(&state.config, &request));
        request.extensions_mut().insert(caller);
        return next.run(request).await;
    }
    let permit = match admit(&state, &route, &mut request).await {
        Ok(permit) => permit,
        Err(error) => {
            if needed(request.method(), &route) == Scope::Submit {
                metrics::refused(error.code());
            }
            return error.into_response();
        }
    };
    let response = next.run(request).await;
    drop(permit);
    response
}

async fn admit(
    state: &AppState,
    route: &str,
    request: &mut Request,
) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, ApiError> {
    let sent = bearer(request).ok_or(ApiError::KeyMissing)?;
    let Some(key) = state.keys.find(sent) else {
        // Only invalid keys count against an address: clients behind one proxy share theirs.
        state.keys.strangers.knock(client_address(&state.config, request), Instant::now())?;
        return Err(ApiError::KeyWrong);
    };
    let allowance = Some(state.keys.limiter.allowance(&key));
    let caller = Caller {
        owner: Some(key.name.clone()),
        scopes: key.scopes.clone(),
        allowance,
        address: client_address(&state.config, request),
    };
    let needed = needed(request.method(), route);
    if !caller.may(needed) {
        return Err(ApiError::KeyScope(needed));
    }
    state.keys.limiter.request(&key)?;
    let is_upload = needed == Scope::Submit && *request.method() != Method::DELETE && !route.ends_with("/retry");
    let permit = if is_upload { state.keys.limiter.upload(&key)? } else { None };
    if !caller.sees_all() {
        own(state, &caller, route, request).await?;
    }
    request.extensions_mut().insert(caller);
    Ok(permit)
}

/// The key that a request carries.
fn bearer(request: &Request) -> Option<&str> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// The scope that a request needs.
fn needed(method: &Method, route: &str) -> Scope {
    // Sending a list of names to verify only reads.
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) || route.ends_with("/verify");
    let is_under = |prefix: &str| route == prefix || route.starts_with(&format!("{prefix}/"));
    if is_under("/v1/keys") || is_under("/v1/dead") {
        return Scope::Admin;
    }
    match reads {
        true if ["/metrics", "/v1/members", "/v1/index"].iter().any(|prefix| is_under(prefix)) => Scope::Operate,
        true => Scope::Read,
        false if ["/v1/jobs", "/v1/batches", "/v1/webhooks"].iter().any(|prefix| is_under(prefix)) => Scope::Submit,
        false => Scope::Admin,
    }
}

/// Answers 404 for ids of other owners.
async fn own(state: &AppState, caller: &Caller, route: &str, request: &mut Request<Body>) -> Result<(), ApiError> {
    let Ok(parameters) = request.extract_parts::<RawPathParams>().await else { return Ok(()) };
    let Some((_, id)) = parameters.iter().find(|(name, _)| *name == "id") else { return Ok(()) };
    if route.starts_with("/v1/jobs/") {
        // The route itself refuses what is not an id.
        let Ok(job) = id.parse() else { return Ok(()) };
        let stored = state.queue.find_job(&job).await?;
        let is_own = stored.is_none_or(|stored| caller.sees(stored.record.spec.origin.owner.as_ref()));
        return if is_own { Ok(()) } else { Err(ApiError::JobUnknown(id.to_owned())) };
    }
    if route.starts_with("/v1/batches/") && is_batch_id(id) {
        let is_own = state.queue.batches.get(id).await?.is_none_or(|(batch, _)| caller.sees(batch.owner.as_ref()));
        return if is_own { Ok(()) } else { Err(ApiError::BatchUnknown(id.to_owned())) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_needs_what_it_does() {
        for (method, route, scope) in [
            (Method::GET, "/v1/jobs/{id}", Scope::Read),
            (Method::POST, "/v1/jobs", Scope::Submit),
            (Method::DELETE, "/v1/jobs/{id}", Scope::Submit),
            (Method::PUT, "/v1/batches/{id}", Scope::Submit),
            (Method::POST, "/v1/batches/{id}/verify", Scope::Read),
            (Method::POST, "/v1/topics", Scope::Admin),
            (Method::GET, "/v1/topics", Scope::Read),
            (Method::GET, "/v1/dead/{id}/image", Scope::Admin),
            (Method::GET, "/v1/keys", Scope::Admin),
            (Method::GET, "/metrics", Scope::Operate),
            (Method::GET, "/v1/members", Scope::Operate),
            (Method::POST, "/v1/jobsx", Scope::Admin),
        ] {
            assert_eq!(needed(&method, route), scope, "{method} {route}");
        }
    }
}
