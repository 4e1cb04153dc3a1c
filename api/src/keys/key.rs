//! A key and the limits of its owner, as they are stored.

use std::collections::BTreeSet;

use queue::{Priority, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::scope::Scope;
use crate::digest::sha256;

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
    pub(super) hash: String,
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
    /// The key without its hash.
    pub(super) fn shown(self) -> Self {
        Self { hash: String::new(), ..self }
    }

    pub(super) fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }

    /// Whether it allows everything now.
    pub(super) fn is_admin(&self, now: Timestamp) -> bool {
        self.is_valid(now) && self.scopes.contains(&Scope::Admin)
    }
}

/// What is stored of a key's text.
pub(super) fn hash(key: &str) -> String {
    sha256(key.as_bytes())
}
