//! What a path names: one extractor for each kind of id, which also documents such paths in the API's description.
//! An invalid id is refused here, once for all routes.

use axum::RequestPartsExt;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use queue::{IdError, JobId, TopicError, TopicName};
use utoipa::IntoParams;

use crate::error::ApiError;

/// Longest batch id.
const BATCH_ID_MAX: usize = 64;

/// The job that a path names.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct JobPath {
    /// The job.
    pub(crate) id: JobId,
}

/// The batch that a path names.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct BatchPath {
    /// The batch.
    #[param(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub(crate) id: String,
}

/// The topic that a path names.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct TopicPath {
    /// The topic.
    pub(crate) name: TopicName,
}

/// The model that a path names, whether it exists or not.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct ModelPath {
    #[param(example = "efficientnet-lite0")]
    pub(crate) name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let text = text(parts).await;
        text.parse().map(|id| Self { id }).map_err(|_| ApiError::JobUnknown(text.chars().take(128).collect()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for BatchPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let id = text(parts).await;
        if is_batch_id(&id) { Ok(Self { id }) } else { Err(ApiError::BatchId(id.chars().take(80).collect())) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TopicPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let name = text(parts).await.parse();
        Ok(Self { name: name.map_err(|error: IdError| TopicError::Invalid(error.to_string()))? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self { name: text(parts).await })
    }
}

/// The only variable part of a path. If it is not even text it becomes `?`, which is never a valid id.
async fn text(parts: &mut Parts) -> String {
    parts.extract::<Path<String>>().await.map_or_else(|_| "?".to_owned(), |Path(text)| text)
}

/// Whether a text can be a batch's id.
pub(crate) fn is_batch_id(id: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=BATCH_ID_MAX).contains(&id.len()) && id.chars().all(is_good)
}
