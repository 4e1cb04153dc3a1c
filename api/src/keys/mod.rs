//! Keys: who may ask for what, and how much of it.
//!
//! While there is no key, every client that reaches this server may do everything except create the first
//! key: that is done on the machine itself, through the data folder. As soon as there is one,
//! every request but those for health and the API's description needs one. A key is shown once, when it is
//! made; what is kept is its SHA-256, which is enough for a secret of 256 random bits.
//!
//! Keys of one name are one owner, so that a key can be replaced by another. A job or batch of
//! another owner is not there: 404, in one place for every route that takes an id.

mod guard;
mod strangers;
mod limits;
mod store;
pub(crate) mod manage;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::StreamExt;
use queue::{Priority, Queue, QueueError, Record, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) use guard::guard;
pub use manage::{NewKey, create_local, list_local, revoke_local};

use crate::digest::sha256;
use crate::error::ApiError;
use crate::index::{Index, IndexError};
use crate::state::AppState;
use limits::{Allowance, Charge, Limiter};
use store::Witness;
use strangers::Strangers;

/// How often keys are read again, should a ring have been missed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// To submit jobs and batches, and to call them off.
    Submit,
    /// To look at them, and at what there is.
    Read,
    /// To see how the system does: metrics, members, topics.
    Operate,
    /// Everything, of all owners.
    Admin,
}

/// A key as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Key {
    /// Public part of the key.
    pub(crate) id: String,
    /// Name of its owner.
    pub(crate) name: String,
    pub(crate) scopes: BTreeSet<Scope>,
    pub(crate) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<Timestamp>,
    /// Limits of its owner.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// SHA-256 of the whole key; never shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(ignore)]
    hash: String,
}

/// Limits of a key's owner; absent means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyLimits)]
pub(crate) struct Limits {
    /// Average requests per second; bursts may be twice as large.
    #[schema(minimum = 0.001, maximum = 1_000_000.0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requests_per_second: Option<f64>,
    /// Concurrent uploads.
    #[schema(minimum = 1, maximum = 4_294_967_295_u32)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uploads: Option<u32>,
    /// Highest priority of its jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<Priority>,
    /// Queued jobs.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_u64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queued_jobs: Option<u64>,
    /// Bytes of queued images.
    #[schema(maximum = 1_000_000_000_000_000_u64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queued_bytes: Option<u64>,
}

impl Key {
    /// Without what makes it a key.
    fn shown(self) -> Self {
        Self { hash: String::new(), ..self }
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// Who sends a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Whose jobs these will be; none while there are no keys.
    pub(crate) owner: Option<String>,
    scopes: BTreeSet<Scope>,
    /// What its key may have waiting; none while there are no keys.
    allowance: Option<Allowance>,
    /// Where its requests come from.
    pub(crate) address: Option<IpAddr>,
}

impl Caller {
    fn anonymous(address: Option<IpAddr>) -> Self {
        Self { owner: None, scopes: [Scope::Admin].into(), allowance: None, address }
    }

    /// The priority of a job for which this one, or none, was asked.
    ///
    /// # Errors
    /// [`ApiError::Priority`].
    pub(crate) fn priority(&self, asked: Option<Priority>) -> Result<Priority, ApiError> {
        let most = self.allowance.as_ref().and_then(Allowance::priority_max).unwrap_or(Priority::High);
        // The most urgent is the least.
        match asked {
            Some(asked) if asked < most => Err(ApiError::Priority { asked, most }),
            Some(asked) => Ok(asked),
            None => Ok(most.max(Priority::Normal)),
        }
    }

    /// Counts one more job that is to wait, with an image of this many bytes.
    ///
    /// # Errors
    /// [`ApiError::TooMany`] when the key has enough waiting.
    pub(crate) async fn charge(&self, state: &AppState, bytes: u64) -> Result<Option<Charge>, ApiError> {
        match &self.allowance {
            Some(allowance) => allowance.charge(state, bytes).await.map(Some),
            None => Ok(None),
        }
    }

    /// How many of this caller's jobs wait, more or less.
    pub(crate) async fn waiting(&self, state: &AppState) -> Result<u64, IndexError> {
        match &self.allowance {
            Some(allowance) => allowance.waiting(state).await,
            None => Ok(0),
        }
    }

    fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether this caller may see the jobs of all owners.
    pub(crate) fn sees_all(&self) -> bool {
        self.scopes.contains(&Scope::Admin)
    }

