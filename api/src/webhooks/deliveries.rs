//! The delivery log: each attempt to call a webhook.

use axum::Json;
use axum::extract::State;
use queue::Timestamp;
use queue::client::About;
use serde::Serialize;
use utoipa::ToSchema;

use crate::batches::find;
use crate::error::ApiError;
use crate::path::{BatchPath, JobPath};
use crate::schema::{NoBatch, NoJob};
use crate::state::Shared;

/// An attempt in the delivery log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Delivery {
    pub(crate) event: String,
    pub(crate) url: String,
    pub(crate) attempt: u32,
    pub(crate) at: Timestamp,
    /// Status code of the receiver; absent if it was not reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// `delivered`, `retrying`, `given_up`, or `disabled` after a 410.
    #[schema(value_type = String)]
    pub(crate) outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The receiver accepted it.
    Delivered,
    /// It failed and will be retried.
    Retrying,
    /// It failed for the last time.
    GivenUp,
    /// The receiver answered 410: it refuses further calls.
    Disabled,
}

impl Outcome {
    /// The word for it in the log, in metrics and in the database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retrying => "retrying",
            Self::GivenUp => "given_up",
            Self::Disabled => "disabled",
        }
    }

    /// The outcome of this name; an unknown name counts as given up.
    pub(crate) fn named(name: &str) -> Self {
        let all = [Self::Delivered, Self::Retrying, Self::Disabled];
        all.into_iter().find(|outcome| outcome.name() == name).unwrap_or(Self::GivenUp)
    }
}

/// Attempts to call the webhook.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Deliveries {
    deliveries: Vec<Delivery>,
}

/// Returns the webhook delivery log of a job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/deliveries", tag = "jobs", operation_id = "listDeliveries",
    params(JobPath),
    responses(
        (status = 200, description = "All attempts, oldest first.", body = Deliveries),
        NoJob,
    ),
)]
pub(crate) async fn of_job(State(state): State<Shared>, JobPath { id }: JobPath) -> Result<Json<Deliveries>, ApiError> {
    state.queue.find_job(&id).await?.ok_or_else(|| ApiError::JobUnknown(id.to_string()))?;
    Ok(Json(Deliveries { deliveries: state.index.deliveries(&About::Job(id)).await? }))
}

/// Returns the webhook delivery log of a batch.
#[utoipa::path(
    get, path = "/v1/batches/{id}/deliveries", tag = "batches", operation_id = "listBatchDeliveries",
    params(BatchPath),
    responses(
        (status = 200, description = "All attempts, oldest first.", body = Deliveries),
        NoBatch,
    ),
)]
pub(crate) async fn of_batch(State(state): State<Shared>, path: BatchPath) -> Result<Json<Deliveries>, ApiError> {
    let batch = find(&state, path).await?;
    Ok(Json(Deliveries { deliveries: state.index.deliveries(&About::Batch(batch.id)).await? }))
}
