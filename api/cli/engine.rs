//! The queue that `up` works on: our own broker in this process, a NATS server as a child, or one
//! that runs elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::broker::Broker;
use anyhow::ensure;
use queue::Queue;
use queue::client::Address;

use crate::bounds::Bounds;
use crate::broker::{self, FileSettings, Settings};
use crate::config::{EngineKind, UpArgs};
use crate::data::DataDir;
use crate::nats::{MAX_PAYLOAD, NatsServer, Sync};
use crate::setup::{self, Models};

/// How often the free disk space is checked.
const ROOM_LOOK: Duration = Duration::from_secs(2);

/// Refuses a folder that has the other engine's jobs and none of this one's: they would seem lost.
fn check_folder(folder: &Path, engine: EngineKind) -> anyhow::Result<()> {
    // These exist once a queue has run; a failed start leaves less.
    let (journal, nats) = ("journal", "nats/jetstream");
    let (ours, theirs, other) = match engine {
        EngineKind::Own => (journal, nats, "nats"),
        EngineKind::Nats => (nats, journal, "own"),
    };
    let has = |name: &str| std::fs::read_dir(folder.join(name)).is_ok_and(|mut entries| entries.next().is_some());
    ensure!(
        has(ours) || !has(theirs),
        "the jobs in {} are in the queue of `--engine {other}`; pass that, or choose another folder with --data",
        folder.display()
    );
    Ok(())
}

/// Whether two bounds are more than a tenth apart.
fn differs(one: Option<u64>, other: Option<u64>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.abs_diff(other) > other / 10,
        (one, other) => one != other,
    }
}

/// A queue, and what must be ended with it.
pub(crate) struct Engine {
    running: Running,
    address: Address,
    topic_bytes_max: Option<u64>,
    bounds: Bounds,
}

enum Running {
    Own(Broker),
    Nats(NatsServer),
    Elsewhere,
}

impl Engine {
    /// Starts the requested queue, or none if it runs elsewhere.
    pub(crate) async fn start(args: &UpArgs, data: &DataDir, models: &Arc<Models>) -> anyhow::Result<Self> {
        let bounds = Bounds::of_this_process();
        let topics = models.repository.iter().count();
        if let Some(url) = &args.queue {
            let topic_bytes_max = Some(setup::topic_share(args.topics.queue_bytes, None, 0, topics)?);
            return Ok(Self { running: Running::Elsewhere, address: Address::parse(url)?, topic_bytes_max, bounds });
        }
        check_folder(data.path(), args.engine)?;
        match args.engine {
            EngineKind::Own => {
                let settings = Settings {
                    listen: args.broker_listen,
                    open: args.broker_open,
                    queue_bytes: args.topics.queue_bytes.map(|bytes| bytes.as_u64()),
                    max_payload: MAX_PAYLOAD.into(),
                    sync: true,
                    // Waiting for other clients would delay the end of `up`.
                    lame_duck: Duration::ZERO,
                    connections_max: bounds.broker_connections(),
                    // Workers of `up` end with it, and on loopback no other machine's workers can connect.
                    release_at_start: args.broker_listen.ip().is_loopback(),
                    config: FileSettings::read(args.broker_config.as_deref())?,
                };
                let (broker, address) = broker::start(data, settings).await?;
                // The broker limits all topics together; none has a share of its own.
                Ok(Self { running: Running::Own(broker), address, topic_bytes_max: None, bounds })
            }
            EngineKind::Nats => {
                let fetching = models.clone();
                let program = tokio::task::spawn_blocking(move || fetching.nats_server()).await??;
                let server =
                    NatsServer::start(data, program, args.broker_listen, args.broker_open, Sync::Always).await?;
                let address = server.address().clone();
                // A NATS server limits each stream on its own, so each topic gets a share.
                let topic_bytes_max = Some(setup::topic_share(args.topics.queue_bytes, Some(data.path()), 0, topics)?);
                Ok(Self { running: Running::Nats(server), address, topic_bytes_max, bounds })
            }
        }
    }

    /// Most connections of the API in this process, and bytes of memory for what they send.
    pub(crate) fn bounds_of_api(&self) -> (usize, usize) {
        let connections = match self.running {
            Running::Own(_) => self.bounds.api_connections(),
            // A queue in another process takes no files of this one.
            Running::Nats(_) | Running::Elsewhere => self.bounds.connections_alone(),
        };
        (connections, self.bounds.bodies_bytes())
    }

    /// Where it listens, with its token.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Bytes that the queue of one topic may take, if the server limits each stream on its own.
    pub(crate) fn topic_bytes_max(&self) -> Option<u64> {
        self.topic_bytes_max
    }

    /// The kind of queue, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self.running {
            Running::Own(_) => " (built in; every acknowledgement is on disk)",
            Running::Nats(_) => " (nats-server; every acknowledgement is on disk)",
            Running::Elsewhere => "",
        }
    }

    /// Adjusts the limit of each topic to the disk that the queue fills, for as long as it is awaited.
    pub(crate) async fn keep_room(&self, args: &UpArgs, queue: &Queue, folder: &Path, topics: usize) {
        let is_bounded_by_disk = matches!(self.running, Running::Nats(_)) && args.topics.queue_bytes.is_none();
        let mut given = None;
        loop {
            let wanted = async {
                if !is_bounded_by_disk {
                    return Ok(self.topic_bytes_max);
                }
                let queued = queue.admin.queued_bytes().await?;
                anyhow::Ok(Some(setup::topic_share(None, Some(folder), queued, topics)?))
            };
            let fitted = match wanted.await {
                // Each change is a write to every stream.
                Ok(share) if given.is_none_or(|given| differs(share, given)) => {
                    queue.admin.fit_topics(share).await.map(|()| given = Some(share)).map_err(anyhow::Error::from)
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = fitted {
                tracing::debug!(error = format!("{error:#}"), "topic limits not adjusted to the disk");
            }
            tokio::time::sleep(ROOM_LOOK).await;
        }
    }

    /// Waits until the queue fails for good, and returns why.
    pub(crate) async fn failure(&self) -> String {
        match &self.running {
            Running::Own(broker) => broker.failure().await,
            // A server that dies is restarted.
            Running::Nats(_) | Running::Elsewhere => std::future::pending().await,
        }
    }

    /// Ends what was started.
    pub(crate) async fn end(self) {
        match self.running {
            Running::Own(broker) => broker.stop().await,
            Running::Nats(server) => server.end().await,
            Running::Elsewhere => {}
        }
    }
}
