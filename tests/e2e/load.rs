//! Many uploads by sixteen clients to three workers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::harness::{Stack, is_finished, photo, rounds};

const CLIENTS: usize = 16;

/// A job's state as a number that must not go down; a retry would start a new round.
fn rank(job: &Value) -> u64 {
    let state = match job["state"].as_str() {
        Some("queued") => 0,
        Some("running") => 1,
        _ => 2,
    };
    10 * job["attempt"].as_u64().expect("a number").max(1) + state
}

#[tokio::test]
async fn every_one_of_many_uploads_succeeds() {
    let uploads = rounds(300, 10_000);
    let stack = Stack::start(&["--workers", "3"]);
    let image = photo("rocket.jpg");
    let workers: Vec<BTreeMap<String, usize>> = futures::future::join_all((0..CLIENTS).map(|client| {
        let (stack, image) = (&stack, &image);
        async move {
            let mut workers = BTreeMap::new();
            for _ in (client..uploads).step_by(CLIENTS) {
                let id = stack.accept("efficientnet-lite0", image.clone()).await;
                let job = watch(stack, &id).await;
                assert_eq!(job["state"], "succeeded", "{job}");
                *workers.entry(job["worker"].as_str().expect("a worker").to_owned()).or_default() += 1;
            }
            workers
        }
    }))
    .await;
    let mut by_worker = BTreeMap::<String, usize>::new();
    workers.into_iter().flatten().for_each(|(worker, count)| *by_worker.entry(worker).or_default() += count);
    assert_eq!(by_worker.values().sum::<usize>(), uploads);
    assert_eq!(by_worker.len(), 3, "each worker did some: {by_worker:?}");
    println!("jobs by worker: {by_worker:?}");
}

/// Polls a job to its end, and sees that it is never unknown and never goes back.
async fn watch(stack: &Stack, id: &str) -> Value {
    let mut seen = 0;
    loop {
        // Looking at once and waiting in turn: both ways must agree.
        for wait in ["", "?wait=1"] {
            let answer = stack.get(&format!("/v1/jobs/{id}{wait}")).await;
            assert_eq!(answer.status, 200, "known since its 202: {}", answer.body);
            assert!(rank(&answer.json) >= seen, "went back: {}", answer.body);
            seen = rank(&answer.json);
            if is_finished(&answer.json) {
                return answer.json;
            }
        }
    }
}
