//! Monitoring of a running broker, in the format of nats-server's monitoring endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::answer::{self, API_LEVEL, rfc3339};
use super::client::Client;
use super::core::now;
use super::shared::{PROTOCOL_VERSION, Phase, Shared};

/// A monitoring view of a running broker; valid for as long as it is held.
#[derive(Debug, Clone)]
pub struct Monitor(pub(super) Arc<Shared>);

impl Monitor {
    /// The broker as a whole: `/varz`.
    pub fn varz(&self) -> Value {
        let shared = &self.0;
        let clients: Vec<Arc<Client>> = shared.clients().values().cloned().collect();
        let (subscriptions, api) = {
            let core = shared.lock();
            let subscriptions: u64 = clients.iter().map(|client| load(&client.traffic.subscriptions)).sum();
            (subscriptions, json!({"level": API_LEVEL, "total": core.api_requests, "errors": core.api_errors}))
        };
        let total = |gone: &AtomicU64, part: fn(&Client) -> &AtomicU64| {
            load(gone) + clients.iter().map(|client| load(part(client))).sum::<u64>()
        };
        let (options, totals, now) = (&shared.options, &shared.totals, now());
        json!({
            "server_id": shared.server_id, "server_name": "sightline", "version": PROTOCOL_VERSION, "proto": 1,
            "host": shared.address.ip().to_string(), "port": shared.address.port(),
            "auth_required": options.auth.is_asked(),
            "tls_required": options.tls.as_ref().is_some_and(|tls| tls.required),
            "max_connections": options.connections_max, "max_subscriptions": options.subscriptions_max,
            "max_payload": options.max_payload, "max_pending": options.outbox_bytes_max,
            "ping_interval": options.ping_interval.as_nanos() as u64,
            "auth_timeout": options.auth_timeout.as_secs_f64(),
            "start": rfc3339(shared.started), "now": rfc3339(now.wall), "uptime": uptime(now.wall - shared.started),
            "mem": resident_bytes(), "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "connections": clients.len(), "total_connections": load(&totals.connections),
            "in_msgs": total(&totals.in_messages, |client| &client.traffic.in_messages),
            "in_bytes": total(&totals.in_bytes, |client| &client.traffic.in_bytes),
            "out_msgs": total(&totals.out_messages, |client| &client.traffic.out_messages),
            "out_bytes": total(&totals.out_bytes, |client| &client.traffic.out_bytes),
            "slow_consumers": load(&totals.slow_consumers), "subscriptions": subscriptions,
            "jetstream": {"config": {"store_dir": options.folder.display().to_string()}, "stats": {"api": api}},
        })
    }

    /// Whether the broker is healthy: `/healthz`.
    ///
    /// # Errors
    /// A description of what is wrong.
    pub fn healthz(&self) -> Result<(), String> {
        if *self.0.phase.borrow() != Phase::Serving {
            return Err("the broker is about to stop".into());
        }
        if self.0.committer.has_failed() { Err("the journal cannot be written".into()) } else { Ok(()) }
    }

    /// The clients, from `offset` on, at most `limit`: `/connz`.
    pub fn connz(&self, offset: usize, limit: usize) -> Value {
        let clients: Vec<Arc<Client>> = self.0.clients().values().cloned().collect();
        let now = now().wall;
        let shown = clients.iter().skip(offset).take(limit).map(|client| {
            let (traffic, about) = (&client.traffic, client.about.get());
            json!({
                "cid": client.id, "kind": "Client", "type": "nats",
                "ip": client.peer.ip().to_string(), "port": client.peer.port(),
                "start": rfc3339(client.since), "uptime": uptime(now - client.since),
                "pending_bytes": client.waiting_bytes(),
                "in_msgs": load(&traffic.in_messages), "in_bytes": load(&traffic.in_bytes),
                "out_msgs": load(&traffic.out_messages), "out_bytes": load(&traffic.out_bytes),
                "subscriptions": load(&traffic.subscriptions),
                "name": about.map_or("", |about| &about.name), "lang": about.map_or("", |about| &about.language),
                "version": about.map_or("", |about| &about.version),
            })
        });
        let shown: Vec<Value> = shown.collect();
        json!({
            "server_id": self.0.server_id, "now": rfc3339(now), "num_connections": shown.len(), "total": clients.len(),
            "offset": offset, "limit": limit, "connections": shown,
        })
    }

    /// JetStream totals; with `details`, also each stream with its consumers: `/jsz`.
    pub fn jsz(&self, details: bool) -> Value {
        let (core, now) = (self.0.lock(), now());
        let sum = |part: fn(&crate::stream::Stream) -> u64| core.streams.values().map(part).sum::<u64>();
        let storage = sum(|stream| stream.messages.bytes());
        let mut answer = json!({
            "server_id": self.0.server_id, "now": rfc3339(now.wall),
            "config": {"store_dir": self.0.options.folder.display().to_string(), "sync_always": self.0.options.sync},
            "memory": 0, "storage": storage,
            "streams": core.streams.len(), "consumers": sum(|stream| stream.consumers().count() as u64),
            "messages": sum(|stream| stream.messages.len() as u64), "bytes": storage,
            "api": {"level": API_LEVEL, "total": core.api_requests, "errors": core.api_errors},
            "losses": core.losses, "journal": core.journal.usage(),
        });
        if details {
            let streams = core.by_name().map(|stream| {
                let mut detail = answer::stream(stream, now);
                detail.insert("name".into(), stream.config.name.clone().into());
                let consumers = stream.consumers().map(|consumer| {
                    Value::Object(answer::consumer(stream, consumer, core.is_bound(stream.id, consumer.id), now))
                });
                detail.insert("consumer_detail".into(), consumers.collect::<Vec<_>>().into());
                Value::Object(detail)
            });
            let streams: Vec<Value> = streams.collect();
            answer["account_details"] = json!([{"name": "$G", "id": "$G", "stream_detail": streams}]);
        }
        answer
    }

    /// The number of subscriptions: `/subsz`.
    pub fn subsz(&self) -> Value {
        let count: u64 = self.0.clients().values().map(|client| load(&client.traffic.subscriptions)).sum();
        json!({"server_id": self.0.server_id, "now": rfc3339(now().wall), "num_subscriptions": count})
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A duration for people to read: `1d2h3m4s`.
fn uptime(nanos: i64) -> String {
    let seconds = nanos.max(0) / 1_000_000_000;
    let parts = [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m")];
    let mut text: String =
        parts.iter().skip_while(|(count, _)| *count == 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    text.push_str(&format!("{}s", seconds % 60));
    text
}

/// Resident memory of this process; 0 where the system does not report it.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
