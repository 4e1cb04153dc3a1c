//! `sightline up`: everything on one machine.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use queue::Queue;
use queue::client::Address;

use crate::config::{EngineKind, LogArgs, UpArgs};
use crate::data::DataDir;
use crate::nats::NatsServer;
use crate::setup::{self, Models};
use crate::stop;
use crate::supervisor::{Supervisor, WorkerCommand};

/// Starts everything, waits to be told to stop, and stops it in the opposite order.
pub(crate) async fn run(args: UpArgs, log: &LogArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    if args.supervised {
        stop::with_supervisor(&stop);
    }
    // What may be wrong on our side first, so that it is said before anything is fetched.
    let models = Models::open(&args.models)?;
    let listener = setup::bind(&args.http).await?;
    let data = DataDir::open(&args.data)?;
    let models = tokio::task::spawn_blocking(move || models.fetch().map(|()| Arc::new(models))).await??;

    let server = match (&args.queue, args.engine) {
        (Some(_), _) => None,
        (None, EngineKind::Nats) => {
            let fetching = models.clone();
            let program = tokio::task::spawn_blocking(move || fetching.nats_server()).await??;
            Some(NatsServer::start(&data, program, args.broker_listen).await?)
        }
    };
    let result = serve(&args, &data, &models, listener, server.as_ref(), log, &stop).await;
    if let Some(server) = server {
        server.end().await;
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Everything between the queue's start and its end.
async fn serve(
    args: &UpArgs,
    data: &DataDir,
    models: &Models,
    listener: tokio::net::TcpListener,
    server: Option<&NatsServer>,
    log: &LogArgs,
    stop: &tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let address = match (&args.queue, server) {
        (Some(url), _) => Address::parse(url)?,
        (None, Some(server)) => server.address().clone(),
        (None, None) => anyhow::bail!("there is no queue"),
    };
    let disk = server.map(|_| data.path());
    let defaults = setup::topic_defaults(&args.topics, models.repository.iter().count(), disk)?;
    let queue = Queue::connect(&address, "sightline up", defaults).await?;
    let config = setup::http_config(&args.http, queue.max_payload());
    let api = listener.local_addr().context("find the API's own address")?;
    data.announce(&address, &format!("http://{api}"))?;

    let workers = args.workers.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let command = WorkerCommand::new(models, args.threads, data.path(), args.queue.as_deref(), log)?;
    let mut supervisor = Supervisor::start(&command, workers, &queue);
    let serving = tokio::spawn(::api::serve(config, models.repository.clone(), queue.clone(), listener, stop.clone()));
    let ready = tokio::select! {
        ready = supervisor.wait_until_ready(workers) => ready,
        () = stop.cancelled() => Ok(()),
    };
    if ready.is_ok() && !stop.is_cancelled() {
        print!("{}", screen(args, data, models, &address, api, workers));
        stop.cancelled().await;
        eprintln!("stopping: requests end, workers finish and hand back");
    }
    stop.cancel();
    serving.await.context("the API failed")?;
    supervisor.end().await;
    queue.flush().await;
    ready
}

/// What was started, where its data is, and what to try next.
fn screen(
    args: &UpArgs,
    data: &DataDir,
    models: &Models,
    queue: &Address,
    api: std::net::SocketAddr,
    workers: usize,
) -> String {
    let kind = if args.queue.is_some() { "" } else { " (nats-server; every acknowledgement is on disk)" };
    let threads = args.threads;
    let example = "tests/photos/coffee.png";
    let image = if Path::new(example).exists() { example } else { "photo.jpg" };
    let first = models.names.first().map_or("efficientnet-lite0", String::as_str);
    let port = api.port();
    // As the user called it: it need not be on the path.
    let program = std::env::args().next().unwrap_or_else(|| "sightline".into());
    format!(
        "\nSightline {} is ready.\n\n  \
         API      http://{api}\n  \
         queue    {queue}{kind}\n  \
         workers  {workers} processes of {threads} thread each: {}\n  \
         data     {}\n  \
         cache    {}\n\n\
         Try in another terminal:\n  \
         curl --data-binary @{image} 'localhost:{port}/v1/jobs?model={first}' -H 'Prefer: wait=10'\n  \
         {program} submit FOLDER --model {first} --out results.ndjson\n  \
         {program} members\n\n\
         Ctrl-C stops everything; what was accepted stays in the data folder.\n",
        env!("CARGO_PKG_VERSION"),
        models.names.join(", "),
        data.path().display(),
        models.cache.root().display(),
    )
}
