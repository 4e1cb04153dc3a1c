//! The server: accepts connections, bounds them, and ends them in order.
//!
//! axum's own `serve` has no timeouts, so connections are driven here. hyper needs a timer set,
//! or its header timeout never fires. HTTP/1.1 only: telling it from HTTP/2 by the first bytes has
//! no timeout in `hyper-util`, and a connection that sends none would stay for ever.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use models::Repository;
use queue::members::{Announcement, Role};
use queue::{Queue, QueueError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::batches::Follower;
use crate::config::Config;
use crate::index::Index;
use crate::jobs::BODY_UNIT;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::roster::Roster;
use crate::router::router;
use crate::state::State;
use crate::watch::Watch;
use crate::webhooks::Sender;

/// From accepting a connection, or from its last answer, to the end of the next request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long requests may take to end once the server is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often keys are read again: another process may have made or revoked one.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after an error of `accept`, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address on which it would not be safe to listen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Anybody could do anything.
    #[error(
        "{0} can be reached from other machines, and there are no keys yet: make one with sightline keys create, listen on 127.0.0.1, or say --insecure"
    )]
    NoKeys(SocketAddr),
    /// Keys and images could be read on their way.
    #[error(
        "{0} can be reached from other machines, and keys would cross the network in the clear: give --tls-cert and --tls-key, say --behind-proxy if a proxy encrypts, or --insecure"
    )]
    InTheClear(SocketAddr),
}

/// How the API is guarded against other machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guards {
    /// There are keys.
    pub keys: bool,
    /// Connections are encrypted, here or by a proxy.
    pub encrypted: bool,
    /// Somebody said that nothing of this is wanted.
    pub insecure: bool,
}

/// Refuses to serve other machines unguarded.
///
/// # Errors
/// [`ListenError`] for an address that is not loopback.
pub fn check_listen(address: SocketAddr, guards: Guards) -> Result<(), ListenError> {
    match guards {
        _ if address.ip().is_loopback() || guards.insecure => Ok(()),
        Guards { keys: false, .. } => Err(ListenError::NoKeys(address)),
        Guards { encrypted: false, .. } => Err(ListenError::InTheClear(address)),
        Guards { .. } => Ok(()),
    }
}

/// Serves until `stop`; then takes no more connections and lets requests end.
pub async fn serve(
    config: Config,
    repository: Repository,
    queue: Queue,
    index: Index,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let roster = Roster::default();
    let mut own = Announcement::new(Role::Api, &[]);
    own.state = "ready".into();
    let member = own.id.clone();
    let (watch, keys) = (Watch::default(), Keys::default());
    // Not one request before it is known who may ask.
    while let Err(error) = keys.refresh(&index).await {
        tracing::warn!(%error, "keys not read");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
    let keeping = [
        keep("members", roster.clone().keep(queue.clone(), own.clone())),
        keep("topics", {
            let queue = queue.clone();
            async move { queue.follow_topics().await }
        }),
        keep("keys", {
            let (keys, index) = (keys.clone(), index.clone());
            async move {
                loop {
                    tokio::time::sleep(KEYS_INTERVAL).await;
                    if let Err(error) = keys.refresh(&index).await {
                        tracing::warn!(%error, "keys not read again");
                    }
                }
            }
        }),
        keep("webhooks", {
            let sender = Sender::new(queue.clone(), index.clone(), &config.webhook_secret, &config.webhook_allow);
            async move { sender.keep().await }
        }),
        keep("the job index", index.clone().keep(queue.clone())),
        keep("batches", Follower::new(queue.clone(), index.clone()).keep()),
        keep("the watchdog", watch.clone().keep(queue.clone(), index.clone(), roster.clone())),
    ];
    let leaving = queue.clone();
    let permits = config.bodies_bytes_max.max(config.upload_bytes_max + 2 * BODY_UNIT) / BODY_UNIT;
    let metrics = Metrics::install();
    let upkeep = metrics.clone();
    let connections = Arc::new(Semaphore::new(config.connections_max));
    let state = State {
        queue,
        repository,
        config,
        member,
        roster,
        watch,
        index,
        keys,
        metrics,
        bodies: Semaphore::new(permits),
        batch_bodies: Arc::new(Semaphore::new(permits)),
        bodies_units: permits,
        stop: stop.clone(),
    };
    let encryption = state.config.tls.clone().map(TlsAcceptor::from);
    let service = TowerToHyperService::new(router(Arc::new(state)));
    let graceful = GracefulShutdown::new();
    let mut upkeep_due = tokio::time::interval(Duration::from_secs(5));
    loop {
        let (socket, permit) = tokio::select! {
            () = stop.cancelled() => break,
            _ = upkeep_due.tick() => {
                upkeep.upkeep();
                continue;
            }
            accepted = accept(&listener, &connections) => accepted,
        };
        let (watcher, service, encryption) = (graceful.watcher(), service.clone(), encryption.clone());
        tokio::spawn(async move {
            let ended = match encryption {
                None => converse(socket, watcher, service).await,
                Some(encryption) => match tokio::time::timeout(HEAD_TIMEOUT, encryption.accept(socket)).await {
                    Ok(Ok(socket)) => converse(socket, watcher, service).await,
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("no handshake in time".into()),
                },
            };
            if let Err(problem) = ended {
                tracing::debug!(problem, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end in time and were cut");
    }
    drop(keeping);
    leaving.announce_gone(own).await;
}

/// Answers what comes on one connection.
async fn converse<S>(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    watcher: Watcher,
    service: S,
) -> Result<(), String>
where
    S: Service<hyper::Request<hyper::body::Incoming>, Response = axum::response::Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = watcher.watch(builder.serve_connection(TokioIo::new(socket), service));
    connection.await.map_err(|error| error.to_string())
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = connections.clone().acquire_owned().await.expect("this semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "answers on this connection may be delayed");
                }
                return (socket, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Runs something for as long as what it returns is kept.
fn keep(
    what: &'static str,
    work: impl Future<Output = Result<(), QueueError>> + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = work.await {
            tracing::error!(%error, what, "not looked after any more");
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_need_keys_and_encryption() {
        let (here, there) = (SocketAddr::from(([127, 0, 0, 1], 80)), SocketAddr::from(([0, 0, 0, 0], 80)));
        let guards = |keys, encrypted, insecure| Guards { keys, encrypted, insecure };
        assert_eq!(check_listen(here, Guards::default()), Ok(()));
        assert_eq!(check_listen(there, Guards::default()), Err(ListenError::NoKeys(there)));
        assert_eq!(check_listen(there, guards(false, true, false)), Err(ListenError::NoKeys(there)));
        assert_eq!(check_listen(there, guards(true, false, false)), Err(ListenError::InTheClear(there)));
        assert_eq!(check_listen(there, guards(true, true, false)), Ok(()));
        assert_eq!(check_listen(there, guards(false, false, true)), Ok(()));
    }
}
