//! The client that sends a request.

use std::collections::BTreeSet;
use std::net::IpAddr;

use queue::{Priority, Queue};

use super::limits::{Allowance, Charge};
use super::scope::Scope;
use crate::error::ApiError;
use crate::index::{Index, IndexError};

/// The client that sends a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The owner of the jobs that it submits; `None` while no keys exist.
    pub(crate) owner: Option<String>,
    pub(super) scopes: BTreeSet<Scope>,
    /// Limits on what its key may have queued; `None` while no keys exist.
    pub(super) allowance: Option<Allowance>,
    /// The address that its requests come from.
    pub(crate) address: Option<IpAddr>,
}

impl Caller {
    pub(super) fn anonymous(address: Option<IpAddr>) -> Self {
        Self { owner: None, scopes: [Scope::Admin].into(), allowance: None, address }
    }

    /// The priority of a job whose client asked for this one, or for none.
    ///
    /// # Errors
    /// [`ApiError::Priority`].
    pub(crate) fn priority(&self, asked: Option<Priority>) -> Result<Priority, ApiError> {
        let most = self.allowance.as_ref().and_then(Allowance::priority_max).unwrap_or(Priority::High);
        // The most urgent priority is the smallest.
        match asked {
            Some(asked) if asked < most => Err(ApiError::Priority { asked, most }),
            Some(asked) => Ok(asked),
            None => Ok(most.max(Priority::Normal)),
        }
    }

    /// Counts one more queued job, with an image of this many bytes.
    ///
    /// # Errors
    /// [`ApiError::TooMany`] when the key's limit is reached.
    pub(crate) async fn charge(&self, index: &Index, queue: &Queue, bytes: u64) -> Result<Option<Charge>, ApiError> {
        match &self.allowance {
            Some(allowance) => allowance.charge(index, queue, bytes).await.map(Some),
            None => Ok(None),
        }
    }

    /// About how many of this caller's jobs are queued.
    pub(crate) async fn waiting(&self, index: &Index, queue: &Queue) -> Result<u64, IndexError> {
        match &self.allowance {
            Some(allowance) => allowance.waiting(index, queue).await,
            None => Ok(0),
        }
    }

    pub(super) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether this caller may see the jobs of all owners.
    pub(crate) fn sees_all(&self) -> bool {
        self.scopes.contains(&Scope::Admin)
    }

    /// Whether this caller may see what belongs to this owner.
    pub(crate) fn sees(&self, owner: Option<&String>) -> bool {
        self.sees_all() || owner == self.owner.as_ref()
    }

    /// The only owner whose entries lists may show; `None`: all owners.
    pub(crate) fn only(&self) -> Option<String> {
        if self.sees_all() { None } else { self.owner.clone() }
    }
}
