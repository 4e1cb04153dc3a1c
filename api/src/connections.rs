//! Connections: accepted, bounded, served, and closed in order.
//!
//! axum's own `serve` has no timeouts, so connections are driven here. hyper needs a timer set, or its header
//! timeout never fires. HTTP/1.1 only: `hyper-util` waits without a timeout for the first bytes to distinguish it
//! from HTTP/2, so a connection that sends none would stay forever.
//!
//! Bounds: the total follows the limit of open files; one address gets a quarter of it, which leaves room for
//! others; heads are small; a client that does not read its answer in time is disconnected.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::metrics;
use crate::pace::Pace;

/// From accepting a connection, or from its last answer, to the end of the next request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes read ahead on a connection.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is logged.
const ACCEPT_WARNING_PAUSE: Duration = Duration::from_secs(60);
/// How long running requests may take to end once the server is stopping.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a client may read nothing of its answer.
const WRITE_PAUSE_MAX: Duration = Duration::from_secs(20);
/// Connections that one address may always have.
const PER_ADDRESS_MIN: usize = 64;

/// The service that answers requests.
pub(crate) type Answering = TowerToHyperService<Router>;

/// The address that a request came from, among its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The address that a request came from; behind a proxy, the one that the proxy reports.
pub(crate) fn client_address(config: &Config, request: &Request) -> Option<IpAddr> {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    if !config.behind_proxy {
        return peer;
    }
    // The proxy wrote the last entry; the client may have made up those before it.
    let forwarded = request.headers().get_all("x-forwarded-for").iter().next_back();
    let last = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    last.or(peer)
}

/// Limits on connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    /// All clients come from one address.
    pub(crate) behind_proxy: bool,
}

/// Serves connections until `stop`; then accepts no more and lets running requests end.
pub(crate) async fn serve(
    listener: TcpListener,
    encryption: Option<TlsAcceptor>,
    service: Answering,
    limits: Limits,
    stop: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    let addresses = Addresses::default();
    let mut connections = JoinSet::new();
    let mut warned: Option<Instant> = None;
    loop {
        // At the limit, clients wait in the system's queue until a connection ends.
        let is_full = connections.len() >= limits.connections_max;
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if !is_full => accepted,
        };
        let (socket, peer) = match accepted {
            Ok((socket, peer)) => (socket, peer.ip()),
            Err(error) => {
                // Most likely out of file descriptors. Open connections are not affected.
                if warned.is_none_or(|at| at.elapsed() >= ACCEPT_WARNING_PAUSE) {
                    warned = Some(Instant::now());
                    tracing::warn!(%error, open = connections.len(), "connections not accepted; they will wait");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Programs on this machine belong to its owner, but must still leave others a quarter.
        let share = if peer.is_loopback() { limits.connections_max / 4 * 3 } else { limits.connections_max / 4 };
        let most = if limits.behind_proxy { usize::MAX } else { share.max(PER_ADDRESS_MIN) };
        let Some(place) = addresses.enter(peer, most) else {
            metrics::connection_refused();
            continue;
        };
        let (watcher, service, encryption) = (graceful.watcher(), service.clone(), encryption.clone());
        connections.spawn(async move {
            if let Err(problem) = begin(socket, peer, encryption, watcher, service).await {
                tracing::debug!(problem, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests did not end in time and were closed");
    }
    connections.shutdown().await;
}

async fn begin(
    socket: TcpStream,
    peer: IpAddr,
    encryption: Option<TlsAcceptor>,
    watcher: Watcher,
    service: Answering,
) -> Result<(), String> {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "answers on this connection may be delayed");
    }
    match encryption {
        None => converse(socket, peer, watcher, service).await,
        Some(encryption) => match tokio::time::timeout(HEAD_TIMEOUT, encryption.accept(socket)).await {
            Ok(Ok(socket)) => converse(socket, peer, watcher, service).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no handshake in time".into()),
        },
    }
}

/// Answers the requests of one connection.
async fn converse(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: IpAddr,
    watcher: Watcher,
    service: Answering,
) -> Result<(), String> {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.max_buf_size(READ_BYTES_MAX);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        service.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(Paced::new(socket)), service);
    watcher.watch(connection).await.map_err(|error| error.to_string())
}

/// Number of connections by address.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's slot among those of its address.
struct ConnectionSlot {
    addresses: Addresses,
    of: IpAddr,
}

impl Addresses {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, peer: IpAddr, most: usize) -> Option<ConnectionSlot> {
        let of = network_of(peer);
        let mut addresses = self.lock();
        let count = addresses.entry(of).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(ConnectionSlot { addresses: self.clone(), of })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut addresses = self.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.of);
            }
        }
    }
}

/// The network that counts as one client: for IPv6, the whole /64.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// A socket whose other end must keep reading what is written to it.
struct Paced<T> {
    socket: T,
    pace: Pace,
}

impl<T> Paced<T> {
    fn new(socket: T) -> Self {
        Self { socket, pace: Pace::new(WRITE_PAUSE_MAX) }
    }

    fn check<R>(
        &mut self,
        written: Poll<io::Result<R>>,
        bytes: impl Fn(&R) -> usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        match written {
            Poll::Ready(Ok(done)) => {
                self.pace.moved(bytes(&done), false);
                Poll::Ready(Ok(done))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                ready!(self.pace.poll_waiting(false, context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.check(written, |written| *written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.check(written, |written| *written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.check(flushed, |()| 0, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.socket).poll_shutdown(context);
        self.check(shut, |()| 0, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let addresses = Addresses::default();
        let one: IpAddr = "2001:db8::1".parse().expect("an address");
        let same_network: IpAddr = "2001:db8::2".parse().expect("an address");
        let other: IpAddr = "2001:db8:1::1".parse().expect("an address");
        let places: Vec<ConnectionSlot> = (0..3).filter_map(|_| addresses.enter(one, 3)).collect();
        assert_eq!(places.len(), 3);
        assert!(addresses.enter(same_network, 3).is_none());
        assert!(addresses.enter(other, 3).is_some());
        drop(places);
        assert!(addresses.enter(same_network, 3).is_some());
        assert!(addresses.lock().is_empty(), "what has ended is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut() {
        use tokio::io::AsyncWriteExt;
        let (ours, _theirs) = tokio::io::duplex(1024);
        let started = tokio::time::Instant::now();
        let error = Paced::new(ours).write_all(&[0; 4096]).await.expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), WRITE_PAUSE_MAX);
    }
}
