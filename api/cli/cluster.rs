//! Three NATS servers on this machine as one cluster: for drills and tests.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use queue::Queue;
use queue::client::Address;
use queue::topic::Defaults;
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::process::Child;

use crate::config::ClusterArgs;
use crate::nats::{MAX_PAYLOAD, spawn_guarded};
use crate::output::announce;
use crate::setup::Models;
use crate::supervisor;

const NODES: usize = 3;
/// How long the servers may take to elect a leader.
const START_PATIENCE: Duration = Duration::from_secs(60);
const START_PAUSE: Duration = Duration::from_millis(100);

/// Runs a cluster until standard input closes, and prints where it listens.
pub(crate) async fn run(args: ClusterArgs) -> anyhow::Result<ExitCode> {
    let models = Models::open(&args.models)?;
    let program = tokio::task::spawn_blocking(move || models.nats_server()).await??;
    let cluster = Cluster::start(&args.store, program).await?;
    announce!("{}", cluster.url());
    let mut ignored = Vec::new();
    tokio::io::stdin().read_to_end(&mut ignored).await?;
    drop(cluster);
    Ok(ExitCode::SUCCESS)
}

/// Three servers. Dropping it ends them.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    program: PathBuf,
    config: PathBuf,
    lock: PathBuf,
    port: u16,
    guard: Option<Child>,
}

impl Cluster {
    /// Starts the servers on three folders below `store` and waits until a stream can be created.
    pub(crate) async fn start(store: &Path, program: PathBuf) -> anyhow::Result<Self> {
        let ports = free_ports(2 * NODES)?;
        let (clients, routes) = ports.split_at(NODES);
        let all_routes: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let mut nodes = Vec::new();
        for number in 0..NODES {
            let folder = store.join(format!("n{}", number + 1));
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            let quoted = |path: &Path| serde_json::to_string(&path.to_string_lossy()).context("quote a path");
            let config = format!(
                "server_name: n{name}\nlisten: \"127.0.0.1:{client}\"\nmax_payload: {MAX_PAYLOAD}\nlog_file: {log}\n\
                 jetstream {{ store_dir: {folder}, sync_interval: always, max_file_store: 1TB, max_memory_store: 64MB }}\n\
                 cluster {{ name: sightline-local, listen: \"127.0.0.1:{route}\", routes: [{routes}] }}\n",
                name = number + 1,
                client = clients[number],
                route = routes[number],
                routes = all_routes.join(", "),
                log = quoted(&folder.join("log"))?,
                folder = quoted(&folder)?,
            );
            let path = folder.join("config");
            fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
            let (program, lock) = (program.clone(), folder.join("lock"));
            let mut node = Node { program, config: path, lock, port: clients[number], guard: None };
            node.start()?;
            nodes.push(node);
        }
        let cluster = Self { nodes };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Where the servers listen.
    pub(crate) fn url(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(|node| format!("nats://127.0.0.1:{}", node.port)).collect();
        urls.join(",")
    }

    /// Number of servers.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Sends a signal to a server and to its guard process.
    pub(crate) fn signal(&self, number: usize, signal: Signal) {
        supervisor::signal_group(self.nodes[number].guard.as_ref().and_then(Child::id), signal);
    }

    /// Restarts a server that was killed.
    pub(crate) async fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[number];
        if let Some(mut guard) = node.guard.take() {
            guard.wait().await.context("wait for a server's end")?;
        }
        node.start()
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let address = Address::parse(&self.url())?;
        let connecting = async {
            loop {
                let defaults = Defaults { replicas: NODES, ..Defaults::default() };
                if let Ok(queue) = Queue::connect(&address, "sightline start-up", defaults).await
                    && queue.admin.ensure_storage().await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(START_PAUSE).await;
            }
        };
        tokio::time::timeout(START_PATIENCE, connecting).await.context("the cluster did not start within a minute")
    }
}

impl Node {
    fn start(&mut self) -> anyhow::Result<()> {
        let guard = spawn_guarded(&self.program, &self.config, &self.lock)?;
        self.guard = Some(guard);
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        supervisor::kill_group(self.guard.as_ref().and_then(Child::id));
    }
}

/// Free ports; all are held at the same time, so that they differ.
fn free_ports(count: usize) -> anyhow::Result<Arc<[u16]>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().context("find free ports")?;
    let ports: Vec<u16> = listeners.iter().filter_map(|one| one.local_addr().ok()).map(|one| one.port()).collect();
    Ok(ports.into())
}
