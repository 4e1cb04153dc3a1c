//! `sightline bench journal`: does the journal's disk space follow its live bytes, at full speed?
//!
//! One row every few seconds: bytes published, live bytes, bytes on disk, bytes written for each byte that had to be,
//! open files, and how long a publish takes while old segments are emptied. The exit code is 1 if the folder ever took
//! more than twice the live bytes plus 512 MiB.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use broker::{Broker, JournalUsage, Options};
use queue::bench::journal::{Load, journal};
use queue::client::Address;
use serde_json::json;

use super::median;
use crate::config::BenchJournalArgs;
use crate::output::outln;
use crate::scratch::Scratch;

/// Bytes that the journal may take beyond twice its live bytes.
const SLACK_BYTES: u64 = 512 << 20;
const MIB: f64 = (1_u64 << 20) as f64;

type Sample = queue::bench::journal::Sample<JournalUsage>;

/// Measures and prints.
pub(super) async fn run(args: BenchJournalArgs) -> anyhow::Result<ExitCode> {
    let here = std::env::current_dir().context("find the working folder")?;
    let scratch = Scratch::create(args.scratch.as_deref().unwrap_or(&here))?;
    let load = Load {
        image_bytes: usize::try_from(args.image_bytes.as_u64())?,
        in_flight: args.in_flight.get(),
        backlog: args.backlog,
        span: args.span.into(),
        sample_every: Duration::from_secs(5),
    };
    if !args.json {
        outln!(
            "images of {}, {} in flight, {} waiting\n\n{}",
            args.image_bytes,
            load.in_flight,
            load.backlog,
            "     s  published MiB   live MiB  folder MiB  excess MiB  amplification  open files  publish p50 ms  p99 ms"
        );
    }
    let mut samples = Vec::new();
    let mut show = |sample: &Sample| {
        if !args.json {
            row(sample);
        }
        samples.push(sample.clone());
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("find a port")?;
    let options = Options::new(scratch.0.clone());
    let broker = tokio::task::spawn_blocking(move || Broker::start(options, listener)).await??;
    let address = Address::parse(&format!("nats://{}", broker.address()))?;
    let ended = journal(&address, &scratch.0, load, || broker.journal_usage(), &mut show).await;
    broker.stop().await;
    ended.map_err(|problem| anyhow!(problem))?;
    let excess = samples.iter().map(excess_bytes).max().unwrap_or(0);
    let last = samples.last().context("the span is too short for a sample")?;
    let p99 = median(samples.iter().map(|sample| sample.publish_p99_ms).collect());
    let rate = last.jobs as f64 / last.elapsed_s;
    let holds = excess <= SLACK_BYTES.cast_signed();
    if args.json {
        let summary = json!({
            "jobs_per_s": rate, "amplification": last.journal.amplification(), "publish_p99_ms": p99,
            "excess_bytes_max": excess, "holds": holds, "samples": samples,
        });
        outln!("{summary:#}");
    } else {
        outln!(
            "\n{rate:.0} jobs/s; {:.2} bytes written for each that had to be; publish p99 {p99:.1} ms;\n\
             at most {:.0} MiB beyond twice what lives (bound: 512 MiB): {}",
            last.journal.amplification(),
            excess as f64 / MIB,
            if holds { "holds" } else { "EXCEEDED" },
        );
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Bytes on disk beyond twice the live bytes.
fn excess_bytes(sample: &Sample) -> i64 {
    sample.folder_bytes.cast_signed() - 2 * sample.journal.live_bytes.cast_signed()
}

fn row(sample: &Sample) {
    let mib = |bytes: u64| bytes as f64 / MIB;
    outln!(
        "{:6.0} {:14.0} {:10.0} {:11.0} {:11.0} {:14.2} {:11} {:15.1} {:7.1}",
        sample.elapsed_s,
        mib(sample.published_bytes),
        mib(sample.journal.live_bytes),
        mib(sample.folder_bytes),
        excess_bytes(sample) as f64 / MIB,
        sample.journal.amplification(),
        sample.open_files,
        sample.publish_p50_ms,
        sample.publish_p99_ms,
    );
}
