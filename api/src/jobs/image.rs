//! `GET /v1/jobs/{id}/image`: a job's input while it is kept, without the metadata that a camera added.

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use models::decode::without_metadata;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::keys::Caller;
use crate::path::JobPath;
use crate::schema::{Binary, NoJob};
use crate::state::Shared;

/// How an input is given back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Copy {
    /// Return the original file with its metadata, such as GPS positions. For the job's owner only.
    #[serde(default)]
    original: bool,
}

/// Returns a job's input while it is kept.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/image", tag = "jobs", operation_id = "getJobImage",
    params(JobPath, Copy),
    responses(
        (status = 200, description = "The image, without metadata unless its owner asks for the original.", content(
            (Binary = "image/jpeg"), (Binary = "image/png"), (Binary = "image/webp"), (Binary = "image/gif"),
            (Binary = "image/bmp"), (Binary = "application/octet-stream"),
        )),
        NoJob,
        (status = 400, description = "`option_invalid`."),
        (status = 403, description = "`owner_only`: only the job's owner may read the original."),
        (status = 409, description = "`input_gone`."),
        (status = 422, description = "`image_truncated`: ask for the original."),
    ),
)]
pub(crate) async fn image(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    JobPath { id }: JobPath,
    copy: Result<Query<Copy>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(copy) = copy.map_err(|_| ApiError::Option {
        name: "original".into(),
        problem: "it must be true or false, and is the only option here".into(),
    })?;
    let stored = state.queue.find_job(&id).await?.ok_or_else(|| ApiError::JobUnknown(id.to_string()))?;
    if copy.original && caller.owner != stored.record.spec.origin.owner {
        return Err(ApiError::NotOwner);
    }
    let mut input = state.queue.jobs.input(&stored).await?.ok_or(ApiError::InputGone(id))?;
    if !copy.original {
        input = without_metadata(&input)?.into();
    }
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_str(&format!("image/{}", stored.record.spec.image.format));
    headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    // A client uploaded it: no browser may treat it as a page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok((headers, input).into_response())
}
