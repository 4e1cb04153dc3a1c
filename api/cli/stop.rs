//! Being told to stop: by signal, or by a supervisor that is gone.

use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a child has to end in order once its supervisor is gone. Not long: with the
/// supervisor the queue has gone too, most likely.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);

/// A token that is pulled by SIGINT or SIGTERM. The second signal ends the process at once.
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

/// Pulls `stop` when standard input closes, and ends the process if that takes too long.
///
/// A killed supervisor cannot say good-bye, but the kernel closes its end of the pipe.
pub(crate) fn with_supervisor(stop: &CancellationToken) {
    let stop = stop.clone();
    // A thread of its own: tokio's standard input would block the runtime's shutdown.
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while matches!(std::io::Read::read(&mut std::io::stdin(), &mut sink), Ok(read) if read > 0) {}
        stop.cancel();
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(1);
    });
}

/// Ends when the other end of `pipe` is closed.
pub(crate) async fn closed(mut pipe: impl AsyncReadExt + Unpin) {
    let mut sink = [0; 64];
    while matches!(pipe.read(&mut sink).await, Ok(read) if read > 0) {}
}
