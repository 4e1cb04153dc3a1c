//! Dispatches commands to their handlers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::client::{Body, Client, Handle, Subscription, Traffic};
use super::core::{Core, now};
use super::session::{Goodbye, SWEEP_MIN, Session, greet};
use super::shared::Shared;
use super::{admin, settle};
use crate::nats::{Command, Publication, err, is_literal, is_valid, status};
use crate::stream::Now;

impl Shared {
    /// Executes commands of one client in one turn with the lock.
    pub(super) fn execute(&self, session: &mut Session, commands: Vec<Command>) -> Result<(), Goodbye> {
        if commands.is_empty() {
            return Ok(());
        }
        let mut core = self.lock();
        let (earliest, now) = (core.earliest_timer(), now());
        let mut result = Ok(());
        for command in commands {
            result = self.one(&mut core, session, command, now);
            if result.is_err() {
                break;
            }
        }
        core.finish();
        if core.earliest_timer() != earliest {
            self.timer_set.notify_one();
        }
        result
    }

    fn one(&self, core: &mut Core, session: &mut Session, command: Command, now: Now) -> Result<(), Goodbye> {
        let client = session.client.clone();
        let answer = |core: &mut Core, bytes: &[u8]| core.outgoing.to(&client).put(bytes);
        match command {
            Command::Ping => {
                answer(core, b"PONG\r\n");
                return Ok(());
            }
            Command::Pong => return Ok(()),
            Command::Connect(json) => return greet(self, session, &json),
            Command::Subscribe { subject, queue, sid } => {
                if let Some(refusal) = refused_subscription(self, session, &subject, queue.as_deref()) {
                    answer(core, &err(&refusal));
                    return Ok(());
                }
                subscribe(core, session, subject.clone(), queue, sid);
                core.listened(&subject, now);
            }
            Command::Unsubscribe { sid, after } => unsubscribe(core, session, &sid, after),
            Command::Publish(publication) => {
                if !publication.header.is_empty() && !client.takes_headers.load(Ordering::Relaxed) {
                    return Err(Some("message headers not supported"));
                }
                // A request to create a consumer has its filter in the subject, with wildcards. Elsewhere, wildcards
                // are ordinary characters, unless the client is pedantic.
                let subject = &publication.subject;
                let may_have_wildcards =
                    is_valid(subject) && (!session.is_pedantic || subject.starts_with(b"$JS.API.CONSUMER.CREATE."));
                if !(may_have_wildcards || is_literal(subject)) || std::str::from_utf8(subject).is_err() {
                    // No subscription can match it. Some clients disconnect on an error, so only pedantic ones get
                    // one.
                    if session.is_pedantic {
                        answer(core, b"-ERR 'Invalid Publish Subject'\r\n");
                    } else if session.wants_no_responders
                        && let Some(reply) = &publication.reply
                        // Permissions were not checked yet: a client must not make us send where it may not.
                        && client.permissions().is_none_or(|permissions| permissions.may_publish(reply))
                    {
                        no_responders(core, &publication);
                    }
                    return Ok(());
                }
                let size = publication.header.len() + publication.payload.len();
                Traffic::count(&client.traffic.in_messages, &client.traffic.in_bytes, size);
                if !may_publish(&client, subject, now) {
                    let text = String::from_utf8_lossy(subject);
                    answer(core, &err(&format!("Permissions Violation for Publish to \"{text}\"")));
                    return Ok(());
                }
                let not_to = (!session.wants_echo).then_some(client.id);
                publish(core, session.name(), session.wants_no_responders, not_to, &publication, now);
            }
        }
        client.traffic.subscriptions.store(session.subscriptions.len() as u64, Ordering::Relaxed);
        if session.is_verbose {
            answer(core, b"+OK\r\n");
        }
        Ok(())
    }

    /// Removes all subscriptions of a client.
    pub(super) fn forget(&self, session: &mut Session) {
        let mut core = self.lock();
        for (_, subscription) in session.subscriptions.drain() {
            let subject = subscription.subject.clone();
            core.subscriptions.remove(&subject, &Handle(subscription));
        }
    }
}

