//! A worker process: start, take jobs until stopped, finish, end.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use models::{Cache, Repository};
use queue::members::{Idle, MemberState};
use queue::tasks::Tasks;
use queue::{QueueError, WorkerQueue};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::WorkerError;
use crate::engine::Engine;
use crate::execute::{InHand, JobContext};
use crate::intake::Intake;
use crate::peers::Peers;
use crate::report::{Report, Reporter};
use crate::runs::Runs;
use crate::status::Status;

/// How long to hold a job while another one is in the model. After that, another worker may run it sooner.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// How long a run may continue once the worker is stopped. Longer runs return to the queue and start anew elsewhere.
const LEAVE_AFTER: Duration = Duration::from_secs(3);

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where models are looked up.
    pub repository: Repository,
    /// Where their weights are.
    pub cache: Cache,
    /// Names of the models to serve, each in the repository.
    pub models: Vec<String>,
    /// The ONNX Runtime library.
    pub runtime: PathBuf,
    /// Threads inside one operator.
    pub threads: usize,
    /// Reports the jobs that the worker holds.
    pub reporter: Reporter,
}

/// Works until `stop`, then takes no more jobs, hands back those that have not begun and finishes the others.
///
/// # Errors
/// [`WorkerError`] if the worker cannot start, or must end because a run is stuck.
pub async fn run(config: Config, queue: WorkerQueue, stop: CancellationToken) -> Result<(), WorkerError> {
    let status = Status::new(&config.models);
    let member = status.snapshot().id;
    // These end with this function: a worker that has ended must not keep announcing itself.
    let (tasks, runs) = (Tasks::default(), Runs::default());
    let announcing = tasks.keep("announcements", {
        let (queue, status) = (queue.clone(), status.clone());
        move || announce(queue.clone(), status.clone())
    });
    let canceling = tasks.keep("cancels", {
        let (queue, runs) = (queue.clone(), runs.clone());
        move || runs.clone().keep(queue.clone())
    });
    let engine = Engine::start(config.repository, config.cache, config.models, config.runtime, config.threads).await?;
    let models = engine.models();
    status.update(|member| {
        member.models = models.clone();
        member.files = engine.files().to_vec();
    });
    let start = member.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let idle = Idle { member: member.clone(), models: models.clone() };
    let mut intake = Intake::new(queue.clone(), idle, start).await?;
    let (reporter, settling) = (config.reporter, Arc::new(Semaphore::new(1)));
    let bench = JobContext {
        queue: queue.clone(),
        engine,
        member: member.clone(),
        status: status.clone(),
        reporter,
        settling,
        arriving: Arc::default(),
        runs: runs.clone(),
        leaving: CancellationToken::new(),
    };
    let leaving = tokio_util::task::AbortOnDropHandle::new({
        let (stop, leaving) = (stop.clone(), bench.leaving.clone());
        tokio::spawn(async move {
            stop.cancelled().await;
            tokio::time::sleep(LEAVE_AFTER).await;
            leaving.cancel();
        })
    });
    status.update(|member| member.state = MemberState::Ready);
    queue.announce(&status.snapshot()).await;
    reporter.send(&Report::Ready { member: member.clone() });
    tracing::info!(%member, models = models.join(","), "worker ready");

    let result = take_jobs(&mut intake, &bench, &stop).await;
    drop((announcing, canceling, leaving));
    queue.announce_gone(status.snapshot()).await;
    queue.flush().await;
    tracing::info!(%member, "worker ends");
    result
}

async fn take_jobs(intake: &mut Intake, bench: &JobContext, stop: &CancellationToken) -> Result<(), WorkerError> {
    let (slot, mut peers) = (Arc::new(Semaphore::new(1)), Peers::default());
    let failure = Arc::new(Mutex::new(None));
    // Canceled when the worker is stopped, or by a job that leaves it unfit for the next one.
    let halt = stop.child_token();
    let mut jobs = JoinSet::new();
    let mut idle = bench.queue.idle_workers().await?;
    while let Some((delivery, topic, arrival)) = intake.next(&halt, &bench.arriving).await {
        let mut job = InHand::new(delivery, topic, bench);
        drop(arrival);
        job.look(bench).await;
        if let Some(promised) = job.is_for_others(bench) {
            let pause = job.pause();
            if peers.can_run(&bench.queue, &promised).await {
                intake.avoid(job.place(), pause);
            }
            job.postpone(pause).await;
            continue;
        }
        intake.suits(&job.place());
        // Ignore workers that were idle before this job was taken: they had their chance.
        while idle.next().now_or_never().flatten().is_some() {}
        let permit = tokio::select! {
            biased;
            () = halt.cancelled() => None,
            permit = slot.clone().acquire_owned() => permit.ok(),
            () = a_worker_is_idle(&mut idle, &job, bench) => None,
            () = tokio::time::sleep(HOLD_MAX) => None,
        };
        let Some(permit) = permit else {
            job.hand_back().await;
            // A long run is in the model: ask for no job until it ends.
            tokio::select! {
                () = halt.cancelled() => {}
                free = slot.acquire() => drop(free),
            }
            continue;
        };
        // Remove the jobs that have ended, so that the set does not grow.
        while let Some(ended) = jobs.try_join_next() {
            note_panic(ended);
        }
        let (bench, halt, failure) = (bench.clone(), halt.clone(), failure.clone());
        jobs.spawn(async move {
            if let Err(error) = job.execute(&bench, permit).await {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                halt.cancel();
            }
        });
    }
    bench.status.update(|member| member.state = MemberState::Draining);
    while let Some(ended) = jobs.join_next().await {
        note_panic(ended);
    }
    failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
}

/// A job whose handling panicked is redelivered when its lease expires.
fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "job dropped; it will be redelivered when its lease expires");
    }
}

/// Waits until another worker that could run this job is idle.
async fn a_worker_is_idle(idle: &mut (impl Stream<Item = Idle> + Unpin), job: &InHand, bench: &JobContext) {
    while let Some(worker) = idle.next().await {
        if worker.member != bench.member && job.is_for(&worker.models) {
            return;
        }
    }
    // The connection is closed for good.
    std::future::pending().await
}

async fn announce(queue: WorkerQueue, status: Status) -> Result<(), QueueError> {
    let mut due = queue.announcement_times().await?;
    loop {
        due.next().await;
        queue.announce(&status.snapshot()).await;
    }
}
