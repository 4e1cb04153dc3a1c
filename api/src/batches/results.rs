//! `GET /v1/batches/{id}/results`: the jobs that have ended so far, as JSON lines or CSV, ordered by custom id.

use axum::body::Body;
use axum::extract;
use axum::extract::RawQuery;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use queue::{Record, State};
use utoipa::ToSchema;

use super::lookup::find;
use crate::error::ApiError;
use crate::jobs;
use crate::path::BatchPath;
use crate::schema::NoBatch;
use crate::state::Shared;
use crate::table;

/// Records read at a time.
const PAGE: usize = 500;
const HEAD: &str = "custom_id,id,state,label,score,error_code,error_message\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(as = ResultsFormat)]
enum Format {
    #[schema(rename = "ndjson")]
    Lines,
    #[schema(rename = "csv")]
    Csv,
}

/// How an item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(as = EndedState, rename_all = "lowercase")]
enum Ended {
    Succeeded,
    Failed,
    Canceled,
}

impl Ended {
    fn of(state: &State) -> Option<Self> {
        match state {
            State::Queued { .. } | State::Running {} => None,
            State::Succeeded { .. } => Some(Self::Succeeded),
            State::Failed { .. } => Some(Self::Failed),
            State::Canceled { .. } => Some(Self::Canceled),
        }
    }
}

/// Streams the results.
#[utoipa::path(
    get, path = "/v1/batches/{id}/results", tag = "batches", operation_id = "getBatchResults",
    params(
        BatchPath,
        ("format" = inline(Option<Format>), Query, description = "Default: JSON lines."),
        ("state" = inline(Option<Ended>), Query, description = "Only items with this end; `failed` lists the errors."),
    ),
    responses(
        (status = 200, description = "Jobs that have ended so far, one per line, ordered by custom id.", content(
            (Vec<jobs::Job> = "application/x-ndjson"), (String = "text/csv"),
        )),
        NoBatch,
    ),
)]
pub(crate) async fn results(
    extract::State(state): extract::State<Shared>,
    path: BatchPath,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let (format, wanted) = read(query.as_deref().unwrap_or(""))?;
    let batch = find(&state, path).await?;
    state.index.catch_up(&state.queue).await?;
    let head = futures::stream::iter((format == Format::Csv).then(|| Ok(Bytes::from_static(HEAD.as_bytes()))));
    let pages = futures::stream::try_unfold(None::<String>, move |after| {
        let (state, id) = (state.clone(), batch.id.clone());
        async move {
            let page = state.index.batch_page(&id, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok::<_, ApiError>(None) };
            let next = last.spec.origin.custom_id.clone();
            let is_wanted = |record: &&Record| {
                Ended::of(&record.state).is_some_and(|ended| wanted.is_none_or(|wanted| ended == wanted))
            };
            let text: String = page.iter().filter(is_wanted).map(|record| line(record, format)).collect();
            Ok(Some((Bytes::from(text), next)))
        }
    });
    let body = Body::from_stream(futures::StreamExt::chain(head, pages));
    let kind = match format {
        Format::Lines => "application/x-ndjson",
        Format::Csv => "text/csv; charset=utf-8",
    };
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

fn read(query: &str) -> Result<(Format, Option<Ended>), ApiError> {
    let refuse =
        |name: &str, problem: &str| ApiError::Option { name: name.chars().take(80).collect(), problem: problem.into() };
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query).map_err(|error| refuse("query", &error.to_string()))?;
    let (mut format, mut state) = (Format::Lines, None);
    for (name, value) in pairs {
        match (name.as_str(), value.as_str()) {
            ("format", "ndjson") => format = Format::Lines,
            ("format", "csv") => format = Format::Csv,
            ("format", _) => return Err(refuse("format", "it must be ndjson or csv")),
            ("state", "succeeded") => state = Some(Ended::Succeeded),
            ("state", "failed") => state = Some(Ended::Failed),
            ("state", "canceled") => state = Some(Ended::Canceled),
            ("state", _) => return Err(refuse("state", "it must be succeeded, failed or canceled")),
            _ => return Err(refuse(&name, "unknown option; known options: format and state")),
        }
    }
    Ok((format, state))
}

fn line(record: &Record, format: Format) -> String {
    let custom_id = record.spec.origin.custom_id.as_deref().unwrap_or_default();
    match format {
        Format::Lines => {
            let job = serde_json::to_string(&jobs::Job::from(record)).expect("a job is JSON");
            format!("{job}\n")
        }
        Format::Csv => {
            let ((mut label, mut score), (mut code, mut message)) = Default::default();
            match &record.state {
                State::Succeeded { result, .. } => (label, score) = table::best_of(result),
                State::Failed { error, .. } => (code, message) = (error.code.clone(), error.message.clone()),
                State::Queued { .. } | State::Running {} | State::Canceled { .. } => {}
            }
            let (id, state) = (record.spec.id.to_string(), record.state.name().to_owned());
            table::table_row(&[custom_id.to_owned(), id, state, label, score, code, message])
        }
    }
}