    pub(crate) fn sees(&self, owner: Option<&String>) -> bool {
        self.sees_all() || owner == self.owner.as_ref()
    }

    /// The owner to whom a list is narrowed.
    pub(crate) fn only(&self) -> Option<String> {
        if self.sees_all() { None } else { self.owner.clone() }
    }
}

/// All keys, as they were last read; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    known: Arc<RwLock<Known>>,
    witness: Witness,
    limiter: Limiter,
    strangers: Strangers,
}

#[derive(Debug, Default)]
struct Known {
    keys: Vec<Key>,
    /// There were keys that cannot be found now: no request is let in without one.
    lost: bool,
}

impl Keys {
    /// No keys yet; `folder` is where it is noted that there are some.
    pub(crate) fn new(folder: Option<&Path>) -> Self {
        let (known, limiter, strangers) = (Arc::default(), Limiter::default(), Strangers::default());
        Self { known, witness: Witness::of(folder), limiter, strangers }
    }

    /// Reads them again. Those that are known stay in force while the queue does not answer.
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
            // Keys are revoked, never removed: where there was one, none is a loss.
            if (had_keys || !known.keys.is_empty()) && !known.lost {
                known.lost = true;
                tracing::error!(
                    "keys are missing from the queue; known keys stay valid; create one with sightline keys create --local"
                );
            }
            return Ok(());
        }
        // In force first: a folder that cannot be written must not keep the door open.
        *self.write() = Known { keys, lost: false };
        self.witness.set().map_err(|error| unreadable("keys.required", error))
    }

    /// Follows changes, of this process and of others, for as long as it is awaited.
    pub(crate) async fn follow(&self, queue: &Queue) -> Result<(), QueueError> {
        let mut rings = queue.key_rings().await?;
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

    fn all(&self) -> Vec<Key> {
        self.read().keys.clone()
    }

    /// Whether requests need a key. One that was revoked or has expired still closes the door, and so does
    /// the loss of all of them.
    fn are_needed(&self) -> bool {
        let known = self.read();
        known.lost || !known.keys.is_empty()
    }

    /// The same for a request that has just come: a first key made on this machine is in force from the moment
    /// it is shown, although the ring that tells of it may still be on its way.
    ///
    /// # Errors
    /// [`QueueError`] when there are keys that cannot be read now.
    async fn are_needed_now(&self, queue: &Queue) -> Result<bool, QueueError> {
        if !self.are_needed() && !matches!(self.witness.stands(), Ok(false)) {
            self.refresh(queue).await?;
        }
        Ok(self.are_needed())
    }

    /// The key that was sent, if it is one.
    fn find(&self, sent: &str) -> Option<Key> {
        let id = sent.strip_prefix("sl_")?.split('_').next()?;
        let known = self.read();
        let key = known.keys.iter().find(|key| key.id == id)?;
        (key.hash == hash(sent) && key.is_valid(Timestamp::now())).then(|| key.clone())
    }
}

/// Whether there are keys, or were: an API that can be reached by others starts only then.
///
/// # Errors
/// [`QueueError`] when that cannot be found out.
pub async fn are_needed(queue: &Queue, folder: Option<&Path>) -> Result<bool, QueueError> {
    let keys = Keys::new(folder);
    keys.refresh(queue).await?;
    Ok(keys.are_needed())
}

/// Takes over keys that earlier versions kept in the job index.
///
/// # Errors
/// [`IndexError`] when they cannot be read or written; the API must not be served then.
pub async fn adopt(queue: &Queue, index: &Index) -> Result<(), IndexError> {
    let old = index.old_keys().await?;
    Ok(store::adopt(queue, old).await?)
}

fn has_admin(key: &Key, now: Timestamp) -> bool {
    key.is_valid(now) && key.scopes.contains(&Scope::Admin)
}

/// Whether a job is its caller's to see.
pub(crate) fn sees(caller: &Caller, record: &Record) -> bool {
    caller.sees(record.spec.origin.owner.as_ref())
}

fn hash(key: &str) -> String {
    sha256(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use broker::{Broker, Options};
    use queue::client::Address;
    use queue::topic::Defaults;

    use super::*;

    #[tokio::test]
    async fn a_first_key_is_in_force_when_it_is_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let broker = Broker::start(Options::new(folder.path().join("journal")), listener).expect("starts");
        let address = Address::parse(&format!("nats://{}", broker.address())).expect("an address");
        let queue = Queue::connect(&address, "test", Defaults::default()).await.expect("connects");
        // Of a process that hears no ring.
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
