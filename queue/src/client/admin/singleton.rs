//! One process of many, elected by a lease record for as long as it lives.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::Admin;
use crate::client::connection::candidate;
use crate::singleton::Candidate;

/// How often a candidate checks the lease record.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A lease that this process wants for as long as it lives.
#[derive(Debug)]
pub struct Singleton {
    held: Arc<Mutex<Candidate>>,
    _looking: AbortOnDropHandle<()>,
}

impl Singleton {
    /// Whether this process holds the lease now.
    pub fn is_held(&self) -> bool {
        self.held.lock().expect("no panic holds this lock").is_held(Instant::now())
    }
}

impl Admin {
    /// Tries, from now on, to be the one process that does the work that `name` stands for.
    pub fn singleton(&self, name: &str) -> Singleton {
        let held = Arc::new(Mutex::new(candidate()));
        let (admin, name, candidate) = (self.clone(), name.to_owned(), held.clone());
        let looking = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut due = tokio::time::interval(LOOK_INTERVAL);
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                if let Err(error) = admin.look_at_lease(&name, &candidate).await {
                    tracing::debug!(lease = name, %error, "lease record not read");
                }
            }
        }));
        Singleton { held, _looking: looking }
    }
}
