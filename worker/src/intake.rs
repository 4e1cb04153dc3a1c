//! Which partition to ask for the next job.
//!
//! A partition is asked only when it is *marked*: by a publisher's wake-up, or by the worker's own pass each second,
//! which also finds delayed jobs that are due and new topics. A mark is removed when the partition is asked, and set
//! again if it had a job. Each worker starts its round at a different place, so that they do not all ask the same
//! partition first. [`Rounds`] decides which priority's round comes next.
//!
//! A worker that finds nothing announces that it is idle, and a worker whose prefetched job cannot start yet then
//! returns it: no worker is idle while a job waits for another one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use queue::client::{Delivery, Fetcher};
use queue::members::Idle;
use queue::{Topic, TopicName, WorkerQueue};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::WorkerError;
use crate::peers::Avoided;
use crate::rounds::{Rounds, TopicPartition};

/// How often all partitions are checked without a notification.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after an error, so that an unreachable server is not flooded.
const ERROR_PAUSE: Duration = Duration::from_millis(200);
/// How long to find nothing before announcing it: many jobs take less.
const IDLE_PATIENCE: Duration = Duration::from_millis(20);

/// Finds jobs.
pub(crate) struct Intake {
    queue: WorkerQueue,
    fetcher: Fetcher,
    wakes: Pin<Box<dyn Stream<Item = TopicPartition> + Send>>,
    /// Topics that have just changed.
    changes: Pin<Box<dyn Stream<Item = TopicName> + Send>>,
    /// This worker and its models, as it announces them when idle.
    idle: Idle,
    topics: Vec<Arc<Topic>>,
    rounds: Rounds,
    avoided: Avoided,
    next_pass: Instant,
}

impl Intake {
    /// Subscribes to wake-ups; `start` is where the round begins.
    pub(crate) async fn new(queue: WorkerQueue, idle: Idle, start: usize) -> Result<Self, WorkerError> {
        let wakes = Box::pin(queue.wakes().await?);
        let changes = Box::pin(queue.topic_changes().await?);
        let fetcher = Fetcher::new(queue.clone()).await?;
        let (topics, rounds) = (Vec::new(), Rounds::new(start));
        let (avoided, next_pass) = (Avoided::default(), Instant::now());
        Ok(Self { queue, fetcher, wakes, changes, idle, topics, rounds, avoided, next_pass })
    }

    /// Returns the next job and its topic, or `None` once `stop` is canceled. A request that is in progress may finish,
    /// so that its job is not lost. `arriving` is locked during a request, and until the returned guard is dropped.
    pub(crate) async fn next(
        &mut self,
        stop: &CancellationToken,
        arriving: &Arc<Mutex<()>>,
    ) -> Option<(Delivery, Arc<Topic>, OwnedMutexGuard<()>)> {
        loop {
            if stop.is_cancelled() {
                return None;
            }
            let has_changed = self.changes.next().now_or_never().flatten().is_some();
            if has_changed || Instant::now() >= self.next_pass {
                self.pass().await;
            }
            while let Some(Some(place)) = self.wakes.next().now_or_never() {
                self.woken(place).await;
            }
            let Some(place) = self.rounds.take() else {
                self.idle(stop).await;
                continue;
            };
            // The next pass marks it again.
            if self.avoided.holds(&place, Instant::now()) {
                continue;
            }
            let Some(topic) = self.topics.iter().find(|topic| *topic.name() == place.0).cloned() else { continue };
            let arrival = arriving.clone().lock_owned().await;
            match self.fetcher.fetch(&topic, place.1).await {
                Ok(Some(delivery)) => {
                    self.rounds.found(place);
                    return Some((delivery, topic, arrival));
                }
                Ok(None) => self.avoided.emptied(&place),
                Err(error) => {
                    drop(arrival);
                    tracing::warn!(topic = %place.0, partition = %place.1, %error, "no answer to a fetch");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    /// Notes that a job of this partition was for another worker, and is returned for this long, so that the other
    /// worker has time to take it.
    pub(crate) fn avoid(&mut self, place: TopicPartition, pause: Duration) {
        self.avoided.add(place, pause, Instant::now());
    }

    /// Notes that a job of this partition was for this worker.
    pub(crate) fn suits(&mut self, place: &TopicPartition) {
        self.avoided.remove(place);
    }

    async fn idle(&mut self, stop: &CancellationToken) {
        let mut said = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(self.next_pass) => return,
                Some(place) = self.wakes.next() => return self.woken(place).await,
                Some(_) = self.changes.next() => return self.pass().await,
                () = tokio::time::sleep(IDLE_PATIENCE), if !said => {
                    self.queue.announce_idle(&self.idle).await;
                    said = true;
                }
            }
        }
    }

    async fn woken(&mut self, place: TopicPartition) {
        // The wake-up for a topic's first job arrives before the next pass would find the topic.
        let is_ours = |topic: &Arc<Topic>| *topic.name() == place.0;
        let may_be_ours = self.topics.iter().any(is_ours) || self.idle.models.iter().any(|m| *m == place.0.as_str());
        if !self.rounds.knows(&place) && may_be_ours {
            self.pass().await;
        }
        self.rounds.mark(place);
    }

    /// Lists the topics and marks all of their partitions.
    async fn pass(&mut self) {
        self.next_pass = Instant::now() + PASS_INTERVAL;
        match self.queue.topics().await {
            Ok(topics) => {
                self.topics = topics;
                let serves =
                    |topic: &Arc<Topic>| topic.settings.model.as_ref().is_some_and(|m| self.idle.models.contains(m));
                self.topics.retain(|topic| serves(topic) && !topic.settings.paused);
                let partitions = |topic: &Arc<Topic>| {
                    let name = topic.name().clone();
                    topic.partitions().map(move |partition| (name.clone(), partition))
                };
                self.rounds.set_places(self.topics.iter().flat_map(partitions).collect());
            }
            Err(error) => tracing::warn!(%error, "topics not listed"),
        }
    }
}
