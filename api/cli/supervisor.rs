//! Worker processes: started, watched, restarted, ended.
//!
//! A worker that dies is replaced after a pause that grows while it keeps dying. Its reports show which jobs it held,
//! and these are returned at once: waiting for the leases to expire would cost half a minute.

use std::collections::HashMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::worker::report::Report;
use anyhow::{Context, anyhow};
use clap::ValueEnum;
use futures::FutureExt;
use queue::client::AckSubject;
use queue::members::{Announcement, Role};
use queue::tasks::words_of;
use queue::{JobId, PartitionId, Queue};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::LogArgs;
use crate::setup::Models;

/// How long a worker may take to finish and return its jobs; after three seconds it gives up its run.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// First and longest pause before a dead child is replaced.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A child that ran for this long counts as well started; the pauses begin anew.
const GOOD_RUN: Duration = Duration::from_secs(30);
/// Pause before a job is retried after its worker died while running it, and the growth of that pause with each further
/// death. One death may be bad luck; after two the job is likely the cause, and other jobs run first.
const CRASH_PAUSE: Duration = Duration::from_secs(1);
const CRASH_PAUSE_GROWTH: u32 = 8;
const CRASH_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Workers that load their models at the same time; loading takes a core each.
const LOADING_MAX: usize = 4;

/// Growing pauses between restarts.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// The pause after a child that has done its work: none.
    pub(crate) fn reset(&mut self) -> Duration {
        self.deaths = 0;
        Duration::ZERO
    }

    /// The pause after a child that ran for `lived`.
    pub(crate) fn next(&mut self, lived: Duration) -> Duration {
        self.deaths = if lived >= GOOD_RUN { 0 } else { self.deaths };
        let pause = PAUSE_FIRST.saturating_mul(1 << self.deaths.min(16)).min(PAUSE_MAX);
        self.deaths += 1;
        pause
    }
}

/// How to start a worker process, any number of times.
#[derive(Debug, Clone)]
pub(crate) struct WorkerCommand {
    /// What follows `sightline worker --supervised`.
    arguments: Vec<OsString>,
    /// What must not appear in the process list: the queue's address may hold a token.
    environment: Vec<(&'static str, String)>,
}

impl WorkerCommand {
    /// Workers like this process: same models, same log. `queue` is `None` if they find the queue through
    /// the data folder.
    pub(crate) fn new(
        models: &Models,
        threads: NonZeroUsize,
        data: &Path,
        queue: Option<&str>,
        log: &LogArgs,
    ) -> anyhow::Result<Self> {
        let mut arguments: Vec<OsString> = vec!["--threads".into(), threads.to_string().into()];
        // Overrides the environment: a child that read SIGHTLINE_PROCESSES would have children too.
        arguments.extend(["--processes".into(), "1".into()]);
        arguments.extend(["--data".into(), data.into()]);
        arguments.extend(["--cache".into(), models.cache.root().into()]);
        arguments.extend(["--ort".into(), models.runtime()?.into()]);
        arguments.extend(["--log".into(), log.log.clone().into()]);
        let format = log.log_format.to_possible_value().context("every log format has a name")?;
        arguments.extend(["--log-format".into(), format.get_name().into()]);
        if !models.selection.is_empty() {
            arguments.extend(["--models".into(), models.selection.join(",").into()]);
        }
        let environment = queue.iter().map(|url| ("SIGHTLINE_QUEUE", (*url).to_owned())).collect();
        Ok(Self { arguments, environment })
    }
}

/// The worker processes of one supervisor.
pub(crate) struct Supervisor {
    command: WorkerCommand,
    queue: Queue,
    keepers: JoinSet<()>,
    /// The token that ends each wanted worker, oldest first.
    wanted: Vec<CancellationToken>,
    progress: Arc<watch::Sender<Progress>>,
    ready: watch::Receiver<Progress>,
    loading: Arc<Semaphore>,
}

/// Progress of the first start.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    ready: usize,
    /// A worker died before it was ready for the first time.
    failed: bool,
}

impl Supervisor {
    /// Starts `count` workers and keeps them running.
    pub(crate) fn start(command: &WorkerCommand, count: usize, queue: &Queue) -> Self {
        let (progress, ready) = watch::channel(Progress::default());
        let mut supervisor = Self {
            command: command.clone(),
            queue: queue.clone(),
            keepers: JoinSet::new(),
            wanted: Vec::new(),
            progress: Arc::new(progress),
            ready,
            loading: Arc::new(Semaphore::new(LOADING_MAX)),
        };
        supervisor.scale(count);
        supervisor
    }

    /// How many workers should run.
    pub(crate) fn count(&self) -> usize {
        self.wanted.len()
    }

