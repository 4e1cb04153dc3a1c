//! `sightline keys`: who may use the API.
//!
//! With a key or an API address, the command asks the API. Otherwise, and with `--local`, it uses the queue through the
//! data folder: a user who can read that folder owns all that is in it. That way the first key can be created, and a
//! new one if the last key is lost, even while nothing runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::broker::Broker;
use anyhow::{Context, anyhow, bail};
use queue::Queue;
use queue::topic::Defaults;
use reqwest::Method;
use serde_json::{Value, json};

use crate::bounds::Bounds;
use crate::broker::{self, FileSettings, Settings};
use crate::config::{ApiAddressArgs, DataArgs, KeysAction, KeysArgs, LocalArgs, QueueArgs};
use crate::data::{self, DataDir};
use crate::nats;
use crate::output::{note, out, outln};
use crate::remote::{Remote, escaped, text};
use crate::table::Table;

/// Runs the subcommand.
pub(crate) async fn run(args: KeysArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        KeysAction::Create {
            name,
            scopes,
            expires,
            requests_per_second,
            uploads,
            queued_jobs,
            queued_bytes,
            priority,
            json,
            local,
            api,
        } => {
            let limits = json!({
                "requests_per_second": requests_per_second, "uploads": uploads, "queued_jobs": queued_jobs,
                "queued_bytes": queued_bytes.map(|bytes| bytes.as_u64()), "priority": priority,
            });
            let wish = json!({ "name": name, "scopes": scopes, "expires": expires, "limits": limits });
            let made = if is_local(&local, &api) {
                let new = serde_json::from_value(wish).map_err(|error| anyhow!("--scopes: {error}"))?;
                let create = async |owner: &Owner| ::api::create_local(&owner.queue, &new, owner.folder()).await;
                locally(&local, &api.data, create).await?
            } else {
                Remote::new(&api)?.post("/v1/keys", &wish).await?
            };
            if json {
                outln!("{}", serde_json::to_string_pretty(&made)?);
            } else {
                outln!("{}", text(&made["key"]));
                note!("the key is shown only this once; its id is {}", text(&made["id"]));
            }
        }
        KeysAction::List { json, local, api } => {
            let mut keys = if is_local(&local, &api) {
                locally(&local, &api.data, async |owner: &Owner| ::api::list_local(&owner.queue).await).await?
            } else {
                Remote::new(&api)?.get("/v1/keys").await?
            };
            let keys = keys["keys"].take();
            if json {
                outln!("{}", serde_json::to_string_pretty(&keys)?);
            } else {
                out!("{}", table(&keys));
            }
        }
        KeysAction::Revoke { id, local, api } => {
            let key = if is_local(&local, &api) {
                locally(&local, &api.data, async |owner: &Owner| ::api::revoke_local(&owner.queue, &id).await).await?
            } else {
                Remote::new(&api)?.ask(Method::DELETE, &format!("/v1/keys/{}", escaped(&id))).await?
            };
            outln!("key {} of {} is revoked", text(&key["id"]), text(&key["name"]));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without a key and an API address, only the data folder is left.
fn is_local(local: &LocalArgs, api: &ApiAddressArgs) -> bool {
    local.local || (api.key.is_none() && api.api.is_none())
}

/// Asks the queue of a data folder.
async fn locally(
    local: &LocalArgs,
    data: &DataArgs,
    ask: impl AsyncFnOnce(&Owner) -> Result<Value, String>,
) -> anyhow::Result<Value> {
    let owner = Owner::open(local, data).await?;
    let answer = ask(&owner).await;
    owner.close().await;
    answer.map_err(|problem| anyhow!(problem))
}

/// Access to the queue of a data folder, for its owner.
struct Owner {
    queue: Queue,
    /// The queue's own data folder, unless `--queue` named the queue.
    folder: Option<PathBuf>,
    /// Started for this command alone, if nothing was running.
    broker: Option<(Broker, DataDir)>,
}

impl Owner {
    async fn open(local: &LocalArgs, data: &DataArgs) -> anyhow::Result<Self> {
        let broker = if local.queue.is_none() { start_if_nothing_runs(data).await? } else { None };
        let args = QueueArgs { queue: local.queue.clone(), data: data.clone() };
        let address = match &broker {
            Some((_, _, address)) => address.clone(),
            None => data::queue_address(&args)?,
        };
        let queue = Queue::connect(&address, "sightline keys", Defaults::default()).await;
        let queue =
            queue.context("reach the queue; it is found through the data folder (--data), or named with --queue")?;
        let folder = local.queue.is_none().then(|| data.data.clone());
        Ok(Self { queue, folder, broker: broker.map(|(broker, data, _)| (broker, data)) })
    }

    fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    async fn close(self) {
        self.queue.flush().await;
        if let Some((broker, data)) = self.broker {
            broker.stop().await;
            drop(data);
        }
    }
}

/// Starts a broker on a data folder that no process uses; `None` if one does.
async fn start_if_nothing_runs(data: &DataArgs) -> anyhow::Result<Option<(Broker, DataDir, queue::client::Address)>> {
    let (folder, has) = (&data.data, |name: &str| data.data.join(name).exists());
    let is_new = std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    if !is_new && !has("journal") && !has("nats") {
        bail!("{} contains no queue; name the queue with --queue, or its data folder with --data", folder.display());
    }
    let Some(held) = DataDir::try_open(data)? else { return Ok(None) };
    if has("nats") && !has("journal") {
        bail!("the queue of {} is a NATS server that does not run: start sightline on it first", folder.display());
    }
    let settings = Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        open: false,
        queue_bytes: None,
        max_payload: nats::MAX_PAYLOAD.into(),
        sync: true,
        lame_duck: Duration::ZERO,
        connections_max: Bounds::of_this_process().connections_alone(),
        release_at_start: false,
        config: FileSettings::default(),
    };
    let (broker, address) = broker::start(&held, settings).await?;
    Ok(Some((broker, held, address)))
}

fn table(keys: &Value) -> Table {
    let mut table = Table::new(&["id", "name", "scopes", "created", "expires", "revoked"]);
    for key in keys.as_array().into_iter().flatten() {
        let scopes: Vec<String> = key["scopes"].as_array().into_iter().flatten().map(text).collect();
        table.row([
            text(&key["id"]),
            text(&key["name"]),
            scopes.join(","),
            text(&key["created_at"]),
            text(&key["expires_at"]),
            text(&key["revoked_at"]),
        ]);
    }
    table
}
