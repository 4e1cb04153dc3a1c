//! One system call fails, whichever it is: what was acknowledged before, and what is acknowledged after it, is
//! there after the next start.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use bytes::Bytes;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::harness::{Stack, eventually, photo, root, sightline, temporary_folder};
use super::rounds;

/// Linux numbers of the errors; 0 is a write of which only half is written.
const SHORT: i32 = 0;
const EINTR: i32 = 4;
const EIO: i32 = 5;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;

/// Calls, how many of them a run makes or more, and what may become of one.
const FAULTS: [(&str, u64, &[i32]); 5] = [
    ("write", 200, &[EIO, ENOSPC, EINTR, SHORT]),
    ("sync", 120, &[EIO, ENOSPC]),
    ("open", 60, &[EIO, EMFILE, ENOSPC, EINTR]),
    ("rename", 10, &[EIO, ENOSPC]),
    ("accept", 2, &[EMFILE, EINTR]),
];
/// The same for a whole system.
const SYSTEM_FAULTS: [(&str, u64, &[i32]); 5] = [
    ("write", 200, &[EIO, ENOSPC, EINTR, SHORT]),
    ("sync", 60, &[EIO, ENOSPC]),
    ("open", 40, &[EIO, EMFILE, ENOSPC, EINTR]),
    ("rename", 2, &[EIO, ENOSPC]),
    ("accept", 16, &[EMFILE, EINTR]),
];
/// Images that are uploaded to it.
const UPLOADS: usize = 10;
/// Messages that are published, some of them large, so that segments fill.
const MESSAGES: u64 = 120;

/// The call that fails, and how.
struct Fault<'a> {
    shim: &'a Path,
    call: &'a str,
    errno: i32,
    /// Which of these calls, from 1.
    at: u64,
}

impl Fault<'_> {
    /// The environment in which a program meets it.
    fn environment(&self, data: &Path) -> Vec<(&'static str, OsString)> {
        vec![
            // Its own start anew, to turn telemetry off, would count calls twice.
            ("ORT_DISABLE_TELEMETRY", "1".into()),
            ("LD_PRELOAD", self.shim.into()),
            ("SHIM_CALL", self.call.into()),
            ("SHIM_ERRNO", self.errno.to_string().into()),
            ("SHIM_AT", self.at.to_string().into()),
            ("SHIM_MARK", mark(data).into()),
        ]
    }
}

impl std::fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} fails with {}", self.call, self.at, self.errno)
    }
}

/// What is there once the call has failed.
fn mark(data: &Path) -> PathBuf {
    data.with_extension("struck")
}

fn compile(folder: &Path) -> PathBuf {
    let library = folder.join("libshim.so");
    let mut compile = Command::new("cc");
    compile
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(root().join("tests/durability/shim.c"))
        .arg("-ldl");
    assert!(compile.status().expect("a C compiler is there").success());
    library
}

