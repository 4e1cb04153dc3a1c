//! How fast a server is, asked by one client program: the same for every server.
//!
//! The question: what does an acknowledged message cost, at one and at many in flight, small and
//! large; and what does a pull with its ack?

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::client::Address;
use crate::error::chain;

/// The stream that is measured with; removed after each measurement.
const STREAM: &str = "sightline-bench";
const SUBJECT: &str = "sightline-bench.x";

/// One thing that is measured.
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
    /// Messages are pulled one by one and acknowledged, the answer awaited.
    Pull {
        /// Payload of each.
        bytes: usize,
        /// How many in all.
        count: usize,
    },
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Publish { bytes, in_flight, .. } => write!(f, "publish {bytes} B, {in_flight} in flight"),
            Self::Pull { bytes, .. } => write!(f, "pull + confirmed ack {bytes} B, one at a time"),
        }
    }
}

/// Messages a second of one load on one server.
///
/// # Errors
/// What the client said.
pub async fn measure(address: &Address, load: Load) -> Result<f64, String> {
    let client = address.connect_options().connect(address.servers()).await.map_err(|error| chain(&error))?;
    let context = jetstream::ContextBuilder::new().timeout(Duration::from_secs(60)).build(client.clone());
    drop(context.delete_stream(STREAM).await);
    let config = Config {
        name: STREAM.into(),
        subjects: vec![format!("{STREAM}.>")],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        ..Config::default()
    };
    let stream = context.create_stream(config).await.map_err(|error| chain(&error))?;
    let rate = match load {
        Load::Publish { bytes, in_flight, count } => publish(&context, bytes, in_flight, count).await,
        Load::Pull { bytes, count } => {
            publish(&context, bytes, 256, count).await?;
            let config = pull::Config {
                durable_name: Some("bench".into()),
                ack_policy: AckPolicy::Explicit,
                ..pull::Config::default()
            };
            let consumer = stream.create_consumer(config).await.map_err(|error| chain(&error))?;
            pull_all(&consumer, count).await
        }
    };
    drop(context.delete_stream(STREAM).await);
    rate
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

async fn pull_all(consumer: &PullConsumer, count: usize) -> Result<f64, String> {
    let started = Instant::now();
    for _ in 0..count {
        let asked = consumer.batch().max_messages(1).expires(Duration::from_secs(5)).messages().await;
        let mut batch = asked.map_err(|error| chain(&error))?;
        let message = batch.next().await.ok_or("no message")?.map_err(|error| error.to_string())?;
        message.double_ack_with(AckKind::Ack).await.map_err(|error| error.to_string())?;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
