//! `sightline worker`: the model-running role alone, in this process or in several children.

use std::process::ExitCode;

use ::worker::report::Reporter;
use queue::Queue;
use queue::topic::Defaults;

use crate::config::{LogArgs, WorkerArgs};
use crate::setup::Models;
use crate::supervisor::{Supervisor, WorkerCommand};
use crate::{data, stop};

/// Works until told to stop.
pub(crate) async fn run(args: WorkerArgs, log: &LogArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    if args.supervised {
        stop::with_supervisor(&stop);
    }
    let models = Models::open(&args.models)?;
    let address = data::queue_address(&args.queue)?;
    let queue = Queue::connect(&address, "sightline worker", Defaults::default()).await?;
    let models = tokio::task::spawn_blocking(move || models.fetch().map(|()| models)).await??;
    if args.processes.get() > 1 && !args.supervised {
        return supervise(&args, &models, queue, log, &stop).await;
    }
    let reporter = if args.supervised { Reporter::to_supervisor() } else { Reporter::silent() };
    if !args.supervised {
        println!("worker on {address}: {}", models.names.join(", "));
    }
    let runtime = models.runtime()?;
    let Models { repository, names, cache, .. } = models;
    let threads = args.threads.get();
    let config = ::worker::Config { repository, cache, models: names, runtime, threads, reporter };
    ::worker::run(config, queue, stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn supervise(
    args: &WorkerArgs,
    models: &Models,
    queue: Queue,
    log: &LogArgs,
    stop: &tokio_util::sync::CancellationToken,
) -> anyhow::Result<ExitCode> {
    let data = &args.queue.data.data;
    let command = WorkerCommand::new(models, args.threads, data, args.queue.queue.as_deref(), log)?;
    let count = args.processes.get();
    let mut supervisor = Supervisor::start(&command, count, &queue);
    let ready = tokio::select! {
        ready = supervisor.wait_until_ready(count) => ready,
        () = stop.cancelled() => Ok(()),
    };
    if ready.is_ok() {
        println!("{count} workers: {}", models.names.join(", "));
        stop.cancelled().await;
    }
    supervisor.end().await;
    queue.flush().await;
    ready.map(|()| ExitCode::SUCCESS)
}
