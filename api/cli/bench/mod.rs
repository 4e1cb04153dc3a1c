//! `sightline bench`: measures both sides of a question in one run, in turn, and prints their ratio.

mod pipeline;
mod broker;
mod journal;

use std::process::{ExitCode, Stdio};

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::config::{BenchArgs, BenchKind};
use crate::scratch::Scratch;
use crate::supervisor;

/// Runs one benchmark.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        BenchKind::Pipeline(args) => pipeline::run(args).await,
        BenchKind::Broker(args) => broker::run(args).await,
        BenchKind::Journal(args) => journal::run(args).await,
    }
}

/// The middle one of an odd number of figures, or the mean of the middle two.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// Another process of this program, which ends when its standard input closes.
struct Program {
    child: Child,
    _pipe: ChildStdin,
    _output: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts it and waits for a line with `ready`.
    async fn start(args: &[String], ready: &str) -> anyhow::Result<Self> {
        let mut child = supervisor::this_program()?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start this program once more")?;
        let pipe = child.stdin.take().context("it has no input")?;
        let mut lines = BufReader::new(child.stdout.take().context("it has no output")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line.contains(ready) {
                return Ok(Self { child, _pipe: pipe, _output: lines });
            }
        }
        bail!("`sightline {}` ended before it was ready", args.join(" "))
    }

    fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills it as `kill -9` does.
    async fn kill(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::debug!(%error, "child process not killed");
        }
    }

    async fn end(self) {
        let Self { mut child, _pipe: pipe, _output: output } = self;
        drop(pipe);
        supervisor::wait_or_kill(&mut child, std::time::Duration::from_secs(30)).await;
        drop(output);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
