//! Receivers that answered 410: they are no longer called, until their owner resumes the calls.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use queue::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::ApiError;
use crate::keys::Caller;
use crate::state::Shared;

/// A receiver that is no longer called.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GoneReceiver)]
pub(crate) struct Gone {
    /// Owner whose calls it refused; absent for jobs accepted before any key existed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    pub(crate) url: String,
    /// When it answered 410.
    pub(crate) at: Timestamp,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GoneReceivers)]
pub(crate) struct List {
    receivers: Vec<Gone>,
}

/// Which receiver.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// The URL given with the job.
    url: String,
}

/// Lists receivers that answered 410 and are no longer called.
#[utoipa::path(
    get, path = "/v1/webhooks/gone", tag = "operations", operation_id = "listGoneReceivers",
    responses((status = 200, description = "Your own receivers; with the scope `admin`, all.", body = List)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<List>, ApiError> {
    Ok(Json(List { receivers: state.index.gone(caller.only().as_deref()).await? }))
}

/// Resumes calls to a receiver.
#[utoipa::path(
    delete, path = "/v1/webhooks/gone", tag = "operations", operation_id = "restoreReceiver",
    params(Which),
    responses(
        (status = 204, description = "Calls are resumed."),
        (status = 400, description = "`option_invalid`: pass `url`."),
        (status = 404, description = "`receiver_unknown`: the receiver has not answered 410."),
    ),
)]
pub(crate) async fn restore(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(Which { url }) = which.map_err(|_| ApiError::Option {
        name: "url".into(),
        problem: "name the receiver as it was given with the job".into(),
    })?;
    match state.index.forget_gone(caller.only().as_deref(), &url).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::ReceiverUnknown(url.chars().take(80).collect())),
    }
}
