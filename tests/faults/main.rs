//! What holds when processes are killed, paused and ended in the middle of their work.
//!
//! The short form runs always. `SIGHTLINE_FAULTS=long cargo test --test faults` repeats each fault
//! many times.

#[path = "../harness/mod.rs"]
pub(crate) mod harness;

/// What each crash between two steps leaves, built by hand and then taken up.
mod between_steps;
/// What `sightline drill` finds.
mod drill;
/// What only concerns a server that is a child process.
mod nats_server;
/// Ordinary load for hours.
mod soak;
/// Pictures that kill their worker.
mod poison;
/// The whole system, and the queue's server.
mod system;
/// Worker processes: killed, paused, told to end.
mod workers;

use std::collections::BTreeMap;

pub(crate) use harness::rounds;
use harness::{Stack, is_finished};
use serde_json::Value;

/// Process ids of the worker children.
fn worker_pids(stack: &Stack) -> Vec<u32> {
    let children = harness::descendants(stack.pid());
    children.into_iter().filter(|(_, args)| args.contains(" worker --supervised")).map(|(pid, _)| pid).collect()
}

/// Waits for jobs in two ways at once, and sees that both hear the same result and that it stays.
pub(crate) async fn all_end(stack: &Stack, ids: &[String]) -> BTreeMap<String, Value> {
    let jobs = futures::future::join_all(ids.iter().map(|id| async move {
        let (waited, polled) = tokio::join!(stack.finish(id), async {
            loop {
                let job = stack.get(&format!("/v1/jobs/{id}")).await;
                assert_eq!(job.status, 200, "{}", job.body);
                if is_finished(&job.json) {
                    break job.json;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        });
        assert_eq!(waited, polled, "two results of one job");
        (id.clone(), waited)
    }))
    .await;
    // Nothing that a client received may change later.
    for (id, job) in &jobs {
        assert_eq!(&stack.get(&format!("/v1/jobs/{id}")).await.json, job);
    }
    jobs.into_iter().collect()
}

/// Waits until an upload is accepted; until then it is told to come again.
pub(crate) async fn uploads_are_taken_again(stack: &Stack) {
    harness::eventually("uploads are taken again", async || {
        let answer = harness::send(stack.upload("model=efficientnet-lite0", harness::photo("china.jpg"))).await;
        assert!(matches!(answer.status, 202 | 503), "{}", answer.body);
        (answer.status == 202).then_some(())
    })
    .await;
}

/// How many jobs ended in each state.
pub(crate) fn states(jobs: &BTreeMap<String, Value>) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    jobs.values().for_each(|job| *states.entry(job["state"].as_str().expect("a state").to_owned()).or_default() += 1);
    states
}
