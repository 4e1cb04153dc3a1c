//! The one connection of a process to the queue, and what all handles share.

mod ask;
mod health;
mod inputs;
mod leases;
mod messages;
mod publish;
mod records;
mod revision;
mod topics;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;

pub(in crate::client) use ask::Ask;
pub use health::{Doubt, Server};
pub(in crate::client) use leases::{Exclusive, LEASES, candidate};
pub use messages::Message;
pub(in crate::client) use messages::timestamp;
pub(in crate::client) use publish::{Refusal, refusal};
pub use records::{Replaced, Stored};
pub use revision::Revision;

use super::address::Address;
use crate::error::chain;
use crate::topic::Defaults;
use crate::{ConnectError, QueueError, Topic, TopicName};

/// How long the server may take for one answer.
pub(in crate::client) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a quiet connection is checked.
pub(in crate::client) const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long an operation that may be repeated is retried while the queue does not answer.
pub(in crate::client) const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two such retries.
pub(in crate::client) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Refused because a stream's limit would be exceeded; the text names the limit.
pub(in crate::client) const LIMIT_REACHED: ErrorCode = ErrorCode(10077);
/// Another write on this subject is in flight; only clusters return this, and it decides nothing yet.
pub(in crate::client) const WRITE_IN_FLIGHT: ErrorCode = ErrorCode(10164);

/// Value of the limit per topic that stands for no limit.
pub(in crate::client) const UNBOUNDED: u64 = u64::MAX;

/// A connection to the queue, and what every role may do: find topics and jobs, and announce and list members.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    client: async_nats::Client,
    pub(in crate::client) jetstream: jetstream::Context,
    pub(in crate::client) defaults: Arc<Defaults>,
    topics: Arc<RwLock<HashMap<TopicName, Arc<Topic>>>>,
    /// Our streams that are known to exist.
    ensured: Arc<RwLock<HashSet<String>>>,
    /// Most bytes of a topic's queue, for topics without a limit of their own.
    pub(in crate::client) topic_bytes_max: Arc<AtomicU64>,
}

impl Connection {
    /// Connects; a connection that is lost later is restored in the background.
    ///
    /// The server shows this client as `name`; new topics are created with `defaults`.
    ///
    /// # Errors
    /// [`ConnectError`] with the address and the problem.
    pub(in crate::client) async fn connect(
        address: &Address,
        name: &str,
        defaults: Defaults,
    ) -> Result<Self, ConnectError> {
        let unreachable = |problem| ConnectError::Unreachable { address: address.to_string(), problem };
        let options = address
            .connect_options()
            .name(name)
            .connection_timeout(ANSWER_TIMEOUT)
            .request_timeout(Some(ANSWER_TIMEOUT))
            // A server that disappears silently is noticed within three of these, well within a
            // lease; with the client's default it would take three minutes.
            .ping_interval(PING_INTERVAL)
            .event_callback(|event| async move {
                match event {
                    async_nats::Event::Connected | async_nats::Event::Closed => {
                        tracing::debug!(%event, "queue connection");
                    }
                    // Wake-ups pile up behind a long job; a worker also checks by itself.
                    async_nats::Event::SlowConsumer(_) => tracing::debug!(%event, "queue connection"),
                    other => tracing::warn!(event = %other, "queue connection"),
                }
            });
        let client = options.connect(address.servers()).await;
        let client = client.map_err(|error| unreachable(chain(&error)))?;
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            .ack_timeout(ANSWER_TIMEOUT)
            .backpressure_on_inflight(true)
            .build(client.clone());
        jetstream
            .query_account()
            .await
            .map_err(|error| ConnectError::NoJetStream { address: address.to_string(), problem: chain(&error) })?;
        let topics = Arc::new(RwLock::new(HashMap::new()));
        let topic_bytes_max = AtomicU64::new(defaults.topic_bytes_max.unwrap_or(UNBOUNDED)).into();
        Ok(Self { client, jetstream, defaults: Arc::new(defaults), topics, ensured: Arc::default(), topic_bytes_max })
    }

    /// Default settings of new topics.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Whether the queue answers now.
    pub async fn is_reachable(&self) -> bool {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.jetstream.query_account()).await;
        matches!(answer, Ok(Ok(_)))
    }

    /// Whether the queue's server answers within `patience`; a refusal counts as an answer.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        self.is_connected() && tokio::time::timeout(patience, self.jetstream.query_account()).await.is_ok()
    }

    /// The largest message that the server takes, bytes.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Sends what is still in this client's buffers; for the end of a process.
    pub async fn flush(&self) {
        if let Ok(Err(error)) = tokio::time::timeout(ANSWER_TIMEOUT, self.client.flush()).await {
            tracing::warn!(%error, "not all messages were sent to the queue");
        }
    }

    /// Sends a plain message: not stored, not confirmed.
    pub(crate) async fn send(&self, subject: String, payload: Bytes) -> Result<(), String> {
        let sent = bounded(self.client.publish(subject, payload)).await.map_err(|error| chain(&error))?;
        sent.map_err(|error| chain(&error))
    }

    /// Subscribes to plain messages until the returned subscriber is dropped.
    pub(crate) async fn listen(&self, subject: String) -> Result<Subscriber, String> {
        let subscribed = bounded(self.client.subscribe(subject)).await.map_err(|error| chain(&error))?;
        subscribed.map_err(|error| chain(&error))
    }

    /// A stream by its name. Sends no request, so it may not exist.
    pub(in crate::client) async fn handle(&self, stream: &str) -> Result<Stream<()>, QueueError> {
        self.jetstream.get_stream_no_info(stream).await.map_err(QueueError::unavailable("find a stream"))
    }

    /// Whether there is a connection now. Without one, published messages wait for it.
    pub(in crate::client) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The connection itself, for requests.
    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.client
    }
}

/// Bounds one call of the client. While it has no connection, the client buffers a number of commands
/// and then makes its callers wait forever.
pub(in crate::client) async fn bounded<T>(call: impl Future<Output = T>) -> Result<T, TimedOut> {
    tokio::time::timeout(2 * ANSWER_TIMEOUT, call).await.map_err(|_| TimedOut)
}

/// A call of the client did not return in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection")]
pub(in crate::client) struct TimedOut;

/// The server's own error code inside a client error, if there is one.
fn server_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a jetstream::Error> {
    let mut error = Some(error);
    while let Some(current) = error {
        if let Some(found) = current.downcast_ref::<jetstream::Error>() {
            return Some(found);
        }
        error = current.source();
    }
    None
}
