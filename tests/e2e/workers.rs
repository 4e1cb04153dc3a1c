//! Workers that come by hand, and models that users bring.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;

use super::harness::{Running, Stack, eventually, photo, sightline, test_models};

#[tokio::test]
async fn workers_started_by_hand_take_their_share() {
    let stack = Stack::start(&["--workers", "1"]);
    let by_hand = || {
        let mut command = sightline();
        command.args(["worker", "--data"]).arg(stack.data()).stdin(Stdio::null()).stdout(Stdio::null());
        Running(command.spawn().expect("starts"))
    };
    let _hands = (by_hand(), by_hand());
    let known = eventually("three workers are ready", async || {
        let workers = stack.members("worker").await;
        let ready: Vec<Value> = workers.into_iter().filter(|worker| worker["state"] == "ready").collect();
        (ready.len() == 3).then_some(ready)
    })
    .await;
    // Enough jobs for about two seconds of one worker.
    let uploads = (0..100).map(|_| stack.accept("efficientnet-lite0", photo("rocket.jpg")));
    let ids = futures::future::join_all(uploads).await;
    let jobs = futures::future::join_all(ids.iter().map(|id| stack.finish(id))).await;
    let worked: BTreeSet<&str> = jobs.iter().filter_map(|job| job["worker"].as_str()).collect();
    let known: BTreeSet<&str> = known.iter().filter_map(|worker| worker["id"].as_str()).collect();
    assert_eq!(worked, known);
}

#[test]
fn children_of_a_supervisor_have_no_children_of_their_own() {
    let stack = Stack::start(&["--workers", "1"]);
    let mut command = sightline();
    command.env("SIGHTLINE_PROCESSES", "2").arg("worker").arg("--data").arg(stack.data());
    let group = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(eventually("three workers", async || (stack.members("worker").await.len() == 3).then_some(())));
    assert_eq!(super::harness::descendants(group.0.id()).len(), 2);
}

#[tokio::test]
async fn several_processes_of_one_command_end_together() {
    let stack = Stack::start(&["--workers", "1"]);
    let mut command = sightline();
    command.args(["worker", "--processes", "2", "--data"]).arg(stack.data());
    let mut group = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts"));
    eventually("three workers", async || (stack.members("worker").await.len() == 3).then_some(())).await;
    let children = super::harness::descendants(group.0.id());
    assert_eq!(children.len(), 2, "{children:?}");
    super::harness::signal(group.0.id(), "TERM");
    assert!(group.0.wait().expect("ends").success());
    assert!(children.iter().all(|(pid, _)| !super::harness::is_alive(*pid)));
}

#[tokio::test]
async fn a_users_model_is_served_and_may_take_its_time() {
    let models = test_models();
    let stack = Stack::start(&["--workers", "1", "--models", &models, "--attempts", "2"]);
    assert!(stack.get("/v1/models/slow").await.status == 200);
    let job = stack.run("model=slow", photo("china.jpg")).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{job}");
    assert!(job["timings"]["inference_ms"].as_f64() > Some(100.0), "{job}");
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_stopped_tried_again_and_given_up() {
    let models = test_models();
    let stack = Stack::start(&["--workers", "1", "--models", &models, "--attempts", "2"]);
    let worker = stack.members("worker").await;
    let job = stack.run("model=endless&timeout=300ms", photo("china.jpg")).await;
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("attempts_exhausted")),
        "{job}"
    );
    let attempts = job["attempts"].as_array().expect("a list");
    assert_eq!(attempts.len(), 2);
    assert!(attempts.iter().all(|attempt| attempt["error"]["code"] == "timeout"), "{job}");
    assert_eq!(stack.run("model=slow", photo("china.jpg")).await["state"], "succeeded", "the worker goes on");
    let after = eventually("the worker is heard", async || {
        let after = stack.members("worker").await;
        (!after.is_empty()).then_some(after)
    })
    .await;
    assert!(worker.is_empty() || worker[0]["id"] == after[0]["id"], "no process had to die for it");
}
