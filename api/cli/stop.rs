//! Reasons to stop: a signal, or a supervisor that has died.

use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::output::note;

/// How long a child may take to end in order once its supervisor has died. Not long: most likely the queue
/// has ended too.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);
/// How long a process may take to end in order. Container runtimes kill after ten seconds.
const STOP_MAX: Duration = Duration::from_millis(7_500);
/// How long the last note may take.
const NOTE_MAX: Duration = Duration::from_millis(100);

/// A token that SIGINT or SIGTERM cancels. A second signal ends the process at once.
pub(crate) fn on_signal() -> anyhow::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let stop = CancellationToken::new();
    let pulled = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if pulled.is_cancelled() {
                std::process::exit(130);
            }
            pulled.cancel();
        }
    });
    Ok(stop)
}

/// Cancels `stop` when standard input closes, and ends the process if that takes too long.
///
/// A killed supervisor cannot send anything, but the kernel closes its end of the pipe.
pub(crate) fn with_supervisor(stop: &CancellationToken) {
    let stop = stop.clone();
    // A thread of its own: tokio's standard input would block the runtime's shutdown.
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while matches!(std::io::Read::read(&mut std::io::stdin(), &mut sink), Ok(read) if read > 0) {}
        stop.cancel();
        std::thread::sleep(ORPHAN_GRACE);
        end_now();
    });
}

/// Ends the process if it has not ended by itself some seconds after `stop` was canceled. What was acknowledged is
/// durable, so nothing is lost.
pub(crate) fn in_time(stop: &CancellationToken) {
    let stop = stop.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        // A thread of its own: the runtime may be what does not end.
        std::thread::spawn(|| {
            std::thread::sleep(STOP_MAX);
            // A stalled reader of standard error may be why, and must not block this thread.
            std::thread::spawn(|| note!("stopping takes too long; accepted jobs stay in the data folder"));
            std::thread::sleep(NOTE_MAX);
            end_now();
        });
    });
}

/// Ends this process without running anything more in it: libraries take seconds to clean up.
fn end_now() -> ! {
    if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL) {
        tracing::debug!(%error, "ending by another way");
    }
    std::process::exit(1);
}

/// Returns when the other end of `pipe` is closed.
pub(crate) async fn closed(mut pipe: impl AsyncReadExt + Unpin) {
    let mut sink = [0; 64];
    while matches!(pipe.read(&mut sink).await, Ok(read) if read > 0) {}
}
