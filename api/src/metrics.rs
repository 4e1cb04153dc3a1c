//! `/metrics`, in Prometheus' text format.
//!
//! What this process does is counted as it happens. What the queue holds and what workers have
//! done is read at each scrape, from the queue and from the workers' announcements, so it cannot
//! drift; a worker that is killed takes its last second of counting with it.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::{counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use queue::members::Role;

use crate::error::ApiError;
use crate::state::{AppState, Shared};

const ACCEPTED: &str = "sightline_api_jobs_accepted_total";
const REFUSED: &str = "sightline_api_jobs_refused_total";
const REQUEST_SECONDS: &str = "sightline_api_request_duration_seconds";

const CALLS: &str = "sightline_webhook_calls_total";
const CONNECTIONS_REFUSED: &str = "sightline_api_connections_refused_total";
/// How often old observations are let go.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds of the request histogram, seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 60.0];

/// The recorder's other end. There is one recorder a process.
#[derive(Clone)]
pub(crate) struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder, or finds the one that is installed.
    pub(crate) fn install() -> Self {
        static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| {
            let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).expect("the list is not empty");
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("another metrics recorder is installed; counters of this process are missing");
            }
            describe_counter!(ACCEPTED, "Accepted jobs, by model.");
            describe_counter!(REFUSED, "Uploads refused, by reason.");
            describe_counter!(CALLS, "Webhook calls, by outcome.");
            describe_counter!(CONNECTIONS_REFUSED, "Connections refused because their address had too many.");
            describe_histogram!(
                REQUEST_SECONDS,
                "Time from receiving a request's head to sending the response's head."
            );
            handle
        });
        Self(handle.clone())
    }

    /// Lets old observations go from time to time, for as long as it is awaited.
    pub(crate) async fn keep(self) -> Result<(), std::convert::Infallible> {
        loop {
            self.0.run_upkeep();
            tokio::time::sleep(UPKEEP_INTERVAL).await;
        }
    }
}

/// A job was taken in.
pub(crate) fn accepted(model: &str) {
    counter!(ACCEPTED, "model" => model.to_owned()).increment(1);
}

/// An upload was refused.
pub(crate) fn refused(error: &ApiError) {
    counter!(REFUSED, "reason" => error.kind().1).increment(1);
}

/// A webhook was called, or given up.
pub(crate) fn called(outcome: String) {
    counter!(CALLS, "outcome" => outcome).increment(1);
}

/// An address had too many connections.
pub(crate) fn connection_refused() {
    counter!(CONNECTIONS_REFUSED).increment(1);
}

/// A request was answered.
pub(crate) fn request(route: &str, method: &Method, status: StatusCode, took: Duration) {
    // Unsupported methods would create a series each.
    let method =
        if [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD].contains(method) {
            method.to_string()
        } else {
            "other".into()
        };
    let labels = [("route", route.to_owned()), ("method", method), ("status", status.as_u16().to_string())];
    histogram!(REQUEST_SECONDS, &labels).record(took.as_secs_f64());
}

