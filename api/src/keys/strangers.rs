//! Requests with an invalid key: each address may send some at once, then a few per second.
//!
//! Guessing a key of 244 random bits is hopeless at any rate; this keeps guessing from costing the server anything.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connections::network_of;
use crate::error::ApiError;

/// Invalid keys that an address may send at once, and the pause between further ones.
const BURST: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(200);
/// Most addresses remembered; when there are more, all are forgotten.
const ADDRESSES_MAX: usize = 10_000;

/// Addresses that sent invalid keys, each with the moment at which all of them are forgiven; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<HashMap<IpAddr, Instant>>>);

impl Strangers {
    /// Counts a request with an invalid key.
    ///
    /// # Errors
    /// [`ApiError::WrongKeys`] when its address has sent too many.
    pub(super) fn knock(&self, address: Option<IpAddr>, now: Instant) -> Result<(), ApiError> {
        let Some(address) = address.map(network_of) else { return Ok(()) };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES_MAX && !known.contains_key(&address) {
            known.retain(|_, forgiven| *forgiven > now);
            if known.len() >= ADDRESSES_MAX {
                known.clear();
            }
        }
        let forgiven = known.entry(address).or_insert(now);
        let next = (*forgiven).max(now) + INTERVAL;
        if next > now + INTERVAL * BURST {
            return Err(ApiError::WrongKeys);
        }
        *forgiven = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guesser_is_slowed_down_and_others_are_not() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().ok());
        let let_in = (0..1000).filter(|_| strangers.knock(one, now).is_ok()).count();
        assert_eq!(let_in, BURST as usize);
        assert!(strangers.knock(other, now).is_ok());
        assert!(strangers.knock(one, now + INTERVAL).is_ok());
        assert!(strangers.knock(one, now + INTERVAL).is_err());
    }
}
