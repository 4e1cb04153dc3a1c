//! Scales the number of workers to the backlog, between a minimum and a maximum.
//!
//! Every supervisor announces itself as a member and follows orders. One process, which holds a lease record, decides
//! for all of them, so that no two start workers for the same backlog. While no process decides, each supervisor
//! keeps its workers.
//!
//! [`Scaler`] is pure. It adds workers at once, but removes them only after a quiet while: starting one costs more than
//! letting one idle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use queue::Queue;
use queue::members::{ANNOUNCE_INTERVAL, Announcement, MemberState, Role, Scale, Table};
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::Workers;
use crate::supervisor::Supervisor;

/// Time within which a backlog should be worked off.
const DRAIN_GOAL: Duration = Duration::from_secs(10);
/// Workers are removed only after fewer would have sufficed for this long.
const CALM: Duration = Duration::from_secs(30);
/// Assumed time of a job until one of its model has run.
const SERVICE_GUESS: Duration = Duration::from_millis(200);

/// An order to one supervisor.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    workers: usize,
}

/// Runs a supervisor's workers until `stop`: announces it, follows orders, and decides for all supervisors if this
/// process holds the lease.
pub(crate) async fn run(
    supervisor: &mut Supervisor,
    workers: Workers,
    models: &[String],
    queue: &Queue,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut own = Announcement::new(Role::Supervisor, models);
    own.state = MemberState::Ready;
    let mut orders = queue.orders(&own.id).await?;
    let mut heard = queue.announcements().await?;
    let leader = workers.is_range().then(|| queue.admin.singleton("autoscaler"));
    let (mut table, mut scaler) = (Table::default(), Scaler::default());
    let mut times = queue.announcement_times().await?;
    let mut due = tokio::time::interval(ANNOUNCE_INTERVAL);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = times.next() => {
                own.scale = Some(Scale { min: workers.min, max: workers.max, now: supervisor.count() });
                queue.announce(&own).await;
            }
            _ = due.tick() => {
                table.expire(Instant::now());
                if leader.as_ref().is_some_and(queue::client::Singleton::is_held) {
                    decide(queue, &table, &mut scaler).await;
                }
            }
            announcement = heard.next() => table.hear(announcement.context("the queue has closed the connection")?, Instant::now()),
            order = orders.next() => {
                let order: Option<Order> = serde_json::from_slice(&order.context("the queue has closed the connection")?).ok();
                if let Some(order) = order.filter(|_| workers.is_range()) {
                    let count = order.workers.clamp(workers.min, workers.max);
                    if count != supervisor.count() {
                        tracing::info!(from = supervisor.count(), to = count, "workers");
                        supervisor.scale(count);
                    }
                }
            }
        }
    }
    queue.announce_gone(own).await;
    Ok(())
}

/// Looks at all topics and orders each supervisor to run the workers that it needs.
async fn decide(queue: &Queue, table: &Table, scaler: &mut Scaler) {
    let mut backlog = BTreeMap::new();
    // An unknown backlog must not remove workers.
    let Ok(topics) = queue.topics().await else { return };
    for topic in topics.iter().filter(|topic| !topic.settings.paused) {
        let Some(model) = &topic.settings.model else { continue };
        let Ok(depths) = queue.topics.depth(topic).await else { return };
        *backlog.entry(model.clone()).or_insert(0) +=
            depths.iter().map(|depth| depth.queued + depth.in_hand).sum::<u64>();
    }
    let supervisors: Vec<SupervisorLoad> = table
        .members()
        .filter_map(|member| {
            let scale = member.scale.filter(|scale| scale.min < scale.max)?;
            Some(SupervisorLoad { id: member.id.clone(), models: member.models.clone(), scale })
        })
        .collect();
    let service = |model: &str| service_time(table, model);
    for (id, workers) in scaler.decide(&supervisors, &backlog, service, Instant::now()) {
        let order = serde_json::to_vec(&Order { workers }).expect("it holds a number");
        queue.order(&id, Bytes::from(order)).await;
    }
}

/// How long a worker takes for a job of a model, as measured by all announced workers.
fn service_time(table: &Table, model: &str) -> Duration {
    table.totals().service(model).unwrap_or(SERVICE_GUESS)
}

/// A supervisor, as the deciding process sees it.
#[derive(Debug, Clone)]
struct SupervisorLoad {
    id: String,
    models: Vec<String>,
    scale: Scale,
}

