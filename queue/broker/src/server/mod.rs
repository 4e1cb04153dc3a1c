//! The broker: a NATS server of one node whose acknowledgement means on disk.
//!
//! One lock holds all that is true (`core`). A connection (`connection`) reads what its client
//! sends, takes the lock, and lets each command change streams, journal and whatever is to be sent
//! together. What is to be sent leaves when the journal has made safe what it
//! rests on; reads and plain messages wait in the same line, so no client ever learns of anything
//! that a power cut could undo.
//!
//! Files stand in the order in which a job meets them.

mod client;
mod places;
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
mod admin;
mod consumers;
mod answer;
mod advise;
mod timers;
mod keeper;
mod date;
mod damage;
mod monitor;
pub mod backup;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use self::auth::{Auth, Permissions, Responses, Rules, User};
use self::client::{Client, Outgoing};
use self::core::Core;
pub use self::damage::Loss;
pub use self::monitor::Monitor;
pub use self::tls::{Tls, server_config};
use crate::journal::Committer;
pub use crate::journal::Usage as JournalUsage;
pub use crate::journal::recovery::OpenError;
use crate::platform::storage::Folder;
use keeper::Keeper;

/// The version of NATS whose protocol this speaks; clients look at it.
pub(crate) const PROTOCOL_VERSION: &str = "2.14.0";

/// Pause between two looks whether all clients have left.
const LAME_DUCK_LOOK: Duration = Duration::from_millis(20);

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is logged.
const ACCEPT_WARNING_PAUSE: Duration = Duration::from_secs(60);

/// Connections beyond the bound that are on their way out: cut, or told that there is no room.
const LEAVING_MAX: usize = 16;

/// How a broker runs.
#[derive(Clone)]
pub struct Options {
    /// The folder of its journal.
    pub folder: PathBuf,
    /// Who may come in.
    pub auth: Auth,
    /// How connections are encrypted, if they are.
    pub tls: Option<Tls>,
    /// The largest message, headers and payload together, bytes.
    pub max_payload: usize,
    /// Bytes that the messages of all streams which refuse when full may take together; `None`: half of what
    /// they and the free disk have, at any moment, and 32 GiB at most.
    pub queue_bytes_max: Option<u64>,
    /// Bytes that may wait for one client before it is cut.
    pub outbox_bytes_max: usize,
    /// Clients at a time.
    pub connections_max: usize,
    /// Subscriptions of one client at a time.
    pub subscriptions_max: usize,
    /// How long clients that were told that the broker leaves may take their leave.
    pub lame_duck: Duration,
    /// How long a client has to say who it is.
    pub auth_timeout: Duration,
    /// How long a client may be silent before it is asked for a sign of life.
    pub ping_interval: Duration,
    /// No client of an earlier run is left: what was in hand is handed out again at the start, without waiting
    /// for its lease to end. A client that is left all the same may do a job twice.
    pub release_at_start: bool,
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
            auth: Auth::default(),
            tls: None,
            max_payload: 32 << 20,
            queue_bytes_max: None,
            outbox_bytes_max: 128 << 20,
            connections_max: 4096,
            subscriptions_max: 65_536,
            lame_duck: Duration::ZERO,
            auth_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(120),
            release_at_start: false,
            segment_bytes: None,
            sync: true,
        }
    }
}

impl std::fmt::Debug for Options {
    /// Without token and passwords.
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
    /// Kept, so that the end of one who may report a failure is not taken for the end of all.
    _fail: Arc<watch::Sender<Option<String>>>,
}

/// What connections, timers and keeper share.
#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    /// Apart from the lock: waiting for the disk must not block others.
    committer: Arc<Committer<Outgoing>>,
    options: Options,
    server_id: String,
    address: SocketAddr,
    /// A timer was set that is earlier than all others.
    timer_set: Notify,
    phase: watch::Sender<Phase>,
    tls: Option<tls::Acceptor>,
    clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    places: Mutex<places::Places>,
    totals: Totals,
    started: i64,
}

/// What was counted since the start.
#[derive(Debug, Default)]
struct Totals {
    connections: AtomicU64,
    slow_consumers: AtomicU64,
    /// Of clients that are gone.
    in_messages: AtomicU64,
    in_bytes: AtomicU64,
    out_messages: AtomicU64,
    out_bytes: AtomicU64,
}

/// How far a broker's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// No new clients; those that are there know, and may go.
    LameDuck,
    Stopping,
}

