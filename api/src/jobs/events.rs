//! `GET /v1/jobs/{id}/events`: each change of a job as a server-sent event, until it is finished.
//!
//! An event's id is the record's revision. A client that reconnects with `Last-Event-ID` gets only newer events.
//! States that it missed in between are not sent, since a record holds the current state; its attempts show the
//! rest.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use queue::client::{Revision, Stored};
use utoipa::ToSchema;

use super::wait::whole;
use super::wire;
use super::wire::JobState;
use crate::error::ApiError;
use crate::path::JobPath;
use crate::schema::NoJob;
use crate::state::Shared;

/// Interval of keep-alives while nothing happens, so that proxies do not close the stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A server-sent event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "events are written by axum")]
struct JobEvent {
    /// Id of the event; send the last one as `Last-Event-ID`.
    #[schema(pattern = "^[0-9]+$")]
    id: String,
    event: JobState,
    /// The job as JSON.
    data: String,
}

/// Streams a job's states.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs", operation_id = "streamJob",
    params(
        JobPath,
        ("Last-Event-ID" = Option<u64>, Header, description = "Return only newer events than this one."),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = JobEvent,
            description = "Server-sent events named after the states, each with the job as data, until the job ends."),
        (status = 204, description = "`Last-Event-ID` is the last event; there will be no more."),
        (status = 400, description = "`option_invalid`."),
        NoJob,
    ),
)]
pub(crate) async fn events(
    State(state): State<Shared>,
    JobPath { id }: JobPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let after = headers.get("last-event-id").map(|value| whole(value.to_str().ok()?));
    let after = after.unwrap_or(Some(0)).ok_or_else(|| ApiError::Option {
        name: "Last-Event-ID".into(),
        problem: "it must be the id of an event as it came".into(),
    })?;
    // A browser that has received all events reconnects until it gets 204.
    let ended = state.queue.find_job(&id).await?.filter(|stored| stored.record.is_terminal());
    if after > 0 && ended.is_some_and(|stored| u64::from(stored.revision) <= after) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let changes = state.queue.jobs.changes(&id, Revision::from(after)).await?;
    let changes = changes.ok_or_else(|| ApiError::JobUnknown(id.to_string()))?;
    let stop = state.stop.clone();
    let events = changes
        .map(|change| match change {
            Ok(stored) => Ok::<_, Infallible>(event(&stored)),
            // The client reconnects with the id of its last event.
            Err(_) => Ok(Event::default().retry(Duration::from_secs(1)).comment("the queue does not answer")),
        })
        .take_until(async move { stop.cancelled().await });
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // nginx buffers an answer unless this header marks it as a stream.
    Ok(([("x-accel-buffering", "no")], stream).into_response())
}

fn event(stored: &Stored) -> Event {
    let event = Event::default().id(u64::from(stored.revision).to_string()).event(stored.record.state.name());
    event.json_data(wire::Job::from(&stored.record)).expect("a job is JSON")
}
