//! `sightline worker`: the model-running role alone, in this process or in several children.

use std::process::ExitCode;

use ::worker::report::Reporter;
use queue::Queue;
use queue::topic::Defaults;

use crate::config::{LogArgs, WorkerArgs, Workers};
use crate::output::announce;
use crate::setup::Models;
use crate::supervisor::{Supervisor, WorkerCommand};
use crate::{autoscale, data, stop};

/// Works until stopped.
pub(crate) async fn run(args: WorkerArgs, log: &LogArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    stop::in_time(&stop);
    if args.supervised {
        stop::with_supervisor(&stop);
    }
    let models = Models::open(&args.models)?;
    let address = data::queue_address(&args.queue)?;
    let queue = Queue::connect(&address, "sightline worker", Defaults::default()).await?;
    let models = tokio::task::spawn_blocking(move || models.fetch().map(|()| models)).await??;
    if args.processes != Workers::fixed(1) && !args.supervised {
        return supervise(&args, &models, queue, log, &stop).await;
    }
    let reporter = if args.supervised { Reporter::to_supervisor() } else { Reporter::silent() };
    if !args.supervised {
        announce!("worker on {address}: {}", models.names.join(", "));
    }
    let runtime = models.runtime()?;
    let Models { repository, names, cache, .. } = models;
    let threads = args.threads.get();
    let config = ::worker::Config { repository, cache, models: names, runtime, threads, reporter };
    ::worker::run(config, queue.work, stop).await?;
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
    let workers = args.processes;
    let mut supervisor = Supervisor::start(&command, workers.min, &queue);
    let ready = tokio::select! {
        ready = supervisor.wait_until_ready(workers.min) => ready,
        () = stop.cancelled() => Ok(()),
    };
    let result = match ready {
        Ok(()) => {
            announce!("{workers} workers: {}", models.names.join(", "));
            autoscale::run(&mut supervisor, workers, &models.names, &queue, stop).await
        }
        failed => failed,
    };
    supervisor.end().await;
    queue.flush().await;
    result.map(|()| ExitCode::SUCCESS)
}
