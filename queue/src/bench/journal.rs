//! Does the size of the journal follow its live data at full load?
//!
//! Jobs pass through a server as they do in the product: an image in a work queue, then three
//! records, where each replaces the one before, then the image is deleted. So live records are
//! scattered between dead images, which makes a log hard to compact. Some images always wait.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use bytes::Bytes;

use super::{STREAM, connect, records};
use crate::client::Address;
use crate::error::chain;

/// Bytes of a record, as typical for ours.
const RECORD_BYTES: usize = 1200;
/// Records of one job; each replaces the one before.
const RECORDS: usize = 3;

/// How jobs are published.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of an image.
    pub image_bytes: usize,
    /// Jobs that are published at a time.
    pub in_flight: usize,
    /// Images that wait before the first is deleted.
    pub backlog: usize,
    /// How long jobs are published.
    pub span: Duration,
    /// Time between two samples.
    pub sample_every: Duration,
}

/// Measurements at one moment, with what the server reports about its log.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sample<U> {
    /// Seconds since the start.
    pub elapsed_s: f64,
    /// Jobs so far.
    pub jobs: u64,
    /// Bytes of images published so far.
    pub published_bytes: u64,
    /// Space that the log takes.
    pub journal: U,
    /// Bytes of all files in its folder: segments, spares and snapshots.
    pub folder_bytes: u64,
    /// Open files of this process.
    pub open_files: usize,
    /// Time to publish an image until it is on disk, since the previous sample: median and 99th
    /// percentile, ms.
    pub publish_p50_ms: f64,
    /// See `publish_p50_ms`.
    pub publish_p99_ms: f64,
}

/// Publishes jobs to the server at `address` and shows a sample at each interval. The server's log is in
/// `folder`, and `usage` returns the space that it takes.
///
/// # Errors
/// The client's error message.
pub async fn journal<U>(
    address: &Address,
    folder: &Path,
    load: Load,
    usage: impl Fn() -> U,
    show: &mut dyn FnMut(&Sample<U>),
) -> Result<(), String> {
    let context = connect(address).await?;
    let images = Config {
        name: STREAM.into(),
        subjects: vec![format!("{STREAM}.>")],
        retention: RetentionPolicy::WorkQueue,
        discard: jetstream::stream::DiscardPolicy::New,
        ..Config::default()
    };
    let images = context.create_stream(images).await.map_err(|error| chain(&error))?;
    let records = records(&context).await?;

    let started = Instant::now();
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut jobs = tokio::task::JoinSet::new();
    for _ in 0..load.in_flight {
        let (context, images, records, times) = (context.clone(), images.clone(), records.clone(), times.clone());
        jobs.spawn(async move { run(&context, &images, &records, load, started + load.span, &times).await });
    }
    let mut sampled = started;
    let mut total = 0;
    loop {
        let ended = tokio::time::timeout_at((sampled + load.sample_every).into(), jobs.join_next()).await;
        match ended {
            Ok(Some(result)) => result.map_err(|error| chain(&error))??,
            Ok(None) => break,
            Err(_) => {
                sampled = Instant::now();
                let mut times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
                total += times.len() as u64;
                times.sort_by(f64::total_cmp);
                let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(f64::NAN);
                show(&Sample {
                    elapsed_s: started.elapsed().as_secs_f64(),
                    jobs: total,
                    published_bytes: total * load.image_bytes as u64,
                    journal: usage(),
                    folder_bytes: folder_bytes(folder).map_err(|error| chain(&error))?,
                    open_files: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
                    publish_p50_ms: at(50),
                    publish_p99_ms: at(99),
                });
            }
        }
    }
    Ok(())
}

/// Publishes one job after the other until the deadline; deletes the oldest image when enough of them wait.
async fn run(
    context: &jetstream::Context,
    images: &jetstream::stream::Stream,
    records: &str,
    load: Load,
    deadline: Instant,
    times: &Mutex<Vec<f64>>,
) -> Result<(), String> {
    let (image, record) = (Bytes::from(vec![b'i'; load.image_bytes]), Bytes::from(vec![b'r'; RECORD_BYTES]));
    let mut waiting = VecDeque::new();
    while Instant::now() < deadline {
        let id = uuid::Uuid::now_v7();
        let begun = Instant::now();
        let sequence = publish(context, format!("{STREAM}.{id}"), image.clone()).await?;
        times.lock().unwrap_or_else(PoisonError::into_inner).push(begun.elapsed().as_secs_f64() * 1e3);
        for _ in 0..RECORDS {
            publish(context, format!("{records}.{id}"), record.clone()).await?;
        }
        waiting.push_back(sequence);
        if waiting.len() > load.backlog / load.in_flight
            && let Some(oldest) = waiting.pop_front()
        {
            images.delete_message(oldest).await.map_err(|error| chain(&error))?;
        }
    }
    Ok(())
}

async fn publish(context: &jetstream::Context, subject: String, payload: Bytes) -> Result<u64, String> {
    let ack = context.publish(subject, payload).await.map_err(|error| chain(&error))?;
    Ok(ack.await.map_err(|error| chain(&error))?.sequence)
}

fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(metadata) => bytes += metadata.len(),
            // The broker has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
