//! One job: accepted, looked at, waited for, refused.

use std::collections::BTreeMap;

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::harness::{Answer, is_finished, photo, send};
use super::shared;

#[tokio::test]
async fn a_job_is_accepted_then_polled_until_it_succeeds() {
    let answer = send(shared().upload("model=efficientnet-lite0", photo("coffee.png"))).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.header("content-type"), "application/json");
    let location = answer.header("location").to_owned();
    assert_eq!(location, format!("/v1/jobs/{}", answer.text("id")));
    assert_eq!(answer.json["urls"]["self"], location);
    assert_eq!(answer.header("retry-after"), "1");

    let mut polled = shared().get(&location).await;
    while !is_finished(&polled.json) {
        assert_eq!((polled.status, polled.header("retry-after")), (200, "1"));
        polled = shared().get(&location).await;
    }
    let job = polled.json;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)));
    assert_eq!(job["result"]["predictions"][0]["label"], "espresso");
    let image = json!({"width": 600, "height": 400, "format": "png", "bytes": 466_706,
        "sha256": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"});
    assert_eq!(job["image"], image);
    for timing in ["queue_ms", "decode_ms", "preprocess_ms", "inference_ms", "postprocess_ms", "total_ms"] {
        assert!(job["timings"][timing].as_f64().is_some_and(|ms| ms >= 0.0), "{timing} in {job}");
    }
    assert_eq!(job["attempts"][0]["worker"], job["worker"]);
    assert_eq!(job["attempts"][0]["outcome"], "succeeded");
    assert!(job["created_at"].as_str() <= job["started_at"].as_str());
    assert!(job["started_at"].as_str() <= job["finished_at"].as_str());
}

#[tokio::test]
async fn a_client_that_prefers_to_wait_gets_the_result_at_once() {
    let request = shared().upload("model=efficientnet-lite0", photo("coffee.png")).header("Prefer", "wait=60");
    let answer = send(request).await;
    assert_eq!((answer.status, answer.header("preference-applied")), (200, "wait=60"));
    assert_eq!(answer.json["state"], "succeeded");
    assert_eq!(answer.header("location"), format!("/v1/jobs/{}", answer.text("id")));
    assert!(answer.headers.get("retry-after").is_none());

    let impatient = shared().upload("model=efficientnet-lite0", photo("coffee.png")).header("Prefer", "wait=0");
    assert!(matches!(send(impatient).await.status, 200 | 202));
}

#[tokio::test]
async fn a_long_poll_ends_with_the_job() {
    let id = shared().accept("efficientnet-lite0", photo("china.jpg")).await;
    let answer = shared().get(&format!("/v1/jobs/{id}?wait=60")).await;
    assert_eq!(answer.json["state"], "succeeded");
    let again = shared().get(&format!("/v1/jobs/{id}?wait=60")).await;
    assert_eq!(again.json, answer.json, "a finished job does not change");
}

#[tokio::test]
async fn a_form_works_like_a_raw_body() {
    let form = Form::new()
        .text("model", "ssdlite-mobilenetv2")
        .text("threshold", "0.9")
        .text("metadata", r#"{"camera": "7"}"#)
        .part(
            "image",
            Part::bytes(photo("coffee.png")).file_name("../../etc/passwd").mime_str("text/html").expect("a type"),
        );
    let answer = send(shared().upload("metadata.shift=night", "").multipart(form)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let job = shared().finish(&answer.text("id")).await;
    assert_eq!(job["metadata"], json!({"camera": "7", "shift": "night"}));
    let labels: Vec<&Value> =
        job["result"]["detections"].as_array().expect("a list").iter().map(|d| &d["label"]).collect();
    assert_eq!(labels, ["cup"], "the table is below 0.9");
}

#[tokio::test]
async fn options_are_heard() {
    let job = shared().run("model=efficientnet-lite0&top_k=2&version=1", photo("chelsea.png")).await;
    assert_eq!(job["result"]["predictions"].as_array().map(Vec::len), Some(2));
    let job = shared().run("model=efficientnet-lite0&threshold=0.3&top_k=100", photo("chelsea.png")).await;
    assert_eq!(job["result"]["predictions"].as_array().map(Vec::len), Some(2), "tiger cat and Egyptian cat");
    // A body sent by `curl --data-binary` says that it is a form field; it is an image all the same.
    let request = shared().upload("model=efficientnet-lite0", photo("coffee.png"));
    let answer = send(request.header("Content-Type", "application/x-www-form-urlencoded")).await;
    assert_eq!(answer.status, 202);
}

#[tokio::test]
async fn jobs_of_one_key_lie_in_one_partition() {
    let mut partitions = BTreeMap::<String, Vec<String>>::new();
    for key in ["a", "b", "c", "d", "a", "b", "c", "d"] {
        let query = format!("model=efficientnet-lite0&partition_key={key}");
        let job = send(shared().upload(&query, photo("china.jpg"))).await;
        partitions.entry(key.into()).or_default().push(job.text("partition"));
    }
    assert!(partitions.values().all(|of_key| of_key.windows(2).all(|pair| pair[0] == pair[1])), "{partitions:?}");
    let used: std::collections::BTreeSet<&String> = partitions.values().flatten().collect();
    assert!(used.len() > 1, "four keys, one partition: {partitions:?}");
}

#[track_caller]
fn is_problem(answer: &Answer, status: u16, code: &str, words: &str) {
    assert_eq!(answer.header("content-type"), "application/problem+json", "{}", answer.body);
    assert_eq!((answer.status, answer.json["code"].as_str()), (status, Some(code)), "{}", answer.body);
    assert_eq!(answer.json["status"], status);
    assert_eq!(answer.json["type"], format!("urn:sightline:problem:{code}"));
    assert!(answer.text("detail").contains(words), "{}", answer.body);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_a_reason() {
    let refused = async |query: &str| send(shared().upload(query, photo("coffee.png"))).await;
    is_problem(&refused("").await, 400, "model_missing", "efficientnet-lite0, ssdlite-mobilenetv2");
    is_problem(&refused("model=resnet").await, 404, "model_unknown", "model `resnet` does not exist");
    is_problem(&refused("model=../../etc").await, 404, "model_unknown", "does not exist");
    is_problem(&refused("model=efficientnet-lite0&version=9").await, 404, "version_unknown", "no version 9");
    is_problem(&refused("model=efficientnet-lite0&topk=9").await, 400, "option_invalid", "unknown option");
    is_problem(&refused("model=efficientnet-lite0&top_k=x").await, 400, "option_invalid", "`top_k`");
    let form = Form::new().text("model", "efficientnet-lite0");
    is_problem(
        &send(shared().upload("", "").multipart(form)).await,
        400,
        "form_invalid",
        "the field `image` is missing",
    );
    let broken = shared().upload("model=efficientnet-lite0", "--x\r\n").header("Content-Type", "multipart/form-data");
    is_problem(&send(broken).await, 400, "form_invalid", "boundary");
}

#[tokio::test]
async fn what_is_not_there_is_404_and_says_what() {
    let uuid = "01a20992-bbb4-7096-8d37-01cac764898b";
    for id in [
        "x",
        "efficientnet-lite0",
        &format!("efficientnet-lite0.{uuid}"),
        &format!("nothing.{uuid}"),
        "a.b.c",
        "%00",
        "%FF",
    ] {
        is_problem(&shared().get(&format!("/v1/jobs/{id}")).await, 404, "job_unknown", "not found");
    }
    is_problem(&shared().get("/v1/nothing").await, 404, "route_unknown", "/v1/nothing");
    is_problem(&shared().get("/v1/topics/x/pause").await, 405, "method_not_allowed", "GET");
    is_problem(&shared().get("/v1/models/x").await, 404, "model_unknown", "`x`");
    let id = format!("efficientnet-lite0.{uuid}");
    is_problem(&shared().get(&format!("/v1/jobs/{id}?wait=long")).await, 400, "option_invalid", "`wait`");
    is_problem(&shared().get(&format!("/v1/jobs/{id}?wait=1&wait=2")).await, 400, "option_invalid", "duplicate");
}
