//! Ends a program that does not know us when we end.
//!
//! The NATS server cannot watch a pipe, and if `up` is killed nothing would end it. So `up` runs this small process in
//! between, which ends the server when its own standard input closes. The server gets the lock on its store as its
//! standard input, so that the lock is held for as long as the server lives, even if this process is killed too; the
//! next server waits for the lock.

use std::fs::File;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::GuardArgs;
use crate::{stop, supervisor};

/// How long to wait for an earlier server to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// How long the program may take to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Runs the program until it ends or standard input closes.
pub(crate) async fn run(args: GuardArgs) -> anyhow::Result<ExitCode> {
    // Signals are caught and ignored: our supervisor's pipe ends us, and dying by a signal would leave the
    // program behind.
    let (_interrupt, _terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let lock = lock(&args.lock).await?;
    let (name, arguments) = args.program.split_first().context("no program was given")?;
    let mut child = tokio::process::Command::new(name)
        .args(arguments)
        .stdin(Stdio::from(lock))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", name.to_string_lossy()))?;
    tokio::select! {
        status = child.wait() => bail!("{} ended by itself: {}", name.to_string_lossy(), status?),
        () = stop::closed(tokio::io::stdin()) => supervisor::end(&mut child, Signal::TERM, END_PATIENCE).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("open {}", path.display()))?;
    let waiting = async {
        while file.try_lock().is_err() {
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    };
    let locked = tokio::time::timeout(LOCK_PATIENCE, waiting).await;
    locked.with_context(|| format!("another queue server still uses {}", path.display()))?;
    Ok(file)
}