/// Why a subscription is refused, if it is.
fn refused_subscription(
    shared: &Shared,
    session: &mut Session,
    subject: &[u8],
    queue: Option<&[u8]>,
) -> Option<String> {
    let permissions = session.client.permissions();
    if permissions.is_some_and(|permissions| !permissions.may_subscribe(subject, queue)) {
        let queue = queue.map(|queue| format!(" using queue \"{}\"", String::from_utf8_lossy(queue)));
        let subject = String::from_utf8_lossy(subject);
        let queue = queue.unwrap_or_default();
        return Some(format!("Permissions Violation for Subscription to \"{subject}\"{queue}"));
    }
    if !is_valid(subject) {
        return Some("Invalid Subject".into());
    }
    let is_full = |session: &Session| session.subscriptions.len() >= shared.options.subscriptions_max;
    if is_full(session) {
        sweep(session);
    }
    is_full(session).then(|| "maximum subscriptions exceeded".into())
}

/// Whether a client may publish to a subject, or answer a request on it.
fn may_publish(client: &Client, subject: &[u8], now: Now) -> bool {
    client.permissions().is_none_or(|permissions| {
        permissions.may_publish(subject)
            || client.asked.lock().unwrap_or_else(PoisonError::into_inner).take(subject, now.clock)
    })
}

fn subscribe(core: &mut Core, session: &mut Session, subject: Bytes, queue: Option<Bytes>, sid: Bytes) {
    // The first subscription with this id stays.
    if session.subscriptions.get(&sid).is_some_and(|known| !known.is_used_up()) {
        return;
    }
    // Clients that subscribe for one message at a time leave these behind and never unsubscribe.
    if session.subscriptions.len() >= session.subscriptions_swept * 2 {
        sweep(session);
    }
    // Copied: a slice would keep the whole read buffer.
    let owned = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    let subscription = Arc::new(Subscription {
        client: session.client.clone(),
        subject: owned(&subject),
        sid: owned(&sid),
        queue: queue.as_ref().map(owned),
        delivered: AtomicU64::new(0),
        ends_after: AtomicU64::new(0),
    });
    core.subscriptions.insert(&subject, Handle(subscription.clone()));
    session.subscriptions.insert(subscription.sid.clone(), subscription);
}

/// Forgets subscriptions that have received all messages that they asked for.
fn sweep(session: &mut Session) {
    session.subscriptions.retain(|_, subscription| !subscription.is_used_up());
    session.subscriptions_swept = session.subscriptions.len().max(SWEEP_MIN);
}

fn unsubscribe(core: &mut Core, session: &mut Session, sid: &Bytes, after: u64) {
    let Some(subscription) = session.subscriptions.get(sid) else { return };
    subscription.ends_after.store(after, Ordering::Relaxed);
    if after == 0 || subscription.is_used_up() {
        let subject = subscription.subject.clone();
        core.subscriptions.remove(&subject, &Handle(subscription.clone()));
        session.subscriptions.remove(sid);
    }
}

/// Handles a client's message: an API request, an ack, or a message for a stream and for subscribers. A sender
/// without echo is passed as `not_to`.
pub(super) fn publish(
    core: &mut Core,
    client: &str,
    wants_no_responders: bool,
    not_to: Option<u64>,
    publication: &Publication,
    now: Now,
) {
    let subject = &publication.subject[..];
    if let Some(rest) = subject.strip_prefix(b"$JS.") {
        let is_known = if let Some(operation) = rest.strip_prefix(b"API.") {
            admin::request(core, client, operation, publication, now)
        } else if let Some(tokens) = rest.strip_prefix(b"ACK.") {
            settle::settle(core, tokens, publication, now)
        } else if let Some(tokens) = rest.strip_prefix(b"FC.") {
            core.flow_answered(tokens, now)
        } else {
            false
        };
        if is_known {
            return;
        }
    }
    let taker = core.taker(subject);
    if let Some(stream) = taker {
        core.store(stream, publication, now);
    }
    // After the stream, so that a notification never arrives before the message that it announces.
    let body = Body::Given { header: &publication.header, payload: &publication.payload };
    let is_heard = core.route(subject, publication.reply.as_deref(), &body, not_to);
    if !is_heard && taker.is_none() && wants_no_responders {
        no_responders(core, publication);
    }
}

/// Answers a publisher that waits for a reply with "no responders".
fn no_responders(core: &mut Core, publication: &Publication) {
    if let Some(reply) = &publication.reply {
        let text = String::from_utf8_lossy(&publication.subject).into_owned();
        core.tell(reply, &status("503", &[("Nats-Subject", text)]), &Bytes::new());
    }
}
