//! One client's connection: one task, which reads and writes at once.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{About, Chunk, Client, Part, StoredMessage, Subscription};
use super::places::ConnectionSlot;
use super::transport::{self, Input, Output};
use super::{PROTOCOL_VERSION, Phase, Shared};
use crate::nats::{Command, Parser, err, info};

/// What is read at a time when no payload is on its way.
const READ_BYTES: usize = 64 * 1024;
/// The largest message of a client that has not said who it is.
const STRANGER_PAYLOAD_MAX: usize = 1024;
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Signs of life that may be missed.
const PINGS_MAX: u32 = 2;
/// Bytes that may wait for the disk before clients have to wait to send more.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
const BACKLOG_PAUSE: Duration = Duration::from_millis(1);

/// What is known of a client, and what it has subscribed.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) subscriptions: HashMap<Bytes, Arc<Subscription>>,
    /// How many were left when used-up ones were last looked for.
    pub(super) subscriptions_swept: usize,
    pub(super) is_verbose: bool,
    pub(super) wants_echo: bool,
    pub(super) wants_no_responders: bool,
    /// It wants to hear of subjects with wildcards in what it publishes.
    pub(super) is_pedantic: bool,
    /// None if all are taken.
    place: Option<ConnectionSlot>,
}

/// Why a connection ends: what to tell the client, if anything.
pub(super) type Goodbye = Option<&'static str>;

/// What a client says of itself. Fields may be null, which is as if they were not there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Connect {
    verbose: Option<bool>,
    pedantic: Option<bool>,
    echo: Option<bool>,
    headers: Option<bool>,
    no_responders: Option<bool>,
    auth_token: Option<String>,
    user: Option<String>,
    pass: Option<String>,
    name: Option<String>,
    lang: Option<String>,
    version: Option<String>,
}

impl Session {
    /// What the client calls itself.
    pub(super) fn name(&self) -> &str {
        self.client.about.get().map_or("", |about| &about.name)
    }

    /// Whether it may send more than `CONNECT`.
    fn is_let_in(&self) -> bool {
        self.place.as_ref().is_some_and(ConnectionSlot::is_known)
    }

    fn let_in(&mut self) {
        if let Some(place) = &mut self.place {
            place.make_known();
        }
    }
}

/// Serves a client until it goes or has to.
pub(super) async fn serve(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    id: u64,
    place: Option<ConnectionSlot>,
) {
    // Answers are small and awaited.
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
    let mut session = Session {
        client: client.clone(),
        subscriptions: HashMap::new(),
        subscriptions_swept: super::dispatch::SWEEP_MIN,
        is_verbose: true,
        wants_echo: true,
        wants_no_responders: false,
        is_pedantic: true,
        place,
    };
    if !shared.options.auth.is_asked() {
        session.let_in();
    }
    let mut writing = Box::pin(write(&shared, &client, &mut output));
    let mut phase = shared.phase.subscribe();
    let mut is_over = false;
    if session.place.is_none() {
        client.close(Some(err("maximum connections exceeded")));
    } else {
        tokio::select! {
            // A panic ends this client alone, and in order.
            goodbye = AssertUnwindSafe(read(&shared, &mut session, &mut input)).catch_unwind() => {
                client.close(goodbye.unwrap_or(Some("Internal Server Error")).map(err));
            }
            () = &mut writing => is_over = true,
            // Its place is needed now, and there is nothing to say to it.
            () = cut.cancelled() => {
                client.close(None);
                is_over = true;
            }
            () = super::reached(&mut phase, Phase::Stopping) => client.close(None),
        }
    }
    shared.forget(&mut session);
    // The last words to a client that is still there.
    if !is_over {
        drop(timeout(LAST_WORDS, writing).await);
    }
    client.detach();
    shared.leave(&client);
}

/// The server's word on itself: the first, and once more when it is about to leave.
pub(super) fn greeting(shared: &Shared, peer: SocketAddr, id: u64, is_leaving: bool) -> Bytes {
    let tls = shared.options.tls.as_ref();
    let mut json = serde_json::json!({
        "server_id": shared.server_id,
        "server_name": "sightline",
        "version": PROTOCOL_VERSION,
        "proto": 1,
        "go": "",
        "host": shared.address.ip().to_string(),
        "port": shared.address.port(),
        "headers": true,
        "auth_required": shared.options.auth.is_asked(),
        "tls_required": tls.is_some_and(|tls| tls.required),
        "tls_available": tls.is_some(),
        "max_payload": shared.options.max_payload,
        "jetstream": true,
        "client_id": id,
        "client_ip": peer.ip().to_string(),
    });
    if is_leaving {
        json["ldm"] = true.into();
    }
    info(&json.to_string())
}

/// Reads commands until the connection ends.
async fn read(shared: &Shared, session: &mut Session, input: &mut Input) -> Goodbye {
    let payload_max = shared.options.max_payload;
    let mut parser = Parser::new(if session.is_let_in() { payload_max } else { STRANGER_PAYLOAD_MAX });
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let let_in_by = tokio::time::Instant::now() + shared.options.auth_timeout;
    let mut pings = 0;
    loop {
        // Grows with what comes, not with what is announced.
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
                // Before it has authenticated, a client is read one command at a time.
                Ok(Some(Command::Connect(json))) => {
                    if let Err(goodbye) = greet(shared, session, &json) {
                        return goodbye;
                    }
                    parser.set_payload_bytes_max(payload_max);
                }
                Ok(Some(_)) => return Some("Authorization Violation"),
                Ok(None) => break,
                Err(error) => {
                    // What came before it still counts.
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
        // Bounded input: what is faster than the disk has to wait.
        while shared.committer.waiting_bytes() > BACKLOG_BYTES_MAX {
            tokio::time::sleep(BACKLOG_PAUSE).await;
        }
    }
}

/// Takes in what a client says of itself.
pub(super) fn greet(shared: &Shared, session: &mut Session, json: &[u8]) -> Result<(), Goodbye> {
    let connect: Connect = serde_json::from_slice(json).map_err(|_| None)?;
    let said = |text: Option<String>| text.unwrap_or_default();
    let (token, user, password) = (said(connect.auth_token), said(connect.user), said(connect.pass));
    let permissions = shared.options.auth.identify(&token, &user, &password);
    let permissions = permissions.ok_or(Some("Authorization Violation"))?;
    let takes_headers = connect.headers.unwrap_or(false);
    session.wants_no_responders = connect.no_responders.unwrap_or(false);
    if session.wants_no_responders && !takes_headers {
        return Err(Some("no responders requires headers support"));
    }
    session.client.takes_headers.store(takes_headers, Ordering::Relaxed);
    session.is_verbose = connect.verbose.unwrap_or(false);
    session.is_pedantic = connect.pedantic.unwrap_or(true);
    session.wants_echo = connect.echo.unwrap_or(true);
    let about =
        About { name: said(connect.name), language: said(connect.lang), version: said(connect.version), permissions };
    // A second CONNECT changes nothing of who it is.
    drop(session.client.about.set(about));
    session.let_in();
    if session.is_verbose {
        session.client.send_now(Bytes::from_static(b"+OK\r\n"));
    }
    Ok(())
}

/// Writes what is put into the outbox until it is closed and empty, or the client does not take it.
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

/// Reads a message and sends it; what has decayed on disk is not sent, and goes out of its stream.
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
