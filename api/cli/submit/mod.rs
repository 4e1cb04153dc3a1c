//! `sightline submit`: many images, one line of JSON or CSV each.
//!
//! Every image goes through the same steps on its own (`client`): upload, note the job's id, wait, write the line. Two
//! files make a run resumable (`ledger`): the output, where each line is a finished image, and beside it `….pending`,
//! with each image's key and job id. After any interruption, the same command skips finished images and only waits for
//! accepted ones.

pub(crate) mod inputs;
mod ledger;
mod table;
mod client;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::Value;

use crate::config::SubmitArgs;
use crate::output::note;
use crate::remote::text;
use crate::stop;
use client::Client;
use ledger::Ledger;

/// Exit status if all images that were sent succeeded, but others of the folder cannot be read here.
const SKIPPED: u8 = 3;

/// Sends all images and waits for their results.
pub(crate) async fn run(args: SubmitArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    let (files, skipped) = inputs::images(&args.paths)?;
    anyhow::ensure!(!files.is_empty(), "no images in {}\n{skipped}", args.paths.join(", "));
    let client = Client::new(&args.api, &args.model)?;
    let ledger = Ledger::open(args.out.as_deref(), args.format, &args.model, &files)?;
    client.check_model().await?;

    let started = Instant::now();
    let mut tally = Tally::default();
    let (done, open): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| ledger.state_of(&file.name).is_some());
    done.iter().for_each(|file| tally.count(ledger.state_of(&file.name).unwrap_or_default()));
    let resumed = done.len();
    let bar = progress_bar(open.len() as u64);
    let (client, ledger) = (&client, &ledger);
    let mut results = futures::stream::iter(open)
        .map(|file| async move { client.process(&file, ledger).await })
        .buffer_unordered(args.in_flight.get());
    loop {
        let result = tokio::select! {
            result = results.next() => result,
            () = stop.cancelled() => {
                bar.finish_and_clear();
                let again = if args.out.is_some() { "; run the same command to continue" } else { "" };
                anyhow::bail!("stopped after {} images{again}", tally.total());
            }
        };
        let Some(line) = result else { break };
        let line = line?;
        let state = line.get("state").and_then(Value::as_str).unwrap_or("refused");
        tally.count(state);
        if state == "refused" {
            let (file, error) = (text(&line["file"]), text(&line["error"]["message"]));
            bar.suspend(|| note!("{file}: refused: {error}"));
        }
        bar.inc(1);
        bar.set_message(tally.trouble());
    }
    bar.finish_and_clear();
    ledger.close()?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = (tally.total() - resumed) as f64 / seconds.max(0.001);
    let before = if resumed > 0 { format!(" ({resumed} of them before)") } else { String::new() };
    note!("{} images{before}: {tally} in {seconds:.1} s, {rate:.1} images/s", tally.total());
    if skipped.is_any() {
        note!("{skipped}");
    }
    Ok(match (tally.all_succeeded(), skipped.are_meant) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(SKIPPED),
        (true, false) => ExitCode::SUCCESS,
    })
}

fn progress_bar(length: u64) -> ProgressBar {
    let visible = std::io::stderr().is_terminal();
    let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    // The bar takes the remaining width of the terminal.
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {rate}  {eta} left  {msg}");
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        out.write_str(&format!("{:.1}/s", state.per_sec())).unwrap_or_default();
    };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    bar.set_style(style.expect("the template is well-formed").with_key("rate", rate));
    bar
}

/// Number of images by how they ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    succeeded: usize,
    failed: usize,
    refused: usize,
}

impl Tally {
    fn count(&mut self, state: &str) {
        match state {
            "succeeded" => self.succeeded += 1,
            "failed" | "canceled" => self.failed += 1,
            _ => self.refused += 1,
        }
    }

    fn total(&self) -> usize {
        self.succeeded + self.failed + self.refused
    }

    fn all_succeeded(&self) -> bool {
        self.failed + self.refused == 0
    }

    fn trouble(&self) -> String {
        if self.all_succeeded() { String::new() } else { format!("{} failed, {} refused", self.failed, self.refused) }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} succeeded, {} failed, {} refused", self.succeeded, self.failed, self.refused)
    }
}
