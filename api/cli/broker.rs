//! `sightline broker`: the queue alone. `up` starts the same inside itself.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use queue::broker::{Broker, Options};
use queue::client::Address;
use tokio::net::TcpListener;

use crate::config::BrokerArgs;
use crate::data::DataDir;
use crate::{setup, stop};

/// What differs between a broker alone and one inside `up`.
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    /// No token is asked for.
    pub(crate) open: bool,
    pub(crate) queue_bytes: u64,
    pub(crate) max_payload: u64,
    pub(crate) sync: bool,
}

/// Runs until told to stop, or until the journal fails.
pub(crate) async fn run(args: BrokerArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    if args.supervised {
        stop::with_supervisor(&stop);
    }
    let data = DataDir::open(&args.data)?;
    let settings = Settings {
        listen: args.listen,
        open: args.broker_open,
        queue_bytes: setup::queue_bytes(args.queue_bytes, Some(data.path()))?,
        max_payload: args.max_payload.as_u64(),
        sync: !args.no_sync,
    };
    let (broker, address) = start(&data, settings).await?;
    data.announce_broker(&address)?;
    // What programs look for that start servers of this kind.
    eprintln!("[INF] Listening for client connections on {}", broker.address());
    eprintln!("[INF] Server is ready");
    println!("queue on {address}, data in {}", data.path().display());
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        problem = broker.failure() => Some(problem),
    };
    broker.stop().await;
    match failed {
        Some(problem) => bail!("{problem}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Starts a broker on a data folder. The address has the token.
pub(crate) async fn start(data: &DataDir, settings: Settings) -> anyhow::Result<(Broker, Address)> {
    let Settings { listen, open, queue_bytes, max_payload, sync } = settings;
    let is_local = listen.ip().is_loopback();
    if open && !is_local {
        bail!("--broker-open is for loopback only: on {listen} everybody who reaches it could take and lose jobs");
    }
    if !is_local {
        eprintln!(
            "note: the queue listens on {listen} without encryption; its token and all images can be read on the way"
        );
    }
    if data.path().join("nats").exists() {
        eprintln!(
            "note: {} also holds the store of a NATS server; what is queued there is seen with --engine nats",
            data.path().display()
        );
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
    let options = Options {
        token,
        max_payload: max_payload as usize,
        queue_bytes_max: queue_bytes,
        sync,
        ..Options::new(data.path().join("journal"))
    };
    let starting = tokio::runtime::Handle::current();
    let broker = tokio::task::spawn_blocking(move || {
        let _runtime = starting.enter();
        Broker::start(options, listener)
    });
    Ok((broker.await.context("open the journal")??, address))
}
