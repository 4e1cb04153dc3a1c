//! The broker: a single-node NATS server that acknowledges a message only once it is on disk.
//!
//! One lock guards all state (`core`). A connection (`connection`) reads what its client sends, takes
//! the lock, and lets each command change streams, journal and outgoing messages together. Outgoing
//! messages are sent once the journal has synced the changes they depend on; reads and plain messages
//! wait in the same queue, so no client ever learns of anything that a power cut could undo.
//!
//! Modules are listed in the order in which a job passes through them.

mod options;
mod shared;
mod client;
mod places;
mod session;
mod connection;
mod transport;
mod tls;
mod auth;
mod core;
mod dispatch;
mod publish;
mod pull;
mod deliver;
mod push;
mod settle;
mod get;
mod request;
mod admin;
mod consumers;
mod answer;
mod advise;
mod timers;
mod keeper;
mod date;
mod loss;
mod damage;
mod monitor;
pub mod backup;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use self::auth::{Auth, Permissions, Responses, Rules, User};
use self::core::Core;
use self::keeper::Keeper;
pub use self::loss::Loss;
pub use self::monitor::Monitor;
pub use self::options::Options;
use self::shared::{Phase, Shared, reached};
pub use self::tls::{Tls, server_config};
pub use crate::journal::Usage as JournalUsage;
pub use crate::journal::recovery::OpenError;
use crate::platform::storage::Folder;

/// Pause between two checks whether all clients have disconnected.
const LAME_DUCK_LOOK: Duration = Duration::from_millis(20);

/// Pause after accepting a connection failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Shortest time between two warnings about that.
const ACCEPT_WARNING_PAUSE: Duration = Duration::from_secs(60);

/// Connections allowed beyond the limit while they close: cut, or refused because the broker is full.
const LEAVING_MAX: usize = 16;

/// A running broker. Call [`Broker::stop`] to shut it down cleanly; dropping it leaves the journal as a
/// crash would.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    serving: Vec<JoinHandle<()>>,
    keeper: Keeper,
    failed: watch::Receiver<Option<String>>,
    /// Held so that the channel stays open when a task that could report a failure ends.
    _fail: Arc<watch::Sender<Option<String>>>,
}

impl Broker {
    /// Opens the journal and serves clients on `listener`. Blocks while it recovers.
    ///
    /// # Errors
    /// [`OpenError`] with the file that caused it.
    pub fn start(options: Options, listener: TcpListener) -> Result<Self, OpenError> {
        let shown = options.folder.display().to_string();
        let folder = Folder::open(&options.folder, options.sync).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => OpenError::Locked(shown.clone()),
            _ => OpenError::Io { name: shown.clone(), source: error },
        })?;
        let address = listener.local_addr().map_err(OpenError::io("listener"))?;
        let (fail, failed) = watch::channel(None);
        let fail = Arc::new(fail);
        let failing = fail.clone();
        let on_failure = Box::new(move |error: std::io::Error| {
            // Durability: after a failed write or sync, what is on disk is unknown. Only recovery at the next
            // start can find out.
            tracing::error!(%error, "journal cannot be written; broker stopping");
            failing.send_replace(Some(format!("the journal in {shown} cannot be written: {error}")));
        });
        options.auth.check().map_err(OpenError::Settings)?;
        let tls = options.tls.as_ref().map(Tls::acceptor).transpose().map_err(OpenError::Settings)?;
        let core = Core::open(Arc::new(folder), &options, on_failure)?;
        let shared = Arc::new(Shared::new(core, options, address, tls));
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
        let serving = vec![
            watched("accepting connections", fail.clone(), accepting),
            watched("timers", fail.clone(), timers::run(shared.clone())),
        ];
        Ok(Self { shared, serving, keeper, failed, _fail: fail })
    }

    /// The address that the broker listens on.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Stored data that was lost because it decayed on disk.
    pub fn losses(&self) -> Vec<Loss> {
        self.shared.lock().losses.clone()
    }

    /// Disk usage of the journal.
    pub fn journal_usage(&self) -> JournalUsage {
        self.shared.lock().journal.usage()
    }

    /// Waits until the broker fails, because the journal cannot be written or a task panicked, and returns why.
    pub async fn failure(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(problem) => problem.clone().unwrap_or_default(),
            // The journal was closed cleanly; it cannot fail any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// A view of the broker for monitoring.
    pub fn monitor(&self) -> Monitor {
        Monitor(self.shared.clone())
    }

    /// Notifies all clients that the broker is stopping, gives them [time](Options::lame_duck) to leave,
    /// closes all connections, and leaves a snapshot so that the next start is quick.
    pub async fn stop(self) {
        self.shared.phase.send_replace(Phase::LameDuck);
        take_leave(&self.shared);
        let deadline = tokio::time::Instant::now() + self.shared.options.lame_duck;
        while !self.shared.clients().is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LAME_DUCK_LOOK).await;
        }
        self.shared.end_requests();
        self.shared.phase.send_replace(Phase::Stopping);
        for serving in self.serving {
            if let Err(error) = serving.await {
                tracing::error!(%error, "broker task failed");
            }
        }
        let ending = tokio::task::spawn_blocking(move || self.keeper.end());
        if let Err(error) = ending.await {
            tracing::error!(%error, "the journal's keeper failed");
        }
    }
}

