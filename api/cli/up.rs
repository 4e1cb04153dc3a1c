//! `sightline up`: everything on one machine.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use queue::Queue;

use crate::config::{LogArgs, UpArgs, Workers};
use crate::data::DataDir;
use crate::engine::Engine;
use crate::output::{announce, note};
use crate::setup::{self, Models};
use crate::supervisor::{Supervisor, WorkerCommand};
use crate::{autoscale, stop};

/// Starts everything, waits until stopped, and stops it all in reverse order.
pub(crate) async fn run(args: UpArgs, log: &LogArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    stop::in_time(&stop);
    if args.supervised {
        stop::with_supervisor(&stop);
    }
    // Check first what may be wrong on our side, so that it is reported before anything is fetched.
    let models = Models::open(&args.models)?;
    let listener = setup::bind(&args.http).await?;
    let data = DataDir::open(&args.data)?;
    let models = tokio::task::spawn_blocking(move || models.fetch().map(|()| Arc::new(models))).await??;

    let engine = Engine::start(&args, &data, &models).await?;
    let failed = {
        let serving = serve(&args, &data, &models, listener, &engine, log, &stop);
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => result,
            problem = engine.failure() => {
                // Without the queue, little can end in order, but what can gets the chance.
                stop.cancel();
                serving.await.and_then(|()| bail!("the queue has failed: {problem}"))
            }
        }
    };
    engine.end().await;
    failed.map(|()| ExitCode::SUCCESS)
}

/// Everything between the queue's start and its end.
async fn serve(
    args: &UpArgs,
    data: &DataDir,
    models: &Models,
    listener: tokio::net::TcpListener,
    engine: &Engine,
    log: &LogArgs,
    stop: &tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let address = engine.address();
    let defaults = setup::topic_defaults(&args.topics, engine.topic_bytes_max());
    let queue = Queue::connect(address, "sightline up", defaults).await?;
    let config = setup::http_config(&args.http, queue.max_payload(), data.path())?;
    let (connections_max, bodies_bytes_max) = engine.bounds_of_api();
    let config = ::api::Config { connections_max, bodies_bytes_max, ..config };
    if args.queue.is_some() {
        setup::check_queue(&queue, args.topics.replicas.get(), args.queue_monitor.as_deref()).await;
    }
    let index = setup::index(args.http.database.as_deref(), data.path()).await?;
    let guards = setup::check_listen(&args.http, &queue, &index, data.path()).await?;
    let api = listener.local_addr().context("find the API's own address")?;
    let api = setup::api_url(&args.http, api);
    data.announce(address, &api)?;

    let cores = || Workers::fixed(std::thread::available_parallelism().map_or(1, usize::from));
    let workers = args.workers.unwrap_or_else(cores);
    let command = WorkerCommand::new(models, args.threads, data.path(), args.queue.as_deref(), log)?;
    let mut supervisor = Supervisor::start(&command, workers.min, &queue);
    let repository = models.repository.clone();
    let mut serving = tokio::spawn(::api::serve(config, repository, queue.clone(), index, listener, stop.clone()));
    let working = async {
        tokio::select! {
            ready = supervisor.wait_until_ready(workers.min) => ready?,
            () = stop.cancelled() => return Ok(()),
        }
        announce!("{}", screen(args, data, models, engine, &asked(&api, guards.keys), workers));
        autoscale::run(&mut supervisor, workers, &models.names, &queue, stop).await
    };
    let mut served = None;
    let ready = tokio::select! {
        ready = working => ready,
        // The API ends before `stop` only if something is wrong with it.
        ended = &mut serving => {
            served = Some(ended);
            if stop.is_cancelled() { Ok(()) } else { Err(anyhow!("the API has stopped")) }
        }
        () = engine.keep_room(args, &queue, data.path(), models.names.len()) => Ok(()),
    };
    // In a thread of its own: a standard error that nothing reads must not delay the end.
    std::thread::spawn(|| note!("stopping: requests end, workers finish or return their jobs"));
    stop.cancel();
    let serving = async {
        match served {
            Some(ended) => ended,
            None => serving.await,
        }
    };
    // Both at once: a supervisor above us kills after ten seconds.
    let (served, ()) = tokio::join!(serving, supervisor.end());
    queue.flush().await;
    served.context("the API failed")?;
    ready
}

/// How to call the API.
struct Asked {
    /// Where it listens.
    url: String,
    /// The same, as short as curl accepts it.
    curl: String,
    /// What a request needs if keys exist. Our own commands read `SIGHTLINE_KEY` themselves.
    key: &'static str,
}

fn asked(url: &str, has_keys: bool) -> Asked {
    let (scheme, address) = url.split_once("://").unwrap_or(("http", url));
    let port = address.rsplit(':').next().unwrap_or_default();
    let is_here = |ip: std::net::IpAddr| ip.is_unspecified() || ip == std::net::Ipv4Addr::LOCALHOST;
    let is_local = address.parse::<std::net::SocketAddr>().is_ok_and(|address| is_here(address.ip()));
    let curl = match (scheme, is_local) {
        // A certificate is for a host name that only its owner knows.
        ("https", _) => format!("https://localhost:{port}"),
        (_, true) => format!("localhost:{port}"),
        _ => address.to_owned(),
    };
    let key = if has_keys { " -H \"Authorization: Bearer $SIGHTLINE_KEY\"" } else { "" };
    Asked { url: url.to_owned(), curl, key }
}

/// What was started, where its data is, and what to try next.
fn screen(args: &UpArgs, data: &DataDir, models: &Models, engine: &Engine, api: &Asked, workers: Workers) -> String {
    let (queue, kind) = (engine.address(), engine.kind());
    let threads = args.threads;
    let example = "tests/photos/coffee.png";
    let image = if Path::new(example).exists() { example } else { "photo.jpg" };
    let first = models.names.first().map_or("efficientnet-lite0", String::as_str);
    let Asked { url, curl, key } = api;
    let processes = if workers == Workers::fixed(1) { "process" } else { "processes" };
    let each = if threads.get() == 1 { "thread" } else { "threads" };
    // As the user called it: it need not be in `PATH`.
    let program = std::env::args().next().unwrap_or_else(|| "sightline".into());
    format!(
        "\nSightline {} is ready.\n\n  \
         API      {url}\n  \
         queue    {queue}{kind}\n  \
         workers  {workers} {processes} of {threads} {each} each: {}\n  \
         data     {}\n  \
         cache    {}\n\n\
         Try in another terminal:\n  \
         curl --data-binary @{image} '{curl}/v1/jobs?model={first}' -H 'Prefer: wait=10'{key}\n  \
         {program} submit FOLDER --model {first} --out results.ndjson\n  \
         {program} members\n\n\
         Ctrl-C stops everything; what was accepted stays in the data folder.\n",
        env!("CARGO_PKG_VERSION"),
        models.names.join(", "),
        data.path().display(),
        models.cache.root().display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_asks_the_address_that_listens() {
        let curl = |url: &str| asked(url, false).curl;
        assert_eq!(curl("http://127.0.0.1:8080"), "localhost:8080");
        assert_eq!(curl("http://0.0.0.0:8080"), "localhost:8080");
        assert_eq!(curl("http://192.0.2.1:8080"), "192.0.2.1:8080");
        assert_eq!(curl("http://[::1]:8080"), "[::1]:8080");
        assert_eq!(curl("https://192.0.2.1:8443"), "https://localhost:8443");
        assert!(asked("http://127.0.0.1:8080", true).key.contains("Bearer"));
    }
}
