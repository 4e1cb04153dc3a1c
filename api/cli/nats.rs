//! A NATS server of our own as a child process, configured so that an acknowledgement means on disk.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use queue::Queue;
use queue::client::Address;
use queue::topic::Defaults;
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::data::DataDir;
use crate::supervisor::{self, Backoff};

/// The largest message: an upload of the default limit, with room for larger ones.
pub(crate) const MAX_PAYLOAD: u32 = 32 << 20;

/// How long the server may take to answer.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(50);
/// How long the guard may take to end the server.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// When the server syncs what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Before it acknowledges.
    Always,
    /// Now and then, as it does by default: an acknowledgement does not mean on disk.
    Seldom,
}

/// The server, restarted on the same port if it dies.
pub(crate) struct NatsServer {
    address: Address,
    stop: CancellationToken,
    keeping: JoinHandle<()>,
}

impl NatsServer {
    /// Starts the server on the data folder and waits until it answers.
    pub(crate) async fn start(
        data: &DataDir,
        program: PathBuf,
        wanted: SocketAddr,
        open: bool,
        sync: Sync,
    ) -> anyhow::Result<Self> {
        let listen = free_address(wanted)?;
        let token = if open { None } else { Some(data.token()?) };
        let launch = Launch::prepare(data, program, listen, token.as_deref(), sync)?;
        let user = token.map(|token| format!("{token}@")).unwrap_or_default();
        let address = Address::parse(&format!("nats://{user}{listen}"))?;
        let stop = CancellationToken::new();
        let child = launch.spawn()?;
        let keeping = tokio::spawn(keep(launch.clone(), child, stop.clone()));
        let server = Self { address, stop, keeping };
        if let Err(error) = server.wait_until_ready().await {
            server.end().await;
            let log = launch.log.display();
            return Err(error.context(format!("the queue server did not start; its log is {log}")));
        }
        Ok(server)
    }

    /// Where it listens, with its token.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Ends it in order.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.keeping.await {
            tracing::warn!(%error, "the queue server's keeper failed");
        }
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let connecting = async {
            loop {
                match Queue::connect(&self.address, "sightline start-up", Defaults::default()).await {
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%error, "queue server not ready"),
                }
                tokio::time::sleep(START_PAUSE).await;
            }
        };
        tokio::time::timeout(START_PATIENCE, connecting).await.context("no answer")
    }
}

/// How to start the server, any number of times.
#[derive(Clone)]
struct Launch {
    program: PathBuf,
    config: PathBuf,
    lock: PathBuf,
    log: PathBuf,
}

impl Launch {
    fn prepare(
        data: &DataDir,
        program: PathBuf,
        listen: SocketAddr,
        token: Option<&str>,
        sync: Sync,
    ) -> anyhow::Result<Self> {
        let sync = if sync == Sync::Always { "sync_interval: always, " } else { "" };
        let folder = data.path().join("nats");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let log = folder.join("nats-server.log");
        let quoted = |path: &PathBuf| serde_json::to_string(&path.to_string_lossy()).context("quote a path");
        // An explicit file-store limit: the default depends on the disk's free space, and would refuse streams on a
        // small disk. Each stream has its own limit.
        let authorization = token.map(|token| format!("authorization {{ token: \"{token}\" }}")).unwrap_or_default();
        let config = format!(
            "listen: \"{listen}\"\n\
             {authorization}\n\
             max_payload: {MAX_PAYLOAD}\n\
             log_file: {}\n\
             logfile_size_limit: 10MB\n\
             logfile_max_num: 2\n\
             jetstream {{ store_dir: {}, {sync}max_file_store: 1TB, max_memory_store: 64MB }}\n",
            quoted(&log)?,
            quoted(&folder)?,
        );
        data.write("nats-server.conf", &config)?;
        Ok(Self { program, config: data.path().join("nats-server.conf"), lock: folder.join("lock"), log })
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        spawn_guarded(&self.program, &self.config, &self.lock)
    }
}

/// Starts a server that ends when the pipe to its guard closes, and that is alone on its store.
pub(crate) fn spawn_guarded(program: &Path, config: &Path, lock: &Path) -> anyhow::Result<Child> {
    supervisor::this_program()?
        .arg("guard")
        .arg("--lock")
        .arg(lock)
        .arg("--")
        .arg(program)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // A group of its own, so that Ctrl-C in the terminal reaches only the process that started it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("start the queue server")
}

/// Restarts the server whenever it dies, until stopped.
async fn keep(launch: Launch, mut child: Child, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    loop {
        let started = tokio::time::Instant::now();
        let group = child.id();
        // Held here, because waiting for a child closes its standard input first.
        let pipe = child.stdin.take();
        tokio::select! {
            status = child.wait() => {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(status, "queue server died; restarting it");
                // If the guard died, the server still runs, in the guard's group.
                supervisor::kill_group(group);
            }
            () = stop.cancelled() => {
                // The guard ends the server when this pipe closes.
                drop(pipe);
                supervisor::wait_or_kill(&mut child, END_PATIENCE).await;
                supervisor::kill_group(group);
                return;
            }
        }
        let lived = started.elapsed();
        loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.next(lived)) => {}
                () = stop.cancelled() => return,
            }
            match launch.spawn() {
                Ok(next) => break child = next,
                Err(error) => tracing::error!(error = format!("{error:#}"), "queue server not started"),
            }
        }
    }
}

/// `wanted` if it is free, else a free port of the same host.
fn free_address(wanted: SocketAddr) -> anyhow::Result<SocketAddr> {
    if !wanted.ip().is_loopback() {
        bail!(
            "--broker-listen {wanted}: the queue listens on loopback only; for other machines run a NATS cluster and use --queue"
        );
    }
    let bound = TcpListener::bind(wanted).or_else(|_| TcpListener::bind((wanted.ip(), 0)));
    bound.and_then(|listener| listener.local_addr()).with_context(|| format!("find a free port on {}", wanted.ip()))
}