/// Runs a task that the broker cannot work without: if it panics, the broker has failed.
fn watched(
    what: &'static str,
    fail: Arc<watch::Sender<Option<String>>>,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(panic) = std::panic::AssertUnwindSafe(work).catch_unwind().await {
            let problem = format!("the broker's part for {what} panicked: {}", crate::panics::text(panic.as_ref()));
            tracing::error!(problem, "broker stopped");
            fail.send_replace(Some(problem));
        }
    })
}

/// Accepts connections until the broker starts to stop.
async fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    let mut phase = shared.phase.subscribe();
    let mut connections = JoinSet::new();
    let mut next_id = 0;
    let mut warned: Option<Instant> = None;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    next_id += 1;
                    let place = places::enter(&shared.places, shared.options.connections_max, next_id);
                    // Connections that were cut or refused still hold a file descriptor until they end, which
                    // is soon.
                    while connections.len() >= shared.options.connections_max + LEAVING_MAX && place.is_some() {
                        connections.join_next().await;
                    }
                    // Beyond that, connections without a slot are dropped without an error message.
                    if connections.len() < shared.options.connections_max + LEAVING_MAX {
                        connections.spawn(connection::serve(shared.clone(), socket, peer, next_id, place));
                    }
                }
                Err(error) => {
                    // Most likely out of file descriptors. Open connections must keep working.
                    if warned.is_none_or(|at| at.elapsed() >= ACCEPT_WARNING_PAUSE) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, open = connections.len(), "connections not accepted; they will wait");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = reached(&mut phase, Phase::LameDuck) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Notifies all clients that the broker is about to stop.
fn take_leave(shared: &Shared) {
    for client in shared.clients().values() {
        client.send_now(session::greeting(shared, client.peer, client.id, true));
    }
}

/// Feeds requests and messages of arbitrary bytes to the broker, for the fuzz targets.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_api(
    disk: Arc<dyn crate::platform::storage::Storage>,
    requests: impl Iterator<Item = (bytes::Bytes, bytes::Bytes)>,
) {
    let options = Options { segment_bytes: Some(1 << 16), ..Options::new("memory".into()) };
    let Ok(mut core) = Core::open(disk, &options, Box::new(|_| {})) else { return };
    for (subject, payload) in requests {
        if !crate::nats::is_valid(&subject) || std::str::from_utf8(&subject).is_err() {
            continue;
        }
        let (now, reply) = (core::now(), Some(bytes::Bytes::from_static(b"_INBOX.fuzz")));
        let publication = crate::nats::Publication { subject, reply, header: bytes::Bytes::new(), payload };
        dispatch::publish(&mut core, "fuzz", true, None, &publication, now);
        core.finish();
    }
}
