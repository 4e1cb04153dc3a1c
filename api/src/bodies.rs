//! Memory for the bodies of uploads: bounded in total, and never all of it for one address.
//!
//! An eighth is a reserve for addresses that hold little. So clients that begin uploads and stall can take at most
//! the rest, and an upload from another address neither waits for them nor has to hurry because of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::connections::network_of;
use crate::error::ApiError;

/// The unit in which memory is lent, bytes.
pub(crate) const BODY_UNIT: usize = 64 * 1024;
/// How long to wait for memory.
pub(crate) const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// The memory to lend.
#[derive(Debug)]
pub(crate) struct Bodies {
    common: Semaphore,
    reserve: Semaphore,
    /// Units of both together.
    units: usize,
    /// Units lent or waited for, by address.
    lent: Mutex<HashMap<IpAddr, usize>>,
}

impl Bodies {
    /// `units` of [`BODY_UNIT`] bytes.
    pub(crate) fn new(units: usize) -> Self {
        let reserve = units / 8;
        Self {
            common: Semaphore::new(units - reserve),
            reserve: Semaphore::new(reserve),
            units,
            lent: Mutex::default(),
        }
    }

    /// Whether little is left for an address, so that its uploads must be quick.
    pub(crate) fn is_short(&self, of: Option<IpAddr>) -> bool {
        let is_reserve_short = self.reserve.available_permits() < self.units / 16;
        self.common.available_permits() < self.units / 8 && (is_reserve_short || !self.has_little(of))
    }

    /// The empty room of an upload that has sent nothing yet.
    pub(crate) fn room(&self, of: Option<IpAddr>) -> Room<'_> {
        Room { bodies: self, of: of.map(network_of), common: None, reserve: None, units: 0 }
    }

    fn lent(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address may hold half the reserve, so at least two addresses fit; units that it waits for count.
    fn has_little(&self, of: Option<IpAddr>) -> bool {
        of.is_some_and(|of| self.lent().get(&network_of(of)).is_none_or(|units| *units <= self.units / 16))
    }
}

/// Memory lent to one upload.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    bodies: &'a Bodies,
    of: Option<IpAddr>,
    common: Option<SemaphorePermit<'a>>,
    reserve: Option<SemaphorePermit<'a>>,
    units: usize,
}

impl<'a> Room<'a> {
    /// Makes sure that `bytes` are lent. The timeout ends the wait when uploads wait for each other.
    ///
    /// # Errors
    /// [`ApiError::UploadsBusy`].
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let missing = bytes.div_ceil(BODY_UNIT).saturating_sub(self.units);
        if missing == 0 {
            return Ok(());
        }
        let bodies = self.bodies;
        // Counted before it is lent, and given back with the room.
        self.units += missing;
        if let Some(of) = self.of {
            *bodies.lent().entry(of).or_default() += missing;
        }
        let (held, more) = tokio::select! {
            biased;
            more = bodies.common.acquire_many(missing as u32) => (&mut self.common, more),
            more = bodies.reserve.acquire_many(missing as u32), if bodies.has_little(self.of) => (&mut self.reserve, more),
            () = tokio::time::sleep(BUSY_PATIENCE) => return Err(ApiError::UploadsBusy),
        };
        let more = more.map_err(|_| ApiError::Internal)?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let Some(of) = self.of else { return };
        let mut lent = self.bodies.lent();
        if let Some(units) = lent.get_mut(&of) {
            *units -= self.units;
            if *units == 0 {
                lent.remove(&of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const OTHER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    #[tokio::test(start_paused = true)]
    async fn one_address_that_took_what_it_could_leaves_others_room() {
        let bodies = Bodies::new(64);
        let mut rooms = Vec::new();
        loop {
            let mut room = bodies.room(GREEDY);
            let grown = room.grow(BODY_UNIT).await;
            rooms.push(room);
            if grown.is_err() {
                break;
            }
        }
        assert_eq!(rooms.len() - 1, 56, "all but the reserve");
        assert!(bodies.is_short(GREEDY) && !bodies.is_short(OTHER));
        let mut other = bodies.room(OTHER);
        let began = tokio::time::Instant::now();
        for units in 1..=4 {
            other.grow(units * BODY_UNIT).await.expect("there is a reserve");
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        other.grow(5 * BODY_UNIT).await.expect_err("it is not one who holds little any more");
        assert!(bodies.is_short(OTHER));
        drop((other, rooms));
        assert_eq!((bodies.common.available_permits(), bodies.reserve.available_permits()), (56, 8));
        assert!(bodies.lent().is_empty(), "what has ended is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_upload_fits_in_what_is_common() {
        let bodies = Bodies::new(64);
        bodies.room(GREEDY).grow(56 * BODY_UNIT).await.expect("it is free");
    }
}
