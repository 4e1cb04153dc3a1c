//! `sightline bench pipeline`: what do durability, HTTP and processes cost on top of the bare work?
//!
//! The same images, model and number of threads, in alternating runs: a bare loop of decode, resize and model inside
//! this process, and everything from upload to result over HTTP through `sightline up` with every acknowledgement on
//! disk. The client of the second side runs on this machine too, and counts against the pipeline.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::worker::bare::Bare;
use ::worker::report::Reporter;
use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::{Program, Scratch, median};
use crate::config::BenchPipelineArgs;
use crate::output::{note, outln};
use crate::setup::Models;
use crate::submit::inputs;

const DEFAULT_IMAGES: &str = "tests/photos/*.jpg";
/// Clock ticks per second, in which Linux counts a process's time.
const TICKS: f64 = 100.0;

/// One side's figures of one run.
struct Run {
    per_second: f64,
    cpu_ms: Option<f64>,
}

/// Measures and prints.
pub(super) async fn run(args: BenchPipelineArgs) -> anyhow::Result<ExitCode> {
    let paths = if args.paths.is_empty() { vec![DEFAULT_IMAGES.to_owned()] } else { args.paths.clone() };
    let (files, _) = inputs::collect(&paths).context("find images; pass them as PATH")?;
    ensure!(!files.is_empty(), "no images in {}", paths.join(", "));
    let images: Result<Vec<Bytes>, _> = files.iter().map(|file| std::fs::read(file).map(Bytes::from)).collect();
    let images: Arc<[Bytes]> = images.context("read the images")?.into();
    let models = Models::open(&args.models)?;
    let models = tokio::task::spawn_blocking(move || models.fetch().map(|()| models)).await??;
    let model = models.names.first().context("no model")?.clone();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = args.workers.map_or(cores, usize::from);

    let config = ::worker::Config {
        repository: models.repository.clone(),
        cache: models.cache.clone(),
        models: vec![model.clone()],
        runtime: models.runtime()?,
        threads: 1,
        reporter: Reporter::silent(),
    };
    let bare = Bare::start(config, workers).await?;
    let scratch = Scratch::create(&std::env::current_dir()?)?;
    let pipeline = Pipeline::start(&args, &scratch, &models, &model, workers).await?;
    // Warm up: the first images of each side meet cold caches.
    let count = args.count.get();
    bare.run(&images, count / 10 + 1).await.map_err(|problem| anyhow!(problem))?;
    pipeline.run(&images, count / 10 + 1).await?;
    let (mut bares, mut pipelines) = (Vec::new(), Vec::new());
    for turn in 0..args.runs.get() {
        bares.push(run_bare(&bare, &images, count).await?);
        pipelines.push(pipeline.run(&images, count).await?);
        if !args.json {
            let (a, b) = (&bares[turn], &pipelines[turn]);
            note!("run {}: bare {:.1}, pipeline {:.1} images/s", turn + 1, a.per_second, b.per_second);
        }
    }
    pipeline.program.end().await;
    let rate = |runs: &[Run]| median(runs.iter().map(|run| run.per_second).collect());
    let cpu = |runs: &[Run]| runs.iter().map(|run| run.cpu_ms).collect::<Option<Vec<_>>>().map(median);
    let (bare_per_s, pipeline_per_s) = (rate(&bares), rate(&pipelines));
    let ratio = pipeline_per_s / bare_per_s;
    let (bare_cpu, pipeline_cpu) = (cpu(&bares), cpu(&pipelines));
    if args.json {
        let result = json!({
            "ratio": ratio, "bare_per_s": bare_per_s, "pipeline_per_s": pipeline_per_s,
            "bare_cpu_ms": bare_cpu, "pipeline_cpu_ms": pipeline_cpu,
            "model": model, "workers": workers, "images": count, "runs": args.runs,
        });
        outln!("{result:#}");
    } else {
        let shown = |cpu: Option<f64>| cpu.map_or_else(|| "?".into(), |ms| format!("{ms:.1}"));
        outln!("{model}, {workers} threads, {count} images per run, medians of {}", args.runs);
        outln!("bare loop  {bare_per_s:>8.1} images/s  {:>6} CPU ms per image", shown(bare_cpu));
        outln!("pipeline   {pipeline_per_s:>8.1} images/s  {:>6} CPU ms per image", shown(pipeline_cpu));
        outln!("ratio      {ratio:>8.3}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_bare(bare: &Bare, images: &Arc<[Bytes]>, count: usize) -> anyhow::Result<Run> {
    let own = std::process::id();
    let before = cpu_ms(&[own]);
    let elapsed = bare.run(images, count).await.map_err(|problem| anyhow!(problem))?;
    let cpu = cpu_ms(&[own]).zip(before).map(|(after, before)| (after - before) / count as f64);
    Ok(Run { per_second: count as f64 / elapsed.as_secs_f64(), cpu_ms: cpu })
}

/// A whole system, and a client.
struct Pipeline {
    program: Program,
    http: reqwest::Client,
    url: String,
    in_flight: usize,
}

impl Pipeline {
    async fn start(
        args: &BenchPipelineArgs,
        scratch: &Scratch,
        models: &Models,
        model: &str,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let data = scratch.0.join("data");
        let engine = args.engine.to_possible_value().context("an engine has a name")?;
        let selection = if models.selection.is_empty() { model.to_owned() } else { models.selection.join(",") };
        let mut flags: Vec<String> =
            ["up", "--supervised", "--listen", "127.0.0.1:0", "--broker-listen", "127.0.0.1:0"]
                .map(str::to_owned)
                .to_vec();
        flags.extend(["--engine".into(), engine.get_name().to_owned(), "--workers".into(), workers.to_string()]);
        flags.extend(["--models".into(), selection, "--data".into(), data.display().to_string()]);
        flags.extend(["--cache".into(), models.cache.root().display().to_string()]);
        let program = Program::start(&flags, "is ready.").await?;
        let api = std::fs::read_to_string(data.join("api.url")).context("find the API")?;
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::Client::builder().timeout(Duration::from_secs(300)).build()?;
        let url = format!("{}/v1/jobs?model={model}", api.trim());
        Ok(Self { program, http, url, in_flight: args.in_flight.get() })
    }

    async fn run(&self, images: &Arc<[Bytes]>, count: usize) -> anyhow::Result<Run> {
        let mut pids: Vec<u32> = children(self.program.id());
        pids.extend([self.program.id(), std::process::id()]);
        let before = cpu_ms(&pids);
        let started = Instant::now();
        let jobs = futures::stream::iter(0..count).map(|turn| self.one(images[turn % images.len()].clone()));
        jobs.buffer_unordered(self.in_flight).try_collect::<Vec<()>>().await?;
        let elapsed = started.elapsed();
        let cpu = cpu_ms(&pids).zip(before).map(|(after, before)| (after - before) / count as f64);
        Ok(Run { per_second: count as f64 / elapsed.as_secs_f64(), cpu_ms: cpu })
    }

    /// Uploads one image and waits for its result.
    async fn one(&self, image: Bytes) -> anyhow::Result<()> {
        let answer = self.http.post(&self.url).header("Prefer", "wait=60").body(image).send().await?;
        let job: Value = answer.error_for_status()?.json().await?;
        if job["state"] == "succeeded" { Ok(()) } else { bail!("a job did not succeed in time: {job}") }
    }
}

/// Processor time that processes have used, ms; `None` if the system does not report it.
fn cpu_ms(pids: &[u32]) -> Option<f64> {
    let ticks = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything: user and system time are words 12 and 13.
        let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(words.get(11)?.parse::<f64>().ok()? + words.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().map(ticks).sum::<Option<f64>>().map(|ticks| ticks * 1000.0 / TICKS)
}

/// All descendants of a process, if the system lists them.
fn children(pid: u32) -> Vec<u32> {
    let path = |task: &str| format!("/proc/{pid}/task/{task}/children");
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(path(&task.file_name().to_string_lossy())).ok());
    let own: Vec<u32> =
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    let below: Vec<u32> = own.iter().flat_map(|child| children(*child)).collect();
    own.into_iter().chain(below).collect()
}
