//! What several commands need before they start: models, cache, runtime, topic defaults.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::api::Index;
use ::models::{Cache, Repository, pull};
use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use queue::Queue;
use queue::topic::Defaults;

use crate::config::{HttpArgs, ModelArgs, QueueArgs, TopicArgs};
use crate::data;
use crate::output::note;

/// Default limit on bytes of queued images, if the disk has room.
const QUEUE_BYTES_MAX: u64 = 32 << 30;
/// How long a server's monitoring page may take to answer.
const MONITOR_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes that a message needs besides the image, for its headers.
const MESSAGE_OVERHEAD: usize = 64 * 1024;

/// The models of a process.
pub(crate) struct Models {
    pub(crate) repository: Repository,
    /// The ones to serve.
    pub(crate) names: Vec<String>,
    pub(crate) cache: Cache,
    /// `--models` as it was given.
    pub(crate) selection: Vec<String>,
    runtime: Option<PathBuf>,
}

impl Models {
    /// Opens the repository and checks the names.
    pub(crate) fn open(args: &ModelArgs) -> anyhow::Result<Self> {
        // A model's name has neither dots nor slashes; a folder can always be written with one of them.
        let is_folder = |word: &String| word.contains(['/', '.']);
        let (folders, names): (Vec<String>, Vec<String>) = args.models.iter().cloned().partition(is_folder);
        let folders: Vec<PathBuf> = folders.into_iter().map(PathBuf::from).collect();
        let repository = Repository::open(&folders).context("open the models")?;
        for bad in repository.unavailable() {
            note!("warning: model {} is not served: {}", bad.name, bad.reason);
        }
        let is_bad = |name: &String| repository.unavailable().iter().any(|bad| bad.name == *name);
        if let Some(unknown) = names.iter().find(|name| repository.get(name).is_none() && !is_bad(name)) {
            bail!(
                "model `{unknown}` does not exist; known models: {}. A folder is written with a slash: ./{unknown}",
                repository.names()
            );
        }
        // A model that is not served is not offered either: its jobs would wait forever.
        let repository = repository.only(&names);
        let names: Vec<String> = repository.iter().map(|model| model.name().to_owned()).collect();
        ensure!(!names.is_empty(), "no named model can be served");
        let root = args.cache.clone().or_else(Cache::default_root);
        let root = root.context("find the cache folder: set HOME, or pass --cache DIR")?;
        let cache = Cache::new(std::path::absolute(root).context("find the cache folder")?);
        let from_environment = || std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let runtime = args.ort.clone().or_else(from_environment);
        if let Some(missing) = runtime.as_ref().filter(|path| !path.is_file()) {
            bail!("no ONNX Runtime library at {}", missing.display());
        }
        Ok(Self { repository, names, cache, selection: args.models.clone(), runtime })
    }

    /// The ONNX Runtime library: as given, else from the cache, else fetched.
    pub(crate) fn runtime(&self) -> anyhow::Result<PathBuf> {
        match &self.runtime {
            Some(path) => Ok(path.clone()),
            None => pull::onnx_runtime(&self.cache, &say).context("get ONNX Runtime"),
        }
    }

    /// Fetches the queue's server if it is missing. Blocks.
    pub(crate) fn nats_server(&self) -> anyhow::Result<PathBuf> {
        pull::nats_server(&self.cache, &say).context("get the queue's server")
    }

    /// Fetches the runtime and models that are missing. Blocks.
    pub(crate) fn fetch(&self) -> anyhow::Result<()> {
        self.runtime()?;
        for name in &self.names {
            let model = self.repository.get(name).context("the names were checked")?;
            let version = model.version(None).context("the manifest's version was checked")?;
            model.files(version, &self.cache, &say).with_context(|| format!("get model {name}"))?;
        }
        Ok(())
    }
}

fn say(line: &str) {
    note!("{line}");
}

/// Bytes that the queue of one of `topics` may take on a server that limits each stream on its own: an equal share of
/// `said`, else of the default limit, or of half of the queued and free bytes on `disk` if that is less.
pub(crate) fn topic_share(
    said: Option<ByteSize>,
    disk: Option<&Path>,
    queued: u64,
    topics: usize,
) -> anyhow::Result<u64> {
    let half = match disk {
        Some(path) => {
            let disk = rustix::fs::statvfs(path).with_context(|| format!("look at the disk of {}", path.display()))?;
            disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(queued) / 2
        }
        None => u64::MAX,
    };
    let all = said.map_or(QUEUE_BYTES_MAX.min(half), |bytes| bytes.as_u64());
    Ok((all / topics.max(1) as u64).max(1))
}

