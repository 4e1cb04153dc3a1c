//! `sightline bench broker`: what does an acknowledgement that means on disk cost, in our broker and in others?
//!
//! One client program runs one load after the other: each load on all servers in turn, several times, and prints the
//! medians. Our broker is compared with a NATS server that syncs before it acknowledges, which is the same promise, and
//! with one on its defaults, whose acknowledgement does not mean on disk. The disk's own rate of small synced writes is
//! printed for reference. Our broker runs as a process of its own, as the others do. Publishing at a rate is open-loop.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, anyhow};
use queue::bench::{self, Load};
use queue::client::Address;
use serde_json::{Value, json};

use super::{Program, Scratch, median};
use crate::config::{BenchBrokerArgs, DataArgs};
use crate::data::DataDir;
use crate::nats::{NatsServer, Sync};
use crate::output::outln;
use crate::setup::Models;

/// Small synced writes to measure the disk with.
const SYNCS: u64 = 500;
/// Messages per second whose latency is measured, and how many of them.
const LATENCY_RATE: f64 = 200.0;
const LATENCY_COUNT: usize = 1000;

const fn publish(bytes: usize, in_flight: usize, count: usize) -> Load {
    Load::Publish { bytes, in_flight, count }
}

const fn pull(batch: usize, confirmed: bool, count: usize) -> Load {
    Load::Pull { bytes: 200, batch, confirmed, count }
}

/// What is measured, in this order.
const LOADS: [Load; 7] = [
    publish(200, 256, 20_000),
    publish(200, 1, 2_000),
    publish(16 * 1024, 256, 5_000),
    publish(200 * 1024, 256, 1_000),
    pull(1, false, 5_000),
    pull(64, false, 20_000),
    pull(1, true, 2_000),
];

/// A server to measure.
struct Side {
    name: &'static str,
    address: Address,
}

/// Measures and prints.
pub(super) async fn run(args: BenchBrokerArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!((0.001..=1.0).contains(&args.part), "--part must be 0.001 to 1");
    let here = std::env::current_dir().context("find the working folder")?;
    let scratch = Scratch::create(args.scratch.as_deref().unwrap_or(&here))?;
    let ours = scratch.0.join("own");
    let broker = start_own(&ours).await?;
    let mut sides = vec![Side { name: "own", address: address_of(&ours)? }];
    let mut servers = Vec::new();
    match &args.against {
        Some(url) => sides.push(Side { name: "other", address: Address::parse(url)? }),
        None => {
            let models = Models::open(&args.models)?;
            let program = tokio::task::spawn_blocking(move || models.nats_server()).await??;
            for (name, sync) in [("nats always", Sync::Always), ("nats default", Sync::Seldom)] {
                let data = DataDir::open(&DataArgs { data: scratch.0.join(name.replace(' ', "-")) })?;
                let server = NatsServer::start(&data, program.clone(), ([127, 0, 0, 1], 0).into(), false, sync).await?;
                sides.push(Side { name, address: server.address().clone() });
                servers.push((server, data));
            }
        }
    }
    let syncs = sync_rate(&scratch.0)?;
    let mut table = Table::begin(&args, &sides, syncs);
    for load in LOADS.map(|load| scaled(load, args.part)) {
        let mut figures = vec![Vec::new(); sides.len()];
        for _ in 0..args.runs.get() {
            for (side, figures) in sides.iter().zip(&mut figures) {
                let measured = bench::measure(&side.address, load).await;
                figures.push(measured.map_err(|problem| anyhow!("{}: {problem}", side.name))?);
            }
        }
        table.row(&format!("{load} (/s)"), figures.into_iter().map(median).collect());
    }
    let (mut middle, mut late) = (vec![Vec::new(); sides.len()], vec![Vec::new(); sides.len()]);
    let count = ((LATENCY_COUNT as f64 * args.part) as usize).max(20);
    for _ in 0..args.runs.get() {
        for (index, side) in sides.iter().enumerate() {
            let times = bench::latency(&side.address, 200, LATENCY_RATE, count).await;
            let times = times.map_err(|problem| anyhow!("{}: {problem}", side.name))?;
            middle[index].push(times[times.len() / 2]);
            late[index].push(times[times.len() * 99 / 100]);
        }
    }
    table.row("publish to delivery, 200/s, p50 (ms)", middle.into_iter().map(median).collect());
    table.row("publish to delivery, 200/s, p99 (ms)", late.into_iter().map(median).collect());
    for (server, data) in servers {
        server.end().await;
        drop(data);
    }
    broker.end().await;
    if args.queued > 0 {
        queued(&scratch.0.join("queued"), args.queued, &mut table).await?;
    }
    table.end();
    Ok(ExitCode::SUCCESS)
}

