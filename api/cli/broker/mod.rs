//! `sightline broker`: the queue alone, and its backups. `up` starts the same broker in its own process.

mod monitor;
mod settings;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::broker::backup::{self, Inventory};
use ::broker::{Auth, Broker, Options};
use anyhow::{Context, bail};
use queue::client::Address;
use serde_json::json;
use tokio::net::TcpListener;

use crate::bounds::Bounds;
use crate::config::{BrokerAction, BrokerArgs, BrokerServeArgs, DataArgs};
use crate::data::DataDir;
use crate::output::{announce, note, outln};
use crate::stop;

pub(crate) use settings::Settings as FileSettings;

/// The journal's folder in the data folder.
const JOURNAL: &str = "journal";

/// What differs between a broker alone and one inside `up`.
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    /// Clients need no token.
    pub(crate) open: bool,
    pub(crate) queue_bytes: Option<u64>,
    pub(crate) max_payload: u64,
    pub(crate) sync: bool,
    pub(crate) lame_duck: Duration,
    pub(crate) connections_max: usize,
    /// See [`Options::release_at_start`].
    pub(crate) release_at_start: bool,
    pub(crate) config: settings::Settings,
}

/// Runs the subcommand.
pub(crate) async fn run(args: BrokerArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        None => serve(args.serve).await,
        Some(BrokerAction::Backup { to, data }) => tokio::task::spawn_blocking(move || backup(&data, &to)).await?,
        Some(BrokerAction::Restore { from, data }) => {
            tokio::task::spawn_blocking(move || restore(&data, &from)).await?
        }
        Some(BrokerAction::Check { data }) => {
            tokio::task::spawn_blocking(move || {
                journal_of(&data)?;
                let held = DataDir::open(&data)?;
                check(&held.path().join(JOURNAL))
            })
            .await?
        }
    }
}

/// Runs until stopped, or until the journal fails.
async fn serve(args: BrokerServeArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    if args.supervised {
        stop::with_supervisor(&stop);
    }
    let config = settings::Settings::read(args.config.as_deref())?;
    let monitoring = match args.monitor_listen {
        None => None,
        Some(listen) => Some(TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?),
    };
    let data = DataDir::open(&args.data)?;
    let settings = Settings {
        listen: args.listen,
        open: args.broker_open,
        queue_bytes: args.queue_bytes.map(|bytes| bytes.as_u64()),
        max_payload: args.max_payload.as_u64(),
        sync: !args.no_sync,
        lame_duck: args.lame_duck,
        connections_max: Bounds::of_this_process().connections_alone(),
        // Workers run elsewhere, and keep running when this process restarts.
        release_at_start: false,
        config,
    };
    let (broker, address) = start(&data, settings).await?;
    data.announce_broker(&address)?;
    let mut ports = json!({"nats": [format!("nats://{}", broker.address())]});
    let watching = monitoring.map(|listener| -> anyhow::Result<_> {
        let at = listener.local_addr().context("find the monitoring port's own address")?;
        ports["monitoring"] = json!([format!("http://{at}")]);
        note!("[INF] Starting http monitor on {at}");
        Ok(tokio::spawn(monitor::serve(broker.monitor(), listener, stop.clone())))
    });
    let watching = watching.transpose()?;
    let notices = Notices::leave(&args, &ports)?;
    // Programs that start NATS servers look for these lines.
    note!("[INF] Listening for client connections on {}", broker.address());
    note!("[INF] Server is ready");
    announce!("queue on {address}, data in {}", data.path().display());
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        problem = broker.failure() => Some(problem),
    };
    drop(notices);
    broker.stop().await;
    stop.cancel();
    if let Some(watching) = watching {
        watching.await.context("end the monitoring port")?;
    }
    match failed {
        Some(problem) => bail!("{problem}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Files with the broker's ports and process id, removed when it ends.
struct Notices(Vec<PathBuf>);

impl Notices {
    fn leave(args: &BrokerServeArgs, ports: &serde_json::Value) -> anyhow::Result<Self> {
        let mut notices = Self(Vec::new());
        if let Some(path) = &args.pid_file {
            notices.write(path.clone(), &std::process::id().to_string())?;
        }
        if let Some(folder) = &args.ports_file_dir {
            // Programs that start NATS servers look for this name.
            notices.write(folder.join(format!("nats-server_{}.ports", std::process::id())), &ports.to_string())?;
        }
        Ok(notices)
    }

    fn write(&mut self, path: PathBuf, text: &str) -> anyhow::Result<()> {
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        self.0.push(path);
        Ok(())
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(%error, path = %path.display(), "notice already removed");
            }
        }
    }
}

