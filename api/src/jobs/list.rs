//! `GET /v1/jobs`: jobs by state, model, topic, batch and metadata, newest first.

use axum::extract::{RawQuery, State};
use axum::{Extension, Json};
use queue::Record;
use serde::Serialize;
use utoipa::ToSchema;

use super::wire;
use super::wire::JobState;
use crate::error::ApiError;
use crate::index::Filter;
use crate::keys::Caller;
use crate::state::Shared;

/// Default and largest page size.
const LIMIT: usize = 50;
const LIMIT_MAX: usize = 1_000;

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Jobs<'a> {
    jobs: Vec<wire::Job<'a>>,
    /// Where the next page begins; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Lists jobs.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", operation_id = "listJobs",
    params(
        ("state" = Option<JobState>, Query),
        ("model" = Option<String>, Query, pattern = "^[^\\x00]*$"),
        ("topic" = Option<String>, Query, pattern = "^[^\\x00]*$"),
        ("batch" = Option<String>, Query, pattern = "^[^\\x00]*$"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Jobs per page; default 50."),
        ("cursor" = Option<String>, Query, format = "cursor", description = "The `next_cursor` of the previous page."),
    ),
    responses(
        (status = 200, description = "Newest first. With `metadata.<key>=<value>`, only jobs with that metadata.", body = Jobs),
        (status = 400, description = "`option_invalid`."),
    ),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<axum::response::Response, ApiError> {
    let (mut filter, limit) = read(query.as_deref().unwrap_or(""))?;
    filter.owner = caller.only();
    let page = state.index.list(&filter, limit).await?;
    let jobs = page.records.iter().map(|record: &Record| wire::Job::from(record)).collect();
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(axum::response::IntoResponse::into_response(Json(Jobs { jobs, next_cursor })))
}

fn read(query: &str) -> Result<(Filter, usize), ApiError> {
    let refuse = |name: &str, problem: String| ApiError::Option { name: name.chars().take(80).collect(), problem };
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query).map_err(|error| refuse("query", error.to_string()))?;
    let (mut filter, mut limit) = (Filter::default(), LIMIT);
    for (name, value) in pairs {
        match name.as_str() {
            "state" if ["queued", "running", "succeeded", "failed", "canceled"].contains(&value.as_str()) => {
                filter.state = Some(value);
            }
            "state" => {
                return Err(refuse("state", "it must be queued, running, succeeded, failed or canceled".into()));
            }
            "model" => filter.model = Some(value),
            "topic" => filter.topic = Some(value),
            "batch" => filter.batch = Some(value),
            "limit" => {
                let number = value.parse().ok().filter(|number| (1..=LIMIT_MAX).contains(number));
                limit = number.ok_or_else(|| refuse("limit", format!("it must be a number from 1 to {LIMIT_MAX}")))?;
            }
            "cursor" => {
                let cursor = value.parse().map_err(|()| refuse("cursor", "it must be a next_cursor as it came".into()));
                filter.cursor = Some(cursor?);
            }
            _ => match name.strip_prefix("metadata.") {
                Some(key) => filter.metadata.push((key.to_owned(), value)),
                None => {
                    let known = "state, model, topic, batch, metadata.<key>, limit, cursor";
                    return Err(refuse(&name, format!("unknown option; known options: {known}")));
                }
            },
        }
    }
    Ok((filter, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_nonsense_is_refused_by_name() {
        let (filter, limit) =
            read("state=failed&model=m&batch=b&metadata.line=7&limit=5&cursor=12_cats.x").expect("good");
        assert_eq!((filter.state.as_deref(), filter.batch.as_deref(), limit), (Some("failed"), Some("b"), 5));
        assert_eq!(filter.metadata, [("line".to_owned(), "7".to_owned())]);
        assert_eq!(filter.cursor.map(|cursor| cursor.to_string()).as_deref(), Some("12_cats.x"));
        for (query, name) in
            [("state=done", "state"), ("limit=0", "limit"), ("cursor=x", "cursor"), ("colour=red", "colour")]
        {
            let error = read(query).expect_err(query).to_string();
            assert!(error.starts_with(&format!("option `{name}`")), "{error}");
        }
    }
}