/// Measures our broker empty, full of jobs, and after a kill and a restart.
async fn queued(folder: &Path, jobs: usize, table: &mut Table) -> anyhow::Result<()> {
    let broker = start_own(folder).await?;
    table.own("resident memory, idle (MiB)", resident_mib(broker.id())?);
    bench::fill(&address_of(folder)?, jobs).await.map_err(|problem| anyhow!("own broker: {problem}"))?;
    table.own(&format!("resident memory, {jobs} jobs queued (MiB)"), resident_mib(broker.id())?);
    broker.kill().await;
    let started = Instant::now();
    let broker = start_own(folder).await?;
    table.own(&format!("ready after kill -9 with {jobs} jobs queued (s)"), started.elapsed().as_secs_f64());
    broker.end().await;
    Ok(())
}

async fn start_own(folder: &Path) -> anyhow::Result<Program> {
    let flags = ["broker", "--supervised", "--broker-open", "--lame-duck", "0s", "--listen", "127.0.0.1:0", "--data"];
    let flags = flags.iter().map(|flag| (*flag).to_owned()).chain([folder.display().to_string()]);
    Program::start(&flags.collect::<Vec<_>>(), "queue on").await
}

fn address_of(folder: &Path) -> anyhow::Result<Address> {
    Ok(Address::parse(std::fs::read_to_string(folder.join("broker.url"))?.trim())?)
}

/// Resident memory of a process.
fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let status = std::fs::read_to_string(&path)
        .with_context(|| format!("read {}: memory is shown on Linux only", path.display()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim_end_matches("kB").trim().parse().context("read VmRSS")?;
    Ok(kib / 1024.0)
}

/// The figures, printed as they are measured, or as JSON at the end.
struct Table {
    is_json: bool,
    names: Vec<&'static str>,
    rows: Vec<Value>,
    syncs: f64,
}

impl Table {
    fn begin(args: &BenchBrokerArgs, sides: &[Side], syncs: f64) -> Self {
        let names: Vec<&'static str> = sides.iter().map(|side| side.name).collect();
        if !args.json {
            outln!("medians of {}; this disk: {syncs:.0} synced writes of 4 KiB per second\n", args.runs);
            let heads: String = names.iter().map(|name| format!(" {name:>12}")).collect();
            let ratios: String = names[1..]
                .iter()
                .map(|name| format!(" {:>14}", format!("own/{}", name.replace("nats ", ""))))
                .collect();
            outln!("{:<46}{heads}{ratios}", "");
        }
        Self { is_json: args.json, names, rows: Vec::new(), syncs }
    }

    fn row(&mut self, what: &str, figures: Vec<f64>) {
        let ratios: Vec<f64> = figures[1..].iter().map(|other| figures[0] / other).collect();
        if !self.is_json {
            let show = |value: &f64| if *value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
            let cells: String = figures.iter().map(|figure| format!(" {:>12}", show(figure))).collect();
            let ratios: String = ratios.iter().map(|ratio| format!(" {ratio:>14.2}")).collect();
            outln!("{what:<46}{cells}{ratios}");
        }
        let figures: serde_json::Map<String, Value> =
            self.names.iter().zip(figures).map(|(name, figure)| ((*name).to_owned(), figure.into())).collect();
        self.rows.push(json!({"what": what, "figures": figures, "ratios": ratios}));
    }

    /// A figure of our broker alone.
    fn own(&mut self, what: &str, figure: f64) {
        if !self.is_json {
            outln!("{what:<46} {figure:>12.2}");
        }
        self.rows.push(json!({"what": what, "figures": {"own": figure}}));
    }

    fn end(self) {
        if self.is_json {
            outln!("{:#}", json!({"disk_syncs_per_s": self.syncs, "rows": self.rows}));
        }
    }
}

fn scaled(load: Load, part: f64) -> Load {
    let scale = |count: usize| ((count as f64 * part) as usize).max(1);
    match load {
        Load::Publish { bytes, in_flight, count } => Load::Publish { bytes, in_flight, count: scale(count) },
        Load::Pull { bytes, batch, confirmed, count } => Load::Pull { bytes, batch, confirmed, count: scale(count) },
    }
}

/// Small synced writes per second on this disk.
fn sync_rate(folder: &Path) -> anyhow::Result<f64> {
    let file = std::fs::File::create(folder.join("sync-rate")).context("create a file to measure the disk with")?;
    let started = Instant::now();
    for turn in 0..SYNCS {
        file.write_all_at(&[1; 4096], turn * 4096)?;
        file.sync_data()?;
    }
    Ok(SYNCS as f64 / started.elapsed().as_secs_f64())
}
