//! `GET /metrics`, in Prometheus' text format.
//!
//! What the queue holds and what workers have done is read at each scrape, from the queue and from the workers'
//! announcements, so it cannot drift; when a worker is killed, its last second of counts is lost.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use queue::members::Role;

use crate::state::{AppState, Shared};

/// Returns all metrics.
#[utoipa::path(
    get, path = "/metrics", tag = "operations", operation_id = "getMetrics",
    responses((status = 200, description = "Metrics in Prometheus text format.", body = String, content_type = "text/plain")),
)]
pub(crate) async fn show(State(state): State<Shared>) -> Response {
    let mut text = state.metrics.render();
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
        match state.queue.topics.depth(&topic).await {
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

    /// Label values are topic and model names, stages and outcomes; a worker's announcement could hold others, so
    /// characters that would need escaping are left out.
    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let plain = |text: &str| text.chars().filter(|c| !matches!(c, '"' | '\\' | '\n')).collect::<String>();
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", plain(value))).collect();
        writeln!(self.text, "{}{suffix}{{{}}} {value}", self.name, labels.join(",")).expect("a String takes all");
    }

    fn finish(self, text: &mut String) {
        text.push_str(&self.text);
    }
}
