//! `sightline drill`: starts a whole system in a folder of its own, puts load on it, kills parts of
//! it, and counts what that cost.

mod load;
mod stack;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use queue::client::{Address, Problem};
use queue::topic::Defaults;
use queue::{JobId, Queue};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde::Serialize;

use crate::config::{DrillArgs, Victim};
use crate::output::{note, outln};
use crate::setup::Models;
use load::Load;
use stack::Stack;

/// Pause between two faults, at least and at most.
const FAULT_PAUSE: (u64, u64) = (300, 1_500);
/// How long the system may take to recover from a fault.
const HEAL_PATIENCE: Duration = Duration::from_secs(90);
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The result of a drill.
#[derive(Debug, Serialize)]
struct Report {
    engine: String,
    kill: String,
    faults: usize,
    accepted: usize,
    succeeded: usize,
    failed: usize,
    /// Accepted jobs that are unknown now.
    lost: usize,
    /// Jobs with two results, or with one that changed.
    duplicated: usize,
    /// Jobs that did not end, or whose end is incomplete.
    stuck: usize,
    /// The longest time in which no upload was accepted, seconds.
    longest_pause_seconds: f64,
    /// All pauses of at least one second, so that medians and the like need no field of their own.
    pauses_seconds: Vec<f64>,
    seconds: f64,
}

/// Runs the drill. Exits with 1 if a job was lost, duplicated or stuck.
pub(crate) async fn run(args: DrillArgs) -> anyhow::Result<ExitCode> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let models = Models::open(&args.models)?;
    let models = tokio::task::spawn_blocking(move || models.fetch().map(|()| models)).await??;
    let model = models.names.first().context("no model")?.clone();
    let mut stack = Stack::start(&args, models, &model).await?;
    note!("a test system runs in {}; starting load", stack.folder().display());
    let started = Instant::now();
    let load = Load::start(stack.api(), &model, args.in_flight.get());
    load.wait_for_first().await?;
    let mut random = StdRng::seed_from_u64(args.seed);
    for number in 1..=args.times {
        tokio::time::sleep(Duration::from_millis(random.random_range(FAULT_PAUSE.0..FAULT_PAUSE.1))).await;
        let pauses = args.pause && number % 2 == 0;
        let what = fault(&mut stack, &args, pauses, &mut random).await?;
        note!("{number} of {}: {what}", args.times);
        heal(&stack).await?;
    }
    // A little more load, to see that the system continues.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (accepted, pauses) = load.stop().await;
    let report = count(&stack, &args, &accepted, &pauses, started).await?;
    stack.end().await;
    show(&report, args.json)?;
    let clean = report.lost == 0 && report.duplicated == 0 && report.stuck == 0;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Causes one fault, and returns what it was.
async fn fault(stack: &mut Stack, args: &DrillArgs, pauses: bool, random: &mut StdRng) -> anyhow::Result<String> {
    let beyond_lease = args.lease + Duration::from_secs(1);
    match (args.kill, pauses) {
        (Victim::Broker, true) => {
            let number = random.random_range(0..stack.brokers());
            stack.signal_broker(number, Signal::STOP);
            tokio::time::sleep(beyond_lease).await;
            stack.signal_broker(number, Signal::CONT);
            Ok(format!("queue server {} was paused for {beyond_lease:?}", number + 1))
        }
        (Victim::Broker, false) => {
            let number = random.random_range(0..stack.brokers());
            stack.signal_broker(number, Signal::KILL);
            stack.restart_broker(number).await?;
            Ok(format!("queue server {} was killed and started again", number + 1))
        }
        (Victim::Worker, pauses) => {
            let workers = stack.workers().await?;
            let victim = workers[random.random_range(0..workers.len())];
            if pauses {
                stack::signal(victim, Signal::STOP);
                tokio::time::sleep(beyond_lease).await;
                stack::signal(victim, Signal::CONT);
                return Ok(format!("worker {victim} was paused for {beyond_lease:?}"));
            }
            stack::signal(victim, Signal::KILL);
            Ok(format!("worker {victim} was killed"))
        }
        (Victim::All, _) => {
            stack.kill_all().await?;
            Ok("everything was killed and started again".into())
        }
    }
}

/// Waits until the system has recovered: all copies current, all workers ready.
async fn heal(stack: &Stack) -> anyhow::Result<()> {
    let deadline = Instant::now() + HEAL_PATIENCE;
    while let Err(problem) = stack.must_be_whole().await {
        if Instant::now() > deadline {
            return Err(problem.context("the system did not recover"));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

async fn count(
    stack: &Stack,
    args: &DrillArgs,
    accepted: &[JobId],
    pauses: &[Duration],
    started: Instant,
) -> anyhow::Result<Report> {
    note!("load ended; {} jobs accepted, waiting for them to end", accepted.len());
    let mut ends = load::ends(stack.api(), accepted).await;
    // The same check again, from the queue's side.
    let queue = Queue::connect(&Address::parse(&stack.queue_url())?, "sightline drill", Defaults::default()).await?;
    for topic in queue.topics().await? {
        for wrong in queue.admin.audit(topic.name(), accepted).await?.wrong {
            note!("{}: {:?}", wrong.id, wrong.problem);
            match wrong.problem {
                Problem::Unknown => ends.lost.insert(wrong.id),
                Problem::InputGone | Problem::NotSettled | Problem::NoDeadLetter | Problem::Unreadable => {
                    ends.stuck.insert(wrong.id)
                }
            };
        }
    }
    let report = Report {
        engine: format!("{:?}", args.engine).to_lowercase(),
        kill: format!("{:?}", args.kill).to_lowercase(),
        faults: args.times,
        accepted: accepted.len(),
        succeeded: ends.succeeded,
        failed: ends.failed,
        lost: ends.lost.len(),
        duplicated: ends.duplicated,
        stuck: ends.stuck.len(),
        longest_pause_seconds: pauses.iter().max().map_or(0.0, Duration::as_secs_f64),
        pauses_seconds: pauses
            .iter()
            .filter(|p| p.as_secs() >= 1)
            .map(|p| (p.as_secs_f64() * 10.0).round() / 10.0)
            .collect(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(report)
}

fn show(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    outln!("engine         {}", report.engine);
    outln!("faults         {} ({})", report.faults, report.kill);
    outln!("accepted       {}", report.accepted);
    outln!("succeeded      {}", report.succeeded);
    outln!("failed         {}", report.failed);
    outln!("lost           {}", report.lost);
    outln!("duplicated     {}", report.duplicated);
    outln!("stuck          {}", report.stuck);
    outln!("longest pause  {:.1} s", report.longest_pause_seconds);
    outln!("took           {:.0} s", report.seconds);
    Ok(())
}
