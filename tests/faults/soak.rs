//! Hours of ordinary load at full speed, with the usual limit of open files: room, files and memory follow what
//! lives, and nothing is lost. A minute in the short form, an hour with `SIGHTLINE_FAULTS=long`; each once with
//! more than the worker can do, and once with as much as it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use reqwest::Method;
use serde_json::json;

use super::harness::{Engine, Stack, engine, eventually, photo, rounds, send};

const MODEL: &str = "efficientnet-lite0";
/// Beyond twice what lives.
const SLACK_BYTES: u64 = 512 << 20;

/// Bytes of the files of a folder, without those that are removed just now.
fn folder_bytes(folder: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("a folder").flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Bytes of all messages that the queue holds.
async fn live_bytes(stack: &Stack) -> u64 {
    let streams: Vec<_> = stack.bare().await.streams().try_collect().await.expect("listed");
    streams.iter().map(|stream| stream.state.bytes).sum()
}

/// An image of some 800 kB that decodes quickly: a photo, and bytes behind its end.
fn large_image() -> Vec<u8> {
    let mut image = photo("astronaut.png");
    image.resize(800_000.max(image.len()), 0);
    image
}

#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    refused: AtomicU64,
    over: AtomicBool,
}

/// Uploads one after the other; now and then one is canceled, followed, or has a receiver that is down.
async fn upload(stack: &Stack, lane: u64, tally: &Tally) {
    let (small, large) = (photo("rocket.jpg"), large_image());
    for turn in 0.. {
        if tally.over.load(Ordering::Relaxed) {
            return;
        }
        let image = if turn % 2 == 0 { &large } else { &small };
        let more = if turn % 50 == 7 { "&webhook=http://127.0.0.1:9/down" } else { "" };
        let query = format!("model={MODEL}&metadata.lane={lane}{more}");
        let answer = send(stack.upload(&query, image.clone())).await;
        match answer.status {
            202 => tally.accepted.fetch_add(1, Ordering::Relaxed),
            503 => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                tally.refused.fetch_add(1, Ordering::Relaxed)
            }
            other => panic!("{other}: {}", answer.body),
        };
        if answer.status == 202 && turn % 10 == 3 {
            let canceled = send(stack.request(Method::DELETE, &format!("/v1/jobs/{}", answer.text("id")))).await;
            assert!([200, 409].contains(&canceled.status), "{}", canceled.body);
        }
        if answer.status == 202 && turn % 25 == 5 {
            let events = stack.request(Method::GET, &format!("/v1/jobs/{}/events", answer.text("id")));
            let response = events.send().await.expect("answered");
            drop(response.bytes_stream().take(1).collect::<Vec<_>>().await);
        }
    }
}

