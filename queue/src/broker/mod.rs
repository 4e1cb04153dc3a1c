//! The broker: a NATS server of one node whose acknowledgement means on disk.
//!
//! One lock holds all that is true (`core`). A connection (`connection`) reads what its client
//! sends, takes the lock, and lets each command change streams, journal and whatever is to be sent
//! together. What is to be sent leaves when the journal has made safe what it
//! rests on; reads and plain messages wait in the same line, so nobody is ever told of anything
//! that a power cut could undo.
//!
//! Files stand in the order in which a job meets them.

mod client;
mod connection;
mod core;
mod dispatch;
mod publish;
mod pull;
mod deliver;
mod push;
mod settle;
mod get;
mod admin;
mod consumers;
mod answer;
mod advise;
mod timers;
mod keeper;
mod damage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use self::damage::Loss;
use self::client::Outgoing;
use self::core::Core;
use crate::journal::Committer;
pub use crate::journal::recovery::OpenError;
use crate::platform::storage::Folder;
use keeper::Keeper;

/// The version of NATS whose protocol this speaks; clients look at it.
pub(crate) const PROTOCOL_VERSION: &str = "2.14.0";

/// How a broker runs.
#[derive(Clone)]
pub struct Options {
    /// The folder of its journal.
    pub folder: PathBuf,
    /// What clients must know; `None` lets everybody in.
    pub token: Option<String>,
    /// The largest message, headers and payload together, bytes.
    pub max_payload: usize,
    /// Bytes that the messages of all streams which refuse when full may take together.
    pub queue_bytes_max: u64,
    /// Bytes that may wait for one client before it is cut.
    pub outbox_bytes_max: usize,
    /// Clients at a time.
    pub connections_max: usize,
    /// How long a client has to say who it is.
    pub auth_timeout: Duration,
    /// How long a client may be silent before it is asked for a sign of life.
    pub ping_interval: Duration,
    /// Length of the journal's segments; by default it goes by the size of the disk.
    pub segment_bytes: Option<u64>,
    /// Off, an acknowledgement means nothing. For tests that show what this costs and saves.
    pub sync: bool,
}

impl Options {
    /// The usual settings on a folder.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            token: None,
            max_payload: 32 << 20,
            queue_bytes_max: 32 << 30,
            outbox_bytes_max: 128 << 20,
            connections_max: 4096,
            auth_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(120),
            segment_bytes: None,
            sync: true,
        }
    }
}

impl std::fmt::Debug for Options {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A running broker. Call [`Broker::stop`] to end it in order; dropping it leaves the journal as a
/// crash would.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    serving: Vec<JoinHandle<()>>,
    keeper: Keeper,
    failed: watch::Receiver<Option<String>>,
}

/// What connections, timers and keeper share.
#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    /// Apart from the lock: whoever waits for the disk must not hold others up.
    committer: Arc<Committer<Outgoing>>,
    options: Options,
    server_id: String,
    address: SocketAddr,
    /// A timer was set that is earlier than all others.
    timer_set: Notify,
    stop: watch::Sender<bool>,
}

impl Shared {
    /// The state. A panic in one command leaves it half-changed at worst for that command's stream;
    /// the journal still says what is true.
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// Opens the journal and serves clients on `listener`. Blocks while it recovers.
    ///
    /// # Errors
    /// [`OpenError`] with the file that is to blame.
    pub fn start(options: Options, listener: TcpListener) -> Result<Self, OpenError> {
        let shown = options.folder.display().to_string();
        let folder = Folder::open(&options.folder, options.sync).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => OpenError::Locked(shown.clone()),
            _ => OpenError::Io { name: shown.clone(), source: error },
        })?;
        let address = listener.local_addr().map_err(OpenError::io("listener"))?;
        let (fail, failed) = watch::channel(None);
        let on_failure = Box::new(move |error: std::io::Error| {
            // Durability: after a failed write or sync nobody knows what is on disk. Only a fresh
            // start finds out.
            tracing::error!(%error, "the journal cannot be written; the broker stops");
            fail.send_replace(Some(format!("the journal in {shown} cannot be written: {error}")));
        });
        let core = Core::open(Arc::new(folder), &options, on_failure)?;
        let shared = Arc::new(Shared {
            committer: core.journal.committer().clone(),
            core: Mutex::new(core),
            options,
            server_id: uuid::Uuid::new_v4().simple().to_string(),
            address,
            timer_set: Notify::new(),
            stop: watch::channel(false).0,
        });
        let keeper = Keeper::start(shared.clone()).map_err(OpenError::io("thread"))?;
        let mut dead = failed.clone();
        let accepting = {
            let shared = shared.clone();
            async move {
                tokio::select! {
                    () = accept(&shared, listener) => {}
                    _ = dead.wait_for(Option::is_some) => {}
                }
            }
        };
        let serving = vec![tokio::spawn(accepting), tokio::spawn(timers::run(shared.clone()))];
        Ok(Self { shared, serving, keeper, failed })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What was stored and is lost, because it decayed on disk.
    pub fn losses(&self) -> Vec<Loss> {
        self.shared.lock().losses.clone()
    }

    /// Waits until the journal cannot be written any more, which ends the broker, and returns why.
    pub async fn failure(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(problem) => problem.clone().unwrap_or_default(),
            // The journal was closed in order; it will not fail any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Closes all connections, and leaves the journal such that the next start is quick.
    pub async fn stop(self) {
        self.shared.stop.send_replace(true);
        for serving in self.serving {
            if let Err(error) = serving.await {
                tracing::error!(%error, "a task of the broker failed");
            }
        }
        let ending = tokio::task::spawn_blocking(move || self.keeper.end());
        if let Err(error) = ending.await {
            tracing::error!(%error, "the journal's keeper failed");
        }
    }
}

/// Waits until told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// Serves clients until told to stop.
async fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    let mut stop = shared.stop.subscribe();
    let mut connections = JoinSet::new();
    let mut next_id = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    next_id += 1;
                    let is_full = connections.len() >= shared.options.connections_max;
                    connections.spawn(connection::serve(shared.clone(), socket, peer, next_id, is_full));
                }
                Err(error) => {
                    // Out of file descriptors, most likely. The ones there are must go on.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
