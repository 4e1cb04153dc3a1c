//! Ten times more uploads than the workers can take, for a while: each is taken and ends, or is told
//! to come again. How fast the refusals are, and how soon everything runs as before, is printed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::harness::{Stack, is_finished, photo, rounds};
use super::topics::ok;

const MODEL: &str = "efficientnet-lite0";
/// Clients that send without a pause, each its next image when the last one is answered.
const STEADY: usize = 16;
/// Requests that are on their way at a time, at most, while too many are sent.
const OPEN_MAX: usize = 256;

/// Jobs that have left the queue.
async fn worked_off(stack: &Stack) -> u64 {
    let topic = stack.get(&format!("/v1/topics/{MODEL}")).await.json;
    let partitions = topic["partitions"].as_array().expect("a list");
    partitions.iter().map(|one| one["last"].as_u64().unwrap_or(0) - one["messages"].as_u64().unwrap_or(0)).sum()
}

/// Jobs a second that leave the queue while it always has some, and the ids of what was accepted.
async fn throughput(stack: &Stack, http: &reqwest::Client, span: Duration) -> (f64, Vec<String>) {
    let (started, before) = (Instant::now(), worked_off(stack).await);
    let clients = (0..STEADY).map(|_| async {
        let mut ids = Vec::new();
        while started.elapsed() < span {
            match post(stack, http).await {
                (202, _, id) => ids.push(id),
                (503 | 429, ..) => tokio::time::sleep(Duration::from_millis(100)).await,
                (status, ..) => panic!("answered with {status}"),
            }
        }
        ids
    });
    let ids = futures::future::join_all(clients).await.concat();
    ((worked_off(stack).await - before) as f64 / started.elapsed().as_secs_f64(), ids)
}

/// Status, time, and the id of an accepted job.
async fn post(stack: &Stack, http: &reqwest::Client) -> (u16, Duration, String) {
    let url = stack.url(&format!("/v1/jobs?model={MODEL}"));
    let started = Instant::now();
    let answer = http.post(url).body(photo("rocket.jpg")).send().await.expect("every request is answered");
    let status = answer.status().as_u16();
    let is_told_when = answer.headers().contains_key("retry-after");
    let body: serde_json::Value = answer.json().await.expect("every answer is JSON");
    assert!(status < 400 || is_told_when, "{status} without Retry-After: {body}");
    (status, started.elapsed(), body["id"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_and_nothing_that_was_taken_is_lost() {
    let stack = Stack::start(&["--workers", "1", "--models", MODEL]);
    ok(&stack, &["topics", "create", MODEL, "--max-bytes", "8MB"]);
    let http = reqwest::Client::new();
    let span = Duration::from_secs(rounds(3, 20) as u64);
    let (_, mut accepted) = throughput(&stack, &http, span / 3).await;
    let (peak, more) = throughput(&stack, &http, span).await;
    accepted.extend(more);

    let span = Duration::from_secs(rounds(4, 60) as u64);
    let interval = Duration::from_secs_f64(1.0 / (10.0 * peak));
    let started = Instant::now();
    let answers = Mutex::new(Vec::new());
    let mut sent = 0;
    let due = futures::stream::unfold(0_u32, |number| async move {
        tokio::time::sleep_until((started + interval * number).into()).await;
        (started.elapsed() < span).then_some(((), number + 1))
    });
    due.for_each_concurrent(OPEN_MAX, |()| {
        sent += 1;
        let (answers, stack, http) = (&answers, &stack, &http);
        async move {
            let answer = post(stack, http).await;
            answers.lock().expect("no panic").push(answer);
        }
    })
    .await;
    let offered = f64::from(sent) / started.elapsed().as_secs_f64();
    let mut by_status = BTreeMap::<u16, Vec<Duration>>::new();
    for (status, took, id) in answers.into_inner().expect("no panic") {
        by_status.entry(status).or_default().push(took);
        accepted.extend(Some(id).filter(|id| !id.is_empty()));
    }
    println!("peak {peak:.1} jobs/s; offered {offered:.1} uploads/s for {} s:", span.as_secs());
    for (status, times) in &mut by_status {
        times.sort_unstable();
        let p99 = times[(times.len() - 1) * 99 / 100];
        println!("  {status}: {}, median {:?}, p99 {p99:?}", times.len(), times[times.len() / 2]);
    }
    assert!(by_status.keys().all(|status| [202, 429, 503].contains(status)), "{:?}", by_status.keys());
    assert!(by_status.contains_key(&503), "it was not too much");

    // As it was before.
    tokio::time::sleep(span.min(Duration::from_secs(10)) / 2).await;
    let (after, more) = throughput(&stack, &http, Duration::from_secs(rounds(2, 10) as u64)).await;
    accepted.extend(more);
    println!("afterwards {after:.1} jobs/s, ratio {:.2}", after / peak);
    let ends = futures::stream::iter(&accepted).map(|id| stack.finish(id)).buffer_unordered(32);
    let ended: Vec<_> = ends.collect().await;
    assert!(ended.iter().all(|job| is_finished(job) && job["state"] == "succeeded"));
    println!("{} accepted, all succeeded", ended.len());
}