/// Settings of new topics, each with this many bytes for its queue.
pub(crate) fn topic_defaults(args: &TopicArgs, topic_bytes_max: Option<u64>) -> Defaults {
    Defaults {
        partitions: args.partitions.get(),
        lease: args.lease,
        attempts_max: args.attempts.get(),
        run_timeout: args.run_timeout,
        result_ttl: args.result_ttl,
        topic_bytes_max,
        replicas: args.replicas.get(),
        ..Defaults::default()
    }
}

/// Connects a command to the queue.
pub(crate) async fn connect(args: &QueueArgs) -> anyhow::Result<Queue> {
    let address = data::queue_address(args)?;
    Ok(Queue::connect(&address, "sightline tool", Defaults::default()).await?)
}

/// Warns of what may go wrong with a queue that runs elsewhere.
pub(crate) async fn check_queue(queue: &Queue, replicas: usize, monitor: Option<&str>) {
    let syncs = match monitor {
        Some(url) => match does_sync(url).await {
            Ok(syncs) => Some(syncs),
            Err(error) => {
                note!("warning: --queue-monitor {url}: {error:#}");
                None
            }
        },
        None => None,
    };
    for doubt in queue.server().doubts(replicas, syncs) {
        note!("warning: queue: {}", doubt.message);
    }
}

/// Whether a server writes to disk before it acknowledges, according to its monitoring page.
async fn does_sync(url: &str) -> anyhow::Result<bool> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().timeout(MONITOR_PATIENCE).build()?;
    let answer = client.get(format!("{}/varz", url.trim_end_matches('/'))).send().await.context("no answer")?;
    let varz: serde_json::Value = answer.json().await.context("it is not a NATS server's monitoring page")?;
    let jetstream = &varz["jetstream"]["config"];
    anyhow::ensure!(jetstream.is_object(), "it does not report JetStream");
    // The interval reads as two minutes even if every write is synced.
    Ok(jetstream["sync_always"] == true)
}

/// Opens the job index: the one that was named, or the one in the data folder.
pub(crate) async fn index(database: Option<&str>, folder: &Path) -> anyhow::Result<Index> {
    let address = match database {
        Some(address) => address.to_owned(),
        None => {
            data::private_folder(folder).with_context(|| format!("create {}", folder.display()))?;
            let file = folder.join("index.db");
            // SQLite gives the files that it writes beside a database the database's own mode.
            let mut private = std::fs::OpenOptions::new();
            private.create(true).truncate(false).write(true).mode(0o600);
            private.open(&file).with_context(|| format!("open {}", file.display()))?;
            Index::file(&file)
        }
    };
    Ok(Index::open(&address).await?)
}

/// Refuses to serve other machines without keys or encryption, unless the operator asked for it. Returns the guards
/// that are in place.
pub(crate) async fn check_listen(
    args: &HttpArgs,
    queue: &Queue,
    index: &Index,
    folder: &Path,
) -> anyhow::Result<::api::Guards> {
    ::api::adopt_keys(queue, index).await.context("take over the keys of an earlier version")?;
    let guards = ::api::Guards {
        keys: ::api::are_keys_needed(queue, Some(folder)).await?,
        encrypted: args.tls_cert.is_some() || args.behind_proxy,
        proxied: args.behind_proxy || args.public_url.is_some() || !args.allow_host.is_empty(),
        insecure: args.insecure,
    };
    ::api::check_listen(args.listen, guards)?;
    Ok(guards)
}

/// The API's URL.
pub(crate) fn api_url(args: &HttpArgs, address: SocketAddr) -> String {
    format!("{}://{address}", if args.tls_cert.is_some() { "https" } else { "http" })
}

/// The API's settings. Prints a note if the queue's server accepts less than the upload limit.
///
/// # Errors
/// If the certificate cannot be used.
pub(crate) fn http_config(args: &HttpArgs, max_payload: usize, folder: &Path) -> anyhow::Result<::api::Config> {
    let (wanted, taken) = (args.upload_limit.as_u64() as usize, max_payload.saturating_sub(MESSAGE_OVERHEAD));
    if wanted > taken {
        note!("note: images are limited to {taken} bytes, not {wanted}, by max_payload of the queue's server");
    }
    let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = tls.map(|(certificate, key)| ::broker::server_config(certificate, key)).transpose();
    let tls = tls.map_err(|problem| anyhow::anyhow!("--tls-cert, --tls-key: {problem}"))?;
    Ok(::api::Config {
        tls: tls.map(Arc::new),
        listen_ip: args.listen.ip(),
        allowed_hosts: args.allow_host.clone(),
        upload_bytes_max: wanted.min(taken),
        webhook_secret: data::webhook_secret(folder)?,
        data_folder: Some(folder.to_owned()),
        behind_proxy: args.behind_proxy,
        public_url: args.public_url.clone(),
        webhook_allow: args.webhook_allow.clone(),
        ..::api::Config::default()
    })
}

/// Binds the API's port.
pub(crate) async fn bind(args: &HttpArgs) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))
}