/// A broker of our own, ended by its pipe.
struct Own {
    child: Child,
    _pipe: ChildStdin,
    address: String,
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts a broker; an error if it ends instead, with what it said.
fn start(data: &Path, shim: Option<&Fault<'_>>) -> Result<Own, String> {
    let mut command = sightline();
    command.args(["broker", "--supervised", "--broker-open", "--lame-duck", "0s", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(shim.map(|fault| fault.environment(data)).into_iter().flatten());
    let mut child = command.spawn().expect("it starts");
    let pipe = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let line = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("queue on "));
    match line {
        Some(line) => {
            let address = line.split([' ', ',']).nth(2).expect("an address").to_owned();
            Ok(Own { child, _pipe: pipe, address })
        }
        None => {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("read");
            drop(child.wait());
            Err(said)
        }
    }
}

fn payload(number: u64) -> Bytes {
    let bytes = if number.is_multiple_of(4) { 600_000 } else { 300 };
    vec![number as u8; bytes].into()
}

async fn context(broker: &Own) -> Option<jetstream::Context> {
    let connecting = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(broker.address.clone());
    let client = tokio::time::timeout(Duration::from_secs(10), connecting).await.ok()?.ok()?;
    Some(jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(client))
}

/// Publishes until all are acknowledged or one is not; what was acknowledged, by sequence.
async fn publish(broker: &mut Own) -> BTreeMap<u64, u64> {
    let mut acknowledged = BTreeMap::new();
    let Some(context) = context(broker).await else { return acknowledged };
    let config = Config { name: "s".into(), subjects: vec!["s.*".into()], ..Config::default() };
    let Ok(stream) = context.get_or_create_stream(config).await else { return acknowledged };
    for number in 0..MESSAGES {
        if matches!(broker.child.try_wait(), Ok(Some(_))) {
            break;
        }
        let Ok(sent) = context.publish(format!("s.{number}"), payload(number)).await else { continue };
        if let Ok(ack) = sent.await {
            acknowledged.insert(ack.sequence, number);
        }
        // Some go, so that segments are emptied and snapshots taken.
        if number % 10 == 9
            && let Some((sequence, _)) = acknowledged.pop_first()
        {
            drop(stream.delete_message(sequence).await);
        }
    }
    acknowledged
}

/// Whether the call that was to fail was made at all.
async fn check(fault: &Fault<'_>) -> bool {
    let folder = temporary_folder();
    let data = folder.path().join("data");
    let acknowledged = match start(&data, Some(fault)) {
        Ok(mut broker) => publish(&mut broker).await,
        Err(said) => {
            assert!(!said.contains("panicked"), "{fault}: {said}");
            BTreeMap::new()
        }
    };
    let was_struck = mark(&data).exists();
    let broker = start(&data, None).unwrap_or_else(|said| panic!("{fault}: it does not start again: {said}"));
    if acknowledged.is_empty() {
        return was_struck;
    }
    let stream = context(&broker).await.expect("it answers").get_stream("s").await;
    let stream = stream.unwrap_or_else(|error| panic!("{fault}: the stream is gone: {error}"));
    for (sequence, number) in acknowledged {
        let message =
            stream.get_raw_message(sequence).await.unwrap_or_else(|error| panic!("{fault}: {sequence}: {error}"));
        assert!(message.payload == payload(number), "{fault}: {sequence} is another message");
    }
    was_struck
}

/// Runs `check` for faults of these kinds: for each error a few calls that are drawn, or in the long form every one.
async fn strike(faults: &[(&str, u64, &[i32])], few: usize, check: impl AsyncFn(&Fault<'_>) -> bool) {
    if !cfg!(target_os = "linux") {
        eprintln!("SKIPPED: LD_PRELOAD is Linux's");
        return;
    }
    let folder = temporary_folder();
    let shim = compile(folder.path());
    let mut dice = StdRng::seed_from_u64(0x5eed);
    for &(call, calls, errors) in faults {
        let (mut struck, mut turns) = (0, 0);
        for &errno in errors {
            for turn in 0..rounds(few, calls as usize) as u64 {
                let at = if rounds(0, 1) == 1 { turn + 1 } else { 1 + dice.random_range(0..calls) };
                struck += u64::from(check(&Fault { shim: &shim, call, errno, at }).await);
                turns += 1;
            }
        }
        println!("{call}: {struck} of {turns} runs had one that failed");
        assert!(struck > 0, "no {call} ever failed");
    }
}

#[tokio::test]
async fn one_call_that_fails_loses_nothing() {
    strike(&FAULTS, 3, check).await;
}

/// The same for a whole system, the API and its index and the worker among it: each accepted job succeeds.
async fn check_system(fault: &Fault<'_>) -> bool {
    let folder = temporary_folder();
    let data = folder.path().join("data");
    let flags = ["--workers", "1", "--models", "efficientnet-lite0"];
    let mut accepted = Vec::new();
    match Stack::try_start_among(data.clone(), &flags, fault.environment(&data)) {
        Ok(stack) => {
            for _ in 0..UPLOADS {
                let upload = stack.upload("model=efficientnet-lite0", photo("rocket.jpg"));
                let Ok(answer) = upload.timeout(Duration::from_secs(10)).send().await else { continue };
                if answer.status() == 202 {
                    let job: serde_json::Value = answer.json().await.expect("a whole answer");
                    accepted.push(job["id"].as_str().expect("an id").to_owned());
                }
            }
        }
        Err(log) => assert!(!log.contains("panicked"), "{fault}: {log}"),
    }
    let was_struck = mark(&data).exists();
    let stack = Stack::try_start_at(data, &flags);
    let stack = stack.unwrap_or_else(|log| panic!("{fault}: it does not start again: {log}"));
    for id in &accepted {
        assert_eq!(stack.finish(id).await["state"], "succeeded", "{fault}: {id}");
    }
    eventually("all are listed", async || {
        let list = stack.get("/v1/jobs?state=succeeded&limit=1000").await.json;
        let jobs = list["jobs"].as_array()?;
        accepted.iter().all(|id| jobs.iter().any(|job| job["id"] == *id)).then_some(())
    })
    .await;
    was_struck
}

#[tokio::test]
async fn one_call_that_fails_costs_no_user_a_job() {
    strike(&SYSTEM_FAULTS, 1, check_system).await;
}