    /// Starts more workers, or ends the youngest in order.
    pub(crate) fn scale(&mut self, count: usize) {
        self.wanted.drain(count.min(self.wanted.len())..).for_each(|surplus| surplus.cancel());
        // Remove keepers that have ended, so that the set does not grow.
        while self.keepers.try_join_next().is_some() {}
        while self.wanted.len() < count {
            let stop = CancellationToken::new();
            self.wanted.push(stop.clone());
            let keeper = Keeper {
                command: self.command.clone(),
                queue: self.queue.clone(),
                stop,
                progress: self.progress.clone(),
                loading: self.loading.clone(),
            };
            self.keepers.spawn(keeper.run());
        }
    }

    /// Waits until all workers have been ready once.
    pub(crate) async fn wait_until_ready(&mut self, count: usize) -> anyhow::Result<()> {
        let progress = *self.ready.wait_for(|p| p.ready >= count || p.failed).await.context("no worker is left")?;
        anyhow::ensure!(!progress.failed, "a worker could not start; see its error above");
        Ok(())
    }

    /// Ends all workers in order; those that take too long are killed.
    pub(crate) async fn end(mut self) {
        self.scale(0);
        while self.keepers.join_next().await.is_some() {}
    }
}

/// Keeps one worker running.
struct Keeper {
    command: WorkerCommand,
    queue: Queue,
    stop: CancellationToken,
    progress: Arc<watch::Sender<Progress>>,
    loading: Arc<Semaphore>,
}

