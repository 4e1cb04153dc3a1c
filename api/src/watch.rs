//! The watchdog: detects stalled partitions, reports why they stall, and repairs what it safely can.
//!
//! Each API process looks, so that each can show what it sees. One of them, elected by a lease record, also
//! repairs, spreads the leaders of partitions over the servers of a cluster, and fails jobs that can no longer run:
//! those of logs whose inputs were dropped, and those past their start deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use queue::balance::Move;
use queue::client::Description;
use queue::topic::Retention;
use queue::watchdog::{Stall, Watchdog};
use queue::{Queue, QueueError, Sequence, TopicName};
use tokio::time::MissedTickBehavior;

use crate::index::{Index, IndexError};
use crate::roster::Roster;

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long changes of topics are gathered.
const CHANGES_PAUSE: Duration = Duration::from_millis(200);
/// Overdue jobs handled at a time.
const OVERDUE_WIDTH: usize = 16;

/// What the last look found; clones share it.
#[derive(Clone)]
pub(crate) struct Watch {
    stalls: Arc<Mutex<Vec<Stall>>>,
    topics: Arc<Mutex<Arc<[Description]>>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { stalls: Arc::default(), topics: Arc::new(Mutex::new(Vec::new().into())) }
    }
}

impl Watch {
    /// Stalled partitions.
    pub(crate) fn stalls(&self) -> Vec<Stall> {
        self.stalls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All topics, as the last look found them.
    pub(crate) fn topics(&self) -> Arc<[Description]> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stalled partitions of one topic.
    pub(crate) fn stalls_of(&self, topic: &TopicName) -> Vec<Stall> {
        self.stalls().into_iter().filter(|stall| stall.topic == *topic).collect()
    }

    /// Watches until the future is dropped.
    pub(crate) async fn keep(self, queue: Queue, index: Index, roster: Roster) -> Result<(), QueueError> {
        let repairer = queue.admin.singleton("watchdog");
        let mut changes = queue.topic_changes().await?;
        let (mut watchdog, mut sweeper) = (Watchdog::default(), Sweeper::default());
        let mut due = tokio::time::interval(LOOK_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A change, such as a pause, must be known at once.
            tokio::select! {
                _ = due.tick() => {}
                Some(_) = changes.next() => {
                    // Changes often arrive in groups.
                    tokio::time::sleep(CHANGES_PAUSE).await;
                    while changes.next().now_or_never().flatten().is_some() {}
                }
            }
            let topics = match look(&queue).await {
                Ok(topics) => topics,
                Err(problem) => {
                    tracing::debug!(problem, "topics not checked");
                    continue;
                }
            };
            *self.topics.lock().unwrap_or_else(PoisonError::into_inner) = topics.clone().into();
            let stalls = watchdog.look(&topics, &roster.members(), Instant::now());
            let known =
                std::mem::replace(&mut *self.stalls.lock().unwrap_or_else(PoisonError::into_inner), stalls.clone());
            for stall in &stalls {
                if !known.iter().any(|old| {
                    (&old.topic, old.partition, &old.reason) == (&stall.topic, stall.partition, &stall.reason)
                }) {
                    tracing::warn!(topic = %stall.topic, partition = %stall.partition, queued = stall.queued, in_work = stall.in_work, reason = %stall.reason, "partition stalled");
                }
                if stall.can_repair() && repairer.is_held() {
                    repair(&queue, stall).await;
                }
            }
            if repairer.is_held() {
                for step in queue::balance::moves(&topics) {
                    spread(&queue, &step).await;
                }
                sweeper.sweep(&queue, &topics).await;
                if let Err(error) = fail_overdue(&queue, &index).await {
                    tracing::debug!(%error, "job deadlines not checked");
                }
            }
        }
    }
}

async fn look(queue: &Queue) -> Result<Vec<Description>, String> {
    let topics = queue.topics().await.map_err(|error| error.to_string())?;
    let described = topics.iter().map(|topic| queue.topics.describe(topic.name()));
    // A topic that is deleted meanwhile is not stalled.
    Ok(futures::future::join_all(described).await.into_iter().flatten().collect())
}

/// Handles logs that drop inputs: each time a log has dropped some, it looks for their jobs.
#[derive(Default)]
struct Sweeper {
    /// By topic, where its partitions began when no job was left that waits for a dropped input.
    swept: BTreeMap<TopicName, Vec<Sequence>>,
}

impl Sweeper {
    async fn sweep(&mut self, queue: &Queue, topics: &[Description]) {
        self.swept.retain(|name, _| topics.iter().any(|topic| topic.name == *name));
        for described in topics.iter().filter(|topic| topic.model.is_some() && topic.retention != Retention::Work) {
            let firsts: Vec<Sequence> = described.partitions.iter().map(|partition| partition.first).collect();
            if self.swept.get(&described.name) == Some(&firsts) {
                continue;
            }
            let Ok(Some(topic)) = queue.topic(&described.name).await else { continue };
            match queue.admin.fail_aged(&topic).await {
                Ok(aged) => {
                    if aged.failed > 0 {
                        tracing::warn!(topic = %described.name, jobs = aged.failed, "jobs failed: their inputs expired before they ran");
                    }
                    if aged.left == 0 {
                        self.swept.insert(described.name.clone(), firsts);
                    }
                }
                Err(error) => tracing::debug!(topic = %described.name, %error, "dropped inputs not checked"),
            }
        }
    }
}

/// Fails jobs past their start deadline.
async fn fail_overdue(queue: &Queue, index: &Index) -> Result<(), IndexError> {
    let looks = futures::stream::iter(index.overdue().await?).map(|id| async move {
        match queue.admin.fail_overdue(&id).await {
            Ok(true) => tracing::info!(job_id = %id, "job failed: no worker started it before its deadline"),
            Ok(false) => {}
            Err(error) => tracing::warn!(job_id = %id, %error, "expired job not marked as failed"),
        }
    });
    // A job that cannot be handled now does not delay the others.
    looks.buffer_unordered(OVERDUE_WIDTH).collect::<()>().await;
    Ok(())
}

/// Moves a partition's leader.
async fn spread(queue: &Queue, step: &Move) {
    let Move { topic, partition, to } = step;
    match queue.admin.move_leader(step).await {
        Ok(()) => tracing::info!(%topic, %partition, to, "partition has a new leader"),
        Err(error) => tracing::debug!(%topic, %partition, to, %error, "leader not moved"),
    }
}

/// Creates a missing consumer and wakes the workers.
async fn repair(queue: &Queue, stall: &Stall) {
    match queue.admin.repair_partition(&stall.topic, stall.partition).await {
        Ok(()) => {
            tracing::warn!(topic = %stall.topic, partition = %stall.partition, "consumer repaired, workers notified")
        }
        Err(error) => tracing::warn!(topic = %stall.topic, partition = %stall.partition, %error, "not repaired"),
    }
}
