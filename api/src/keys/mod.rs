//! Keys: who may ask for what, and how much of it.
//!
//! While there is no key, whoever reaches this server may do everything. As soon as there is one,
//! every request but those for health and the API's description needs one. A key is shown once, when it is made; what is kept
//! is its SHA-256, which is enough for a secret of 256 random bits.
//!
//! Keys of one name are one owner, so that a key can be replaced by another. A job or batch of
//! another owner is not there: 404, in one place for every route that takes an id.

mod guard;
mod limits;
pub(crate) mod manage;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};

use queue::{Record, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) use guard::guard;

use crate::digest::sha256;
use crate::error::ApiError;
use crate::index::{Index, IndexError};
use crate::state::State;
use limits::{Allowance, Charge, Limiter};

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// To submit jobs and batches, and to call them off.
    Submit,
    /// To look at them, and at what there is.
    Read,
    /// Everything, of everybody.
    Admin,
}

/// A key as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Key {
    /// Its public part.
    pub(crate) id: String,
    /// Whose it is.
    pub(crate) name: String,
    pub(crate) scopes: BTreeSet<Scope>,
    pub(crate) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<Timestamp>,
    /// What its owner may ask for.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// SHA-256 of the whole key; never shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(ignore)]
    hash: String,
}

/// How much a key's owner may ask for; absent: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyLimits)]
pub(crate) struct Limits {
    /// Requests a second, in the long run; twice as many at once.
    #[schema(minimum = 0.001, maximum = 1_000_000.0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requests_per_second: Option<f64>,
    /// Uploads at a time.
    #[schema(minimum = 1, maximum = 4_294_967_295_u32)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uploads: Option<u32>,
    /// Jobs that wait.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_u64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queued_jobs: Option<u64>,
    /// Bytes of the images of these.
    #[schema(maximum = 1_000_000_000_000_000_u64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queued_bytes: Option<u64>,
}

impl Key {
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
}

impl Caller {
    fn anybody() -> Self {
        Self { owner: None, scopes: [Scope::Admin].into(), allowance: None }
    }

    /// Counts one more job that is to wait, with an image of so many bytes.
    ///
    /// # Errors
    /// [`ApiError::TooMany`] when the key has enough waiting.
    pub(crate) async fn charge(&self, state: &State, bytes: u64) -> Result<Option<Charge>, ApiError> {
        match &self.allowance {
            Some(allowance) => allowance.charge(state, bytes).await.map(Some),
            None => Ok(None),
        }
    }

    /// How many of this caller's jobs wait, more or less.
    pub(crate) async fn waiting(&self, state: &State) -> Result<u64, IndexError> {
        match &self.allowance {
            Some(allowance) => allowance.waiting(state).await,
            None => Ok(0),
        }
    }

    fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether everything is there for this caller, whoever owns it.
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
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    known: Arc<RwLock<Vec<Key>>>,
    limiter: Limiter,
}

impl Keys {
    /// Reads them again.
    pub(crate) async fn refresh(&self, index: &Index) -> Result<(), IndexError> {
        let keys = index.keys().await?;
        *self.known.write().expect("no panic holds this lock") = keys;
        Ok(())
    }

    fn all(&self) -> Vec<Key> {
        self.known.read().expect("no panic holds this lock").clone()
    }

    /// Whether requests need a key. One that was revoked or has expired still closes the door.
    fn are_needed(&self) -> bool {
        !self.known.read().expect("no panic holds this lock").is_empty()
    }

    /// The key that was sent, if it is one.
    fn find(&self, sent: &str) -> Option<Key> {
        let id = sent.strip_prefix("sl_")?.split('_').next()?;
        let known = self.known.read().expect("no panic holds this lock");
        let key = known.iter().find(|key| key.id == id)?;
        (key.hash == hash(sent) && key.is_valid(Timestamp::now())).then(|| key.clone())
    }
}

/// Whether a job is its caller's to see.
pub(crate) fn sees(caller: &Caller, record: &Record) -> bool {
    caller.sees(record.spec.origin.owner.as_ref())
}

fn hash(key: &str) -> String {
    sha256(key.as_bytes())
}
