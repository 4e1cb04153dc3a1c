//! The one client of the queue: JetStream through `async-nats`, whichever server is behind it.
//!
//! One file an operation, in the order in which a job meets them.

mod topics;
mod manage;
mod aged;
mod submit;
mod fetch;
mod settle;
mod records;
mod wait;
mod batches;
mod keys;
mod told;
mod cancel;
mod hooks;
mod dead;
mod depth;
mod describe;
mod read;
mod groups;
mod audit;
mod leases;
mod health;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;

pub use aged::Aged;
pub use audit::{Audit, Problem, Wrong};
pub use batches::{BATCHES_KEPT, Batch, Skipped};
pub use cancel::Canceled;
pub use dead::{DeadLetter, RedriveError, Redriven};
pub use depth::PartitionDepth;
pub use describe::{Bounds, Description, Partition, Replica};
pub use fetch::Fetcher;
pub use groups::{GroupMessage, GroupOffset, GroupReader, Offsets, Position};
pub use health::{Doubt, Server};
pub use hooks::{About, Hook, OwedCall};
pub use leases::Singleton;
pub use manage::Purged;
pub use read::Message;
pub use records::{Replaced, Revision, Stored};
pub use settle::{AckSubject, Delivery};
pub use submit::{Submitted, place};
pub use wait::Waited;

use crate::error::chain;
use crate::topic::Defaults;
use crate::{ConnectError, QueueError, Topic, TopicName};

/// How long the server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the connection is tried when it is quiet.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long an operation that may be repeated is repeated while the queue does not answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Refused because a stream's limit would be passed; which one is in the text.
const LIMIT_REACHED: ErrorCode = ErrorCode(10077);
/// Another write on this subject is in flight; only clusters say so, and it is not a verdict.
const WRITE_IN_FLIGHT: ErrorCode = ErrorCode(10164);

/// Where the queue is, and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    servers: Vec<String>,
    token: Option<String>,
}

impl Address {
    /// Reads `nats://[TOKEN@]host:port`, several of them comma-separated.
    ///
    /// # Errors
    /// [`ConnectError::Address`].
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let mut token = None;
        let mut servers = Vec::new();
        for part in text.split(',').map(str::trim) {
            let wrong = || ConnectError::Address(redacted(text));
            let (scheme, rest) = part.split_once("://").unwrap_or(("nats", part));
            let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
            if !matches!(scheme, "nats" | "tls") || host.is_empty() || host.contains(['/', ' ']) {
                return Err(wrong());
            }
            token = token.or(user.filter(|user| !user.is_empty()).map(str::to_owned));
            let server = format!("{scheme}://{host}");
            server.parse::<async_nats::ServerAddr>().map_err(|_| wrong())?;
            servers.push(server);
        }
        Ok(Self { servers, token })
    }

    /// Whether all servers are on this machine.
    pub fn is_loopback(&self) -> bool {
        let hosts = self.servers.iter().filter_map(|server| server.parse::<async_nats::ServerAddr>().ok());
        hosts.into_iter().all(|server| {
            let host = server.host().trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        })
    }

    /// Host and port of each server.
    pub(crate) fn servers(&self) -> Vec<&str> {
        self.servers.iter().map(String::as_str).collect()
    }

    /// How to be let in.
    pub(crate) fn connect_options(&self) -> async_nats::ConnectOptions {
        let options = async_nats::ConnectOptions::new();
        match &self.token {
            Some(token) => options.token(token.clone()),
            None => options,
        }
    }

    /// The same address with `token`, unless it has one.
    #[must_use]
    pub fn with_default_token(mut self, token: Option<String>) -> Self {
        self.token = self.token.or(token);
        self
    }
}

impl std::fmt::Display for Address {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.servers.join(","))
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({self})")
    }
}

fn redacted(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("nats://***@{host}"))
}

/// A connection to the queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    defaults: Arc<Defaults>,
    topics: Arc<RwLock<HashMap<TopicName, Arc<Topic>>>>,
    /// Streams of ours that are known to be there.
    ensured: Arc<RwLock<HashSet<String>>>,
    /// What each topic's queue may take that asked for no bound of its own.
    topic_bytes_max: Arc<AtomicU64>,
}

impl Queue {
    /// Connects; later losses of the connection are mended in the background.
    ///
    /// `name` is what the server shows of this client; `defaults` is what topics are created with.
    ///
    /// # Errors
    /// [`ConnectError`] with the address and what it answered.
    pub async fn connect(address: &Address, name: &str, defaults: Defaults) -> Result<Self, ConnectError> {
        let unreachable = |problem| ConnectError::Unreachable { address: address.to_string(), problem };
        let options = address
            .connect_options()
            .name(name)
            .connection_timeout(ANSWER_TIMEOUT)
            .request_timeout(Some(ANSWER_TIMEOUT))
            // A server that is gone without a word is noticed within three of these, well inside a
            // lease; the client's default would take three minutes.
            .ping_interval(PING_INTERVAL)
            .event_callback(|event| async move {
                match event {
                    async_nats::Event::Connected | async_nats::Event::Closed => {
                        tracing::debug!(%event, "queue connection");
                    }
                    // Wake-ups that pile up behind a long job; a worker looks by itself as well.
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
        let topic_bytes_max = AtomicU64::new(defaults.topic_bytes_max.unwrap_or(manage::UNBOUNDED)).into();
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

    /// Whether the queue's server gives a sign of life within `patience`; a refusal is one.
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

    /// Listens to plain messages, for as long as what it returns is kept.
    pub(crate) async fn listen(&self, subject: String) -> Result<Subscriber, String> {
        let subscribed = bounded(self.client.subscribe(subject)).await.map_err(|error| chain(&error))?;
        subscribed.map_err(|error| chain(&error))
    }

    /// A stream by its name. Sends no request, so it may not exist.
    async fn handle(&self, stream: &str) -> Result<Stream<()>, QueueError> {
        self.jetstream.get_stream_no_info(stream).await.map_err(QueueError::unavailable("find a stream"))
    }

    /// Whether there is a connection now. Without one, what is published waits for it.
    fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The connection itself, for requests.
    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.client
    }
}

/// Bounds one call of the client. While it has no connection, the client takes a number of commands
/// and then makes its callers wait without end.
async fn bounded<T>(call: impl Future<Output = T>) -> Result<T, TimedOut> {
    tokio::time::timeout(2 * ANSWER_TIMEOUT, call).await.map_err(|_| TimedOut)
}

/// A call of the client did not return.
#[derive(Debug, thiserror::Error)]
#[error("no connection")]
struct TimedOut;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_hides_its_token() {
        let address = Address::parse("nats://s3cret@127.0.0.1:4222,nats://10.0.0.2:4222").expect("valid");
        assert_eq!(address.to_string(), "nats://127.0.0.1:4222,nats://10.0.0.2:4222");
        assert_eq!(address.token.as_deref(), Some("s3cret"));
        assert!(!format!("{address:?}").contains("s3cret") && !address.is_loopback());
        assert!(Address::parse("nats://localhost:1,127.0.0.1:2,[::1]:3").expect("valid").is_loopback());
        for bad in ["", "http://x:1", "nats://", "nats://s3cret@", "nats://a:b:c", "nats://s3cret@x y"] {
            let error = Address::parse(bad).expect_err(bad).to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
