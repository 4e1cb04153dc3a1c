//! `sightline bench broker`: what does an acknowledgement that means on disk cost, here and there?
//!
//! One client program, one load after the other; for each load both servers in turn, several times,
//! and the medians. The disk's own rate of small synced writes stands beside them. Our broker runs
//! as a process of its own, as the other server does.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, anyhow};
use queue::bench::{Load, measure};
use queue::client::Address;
use serde_json::json;

use super::{Program, Scratch, median};
use crate::config::{BenchBrokerArgs, DataArgs};
use crate::data::DataDir;
use crate::nats::NatsServer;
use crate::setup::Models;

/// Small synced writes to measure the disk with.
const SYNCS: u64 = 500;

const fn publish(bytes: usize, in_flight: usize, count: usize) -> Load {
    Load::Publish { bytes, in_flight, count }
}

/// What is measured, in this order.
const LOADS: [Load; 5] = [
    publish(200, 256, 20_000),
    publish(200, 1, 2_000),
    publish(16 * 1024, 256, 5_000),
    publish(200 * 1024, 256, 1_000),
    Load::Pull { bytes: 200, count: 2_000 },
];

/// Measures and prints.
pub(super) async fn run(args: BenchBrokerArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!((0.001..=1.0).contains(&args.part), "--part must be 0.001 to 1");
    let here = std::env::current_dir().context("find the working folder")?;
    let scratch = Scratch::create(args.scratch.as_deref().unwrap_or(&here))?;
    let (ours, theirs) = (scratch.0.join("own"), scratch.0.join("nats"));
    let data = |path: &Path| DataDir::open(&DataArgs { data: path.to_owned() });

    let flags = ["broker", "--supervised", "--broker-open", "--listen", "127.0.0.1:0", "--data"];
    let flags = flags.iter().map(|flag| (*flag).to_owned()).chain([ours.display().to_string()]);
    let broker = Program::start(&flags.collect::<Vec<_>>(), "queue on").await?;
    let own = Address::parse(std::fs::read_to_string(ours.join("broker.url"))?.trim())?;
    let (server, other, name) = match &args.against {
        Some(url) => (None, Address::parse(url)?, "the server at --against"),
        None => {
            let models = Models::open(&args.models)?;
            let program = tokio::task::spawn_blocking(move || models.nats_server()).await??;
            let server = NatsServer::start(&data(&theirs)?, program, ([127, 0, 0, 1], 0).into(), false).await?;
            let address = server.address().clone();
            (Some(server), address, "nats-server with sync_interval: always")
        }
    };
    let syncs = sync_rate(&scratch.0)?;
    let mut rows = Vec::new();
    if !args.json {
        println!("own broker against {name}; medians of {}; messages/s", args.runs);
        println!("this disk: {syncs:.0} synced writes of 4 KiB a second\n");
        println!("{:<38} {:>10} {:>10} {:>7}", "", "own", "other", "ratio");
    }
    for load in LOADS.map(|load| scaled(load, args.part)) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..args.runs.get() {
            a.push(measure(&own, load).await.map_err(|problem| anyhow!("own broker: {problem}"))?);
            b.push(measure(&other, load).await.map_err(|problem| anyhow!("the other server: {problem}"))?);
        }
        let (a, b) = (median(a), median(b));
        if !args.json {
            println!("{:<38} {a:>10.0} {b:>10.0} {:>7.2}", load.to_string(), a / b);
        }
        rows.push(json!({"load": load.to_string(), "own_per_s": a, "other_per_s": b, "ratio": a / b}));
    }
    if args.json {
        println!("{:#}", json!({"against": name, "disk_syncs_per_s": syncs, "loads": rows}));
    }
    if let Some(server) = server {
        server.end().await;
    }
    broker.end().await;
    Ok(ExitCode::SUCCESS)
}

fn scaled(load: Load, part: f64) -> Load {
    let scale = |count: usize| ((count as f64 * part) as usize).max(1);
    match load {
        Load::Publish { bytes, in_flight, count } => Load::Publish { bytes, in_flight, count: scale(count) },
        Load::Pull { bytes, count } => Load::Pull { bytes, count: scale(count) },
    }
}

/// Small writes a second of this disk, each synced.
fn sync_rate(folder: &Path) -> anyhow::Result<f64> {
    let file = std::fs::File::create(folder.join("sync-rate")).context("create a file to measure the disk with")?;
    let started = Instant::now();
    for turn in 0..SYNCS {
        file.write_all_at(&[1; 4096], turn * 4096)?;
        file.sync_data()?;
    }
    Ok(SYNCS as f64 / started.elapsed().as_secs_f64())
}