impl Shared {
    fn new(core: Core, options: Options, address: SocketAddr, tls: Option<tls::Acceptor>) -> Self {
        Self {
            committer: core.journal.committer().clone(),
            core: Mutex::new(core),
            options,
            server_id: uuid::Uuid::new_v4().simple().to_string(),
            address,
            timer_set: Notify::new(),
            phase: watch::channel(Phase::Serving).0,
            tls,
            clients: Mutex::default(),
            places: Mutex::default(),
            totals: Totals::default(),
            started: core::now().wall,
        }
    }

    /// The state. A panic in one command leaves it half-changed at worst for that command's stream;
    /// the journal still says what is true.
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is there.
    fn enter(&self, client: &Arc<Client>) {
        self.totals.connections.fetch_add(1, Ordering::Relaxed);
        self.clients().insert(client.id, client.clone());
    }

    /// A client is gone; what it did still counts.
    fn leave(&self, client: &Arc<Client>) {
        self.clients().remove(&client.id);
        let (traffic, totals) = (&client.traffic, &self.totals);
        for (total, part) in [
            (&totals.in_messages, &traffic.in_messages),
            (&totals.in_bytes, &traffic.in_bytes),
            (&totals.out_messages, &traffic.out_messages),
            (&totals.out_bytes, &traffic.out_bytes),
        ] {
            total.fetch_add(part.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        totals.slow_consumers.fetch_add(traffic.was_slow.load(Ordering::Relaxed).into(), Ordering::Relaxed);
    }

    /// Notifies all clients that the broker is about to stop.
    fn take_leave(&self) {
        for client in self.clients().values() {
            client.send_now(connection::greeting(self, client.peer, client.id, true));
        }
    }

    /// Ends the requests that wait: who sent them may ask elsewhere at once.
    fn end_requests(&self) {
        let mut core = self.lock();
        let consumers = core.streams.values_mut().flat_map(|stream| stream.consumers_mut());
        let waiting: Vec<_> = consumers.flat_map(|consumer| std::mem::take(&mut consumer.waiting)).collect();
        waiting.iter().for_each(|request| core.end_request(request, "409 Server Shutdown"));
        core.finish_all();
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
        let fail = Arc::new(fail);
        let failing = fail.clone();
        let on_failure = Box::new(move |error: std::io::Error| {
            // Durability: after a failed write or sync it is unknown what is on disk. Only a fresh
            // start finds out.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What was stored and is lost, because it decayed on disk.
    pub fn losses(&self) -> Vec<Loss> {
        self.shared.lock().losses.clone()
    }

    /// What its journal takes on disk.
    pub fn journal_usage(&self) -> JournalUsage {
        self.shared.lock().journal.usage()
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

    /// Looks at it from outside.
    pub fn monitor(&self) -> Monitor {
        Monitor(self.shared.clone())
    }

    /// Tells all clients that it leaves, gives them [time](Options::lame_duck), closes all connections,
    /// and leaves the journal such that the next start is quick.
    pub async fn stop(self) {
        self.shared.phase.send_replace(Phase::LameDuck);
        self.shared.take_leave();
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

/// Runs a part without which a broker is none: if it panics, the broker has failed.
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

/// Waits until a phase is reached.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    drop(phase.wait_for(|phase| *phase >= wanted).await);
}

/// Serves clients until told to stop.
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
                    let place = places::enter(shared, next_id);
                    // Those that were cut, or were told that there is no room, still hold a file until they end,
                    // which is soon.
                    while connections.len() >= shared.options.connections_max + LEAVING_MAX && place.is_some() {
                        connections.join_next().await;
                    }
                    // Beyond that, those for whom there is no room are not even told.
                    if connections.len() < shared.options.connections_max + LEAVING_MAX {
                        connections.spawn(connection::serve(shared.clone(), socket, peer, next_id, place));
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely. The ones there are must go on.
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

/// Requests of any bytes, for `queue/broker/fuzz`.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_api(bytes: &[u8]) {
    let options = Options { segment_bytes: Some(1 << 16), ..Options::new("memory".into()) };
    let Ok(mut core) = Core::open(crate::fuzz::disk(), &options, Box::new(|_| {})) else { return };
    for part in bytes.split(|byte| *byte == 0) {
        let (subject, payload) = crate::fuzz::request(part);
        if !crate::nats::is_valid(&subject) || std::str::from_utf8(&subject).is_err() {
            continue;
        }
        let (now, reply) = (core::now(), Some(bytes::Bytes::from_static(b"_INBOX.fuzz")));
        let publication = crate::nats::Publication { subject, reply, header: bytes::Bytes::new(), payload };
        dispatch::publish(&mut core, "fuzz", true, None, &publication, now);
        core.finish();
    }
}