/// Decides, and remembers how many workers were needed lately.
#[derive(Debug, Default)]
struct Scaler {
    /// For each supervisor, the workers that it needed within [`CALM`], and when.
    needed: BTreeMap<String, Vec<(Instant, usize)>>,
}

impl Scaler {
    /// How many workers each supervisor should have.
    fn decide(
        &mut self,
        supervisors: &[SupervisorLoad],
        backlog: &BTreeMap<String, u64>,
        service: impl Fn(&str) -> Duration,
        now: Instant,
    ) -> Vec<(String, usize)> {
        self.needed.retain(|id, _| supervisors.iter().any(|place| place.id == *id));
        let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
        for (model, jobs) in backlog {
            let able: Vec<&SupervisorLoad> = supervisors.iter().filter(|place| place.models.contains(model)).collect();
            let workers = workers_for(*jobs, service(model));
            // Evenly; the first supervisors take the remainder.
            for (number, place) in able.iter().enumerate() {
                let share = workers / able.len() + usize::from(number < workers % able.len());
                *wanted.entry(&place.id).or_default() += share;
            }
        }
        let mut orders = Vec::new();
        for place in supervisors {
            let need = wanted.get(place.id.as_str()).copied().unwrap_or(0).clamp(place.scale.min, place.scale.max);
            let history = self.needed.entry(place.id.clone()).or_default();
            history.push((now, need));
            // A process that has just begun to decide does not know the recent need; the current workers
            // stand in for it.
            if history.len() == 1 {
                history[0].1 = need.max(place.scale.now.min(place.scale.max));
            }
            history.retain(|(at, _)| now.saturating_duration_since(*at) < CALM);
            let most = history.iter().map(|(_, need)| *need).max().unwrap_or(need);
            orders.push((place.id.clone(), most.max(need)));
        }
        orders
    }
}

/// Workers needed to work off this many jobs within the goal.
fn workers_for(jobs: u64, service: Duration) -> usize {
    let seconds = jobs as f64 * service.as_secs_f64() / DRAIN_GOAL.as_secs_f64();
    if jobs == 0 { 0 } else { (seconds.ceil() as usize).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: &str, min: usize, max: usize, now: usize) -> SupervisorLoad {
        SupervisorLoad { id: id.into(), models: vec!["cats".into()], scale: Scale { min, max, now } }
    }

    fn decide(scaler: &mut Scaler, places: &[SupervisorLoad], jobs: u64, now: Instant) -> Vec<usize> {
        let backlog = BTreeMap::from([("cats".to_owned(), jobs)]);
        let service = |_: &str| Duration::from_millis(100);
        scaler.decide(places, &backlog, service, now).into_iter().map(|(_, workers)| workers).collect()
    }

    #[test]
    fn a_backlog_brings_workers_at_once_and_calm_takes_them_after_a_while() {
        let (mut scaler, start) = (Scaler::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let places = [place("a", 0, 8, 0)];
        assert_eq!(decide(&mut scaler, &places, 0, after(0)), [0]);
        assert_eq!(decide(&mut scaler, &places, 1, after(1)), [1], "one job is enough to leave zero");
        assert_eq!(decide(&mut scaler, &places, 400, after(2)), [4], "40 s of work in 10 s");
        assert_eq!(decide(&mut scaler, &places, 100_000, after(3)), [8]);
        for second in 4..33 {
            assert_eq!(decide(&mut scaler, &places, 0, after(second)), [8], "at {second} s");
        }
        assert_eq!(decide(&mut scaler, &places, 0, after(33)), [0]);
    }

    #[test]
    fn a_load_that_comes_and_goes_does_not_start_and_stop_workers() {
        let (mut scaler, start) = (Scaler::default(), Instant::now());
        let places = [place("a", 1, 4, 1)];
        let counts: Vec<usize> = (0..120)
            .map(|second| {
                let jobs = if second % 20 < 3 { 300 } else { 0 };
                decide(&mut scaler, &places, jobs, start + Duration::from_secs(second))[0]
            })
            .collect();
        let changes = counts.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!((counts[0], changes), (3, 0), "{counts:?}");
    }

    #[test]
    fn machines_share_the_work_and_a_new_decider_stops_no_worker() {
        let (mut scaler, start) = (Scaler::default(), Instant::now());
        let places = [place("a", 0, 8, 5), place("b", 1, 2, 1)];
        assert_eq!(decide(&mut scaler, &places, 100, start), [5, 1]);
        assert_eq!(decide(&mut scaler, &places, 700, start + Duration::from_secs(31)), [4, 2]);
    }
}
