//! One client's connection: one task that reads and writes concurrently.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Chunk, Client, Part, StoredMessage};
use super::places::ConnectionSlot;
use super::session::{Goodbye, Session, greet, greeting};
use super::shared::{Phase, Shared, reached};
use super::transport::{self, Input, Output};
use crate::nats::{Command, Parser, err};

/// Bytes read at a time, unless a payload needs more.
const READ_BYTES: usize = 64 * 1024;
/// The largest message of a client that has not authenticated.
const STRANGER_PAYLOAD_MAX: usize = 1024;
/// How long sending the last bytes may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pings that a client may leave unanswered.
const PINGS_MAX: u32 = 2;
/// Bytes that may wait for the disk before the broker stops reading from clients.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
const BACKLOG_PAUSE: Duration = Duration::from_millis(1);

/// Serves a client until it disconnects or is disconnected.
pub(super) async fn serve(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    id: u64,
    place: Option<ConnectionSlot>,
) {
    // Answers are small, and clients wait for them.
    drop(socket.set_nodelay(true));
    let client = Client::new(id, peer, super::core::now().wall, shared.options.outbox_bytes_max);
    let cut = place.as_ref().map(ConnectionSlot::cut).unwrap_or_default();
    let greeting = greeting(&shared, peer, id, false);
    let opening = timeout(shared.options.auth_timeout, transport::open(&shared, socket, &greeting));
    let opened = tokio::select! {
        opened = opening => opened,
        () = cut.cancelled() => return,
    };
    let Ok(Ok(Some((mut input, mut output)))) = opened else { return };
    client.attach(output.socket());
    shared.enter(&client);
    let mut session = Session::new(client.clone(), place, shared.options.auth.is_asked());
    let mut writing = Box::pin(write(&shared, &client, &mut output));
    let mut phase = shared.phase.subscribe();
    let mut is_over = false;
    if !session.has_place() {
        client.close(Some(err("maximum connections exceeded")));
    } else {
        tokio::select! {
            // A panic ends only this client, and cleanly.
            goodbye = AssertUnwindSafe(read(&shared, &mut session, &mut input)).catch_unwind() => {
                client.close(goodbye.unwrap_or(Some("Internal Server Error")).map(err));
            }
            () = &mut writing => is_over = true,
            // Another connection needs this slot now; this client gets no error.
            () = cut.cancelled() => {
                client.close(None);
                is_over = true;
            }
            () = reached(&mut phase, Phase::Stopping) => client.close(None),
        }
    }
    shared.forget(&mut session);
    // Sends what is still queued, if the client is still connected.
    if !is_over {
        drop(timeout(LAST_WORDS, writing).await);
    }
    client.detach();
    shared.leave(&client);
}

/// Reads commands until the connection ends.
async fn read(shared: &Shared, session: &mut Session, input: &mut Input) -> Goodbye {
    let payload_max = shared.options.max_payload;
    let mut parser = Parser::new(if session.is_let_in() { payload_max } else { STRANGER_PAYLOAD_MAX });
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let let_in_by = tokio::time::Instant::now() + shared.options.auth_timeout;
    let mut pings = 0;
    loop {
        // Grows with the bytes received, not with the length announced.
        buffer.reserve(parser.missing(buffer.len()).min(buffer.len()).max(READ_BYTES));
        let read = if session.is_let_in() {
            timeout(shared.options.ping_interval, input.receive(&mut buffer)).await
        } else {
            tokio::time::timeout_at(let_in_by, input.receive(&mut buffer)).await
        };
        match read {
            Ok(Ok(0) | Err(_)) => return None,
            Ok(Ok(_)) => pings = 0,
            Err(_) if !session.is_let_in() => return Some("Authentication Timeout"),
            Err(_) if pings >= PINGS_MAX => return Some("Stale Connection"),
            Err(_) => {
                pings += 1;
                session.client.send_now(Bytes::from_static(b"PING\r\n"));
                continue;
            }
        }
        let mut commands = Vec::new();
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(command)) if session.is_let_in() => commands.push(command),
                // Until the client has authenticated, its commands are read one at a time.
                Ok(Some(Command::Connect(json))) => {
                    if let Err(goodbye) = greet(shared, session, &json) {
                        return goodbye;
                    }
                    parser.set_payload_bytes_max(payload_max);
                }
                Ok(Some(_)) => return Some("Authorization Violation"),
                Ok(None) => break,
                Err(error) => {
                    // Commands before the bad one still count.
                    if let Err(goodbye) = shared.execute(session, commands) {
                        return goodbye;
                    }
                    tracing::debug!(client = session.client.id, %error, "client disconnected");
                    return Some(match error {
                        crate::nats::ParseError::UnknownOperation => "Unknown Protocol Operation",
                        crate::nats::ParseError::LineTooLong => "maximum control line exceeded",
                        crate::nats::ParseError::PayloadTooLarge if session.is_let_in() => "Maximum Payload Violation",
                        crate::nats::ParseError::PayloadTooLarge => "Authorization Violation",
                    });
                }
            }
        }
        if let Err(goodbye) = shared.execute(session, commands) {
            return goodbye;
        }
        // Bounded input: a client that is faster than the disk has to wait.
        while shared.committer.waiting_bytes() > BACKLOG_BYTES_MAX {
            tokio::time::sleep(BACKLOG_PAUSE).await;
        }
    }
}

/// Writes the outbox to the client until it is closed and empty, or a write fails.
async fn write(shared: &Arc<Shared>, client: &Arc<Client>, output: &mut Output) {
    loop {
        let (chunks, closed) = client.take();
        if chunks.is_empty() {
            if closed {
                break;
            }
            client.notify.notified().await;
            continue;
        }
        for chunk in chunks {
            let sent = match chunk {
                Chunk::Bytes(bytes) => output.send(bytes).await,
                Chunk::Stored(message) => send_stored(shared, output, *message).await,
            };
            if sent.is_err() {
                client.close(None);
                return;
            }
        }
    }
    output.end().await;
}

/// Reads a message and sends it. One that has decayed on disk is not sent, and is removed from its stream.
async fn send_stored(shared: &Arc<Shared>, output: &mut Output, message: StoredMessage) -> io::Result<()> {
    let StoredMessage { source, of, place, line, parts, lost } = message;
    let loading = tokio::task::spawn_blocking(move || source.load());
    let entry = match loading.await.map_err(io::Error::other).flatten() {
        Ok(entry) => entry,
        Err(error) => {
            shared.unreadable(of, place, &error);
            return output.send(lost).await;
        }
    };
    let mut tail = BytesMut::from(&line[..]);
    for part in parts {
        let bytes = match part {
            Part::Bytes(bytes) => bytes,
            Part::Entry(from, to) => entry.slice(from..to),
        };
        if bytes.len() <= READ_BYTES {
            tail.extend_from_slice(&bytes);
        } else {
            output.send(tail.split().freeze()).await?;
            output.send(bytes).await?;
        }
    }
    tail.extend_from_slice(b"\r\n");
    output.send(tail.freeze()).await
}
