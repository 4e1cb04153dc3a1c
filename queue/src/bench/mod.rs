//! How fast a server is, measured with the same client for every server.
//!
//! The questions: what does an acknowledged message cost, with one and with many in flight, small
//! and large; what does a pull with its ack cost; and how long does a message take to reach a
//! waiting client?

pub mod journal;

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::client::Address;
use crate::error::chain;

/// The stream used to measure; removed after each measurement.
const STREAM: &str = "sightline-bench";
const SUBJECT: &str = "sightline-bench.x";

/// One kind of load to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Messages are published, each acknowledged.
    Publish {
        /// Payload of each.
        bytes: usize,
        /// How many may be unacknowledged at a time.
        in_flight: usize,
        /// How many in all.
        count: usize,
    },
    /// Messages are pulled and acknowledged.
    Pull {
        /// Payload of each.
        bytes: usize,
        /// How many are requested at a time.
        batch: usize,
        /// Whether each ack's confirmation is awaited.
        confirmed: bool,
        /// How many in all.
        count: usize,
    },
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Publish { bytes, in_flight, .. } => write!(f, "publish {bytes} B, {in_flight} in flight"),
            Self::Pull { bytes, batch, confirmed, .. } => {
                let ack = if *confirmed { "confirmed ack" } else { "ack" };
                write!(f, "pull + {ack} {bytes} B, batch {batch}")
            }
        }
    }
}

async fn connect(address: &Address) -> Result<jetstream::Context, String> {
    let client = address.connect_options().connect(address.servers()).await.map_err(|error| chain(&error))?;
    Ok(jetstream::ContextBuilder::new().timeout(Duration::from_secs(60)).build(client))
}

async fn work_queue(context: &jetstream::Context) -> Result<jetstream::stream::Stream, String> {
    drop(context.delete_stream(STREAM).await);
    let config = Config {
        name: STREAM.into(),
        subjects: vec![format!("{STREAM}.>")],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        ..Config::default()
    };
    context.create_stream(config).await.map_err(|error| chain(&error))
}

/// Creates a stream that keeps the last message of each subject; returns its name.
async fn records(context: &jetstream::Context) -> Result<String, String> {
    let name = format!("{STREAM}-records");
    let config = Config {
        name: name.clone(),
        subjects: vec![format!("{name}.>")],
        max_messages_per_subject: 1,
        ..Config::default()
    };
    context.create_stream(config).await.map(|_| name).map_err(|error| chain(&error))
}

async fn workers(stream: &jetstream::stream::Stream) -> Result<PullConsumer, String> {
    let config =
        pull::Config { durable_name: Some("bench".into()), ack_policy: AckPolicy::Explicit, ..pull::Config::default() };
    stream.create_consumer(config).await.map_err(|error| chain(&error))
}

/// Messages per second of one load on one server.
///
/// # Errors
/// The client's error message.
pub async fn measure(address: &Address, load: Load) -> Result<f64, String> {
    let context = connect(address).await?;
    let stream = work_queue(&context).await?;
    let rate = match load {
        Load::Publish { bytes, in_flight, count } => publish(&context, bytes, in_flight, count).await,
        Load::Pull { bytes, batch, confirmed, count } => {
            publish(&context, bytes, 256, count).await?;
            pull_all(&workers(&stream).await?, batch, confirmed, count).await
        }
    };
    drop(context.delete_stream(STREAM).await);
    rate
}

/// Time that messages take from a publisher to a consumer that waits, in ms, sorted. They are
/// published at a steady rate, whether or not earlier ones have arrived.
///
/// # Errors
/// The client's error message.
pub async fn latency(address: &Address, bytes: usize, per_second: f64, count: usize) -> Result<Vec<f64>, String> {
    let context = connect(address).await?;
    let stream = work_queue(&context).await?;
    let consumer = workers(&stream).await?;
    let mut messages = consumer.messages().await.map_err(|error| chain(&error))?;
    let started = Instant::now();
    let publisher = context.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..count {
            let at = started + Duration::from_secs_f64(number as f64 / per_second);
            tokio::time::sleep_until(at.into()).await;
            let mut payload = vec![b'x'; bytes.max(8)];
            payload[..8].copy_from_slice(&(started.elapsed().as_nanos() as u64).to_le_bytes());
            publisher.publish(SUBJECT, payload.into()).await.map_err(|error| chain(&error))?;
        }
        Ok::<(), String>(())
    });
    let mut times = Vec::with_capacity(count);
    while times.len() < count {
        let message = messages.next().await.ok_or("no message")?.map_err(|error| error.to_string())?;
        let sent = message.payload.first_chunk().copied().map_or(0, u64::from_le_bytes);
        times.push((started.elapsed().as_nanos() as f64 - sent as f64) / 1e6);
        message.ack().await.map_err(|error| error.to_string())?;
    }
    publishing.await.map_err(|error| error.to_string())??;
    drop(context.delete_stream(STREAM).await);
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Queues this many small jobs as our own client does: a message in a work queue and a record. They are
/// not removed afterwards.
///
/// # Errors
/// The client's error message.
pub async fn fill(address: &Address, jobs: usize) -> Result<(), String> {
    let context = connect(address).await?;
    work_queue(&context).await?;
    let records = records(&context).await?;
    let payload = Bytes::from(vec![b'x'; 200]);
    let publishing = futures::stream::iter(0..jobs).map(|_| {
        let (payload, context, records) = (payload.clone(), &context, &records);
        async move {
            let id = uuid::Uuid::now_v7();
            let job =
                context.publish(format!("{STREAM}.{id}"), payload.clone()).await.map_err(|error| chain(&error))?;
            let record = context.publish(format!("{records}.{id}"), payload).await.map_err(|error| chain(&error))?;
            job.await.map_err(|error| chain(&error))?;
            record.await.map(drop).map_err(|error| chain(&error))
        }
    });
    publishing.buffer_unordered(512).try_collect::<Vec<()>>().await.map(drop)
}

async fn publish(context: &jetstream::Context, bytes: usize, in_flight: usize, count: usize) -> Result<f64, String> {
    let payload = Bytes::from(vec![b'x'; bytes]);
    let started = Instant::now();
    let publishing = futures::stream::iter(0..count).map(|_| {
        let payload = payload.clone();
        async move {
            let ack = context.publish(SUBJECT, payload).await.map_err(|error| chain(&error))?;
            ack.await.map(drop).map_err(|error| chain(&error))
        }
    });
    publishing.buffer_unordered(in_flight).try_collect::<Vec<()>>().await?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

async fn pull_all(consumer: &PullConsumer, batch: usize, confirmed: bool, count: usize) -> Result<f64, String> {
    let started = Instant::now();
    let mut had = 0;
    while had < count {
        let asked = consumer.batch().max_messages(batch.min(count - had)).expires(Duration::from_secs(5));
        let mut messages = asked.messages().await.map_err(|error| chain(&error))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| error.to_string())?;
            if confirmed {
                message.double_ack_with(AckKind::Ack).await.map_err(|error| error.to_string())?;
            } else {
                message.ack().await.map_err(|error| error.to_string())?;
            }
            had += 1;
        }
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
