//! Which partition to ask for the next job.
//!
//! A partition is asked only when it is *marked*: by a wake-up that a publisher sent, or by the
//! worker's own pass each second, which also finds jobs that come back after a delay and topics
//! that are new. A mark goes when the partition is asked, and comes back if it had a job. The
//! round starts at a place that differs from worker to worker, so that they do not all ask the
//! same partition first.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use queue::client::{Delivery, Fetcher};
use queue::{PartitionId, Queue, Topic, TopicName};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::WorkerError;

/// How often all partitions are looked at, whether or not somebody called.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after an error, so that an absent server is not hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(200);

/// A partition of a topic.
type Place = (TopicName, PartitionId);

/// Finds jobs.
pub(crate) struct Intake {
    queue: Queue,
    fetcher: Fetcher,
    wakes: Pin<Box<dyn Stream<Item = Place> + Send>>,
    models: Vec<String>,
    topics: Vec<Arc<Topic>>,
    round: Round,
    next_pass: Instant,
}

impl Intake {
    /// Listens for wake-ups; `start` is where in the round to begin.
    pub(crate) async fn new(queue: Queue, models: Vec<String>, start: usize) -> Result<Self, WorkerError> {
        let wakes = Box::pin(queue.wakes().await?);
        let fetcher = Fetcher::new(queue.clone()).await?;
        let (topics, round) = (Vec::new(), Round::new(start));
        Ok(Self { queue, fetcher, wakes, models, topics, round, next_pass: Instant::now() })
    }

    /// The next job and its topic; `None` when told to stop. A request under way is let finish, so
    /// that no job is lost on its way.
    pub(crate) async fn next(&mut self, stop: &CancellationToken) -> Option<(Delivery, Arc<Topic>)> {
        loop {
            if stop.is_cancelled() {
                return None;
            }
            if Instant::now() >= self.next_pass {
                self.pass().await;
            }
            while let Some(Some(place)) = self.wakes.next().now_or_never() {
                self.woken(place).await;
            }
            let Some(place) = self.round.take() else {
                self.idle(stop).await;
                continue;
            };
            let Some(topic) = self.topics.iter().find(|topic| *topic.name() == place.0).cloned() else { continue };
            match self.fetcher.fetch(&topic, place.1).await {
                Ok(Some(delivery)) => {
                    self.round.mark(place);
                    return Some((delivery, topic));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(topic = %place.0, partition = %place.1, %error, "no answer to a request for a job");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    async fn idle(&mut self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep_until(self.next_pass) => {}
            Some(place) = self.wakes.next() => self.woken(place).await,
        }
    }

    async fn woken(&mut self, place: Place) {
        // The wake of a topic's first job comes before the next pass would find the topic.
        if !self.round.knows(&place) && self.models.iter().any(|model| *model == place.0.as_str()) {
            self.pass().await;
        }
        self.round.mark(place);
    }

    /// Looks which topics there are, and marks everything.
    async fn pass(&mut self) {
        self.next_pass = Instant::now() + PASS_INTERVAL;
        match self.queue.topics().await {
            Ok(topics) => {
                self.topics = topics;
                self.topics.retain(|topic| self.models.contains(&topic.settings.model));
                let partitions = |topic: &Arc<Topic>| {
                    let name = topic.name().clone();
                    topic.partitions().map(move |partition| (name.clone(), partition))
                };
                self.round.set_places(self.topics.iter().flat_map(partitions).collect());
            }
            Err(error) => tracing::warn!(%error, "topics not listed"),
        }
    }
}

/// The places in order, and which of them to ask. Pure.
struct Round {
    places: Vec<Place>,
    marked: BTreeSet<Place>,
    /// Where the next look begins; counts on, so that it goes round.
    cursor: usize,
}

impl Round {
    fn new(start: usize) -> Self {
        Self { places: Vec::new(), marked: BTreeSet::new(), cursor: start }
    }

    fn knows(&self, place: &Place) -> bool {
        self.places.contains(place)
    }

    /// Takes over a new list and marks all of it.
    fn set_places(&mut self, places: Vec<Place>) {
        self.marked = places.iter().cloned().collect();
        self.places = places;
    }

    fn mark(&mut self, place: Place) {
        if self.knows(&place) {
            self.marked.insert(place);
        }
    }

    /// The next marked place, unmarked.
    fn take(&mut self) -> Option<Place> {
        let count = self.places.len();
        let start = self.cursor;
        let found = (0..count)
            .map(|step| start.wrapping_add(step) % count)
            .find(|at| self.marked.contains(&self.places[*at]))?;
        self.cursor = found + 1;
        self.marked.take(&self.places[found])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(count: u16) -> Vec<Place> {
        let topic = TopicName::new("cats").expect("valid");
        (0..count).map(|index| (topic.clone(), PartitionId::normal(index))).collect()
    }

    fn taken(round: &mut Round) -> Vec<u16> {
        std::iter::from_fn(|| round.take()).map(|place| place.1.index()).collect()
    }

    #[test]
    fn each_marked_place_is_asked_once_from_the_start_of_the_round() {
        let mut round = Round::new(5);
        round.set_places(places(4));
        assert_eq!(taken(&mut round), [1, 2, 3, 0]);
        assert_eq!(round.take(), None);
        places(4).into_iter().rev().take(2).for_each(|place| round.mark(place));
        assert_eq!(taken(&mut round), [2, 3]);
    }

    #[test]
    fn a_busy_place_does_not_keep_others_waiting() {
        let mut round = Round::new(0);
        round.set_places(places(3));
        let mut ask = || {
            let place = round.take().expect("all are marked");
            round.mark(place.clone());
            place.1.index()
        };
        let asked: Vec<u16> = (0..6).map(|_| ask()).collect();
        assert_eq!(asked, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_place_that_is_not_known_is_not_asked() {
        let mut round = Round::new(0);
        round.mark(places(1)[0].clone());
        assert_eq!(round.take(), None);
    }
}
