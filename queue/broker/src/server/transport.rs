//! A connection's two directions, encrypted or not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::shared::Shared;
use super::tls::Acceptor;

/// How long one write may be blocked.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// The reading half.
#[derive(Debug)]
pub(super) enum Input {
    Plain(Arc<TcpStream>),
    Tls(Box<ReadHalf<TlsStream<TcpStream>>>),
}

/// The writing half.
#[derive(Debug)]
pub(super) enum Output {
    Plain(Arc<TcpStream>),
    Tls(Box<WriteHalf<TlsStream<TcpStream>>>),
}

/// Greets a client and sets up encryption. `None`: the TLS handshake failed.
pub(super) async fn open(
    shared: &Shared,
    mut socket: TcpStream,
    greeting: &[u8],
) -> io::Result<Option<(Input, Output)>> {
    let Some(Acceptor { settings: tls, acceptor }) = &shared.tls else {
        return Ok(Some(plain(socket, greeting).await?));
    };
    if !tls.first {
        socket.write_all(greeting).await?;
        if !tls.required && !is_handshake(&socket).await? {
            return Ok(Some(plain(socket, b"").await?));
        }
    }
    let Ok(mut stream) = acceptor.accept(socket).await else { return Ok(None) };
    if tls.first {
        stream.write_all(greeting).await?;
        stream.flush().await?;
    }
    let (read, write) = tokio::io::split(stream);
    Ok(Some((Input::Tls(Box::new(read)), Output::Tls(Box::new(write)))))
}

async fn plain(mut socket: TcpStream, greeting: &[u8]) -> io::Result<(Input, Output)> {
    socket.write_all(greeting).await?;
    let socket = Arc::new(socket);
    Ok((Input::Plain(socket.clone()), Output::Plain(socket)))
}

/// Whether the client begins a TLS handshake; waits for its first byte.
async fn is_handshake(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(socket.peek(&mut first).await? == 1 && first[0] == HANDSHAKE)
}

impl Input {
    /// Reads what has arrived; 0 is the end.
    pub(super) async fn receive(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tls(stream) => stream.read_buf(buffer).await,
            Self::Plain(socket) => loop {
                socket.readable().await?;
                match socket.try_read_buf(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            },
        }
    }
}

impl Output {
    /// The socket, if threads other than the connection's task may write to it.
    pub(super) fn socket(&self) -> Option<Arc<TcpStream>> {
        match self {
            Self::Plain(socket) => Some(socket.clone()),
            Self::Tls(_) => None,
        }
    }

    /// Sends all bytes, or fails if the client does not accept them.
    pub(super) async fn send(&mut self, mut bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Tls(stream) => {
                while bytes.has_remaining() {
                    timeout(WRITE_TIMEOUT, stream.write_buf(&mut bytes))
                        .await
                        .map_err(|_| io::ErrorKind::TimedOut)??;
                }
                timeout(WRITE_TIMEOUT, stream.flush()).await.map_err(|_| io::ErrorKind::TimedOut)?
            }
            Self::Plain(socket) => {
                while bytes.has_remaining() {
                    match socket.try_write(&bytes) {
                        Ok(written) => bytes.advance(written),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            let writable = timeout(WRITE_TIMEOUT, socket.writable());
                            writable.await.map_err(|_| io::ErrorKind::TimedOut)??;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }

    /// Closes the sending side. What was sent arrives even if input from the client is still unread.
    pub(super) async fn end(&mut self) {
        let ended = match self {
            Self::Tls(stream) => stream.shutdown().await,
            Self::Plain(socket) => rustix::net::shutdown(&*socket, rustix::net::Shutdown::Write).map_err(Into::into),
        };
        if let Err(error) = ended {
            tracing::trace!(%error, "client disconnected first");
        }
    }
}
