//! The server: which clients may reach it, its background tasks, and its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use models::Repository;
use queue::Queue;
use queue::members::{Announcement, MemberState, Role};
use queue::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::batches::{Follower, Memory, Rates};
use crate::bodies::{BODY_UNIT, Bodies};
use crate::config::Config;
use crate::connections::{self, Limits};
use crate::index::Index;
use crate::keys::Keys;
use crate::links;
use crate::metrics::Metrics;
use crate::roster::Roster;
use crate::router::router;
use crate::state::AppState;
use crate::watch::Watch;
use crate::webhooks::Sender;

/// Pause before retrying to read the keys.
const KEYS_PAUSE: Duration = Duration::from_millis(100);
/// Most archives read at a time: each has a thread.
const ARCHIVES_MAX: usize = 1024;

/// An address that is not safe to listen on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Any client could do anything.
    #[error(
        "{0} is reachable from other machines, and no key exists: create one with sightline keys create --local --name NAME --scopes admin, listen on 127.0.0.1 without --behind-proxy and --allow-host, or pass --insecure"
    )]
    NoKeys(SocketAddr),
    /// Keys and images could be read in transit.
    #[error(
        "{0} is reachable from other machines, and keys would be sent unencrypted: pass --tls-cert and --tls-key, --behind-proxy if a proxy encrypts, or --insecure"
    )]
    InTheClear(SocketAddr),
}

/// How the API is guarded against other machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guards {
    /// Keys exist.
    pub keys: bool,
    /// Connections are encrypted, here or by a proxy.
    pub encrypted: bool,
    /// Requests from other machines arrive at this machine's own address: through a proxy, or under a public name.
    pub proxied: bool,
    /// The operator has turned these checks off.
    pub insecure: bool,
}

/// Refuses to serve other machines unguarded.
///
/// # Errors
/// [`ListenError`] for an address that other machines can reach.
pub fn check_listen(address: SocketAddr, guards: Guards) -> Result<(), ListenError> {
    let is_local = address.ip().is_loopback();
    match guards {
        Guards { insecure: true, .. } => Ok(()),
        Guards { proxied: false, .. } if is_local => Ok(()),
        Guards { keys: false, .. } => Err(ListenError::NoKeys(address)),
        Guards { encrypted: false, .. } if !is_local => Err(ListenError::InTheClear(address)),
        Guards { .. } => Ok(()),
    }
}

/// Serves until `stop`; then accepts no more connections and lets running requests end.
pub async fn serve(
    config: Config,
    repository: Repository,
    queue: Queue,
    index: Index,
    listener: TcpListener,
    stop: CancellationToken,
) {
    if let Some(url) = &config.public_url {
        links::set_public_url(url);
    }
    let roster = Roster::default();
    let mut own = Announcement::new(Role::Api, &[]);
    own.state = MemberState::Ready;
    let member = own.id.clone();
    let (watch, keys, tasks) = (Watch::default(), Keys::new(config.data_folder.as_deref()), Tasks::default());
    // No request is served before the keys are known.
    while let Err(error) = keys.refresh(&queue).await {
        tracing::warn!(%error, "keys not read");
        tokio::select! {
            () = tokio::time::sleep(KEYS_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
    let metrics = Metrics::install();
    let keeping = [
        tasks.keep("members", {
            let (roster, queue, own) = (roster.clone(), queue.clone(), own.clone());
            move || roster.clone().keep(queue.clone(), own.clone())
        }),
        tasks.keep("topics", {
            let queue = queue.clone();
            move || {
                let queue = queue.clone();
                async move { queue.follow_topics().await }
            }
        }),
        tasks.keep("keys", {
            let (keys, queue) = (keys.clone(), queue.clone());
            move || {
                let (keys, queue) = (keys.clone(), queue.clone());
                async move { keys.follow(&queue).await }
            }
        }),
        tasks.keep("webhooks", {
            let sender = Sender::new(queue.clone(), index.clone(), &config.webhook_secret, &config.webhook_allow);
            move || sender.clone().keep()
        }),
        tasks.keep("job index", {
            let (index, queue) = (index.clone(), queue.clone());
            move || index.clone().keep(queue.clone())
        }),
        tasks.keep("batches", {
            let (index, queue) = (index.clone(), queue.clone());
            move || Follower::new(queue.clone(), index.clone()).keep()
        }),
        tasks.keep("watchdog", {
            let (watch, queue, index, roster) = (watch.clone(), queue.clone(), index.clone(), roster.clone());
            move || watch.clone().keep(queue.clone(), index.clone(), roster.clone())
        }),
        tasks.keep("metrics", {
            let metrics = metrics.clone();
            move || metrics.clone().keep()
        }),
    ];
    let leaving = queue.clone();
    // The largest upload must fit next to the reserve.
    let permits = config.bodies_bytes_max.max((config.upload_bytes_max + 2 * BODY_UNIT) / 7 * 8) / BODY_UNIT;
    let limits = Limits { connections_max: config.connections_max, behind_proxy: config.behind_proxy };
    let state = AppState {
        queue,
        repository,
        member,
        roster,
        watch,
        index,
        keys,
        metrics,
        rates: Rates::default(),
        tasks,
        bodies: Bodies::new(permits),
        batch_bodies: Memory::new(permits),
        archives: Arc::new(Semaphore::new((config.connections_max / 4).clamp(8, ARCHIVES_MAX))),
        config,
        stop: stop.clone(),
    };
    let encryption = state.config.tls.clone().map(TlsAcceptor::from);
    let service = TowerToHyperService::new(router(Arc::new(state)));
    connections::serve(listener, encryption, service, limits, stop).await;
    drop(keeping);
    leaving.announce_gone(own).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_need_keys_and_encryption() {
        let (here, there) = (SocketAddr::from(([127, 0, 0, 1], 80)), SocketAddr::from(([0, 0, 0, 0], 80)));
        let guards = |keys, encrypted, insecure| Guards { keys, encrypted, insecure, proxied: false };
        assert_eq!(check_listen(here, Guards::default()), Ok(()));
        assert_eq!(check_listen(there, Guards::default()), Err(ListenError::NoKeys(there)));
        assert_eq!(check_listen(there, guards(false, true, false)), Err(ListenError::NoKeys(there)));
        assert_eq!(check_listen(there, guards(true, false, false)), Err(ListenError::InTheClear(there)));
        assert_eq!(check_listen(there, guards(true, true, false)), Ok(()));
        assert_eq!(check_listen(there, guards(false, false, true)), Ok(()));
        let proxied = |keys| Guards { proxied: true, ..guards(keys, false, false) };
        assert_eq!(check_listen(here, proxied(false)), Err(ListenError::NoKeys(here)));
        assert_eq!(check_listen(here, proxied(true)), Ok(()));
    }
}