/// Returns all metrics.
#[utoipa::path(
    get, path = "/metrics", tag = "operations", operation_id = "getMetrics",
    responses((status = 200, description = "Metrics in Prometheus text format.", body = String, content_type = "text/plain")),
)]
pub(crate) async fn show(State(state): State<Shared>) -> Response {
    let mut text = state.metrics.0.render();
    render_queue(&state, &mut text).await;
    render_workers(&state, &mut text);
    render_tasks(&state, &mut text);
    render_index(&state, &mut text).await;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn render_queue(state: &AppState, text: &mut String) {
    let mut available = Series::new("sightline_queue_available_jobs", "gauge", "Jobs that wait for a worker.");
    let mut in_hand =
        Series::new("sightline_queue_jobs_in_hand", "gauge", "Jobs delivered to workers and not yet settled.");
    let topics = state.queue.topics().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "queue depth unknown");
        Vec::new()
    });
    for topic in topics {
        match state.queue.depth(&topic).await {
            Ok(depths) => {
                for depth in depths {
                    let partition = depth.partition.to_string();
                    let labels = [("topic", topic.name().as_str()), ("partition", &partition)];
                    available.sample("", &labels, depth.queued as f64);
                    in_hand.sample("", &labels, depth.in_hand as f64);
                }
            }
            Err(error) => tracing::warn!(topic = %topic.name(), %error, "queue depth unknown"),
        }
    }
    available.finish(text);
    in_hand.finish(text);
    let mut stalled = Series::new(
        "sightline_queue_stalled_seconds",
        "gauge",
        "Seconds since a stalled partition with work last made progress.",
    );
    for stall in state.watch.stalls() {
        let reason = serde_json::to_value(&stall.reason).expect("a reason is JSON");
        let reason = reason["reason"].as_str().unwrap_or_default().to_owned();
        let partition = stall.partition.to_string();
        let labels = [("topic", stall.topic.as_str()), ("partition", &partition), ("reason", &reason)];
        stalled.sample("", &labels, stall.seconds as f64);
    }
    stalled.finish(text);
}

fn render_workers(state: &AppState, text: &mut String) {
    let members = state.roster.members();
    let mut present = Series::new("sightline_members", "gauge", "Processes heard in the last 5 seconds.");
    for (name, role) in [("api", Role::Api), ("supervisor", Role::Supervisor), ("worker", Role::Worker)] {
        present.sample("", &[("role", name)], members.iter().filter(|member| member.role == role).count() as f64);
    }
    present.finish(text);

    let totals = state.roster.totals();
    let mut jobs = Series::new("sightline_worker_jobs_total", "counter", "Attempts that ended, by outcome.");
    for (model, outcomes) in &totals.outcomes {
        outcomes
            .iter()
            .for_each(|(outcome, count)| jobs.sample("", &[("model", model), ("outcome", outcome)], *count as f64));
    }
    jobs.finish(text);
    let mut stages =
        Series::new("sightline_worker_stage_duration_seconds", "summary", "Time of successful jobs, by stage.");
    for (model, by_stage) in &totals.stages {
        for (stage, total) in by_stage {
            let labels = [("model", model.as_str()), ("stage", stage)];
            stages.sample("_sum", &labels, total.seconds);
            stages.sample("_count", &labels, total.count as f64);
        }
    }
    stages.finish(text);
}

async fn render_index(state: &AppState, text: &mut String) {
    let mut set_aside =
        Series::new("sightline_index_set_aside_jobs", "gauge", "Jobs that the job index cannot hold; see /v1/index.");
    match state.index.count_set_aside().await {
        Ok(jobs) => set_aside.sample("", &[], jobs as f64),
        Err(error) => tracing::warn!(%error, "job index did not answer"),
    }
    set_aside.finish(text);
}

fn render_tasks(state: &AppState, text: &mut String) {
    let mut restarts = Series::new(
        "sightline_background_task_restarts_total",
        "counter",
        "Background tasks that ended and were started again.",
    );
    for task in state.tasks.health() {
        restarts.sample("", &[("task", task.name)], task.restarts as f64);
    }
    restarts.finish(text);
}

/// One metric in the text format.
struct Series {
    name: &'static str,
    text: String,
}

impl Series {
    fn new(name: &'static str, kind: &str, help: &str) -> Self {
        Self { name, text: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n") }
    }

    /// Label values are topic and model names, stages and outcomes; a worker's announcement could
    /// hold others, so what would need escaping is left out.
    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let plain = |text: &str| text.chars().filter(|c| !matches!(c, '"' | '\\' | '\n')).collect::<String>();
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", plain(value))).collect();
        writeln!(self.text, "{}{suffix}{{{}}} {value}", self.name, labels.join(",")).expect("a String takes all");
    }

    fn finish(self, text: &mut String) {
        text.push_str(&self.text);
    }
}
