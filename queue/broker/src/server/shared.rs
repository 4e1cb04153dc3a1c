//! What connections, timers and keeper share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::client::{Client, Outgoing};
use super::core::{Core, now};
use super::options::Options;
use super::places::Places;
use super::tls::Acceptor;
use crate::journal::Committer;

/// The NATS version whose protocol the broker speaks; clients check it.
pub(crate) const PROTOCOL_VERSION: &str = "2.14.0";

/// What connections, timers and keeper share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    /// Outside the lock: waiting for the disk must not block others.
    pub(super) committer: Arc<Committer<Outgoing>>,
    pub(super) options: Options,
    pub(super) server_id: String,
    pub(super) address: SocketAddr,
    /// Notified when the earliest timer changes.
    pub(super) timer_set: Notify,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) tls: Option<Acceptor>,
    pub(super) clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    pub(super) places: Arc<Mutex<Places>>,
    pub(super) totals: Totals,
    pub(super) started: i64,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) connections: AtomicU64,
    pub(super) slow_consumers: AtomicU64,
    /// Of clients that have disconnected, as are the next three.
    pub(super) in_messages: AtomicU64,
    pub(super) in_bytes: AtomicU64,
    pub(super) out_messages: AtomicU64,
    pub(super) out_bytes: AtomicU64,
}

/// The phases of a broker's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    /// No new clients; connected ones have been notified and may disconnect.
    LameDuck,
    Stopping,
}

impl Shared {
    pub(super) fn new(core: Core, options: Options, address: SocketAddr, tls: Option<Acceptor>) -> Self {
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
            places: Arc::default(),
            totals: Totals::default(),
            started: now().wall,
        }
    }

    /// The state. A panic in one command leaves at worst that command's stream half-changed; the journal is
    /// still correct.
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clients(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a client that has connected.
    pub(super) fn enter(&self, client: &Arc<Client>) {
        self.totals.connections.fetch_add(1, Ordering::Relaxed);
        self.clients().insert(client.id, client.clone());
    }

    /// Removes a client that has disconnected; its traffic stays in the totals.
    pub(super) fn leave(&self, client: &Arc<Client>) {
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

    /// Ends all waiting requests, so that their senders can turn to another server at once.
    pub(super) fn end_requests(&self) {
        let mut core = self.lock();
        let consumers = core.streams.values_mut().flat_map(|stream| stream.consumers_mut());
        let waiting: Vec<_> = consumers.flat_map(|consumer| std::mem::take(&mut consumer.waiting)).collect();
        waiting.iter().for_each(|request| core.end_request(request, "409 Server Shutdown"));
        core.finish_all();
    }
}

/// Waits until a phase is reached.
pub(super) async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    drop(phase.wait_for(|phase| *phase >= wanted).await);
}
