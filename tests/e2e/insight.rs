//! `/metrics`, health, models, members.

use super::harness::{Stack, eventually, photo, send};
use super::shared;

/// The value of one sample in Prometheus' text format.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let stack = Stack::start(&["--workers", "1"]);
    for name in ["china.jpg", "coffee.png", "rocket.jpg"] {
        stack.run("model=efficientnet-lite0", photo(name)).await;
    }
    assert_eq!(stack.run("model=efficientnet-lite0", super::damaged_jpeg()).await["state"], "failed");
    send(stack.upload("model=efficientnet-lite0", "no image")).await;

    let wanted = [
        (r#"sightline_api_jobs_accepted_total{model="efficientnet-lite0"}"#, 4.0),
        (r#"sightline_api_jobs_refused_total{reason="image_unsupported"}"#, 1.0),
        (r#"sightline_worker_jobs_total{model="efficientnet-lite0",outcome="succeeded"}"#, 3.0),
        (r#"sightline_worker_jobs_total{model="efficientnet-lite0",outcome="failed"}"#, 1.0),
        (r#"sightline_worker_stage_duration_seconds_count{model="efficientnet-lite0",stage="inference"}"#, 3.0),
        (r#"sightline_worker_stage_duration_seconds_count{model="efficientnet-lite0",stage="queue"}"#, 3.0),
        (r#"sightline_queue_available_jobs{topic="efficientnet-lite0",partition="0"}"#, 0.0),
        (r#"sightline_queue_jobs_in_hand{topic="efficientnet-lite0",partition="2"}"#, 0.0),
        (r#"sightline_members{role="worker"}"#, 1.0),
        (r#"sightline_members{role="api"}"#, 1.0),
    ];
    // Workers tell their counters once a second, and settle a job after they have counted it.
    let text = eventually("all samples are as they should be", async || {
        let text = stack.get("/metrics").await.body;
        wanted.iter().all(|(name, value)| sample(&text, name) == Some(*value)).then_some(text)
    })
    .await;
    let seconds =
        sample(&text, r#"sightline_worker_stage_duration_seconds_sum{model="efficientnet-lite0",stage="inference"}"#);
    assert!(seconds.is_some_and(|seconds| seconds > 0.0));
    assert!(text.contains("sightline_api_request_duration_seconds_bucket{route=\"/v1/jobs\""), "{text}");
    let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
    let names: std::collections::BTreeSet<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    assert_eq!(types, names.len(), "each metric is described once");
}

#[tokio::test]
async fn health_is_told_apart_from_readiness() {
    assert_eq!(shared().get("/healthz").await.json["status"], "live");
    let ready = eventually("the workers are heard", async || {
        let ready = shared().get("/readyz").await;
        (ready.json["workers"]["efficientnet-lite0"] == 2).then_some(ready)
    })
    .await;
    assert_eq!((ready.status, ready.json["status"].as_str()), (200, Some("ready")));
}

#[tokio::test]
async fn models_are_listed_with_what_they_are() {
    let list = shared().get("/v1/models").await.json;
    let names: Vec<&str> =
        list["models"].as_array().expect("a list").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names, ["efficientnet-lite0", "ssdlite-mobilenetv2"]);
    let detector = shared().get("/v1/models/ssdlite-mobilenetv2").await.json;
    assert_eq!((detector["task"].as_str(), detector["labels"].as_u64()), (Some("detection"), Some(80)));
    let job = shared().run("model=ssdlite-mobilenetv2", photo("chelsea.png")).await;
    assert_eq!(job["model_digest"], detector["versions"][0]["digest"], "a result says which files gave it");
}