/// The journal of a data folder, which must exist.
fn journal_of(data: &DataArgs) -> anyhow::Result<PathBuf> {
    let journal = data.data.join(JOURNAL);
    if !journal.is_dir() {
        bail!("{} contains no journal; name the data folder with --data", data.data.display());
    }
    Ok(journal)
}

/// Copies a data folder, which may be in use.
fn backup(data: &DataArgs, to: &Path) -> anyhow::Result<ExitCode> {
    let journal = journal_of(data)?;
    if to.exists() {
        bail!("{} already exists; choose a new folder for the backup", to.display());
    }
    backup::copy(&journal, &to.join(JOURNAL)).with_context(|| format!("copy {}", journal.display()))?;
    check(&to.join(JOURNAL))
}

/// Copies a backup into a data folder.
fn restore(data: &DataArgs, from: &Path) -> anyhow::Result<ExitCode> {
    let journal = from.join(JOURNAL);
    if !journal.is_dir() {
        bail!("{} is not a backup: it has no folder {JOURNAL}", from.display());
    }
    let held = DataDir::open(data)?;
    let target = held.path().join(JOURNAL);
    if target.exists() {
        bail!("{} already exists; move it away first", target.display());
    }
    backup::copy(&journal, &target).with_context(|| format!("copy {}", journal.display()))?;
    check(&target)
}

/// Reads a whole journal that is not in use, and prints what is in it.
fn check(journal: &Path) -> anyhow::Result<ExitCode> {
    let Inventory { streams, messages, losses } = backup::check(journal)?;
    outln!("{}: {streams} streams, {messages} messages, {} losses", journal.display(), losses.len());
    losses.iter().for_each(|loss| outln!("{loss}"));
    Ok(if losses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a broker on a data folder. The returned address includes the token.
pub(crate) async fn start(data: &DataDir, settings: Settings) -> anyhow::Result<(Broker, Address)> {
    let Settings { listen, open, queue_bytes, max_payload, sync, lame_duck, connections_max, release_at_start, config } =
        settings;
    let is_local = listen.ip().is_loopback();
    if open && !is_local {
        bail!("--broker-open is for loopback only: on {listen} any client could take and delete jobs");
    }
    if !is_local && !config.is_encrypted() {
        note!(
            "note: the queue listens on {listen} without encryption; others on the network can read its token and all images"
        );
    }
    if data.path().join("nats").exists() {
        note!("note: {} also holds the store of a NATS server; --engine nats uses it", data.path().display());
    }
    let limit = u64::from(u32::MAX / 4);
    if !(1024..=limit).contains(&max_payload) {
        bail!("--max-payload must be 1 KiB to 1 GiB");
    }
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((listen.ip(), 0)).await.with_context(|| format!("listen on {}", listen.ip()))?,
    };
    let bound = listener.local_addr().context("find the broker's own address")?;
    let token = if open { None } else { Some(data.token()?) };
    let address = match &token {
        Some(token) => Address::parse(&format!("nats://{token}@{bound}"))?,
        None => Address::parse(&format!("nats://{bound}"))?,
    };
    let mut options = Options {
        auth: Auth { token, users: Vec::new() },
        max_payload: max_payload as usize,
        queue_bytes_max: queue_bytes,
        sync,
        lame_duck,
        connections_max,
        release_at_start,
        ..Options::new(data.path().join(JOURNAL))
    };
    config.apply(&mut options)?;
    let starting = tokio::runtime::Handle::current();
    let broker = tokio::task::spawn_blocking(move || {
        let _runtime = starting.enter();
        Broker::start(options, listener)
    });
    let broker = broker.await.context("open the journal")??;
    for loss in broker.losses() {
        note!("warning: the journal is damaged: {loss}");
    }
    Ok((broker, address))
}
