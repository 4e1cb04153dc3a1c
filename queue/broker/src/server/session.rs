//! What is known about a client while it is connected.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Deserialize;

use super::client::{About, Client, Subscription};
use super::places::ConnectionSlot;
use super::shared::{PROTOCOL_VERSION, Shared};
use crate::nats::info;

/// Used-up subscriptions are first swept once a client has twice this many subscriptions.
pub(super) const SWEEP_MIN: usize = 64;

/// What is known about a client, and its subscriptions.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) subscriptions: HashMap<Bytes, Arc<Subscription>>,
    /// How many were left after the last sweep of used-up ones.
    pub(super) subscriptions_swept: usize,
    pub(super) is_verbose: bool,
    pub(super) wants_echo: bool,
    pub(super) wants_no_responders: bool,
    /// It wants an error when it publishes to a subject with wildcards.
    pub(super) is_pedantic: bool,
    /// `None` if all slots are taken.
    place: Option<ConnectionSlot>,
}

/// Why a connection ends: the error to send to the client, if any.
pub(super) type Goodbye = Option<&'static str>;

/// How a client describes itself. A null field counts as missing.
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
    /// A session for a new client. It is let in once it has authenticated, or at once if it need not.
    pub(super) fn new(client: Arc<Client>, place: Option<ConnectionSlot>, must_authenticate: bool) -> Self {
        let mut session = Self {
            client,
            subscriptions: HashMap::new(),
            subscriptions_swept: SWEEP_MIN,
            is_verbose: true,
            wants_echo: true,
            wants_no_responders: false,
            is_pedantic: true,
            place,
        };
        if !must_authenticate {
            session.let_in();
        }
        session
    }

    /// Whether it has a slot; without one it gets an error and is disconnected.
    pub(super) fn has_place(&self) -> bool {
        self.place.is_some()
    }

    /// The client's name for itself.
    pub(super) fn name(&self) -> &str {
        self.client.about.get().map_or("", |about| &about.name)
    }

    /// Whether it may send more than `CONNECT`.
    pub(super) fn is_let_in(&self) -> bool {
        self.place.as_ref().is_some_and(ConnectionSlot::is_known)
    }

    fn let_in(&mut self) {
        if let Some(place) = &mut self.place {
            place.make_known();
        }
    }
}

/// The server's `INFO` line: sent first, and once more when the broker is about to stop.
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

/// Handles a client's `CONNECT`: authenticates it and applies its settings.
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
    // A second CONNECT does not change the client's identity.
    drop(session.client.about.set(about));
    session.let_in();
    if session.is_verbose {
        session.client.send_now(Bytes::from_static(b"+OK\r\n"));
    }
    Ok(())
}
