//! Memory for items of batches, lent before the bytes are read.
//!
//! Small items draw on a part of their own, so they never wait behind large ones. A large item gets all that it can
//! need at once, and only while its reader holds no other large one: so no reader waits for room while holding room
//! that others wait for. One batch gets a bounded share, whatever it sends.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bodies::BODY_UNIT;

/// Lent to an item before its size is known.
pub(super) const SMALL_BYTES: usize = 1 << 20;
/// Most bytes in memory for the items of one batch; always enough for one item.
const BATCH_BYTES_MAX: usize = 48 << 20;

/// Memory for the items of all batches, in units of [`BODY_UNIT`]; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Units of each part.
    small_units: usize,
    large_units: usize,
}

impl Memory {
    /// A quarter of `units` for small items, the rest for large ones.
    pub(crate) fn new(units: usize) -> Self {
        let small_units = (units / 4).max(SMALL_BYTES / BODY_UNIT);
        let large_units = units.saturating_sub(small_units).max(1);
        let (small, large) = (Arc::new(Semaphore::new(small_units)), Arc::new(Semaphore::new(large_units)));
        Self { small, large, small_units, large_units }
    }

    /// Whether little memory is left.
    pub(crate) fn is_short(&self) -> bool {
        let is_short = |part: &Semaphore, units: usize| part.available_permits() < units / 8;
        is_short(&self.small, self.small_units) || is_short(&self.large, self.large_units)
    }

    /// Whether any of it is lent.
    #[cfg(test)]
    pub(super) fn is_used(&self) -> bool {
        self.small.available_permits() < self.small_units || self.large.available_permits() < self.large_units
    }

    /// The share of one batch.
    pub(super) fn of_one_batch(&self) -> Rooms {
        let units = BATCH_BYTES_MAX.div_ceil(BODY_UNIT).min(self.large_units);
        Rooms { memory: self.clone(), own: Arc::new(Semaphore::new(units)), own_units: units }
    }
}

/// Memory for the items of one batch.
#[derive(Debug, Clone)]
pub(super) struct Rooms {
    memory: Memory,
    own: Arc<Semaphore>,
    own_units: usize,
}

/// The right to hold some bytes in memory, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
    bytes: usize,
}

impl Rooms {
    /// Exchanges a room for a larger one. The old room is given back first: readers that wait for room while
    /// holding some would deadlock.
    pub(super) async fn grow(&self, room: Room, bytes: usize) -> Room {
        drop(room);
        self.lend(bytes).await
    }

    /// Waits until there is room for this many bytes.
    pub(super) async fn lend(&self, bytes: usize) -> Room {
        let units = bytes.div_ceil(BODY_UNIT).max(1);
        let own = take(&self.own, units.min(self.own_units)).await;
        let shared = if bytes <= SMALL_BYTES {
            take(&self.memory.small, units.min(self.memory.small_units)).await
        } else {
            take(&self.memory.large, units.min(self.memory.large_units)).await
        };
        Room { _own: own, _shared: shared, bytes }
    }
}

async fn take(semaphore: &Arc<Semaphore>, units: usize) -> OwnedSemaphorePermit {
    semaphore.clone().acquire_many_owned(units as u32).await.expect("this semaphore is never closed")
}

impl Room {
    /// Bytes that it covers.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what an item of this many bytes does not need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let units = bytes.div_ceil(BODY_UNIT).max(1);
        for permit in [&mut self._own, &mut self._shared] {
            let surplus = permit.num_permits().saturating_sub(units);
            drop(permit.split(surplus));
        }
        self.bytes = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_items_do_not_wait_behind_large_ones_and_surplus_is_given_back() {
        let memory = Memory::new((64 << 20) / BODY_UNIT);
        let rooms = memory.of_one_batch();
        let mut large = rooms.lend(40 << 20).await;
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(20), memory.of_one_batch().lend(20 << 20))
                .await
                .is_err()
        );
        assert_eq!(memory.of_one_batch().lend(SMALL_BYTES).await.bytes(), SMALL_BYTES);
        large.shrink(3 << 20);
        assert_eq!(memory.of_one_batch().lend(20 << 20).await.bytes(), 20 << 20);
    }

    #[tokio::test]
    async fn one_batch_leaves_room_for_others() {
        let memory = Memory::new((256 << 20) / BODY_UNIT);
        let greedy = memory.of_one_batch();
        let _held = [greedy.lend(20 << 20).await, greedy.lend(20 << 20).await];
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), greedy.lend(20 << 20)).await.is_err());
        drop(memory.of_one_batch().lend(20 << 20).await);
    }
}
