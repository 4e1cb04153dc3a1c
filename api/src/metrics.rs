//! What this process counts as it happens.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

const ACCEPTED: &str = "sightline_api_jobs_accepted_total";
const REFUSED: &str = "sightline_api_jobs_refused_total";
const REQUEST_SECONDS: &str = "sightline_api_request_duration_seconds";

const CALLS: &str = "sightline_webhook_calls_total";
const CONNECTIONS_REFUSED: &str = "sightline_api_connections_refused_total";
/// How often old observations are dropped.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds of the request histogram, seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 60.0];

/// The reading end of the recorder. Each process has one recorder.
#[derive(Clone)]
pub(crate) struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder, or returns the one that is installed.
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

    /// Everything counted so far, in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.0.render()
    }

    /// Drops old observations from time to time, until the future is dropped.
    pub(crate) async fn keep(self) -> Result<(), std::convert::Infallible> {
        loop {
            self.0.run_upkeep();
            tokio::time::sleep(UPKEEP_INTERVAL).await;
        }
    }
}

/// A job was accepted.
pub(crate) fn accepted(model: &str) {
    counter!(ACCEPTED, "model" => model.to_owned()).increment(1);
}

/// An upload was refused, with the error's stable code.
pub(crate) fn refused(code: &'static str) {
    counter!(REFUSED, "reason" => code).increment(1);
}

/// A webhook was called, or given up.
pub(crate) fn called(outcome: &'static str) {
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