/// Batches and lists beside it.
async fn batches(stack: &Stack, tally: &Tally) {
    for turn in 0.. {
        if tally.over.load(Ordering::Relaxed) {
            return;
        }
        let mut builder = tar::Builder::new(Vec::new());
        for item in 0..10 {
            let (mut header, image) = (tar::Header::new_gnu(), photo("rocket.jpg"));
            header.set_size(image.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, format!("{item}.jpg"), &image[..]).expect("written");
        }
        let body = builder.into_inner().expect("finished");
        let put = stack.request(Method::PUT, &format!("/v1/batches/soak-{turn}?model={MODEL}"));
        let taken = send(put.header("content-type", "application/x-tar").body(body)).await;
        match taken.status {
            202 => tally.accepted.fetch_add(10, Ordering::Relaxed),
            503 => tally.refused.fetch_add(1, Ordering::Relaxed),
            other => panic!("{other}: {}", taken.body),
        };
        assert_eq!(stack.get("/v1/jobs?limit=50").await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_files_and_memory_follow_what_lives() {
    if !cfg!(target_os = "linux") || engine() != Engine::Own {
        // A NATS server keeps its own room, in a process of its own.
        return;
    }
    let stack = Stack::start_with_files(1024, &["--workers", "1", "--models", MODEL, "--webhook-allow", "127.0.0.1"]);
    let (stack, tally) = (Arc::new(stack), Arc::new(Tally::default()));
    let mut clients = tokio::task::JoinSet::new();
    for lane in 0..16 {
        let (stack, tally) = (stack.clone(), tally.clone());
        clients.spawn(async move { upload(&stack, lane, &tally).await });
    }
    clients.spawn({
        let (stack, tally) = (stack.clone(), tally.clone());
        async move { batches(&stack, &tally).await }
    });
    let (began, span) = (Instant::now(), Duration::from_secs(rounds(60, 3_600) as u64));
    let journal = stack.data().join("journal");
    let (mut files, mut settled) = (Vec::new(), None);
    while began.elapsed() < span {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (taken, live) = (folder_bytes(&journal), live_bytes(&stack).await);
        assert!(taken <= 2 * live + SLACK_BYTES, "{} MiB for {} MiB that live", taken >> 20, live >> 20);
        files.push(stack.open_files());
        if settled.is_none() && began.elapsed() > span / 3 {
            settled = Some((Instant::now(), stack.memory("VmRSS")));
        }
        if let Some(Err(error)) = clients.try_join_next() {
            panic!("{error}");
        }
    }
    let (since, before) = settled.expect("some looks");
    let slope =
        (stack.memory("VmRSS") as f64 - before as f64) / (1 << 20) as f64 / since.elapsed().as_secs_f64() * 3600.0;
    println!(
        "{} accepted, {} refused; {} MiB of journal for {} MiB that live; at most {} open files; memory {slope:.0} MiB/h",
        tally.accepted.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
        folder_bytes(&journal) >> 20,
        live_bytes(&stack).await >> 20,
        files.iter().max().expect("some looks"),
    );
    assert!(*files.iter().max().expect("some looks") < 400, "{files:?}");
    tally.over.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client failed");
    }
    // What waits is more than one worker does in a test's time; that none is missing can be seen at once.
    let queue = stack.queue().await;
    let topic = MODEL.parse().expect("a name");
    eventually("it adds up", async || {
        let audit = queue.admin.audit(&topic, &[]).await.ok()?;
        (audit.is_balanced() && audit.accepted >= tally.accepted.load(Ordering::Relaxed)).then_some(())
    })
    .await;
    let listed = stack.get("/v1/jobs?limit=1").await;
    assert_eq!(listed.status, 200, "{}", json!(listed.body));
}

/// Uploads of one client, each looked at until it has ended; a few are under way at a time.
async fn upload_and_look(stack: &Stack, tally: &Tally) {
    let image = photo("rocket.jpg");
    let mut under_way = std::collections::VecDeque::new();
    while !tally.over.load(Ordering::Relaxed) || !under_way.is_empty() {
        if under_way.len() >= 16 || tally.over.load(Ordering::Relaxed) {
            let id: String = under_way.pop_front().expect("some are");
            let job = stack.get(&format!("/v1/jobs/{id}?wait=60")).await;
            assert_eq!(job.json["state"], "succeeded", "{}: {}", job.status, job.body);
            continue;
        }
        let answer = send(stack.upload(&format!("model={MODEL}&result_ttl=60s"), image.clone())).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        tally.accepted.fetch_add(1, Ordering::Relaxed);
        under_way.push_back(answer.text("id"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_as_it_is_while_as_much_ends_as_begins() {
    if !cfg!(target_os = "linux") || engine() != Engine::Own {
        return;
    }
    let stack = Arc::new(Stack::start_with_files(1024, &["--workers", "1", "--models", MODEL]));
    let tally = Arc::new(Tally::default());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (stack, tally) = (stack.clone(), tally.clone());
        clients.spawn(async move { upload_and_look(&stack, &tally).await });
    }
    let span = Duration::from_secs(rounds(30, 3_600) as u64);
    let (began, mut settled) = (Instant::now(), None);
    while began.elapsed() < span {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if settled.is_none() && began.elapsed() > span / 6 {
            settled = Some((Instant::now(), stack.memory("VmRSS")));
        }
        if let Some(Err(error)) = clients.try_join_next() {
            panic!("{error}");
        }
    }
    let (since, before) = settled.expect("some looks");
    let grown = (stack.memory("VmRSS") as f64 - before as f64) / (1 << 20) as f64;
    let accepted = tally.accepted.load(Ordering::Relaxed);
    let an_hour = grown / since.elapsed().as_secs_f64() * 3600.0;
    println!("{accepted} jobs, each looked at; memory grew by {grown:.1} MiB, {an_hour:.1} MiB/h");
    // What the first minute fills (caches, tables, the allocator) is not a slope; an hour shows one.
    assert!(grown < rounds(60, 5) as f64, "{grown:.1} MiB");
    tally.over.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client failed");
    }
}