impl Keeper {
    async fn run(self) {
        let mut backoff = Backoff::default();
        let mut was_ready = false;
        loop {
            let started = Instant::now();
            let mut held = HeldJobs::default();
            // A panic of ours must not leave a worker unwatched: it counts as the worker's death.
            let life = AssertUnwindSafe(self.live(&mut held, &mut was_ready)).catch_unwind().await;
            let life =
                life.unwrap_or_else(|panic| Err(anyhow!("its supervisor panicked: {}", words_of(panic.as_ref()))));
            match life {
                Ok(_) if self.stop.is_cancelled() => {}
                Ok(status) => tracing::error!(%status, "worker died; starting another"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "worker not started"),
            }
            // A worker that has settled jobs is able to start: a job or a signal killed it.
            let pause = if held.settled > 0 { backoff.reset() } else { backoff.next(started.elapsed()) };
            if let Some(member) = held.member.take() {
                self.queue.announce_gone(Announcement { id: member, ..Announcement::new(Role::Worker, &[]) }).await;
            }
            held.hand_back(&self.queue).await;
            if !was_ready {
                self.progress.send_modify(|progress| progress.failed = true);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    /// One life of one worker process.
    async fn live(&self, held: &mut HeldJobs, was_ready: &mut bool) -> anyhow::Result<ExitStatus> {
        let mut loading = self.loading.clone().acquire_owned().await.ok();
        let mut child = self.spawn()?;
        let stdout = child.stdout.take().context("the worker has no output")?;
        // Held here, because waiting for a child closes its standard input first, and a worker
        // whose input closes assumes that its supervisor has died.
        let _pipe = child.stdin.take();
        let mut reports = BufReader::new(stdout).lines();
        loop {
            tokio::select! {
                report = next_report(&mut reports) => match report {
                    Some(Report::Ready { member }) => {
                        tracing::info!(%member, "worker ready");
                        held.member = Some(member);
                        loading = None;
                        if !std::mem::replace(was_ready, true) {
                            self.progress.send_modify(|progress| progress.ready += 1);
                        }
                    }
                    Some(report) => held.hear(report),
                    // Its output closes when it ends.
                    None => break,
                },
                () = self.stop.cancelled() => {
                    drop(loading.take());
                    // Keep reading its reports, or it would block on a full pipe.
                    let listening = async { while let Some(report) = next_report(&mut reports).await { held.hear(report) } };
                    let ending = end(&mut child, Signal::TERM, DRAIN_PATIENCE);
                    tokio::select! {
                        () = ending => {}
                        () = async { listening.await; std::future::pending().await } => {}
                    }
                    break;
                }
            }
        }
        child.wait().await.context("wait for a worker")
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        this_program()?
            .arg("worker")
            .arg("--supervised")
            .args(&self.command.arguments)
            .envs(self.command.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A group of its own, so that Ctrl-C in the terminal reaches only the supervisor.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("start a worker")
    }
}

/// A command that runs this same program, even after a newer build replaced its file.
pub(crate) fn this_program() -> anyhow::Result<Command> {
    if cfg!(target_os = "linux") {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("sightline");
        return Ok(command);
    }
    Ok(Command::new(std::env::current_exe().context("find this program")?))
}

async fn next_report(lines: &mut tokio::io::Lines<BufReader<ChildStdout>>) -> Option<Report> {
    loop {
        match lines.next_line().await {
            Ok(Some(line)) => match serde_json::from_str(&line) {
                Ok(report) => return Some(report),
                Err(_) => tracing::warn!(line, "unexpected line from a worker"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                tracing::warn!("line from a worker is not UTF-8");
            }
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The jobs that a worker holds, by its reports.
#[derive(Debug, Default)]
struct HeldJobs {
    jobs: HashMap<JobId, HeldJob>,
    /// The worker's member id.
    member: Option<String>,
    /// Jobs that it has settled. If there are any, the worker is able to start.
    settled: usize,
}

#[derive(Debug)]
struct HeldJob {
    partition: PartitionId,
    ack_subject: AckSubject,
    lease: Duration,
    renewed: Instant,
    /// 0 until the job begins to run.
    attempt: u32,
}

impl HeldJobs {
    fn hear(&mut self, report: Report) {
        match report {
            Report::Took { job, partition, ack_subject, lease_ms } => {
                let lease = Duration::from_millis(lease_ms);
                self.jobs.insert(job, HeldJob { partition, ack_subject, lease, renewed: Instant::now(), attempt: 0 });
            }
            Report::Running { job, attempt } => {
                self.jobs.entry(job).and_modify(|held| held.attempt = attempt);
            }
            // If the worker dies now, this job is not the cause.
            Report::Ended { job } => {
                self.jobs.entry(job).and_modify(|held| held.attempt = 0);
            }
            Report::Renewed { job } => {
                self.jobs.entry(job).and_modify(|held| held.renewed = Instant::now());
            }
            Report::Settled { job } => {
                self.jobs.remove(&job);
                self.settled += 1;
            }
            Report::Ready { .. } => {}
        }
    }

    /// Returns a dead worker's jobs to the queue. Its process has ended, so it cannot settle them any more; jobs whose
    /// lease has expired may be on another worker and are left alone.
    async fn hand_back(self, queue: &Queue) {
        for (job, held) in self.jobs {
            if held.renewed.elapsed() >= held.lease {
                continue;
            }
            // A job that was running may have killed the worker.
            let delay = crash_pause(held.attempt);
            match queue.work.nak_for(&job, held.partition, &held.ack_subject, delay).await {
                Ok(()) => {
                    tracing::warn!(job_id = %job, attempt = held.attempt, "job of a dead worker returned to the queue");
                }
                Err(error) => tracing::warn!(job_id = %job, %error, "job not returned; its lease will expire"),
            }
        }
    }
}

/// The pause before a job is retried after its worker died in this attempt; none if the job had not begun.
fn crash_pause(attempt: u32) -> Duration {
    let growth = CRASH_PAUSE_GROWTH.saturating_pow(attempt.saturating_sub(1));
    if attempt == 0 { Duration::ZERO } else { CRASH_PAUSE.saturating_mul(growth).min(CRASH_PAUSE_MAX) }
}

/// Sends a signal, waits, and kills the child if it does not end.
pub(crate) async fn end(child: &mut Child, signal: Signal, patience: Duration) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "child process has already exited");
    }
    wait_or_kill(child, patience).await;
}

/// Kills the remaining processes of a child's group.
pub(crate) fn kill_group(leader: Option<u32>) {
    signal_group(leader, Signal::KILL);
}

/// Sends a signal to all processes of the group that a child leads.
pub(crate) fn signal_group(leader: Option<u32>, signal: Signal) {
    if let Some(group) = leader.and_then(|id| Pid::from_raw(id.cast_signed()))
        && kill_process_group(group, signal).is_ok()
    {
        tracing::debug!(group = group.as_raw_nonzero(), ?signal, "process group signaled");
    }
}

/// Waits for a child to end, and kills it if it takes too long.
pub(crate) async fn wait_or_kill(child: &mut Child, patience: Duration) {
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        tracing::warn!(pid = child.id(), "child process did not exit in time; killing it");
        if let Err(error) = child.kill().await {
            tracing::error!(%error, "child process cannot be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_a_child_keeps_dying_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..8).map(|_| backoff.next(short).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.next(Duration::from_secs(31)), PAUSE_FIRST);
        assert_eq!((backoff.reset(), backoff.next(short)), (Duration::ZERO, PAUSE_FIRST));
    }

    #[test]
    fn a_job_that_keeps_killing_its_workers_waits_longer_each_time() {
        assert_eq!([0, 1, 2, 3, 4, 99].map(|attempt| crash_pause(attempt).as_secs()), [0, 1, 8, 64, 300, 300]);
    }

    #[test]
    fn what_is_in_hand_follows_the_reports() {
        let hear = |held: &mut HeldJobs, json: String| held.hear(serde_json::from_str(&json).expect("a report"));
        let job = |n: u8| format!("cats.0199d2a4-0000-7000-8000-00000000000{n}");
        let mut held = HeldJobs::default();
        for n in [1, 2] {
            let took = r#"{"event":"took","job":"J","partition":"0","ack_subject":"a","lease_ms":1000}"#;
            hear(&mut held, took.replace('J', &job(n)));
        }
        hear(&mut held, format!(r#"{{"event":"running","job":"{}","attempt":3}}"#, job(1)));
        hear(&mut held, format!(r#"{{"event":"settled","job":"{}"}}"#, job(2)));
        let left: Vec<(String, u32)> = held.jobs.iter().map(|(id, held)| (id.to_string(), held.attempt)).collect();
        assert_eq!(left, [(job(1), 3)]);
    }
}
