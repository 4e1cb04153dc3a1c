//! All keys as this process knows them, kept up to date.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::StreamExt;
use queue::{Queue, QueueError, Timestamp};

use super::key::{Key, hash};
use super::limits::Limiter;
use super::store;
use super::store::Witness;
use super::strangers::Strangers;
use crate::index::{Index, IndexError};

/// How often keys are read again, in case a notification was missed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// All keys, as they were last read; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    known: Arc<RwLock<Known>>,
    witness: Witness,
    pub(super) limiter: Limiter,
    pub(super) strangers: Strangers,
}

#[derive(Debug, Default)]
struct Known {
    keys: Vec<Key>,
    /// Keys existed but cannot be found now: every request still needs one.
    lost: bool,
}

impl Keys {
    /// No keys yet; `folder` holds the witness that some exist.
    pub(crate) fn new(folder: Option<&Path>) -> Self {
        let (known, limiter, strangers) = (Arc::default(), Limiter::default(), Strangers::default());
        Self { known, witness: Witness::of(folder), limiter, strangers }
    }

    /// Reads the keys again. Known keys stay in force while the queue does not answer.
    pub(crate) async fn refresh(&self, queue: &Queue) -> Result<(), QueueError> {
        let unreadable = |what: &str, error: std::io::Error| QueueError::Unavailable {
            action: "look for keys",
            problem: format!("{what}: {error}"),
        };
        let read = store::read(queue).await;
        if matches!(read, Err(QueueError::Damaged { .. })) {
            self.write().lost = true;
        }
        let keys = read?;
        if keys.is_empty() {
            let had_keys = self.witness.stands().map_err(|error| unreadable("the data folder", error))?;
            let mut known = self.write();
            // Keys are revoked, never removed: if there was one, finding none is a loss.
            if (had_keys || !known.keys.is_empty()) && !known.lost {
                known.lost = true;
                tracing::error!(
                    "keys are missing from the queue; known keys stay valid; create one with sightline keys create --local"
                );
            }
            return Ok(());
        }
        // In force first: a folder that cannot be written must not leave the API open.
        *self.write() = Known { keys, lost: false };
        self.witness.set().map_err(|error| unreadable("keys.required", error))
    }

    /// Follows changes made by this process and others, until the future is dropped.
    pub(crate) async fn follow(&self, queue: &Queue) -> Result<(), QueueError> {
        let mut rings = queue.keys.rings().await?;
        loop {
            drop(tokio::time::timeout(LOOK_INTERVAL, rings.next()).await);
            if let Err(error) = self.refresh(queue).await {
                tracing::warn!(%error, "keys not read; known keys stay valid");
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> Vec<Key> {
        self.read().keys.clone()
    }

    /// Whether requests need a key. They still do after all keys were revoked, have expired or are lost.
    pub(super) fn are_needed(&self) -> bool {
        let known = self.read();
        known.lost || !known.keys.is_empty()
    }

    /// The same for a request that has just arrived: a first key created on this machine is in force from the
    /// moment it is shown, even if its notification has not arrived yet.
    ///
    /// # Errors
    /// [`QueueError`] when keys exist that cannot be read now.
    pub(super) async fn are_needed_now(&self, queue: &Queue) -> Result<bool, QueueError> {
        if !self.are_needed() && !matches!(self.witness.stands(), Ok(false)) {
            self.refresh(queue).await?;
        }
        Ok(self.are_needed())
    }

    /// The key that was sent, if it is valid.
    pub(super) fn find(&self, sent: &str) -> Option<Key> {
        let id = sent.strip_prefix("sl_")?.split('_').next()?;
        let known = self.read();
        let key = known.keys.iter().find(|key| key.id == id)?;
        (key.hash == hash(sent) && key.is_valid(Timestamp::now())).then(|| key.clone())
    }
}

/// Whether keys exist or existed: an API that other machines can reach starts only then.
///
/// # Errors
/// [`QueueError`] when that cannot be determined.
pub async fn are_needed(queue: &Queue, folder: Option<&Path>) -> Result<bool, QueueError> {
    let keys = Keys::new(folder);
    keys.refresh(queue).await?;
    Ok(keys.are_needed())
}

/// Imports keys that earlier versions stored in the job index.
///
/// # Errors
/// [`IndexError`] when they cannot be read or written; the API must not be served then.
pub async fn adopt(queue: &Queue, index: &Index) -> Result<(), IndexError> {
    let old = index.old_keys().await?;
    Ok(store::adopt(queue, old).await?)
}

#[cfg(test)]
mod tests {
    use broker::{Broker, Options};
    use queue::client::Address;
    use queue::topic::Defaults;

    use super::super::create::create_local;
    use super::*;

    #[tokio::test]
    async fn a_first_key_is_in_force_when_it_is_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let broker = Broker::start(Options::new(folder.path().join("journal")), listener).expect("starts");
        let address = Address::parse(&format!("nats://{}", broker.address())).expect("an address");
        let queue = Queue::connect(&address, "test", Defaults::default()).await.expect("connects");
        // Of a process that gets no notification.
        let keys = Keys::new(Some(folder.path()));
        keys.refresh(&queue).await.expect("read");
        assert!(!keys.are_needed_now(&queue).await.expect("answered"));

        let new = serde_json::from_str(r#"{"name": "boss", "scopes": ["admin"]}"#).expect("a wish");
        let made = create_local(&queue, &new, Some(folder.path())).await.expect("made");
        assert!(keys.are_needed_now(&queue).await.expect("answered"));
        assert!(keys.find(made["key"].as_str().expect("a text")).is_some());
        broker.stop().await;
    }
}
