//! The watchdog: sees partitions that get nowhere, says why, and repairs what it safely can.
//!
//! Each API process looks, so that each can show what it sees; one of them, by a lease record, also
//! repairs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use queue::watchdog::{Stall, Watchdog};
use queue::{Queue, QueueError, TopicName};
use tokio::time::MissedTickBehavior;

use crate::roster::Roster;

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What was seen last; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Vec<Stall>>>);

impl Watch {
    /// Stalled partitions.
    pub(crate) fn stalls(&self) -> Vec<Stall> {
        self.0.lock().expect("no panic holds this lock").clone()
    }

    /// Stalled partitions of one topic.
    pub(crate) fn stalls_of(&self, topic: &TopicName) -> Vec<Stall> {
        self.stalls().into_iter().filter(|stall| stall.topic == *topic).collect()
    }

    /// Watches for as long as it is awaited.
    pub(crate) async fn keep(self, queue: Queue, roster: Roster) -> Result<(), QueueError> {
        let repairer = queue.singleton("watchdog");
        let mut watchdog = Watchdog::default();
        let mut due = tokio::time::interval(LOOK_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let stalls = match look(&queue, &mut watchdog, &roster).await {
                Ok(stalls) => stalls,
                Err(problem) => {
                    tracing::debug!(problem, "topics were not looked at");
                    continue;
                }
            };
            let known = std::mem::replace(&mut *self.0.lock().expect("no panic holds this lock"), stalls.clone());
            for stall in &stalls {
                if !known.iter().any(|old| {
                    (&old.topic, old.partition, &old.reason) == (&stall.topic, stall.partition, &stall.reason)
                }) {
                    tracing::warn!(topic = %stall.topic, partition = %stall.partition, queued = stall.queued, in_work = stall.in_work, reason = %stall.reason, "nothing is worked off");
                }
                if stall.can_repair() && repairer.is_held() {
                    repair(&queue, stall).await;
                }
            }
        }
    }
}

async fn look(queue: &Queue, watchdog: &mut Watchdog, roster: &Roster) -> Result<Vec<Stall>, String> {
    let topics = queue.topics().await.map_err(|error| error.to_string())?;
    let described = topics.iter().map(|topic| queue.describe(topic.name()));
    // A topic that vanishes meanwhile is not stalled.
    let described: Vec<_> = futures::future::join_all(described).await.into_iter().flatten().collect();
    Ok(watchdog.look(&described, &roster.members(), Instant::now()))
}

/// Makes a consumer that is missing, and wakes the workers.
async fn repair(queue: &Queue, stall: &Stall) {
    match queue.repair_partition(&stall.topic, stall.partition).await {
        Ok(()) => {
            tracing::warn!(topic = %stall.topic, partition = %stall.partition, "consumer looked after, workers woken")
        }
        Err(error) => tracing::warn!(topic = %stall.topic, partition = %stall.partition, %error, "not repaired"),
    }
}
