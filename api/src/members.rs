//! `GET /v1/members`: the processes that announced themselves recently.

use axum::Json;
use axum::extract::State;
use queue::members::Announcement;
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::Shared;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Members {
    members: Vec<Announcement>,
}

/// Lists all members.
#[utoipa::path(
    get, path = "/v1/members", tag = "operations", operation_id = "listMembers",
    responses((status = 200, description = "Processes that announced themselves recently.", body = Members)),
)]
pub(crate) async fn list(State(state): State<Shared>) -> Json<Members> {
    Json(Members { members: state.roster.members() })
}
