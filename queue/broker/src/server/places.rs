//! Places for connections: who may have one, and who has to leave for another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The places that are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Connections whose client has not said who it is, and what cuts each.
    strangers: BTreeMap<u64, CancellationToken>,
    /// How many clients have said who they are.
    known: usize,
}

/// One connection's place, until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    places: Arc<Mutex<Places>>,
    id: u64,
    cut: CancellationToken,
    is_known: bool,
}

/// Gives a new connection a place, if there is one of `connections_max`. Strangers get half of all places; beyond that the one that
/// has been silent the longest is cut, so that a client that speaks at once is always heard.
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
    /// Is cancelled when another connection needs this place.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Whether the client has said who it is.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// The client has said who it is.
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
