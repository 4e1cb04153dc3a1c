//! Slots for connections: which clients get one, and which are cut to make room for another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The slots that are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Connections whose client has not authenticated yet, with the token that cuts each.
    strangers: BTreeMap<u64, CancellationToken>,
    /// Number of clients that have authenticated.
    known: usize,
}

/// One connection's slot, taken until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    places: Arc<Mutex<Places>>,
    id: u64,
    cut: CancellationToken,
    is_known: bool,
}

/// Gives a new connection one of `connections_max` slots, if one is free. Strangers get half of all slots; beyond
/// that, the oldest stranger is cut, so that a client that authenticates at once always gets in.
pub(super) fn enter(all: &Arc<Mutex<Places>>, connections_max: usize, id: u64) -> Option<ConnectionSlot> {
    let cut = CancellationToken::new();
    let mut places = lock(all);
    if places.strangers.len() >= (connections_max / 2).max(1)
        && let Some((_, oldest)) = places.strangers.pop_first()
    {
        oldest.cancel();
    }
    if places.strangers.len() + places.known >= connections_max {
        return None;
    }
    places.strangers.insert(id, cut.clone());
    Some(ConnectionSlot { places: all.clone(), id, cut, is_known: false })
}

impl ConnectionSlot {
    /// Canceled when another connection needs this slot.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Whether the client has authenticated.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Marks the client as authenticated.
    pub(super) fn make_known(&mut self) {
        if !self.is_known {
            self.is_known = true;
            let mut places = lock(&self.places);
            places.strangers.remove(&self.id);
            places.known += 1;
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        if self.is_known {
            places.known -= 1;
        } else {
            places.strangers.remove(&self.id);
        }
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}
