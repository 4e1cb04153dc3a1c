//! Pictures on which the engine aborts its process, among many good ones.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::harness::{Stack, cache, photo, root, send};
use super::rounds;
use super::workers::dead_letter;

/// One job in this many is poison.
const POISON_EVERY: usize = 100;
/// Uploads on their way at a time.
const UPLOADERS: usize = 16;

/// ONNX Runtime with a trap in it; gone with the folder.
fn trapped_runtime() -> (TempDir, PathBuf) {
    let real = models::pull::onnx_runtime(&cache(), &|line| eprintln!("{line}")).expect("fetched");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let library = folder.path().join("libpoison.so");
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(root().join("tests/faults/poison.c"));
    compile.arg(format!("-DREAL={:?}", real.display().to_string())).arg("-ldl");
    assert!(compile.status().expect("a C compiler is there").success());
    (folder, library)
}

/// A picture of pure magenta, as a BMP.
fn poison() -> Vec<u8> {
    const SIDE: u32 = 32;
    let pixels = [255, 0, 255].repeat((SIDE * SIDE) as usize);
    let mut bmp = b"BM".to_vec();
    for field in
        [54 + pixels.len() as u32, 0, 54, 40, SIDE, SIDE, 1 | 24 << 16, 0, pixels.len() as u32, 2835, 2835, 0, 0]
    {
        bmp.extend(field.to_le_bytes());
    }
    bmp.extend(pixels);
    bmp
}

/// What a run came to.
struct Outcome {
    /// From the moment when the workers began to the end of the last good job.
    good_took: Duration,
    poison: Vec<Value>,
}

/// Queues this many jobs, of which some are poison, lets the workers loose on them and waits.
async fn run(jobs: usize, with_poison: bool) -> Outcome {
    let (_folder, library) = trapped_runtime();
    let library = library.display().to_string();
    let flags = ["--workers", "2", "--models", "efficientnet-lite0", "--attempts", "3", "--ort", &library];
    let stack = Stack::start(&flags);
    assert_eq!(stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await["state"], "succeeded");
    let pause = |word: &str| assert!(stack.command(&["topics", word, "efficientnet-lite0"]).status.success());
    pause("pause");
    let upload = |number: usize| {
        let is_poison = with_poison && number % POISON_EVERY == POISON_EVERY / 2;
        let image = if is_poison { poison() } else { photo("rocket.jpg") };
        let request = stack.upload("model=efficientnet-lite0", image);
        async move {
            let answer = send(request).await;
            assert_eq!(answer.status, 202, "{}", answer.body);
            (is_poison, answer.text("id"))
        }
    };
    let accepted: Vec<(bool, String)> =
        futures::stream::iter((0..jobs).map(upload)).buffer_unordered(UPLOADERS).collect().await;
    let began = OffsetDateTime::now_utc();
    pause("resume");
    let (mut poison, mut last) = (Vec::new(), began);
    for (is_poison, id) in accepted {
        let job = stack.finish(&id).await;
        if is_poison {
            assert_eq!(
                (job["state"].as_str(), job["error"]["code"].as_str()),
                (Some("failed"), Some("attempts_exhausted")),
                "{job}"
            );
            assert!(dead_letter(&stack, &id).await.is_some(), "its input is kept: {job}");
            poison.push(job);
            continue;
        }
        assert_eq!(job["state"], "succeeded", "{job}");
        let ended = job["finished_at"].as_str().expect("a time");
        last = last.max(OffsetDateTime::parse(ended, &Rfc3339).expect("a time"));
    }
    Outcome { good_took: (last - began).unsigned_abs(), poison }
}

#[tokio::test]
async fn poison_is_put_aside_and_costs_the_good_jobs_nothing_but_time() {
    let jobs = rounds(200, 5_000);
    let clean = run(jobs, false).await;
    let poisoned = run(jobs, true).await;
    assert_eq!((clean.poison.len(), poisoned.poison.len()), (0, jobs / POISON_EVERY));
    for job in &poisoned.poison {
        let attempts = job["attempts"].as_array().expect("a list");
        let lost = attempts.iter().filter(|attempt| attempt["outcome"] == "lost" && attempt["worker"].is_string());
        assert_eq!((attempts.len(), lost.count()), (3, 3), "each attempt names its worker and its end: {job}");
    }
    let rate = |good: usize, outcome: &Outcome| good as f64 / outcome.good_took.as_secs_f64();
    let (with, without) = (rate(jobs - poisoned.poison.len(), &poisoned), rate(jobs, &clean));
    println!("good jobs a second: {with:.1} with poison, {without:.1} without; ratio {:.2}", with / without);
}
