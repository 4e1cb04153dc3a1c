//! The system that a drill runs on: queue servers, and `up` with its workers.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use queue::Queue;
use queue::client::Address;
use queue::topic::Defaults;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::config::{DrillArgs, EngineKind};
use crate::scratch::Scratch;
use crate::setup::Models;
use crate::supervisor;

/// How long a part may take to start.
const START_PATIENCE: Duration = Duration::from_secs(90);
/// How long `up` may take to end.
const END_PATIENCE: Duration = Duration::from_secs(40);

/// Where the API listens now; `up` takes another port each time it is started.
pub(crate) type Api = Arc<RwLock<String>>;

/// A whole system in a folder of its own. Dropping it ends it and removes the folder.
pub(crate) struct Stack {
    // Dropped before the folder, so that no process writes into it while it is removed.
    up: Option<Child>,
    brokers: Brokers,
    flags: Vec<String>,
    api: Api,
    workers: usize,
    folder: Scratch,
}

enum Brokers {
    Nats(Cluster),
    Own { port: u16, child: Option<Child> },
}

impl Stack {
    /// Starts everything.
    pub(crate) async fn start(args: &DrillArgs, models: Models, model: &str) -> anyhow::Result<Self> {
        let folder = Scratch::create(&std::env::temp_dir())?;
        let (replicas, brokers) = match args.engine {
            EngineKind::Nats => {
                let program = tokio::task::spawn_blocking(move || models.nats_server()).await??;
                (3, Brokers::Nats(Cluster::start(&folder.0, program).await?))
            }
            EngineKind::Own => {
                let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
                (1, Brokers::Own { port: port.context("find a free port")?.port(), child: None })
            }
        };
        let mut flags = vec!["--replicas".into(), replicas.to_string()];
        flags.extend(["--workers".into(), args.workers.to_string()]);
        flags.extend(["--lease".into(), format!("{}ms", args.lease.as_millis())]);
        let others = args.models.models.iter().filter(|word| word.contains(['/', '.']));
        flags.extend([
            "--models".into(),
            std::iter::once(model).chain(others.map(String::as_str)).collect::<Vec<_>>().join(","),
        ]);
        if let Some(cache) = &args.models.cache {
            flags.extend(["--cache".into(), cache.display().to_string()]);
        }
        let mut stack = Self { up: None, brokers, flags, api: Api::default(), workers: args.workers.get(), folder };
        if args.engine == EngineKind::Own {
            stack.restart_broker(0).await?;
        }
        stack.start_up().await?;
        Ok(stack)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    pub(crate) fn api(&self) -> Api {
        self.api.clone()
    }

    pub(crate) fn queue_url(&self) -> String {
        match &self.brokers {
            Brokers::Nats(cluster) => cluster.url(),
            Brokers::Own { port, .. } => format!("nats://127.0.0.1:{port}"),
        }
    }

    /// Number of queue servers.
    pub(crate) fn brokers(&self) -> usize {
        match &self.brokers {
            Brokers::Nats(cluster) => cluster.len(),
            Brokers::Own { .. } => 1,
        }
    }

    pub(crate) fn signal_broker(&self, number: usize, wanted: Signal) {
        match &self.brokers {
            Brokers::Nats(cluster) => cluster.signal(number, wanted),
            Brokers::Own { child, .. } => {
                if let Some(pid) = child.as_ref().and_then(Child::id) {
                    signal(pid, wanted);
                }
            }
        }
    }

    /// Starts a queue server that is not running.
    pub(crate) async fn restart_broker(&mut self, number: usize) -> anyhow::Result<()> {
        let data = self.folder.0.join("broker");
        match &mut self.brokers {
            Brokers::Nats(cluster) => cluster.restart(number).await,
            Brokers::Own { port, child } => {
                if let Some(mut ended) = child.take() {
                    ended.wait().await.context("wait for the broker's end")?;
                }
                let mut command = supervisor::this_program()?;
                command.args([
                    "broker",
                    "--supervised",
                    "--broker-open",
                    "--listen",
                    &format!("127.0.0.1:{port}"),
                    "--data",
                ]);
                *child = Some(spawn(command.arg(data))?);
                Ok(())
            }
        }
    }

    /// Kills all processes and restarts them.
    pub(crate) async fn kill_all(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("`up` runs")?;
        // Its workers end by themselves: their supervisor's pipe closes.
        up.kill().await.context("kill `up`")?;
        for number in 0..self.brokers() {
            self.signal_broker(number, Signal::KILL);
        }
        for number in 0..self.brokers() {
            self.restart_broker(number).await?;
        }
        self.start_up().await
    }

    /// Process ids of the workers.
    pub(crate) async fn workers(&self) -> anyhow::Result<Vec<u32>> {
        let members = self.members().await?;
        let workers = members.iter().filter(|member| member["role"] == "worker" && member["state"] == "ready");
        let pids: Vec<u32> = workers.filter_map(|member| member["pid"].as_u64()).map(|pid| pid as u32).collect();
        ensure!(!pids.is_empty(), "no worker to kill");
        Ok(pids)
    }

    /// Fails unless all copies are current and all workers are ready.
    pub(crate) async fn must_be_whole(&self) -> anyhow::Result<()> {
        let workers = self.workers().await?.len();
        ensure!(workers >= self.workers, "{workers} workers of {}", self.workers);
        self.are_copies_current().await
    }

    async fn are_copies_current(&self) -> anyhow::Result<()> {
        let defaults = Defaults::default();
        let queue = Queue::connect(&Address::parse(&self.queue_url())?, "sightline drill", defaults).await?;
        for topic in queue.topics().await? {
            for partition in queue.topics.describe(topic.name()).await?.partitions {
                ensure!(
                    partition.leader != "none" && partition.replicas.iter().all(|replica| replica.current),
                    "not yet"
                );
            }
        }
        Ok(())
    }

    async fn members(&self) -> anyhow::Result<Vec<Value>> {
        let url = format!("{}/v1/members", self.api.read().expect("no panic holds this lock"));
        let answer: Value = reqwest::get(url).await?.json().await?;
        Ok(answer["members"].as_array().cloned().unwrap_or_default())
    }

    async fn start_up(&mut self) -> anyhow::Result<()> {
        let data = self.folder.0.join("data");
        let starting = async {
            // If the queue does not answer yet, `up` reports that and ends; then start it again.
            loop {
                let mut command = supervisor::this_program()?;
                command.args(["up", "--supervised", "--listen", "127.0.0.1:0", "--queue", &self.queue_url(), "--data"]);
                let mut child = spawn(command.arg(&data).args(&self.flags).stdout(Stdio::piped()))?;
                let mut lines = BufReader::new(child.stdout.take().context("`up` has an output")?).lines();
                while let Some(line) = lines.next_line().await? {
                    if line.contains("is ready.") {
                        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                        return anyhow::Ok(child);
                    }
                }
                child.wait().await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        self.up = Some(tokio::time::timeout(START_PATIENCE, starting).await.context("`up` did not become ready")??);
        let api = fs::read_to_string(data.join("api.url")).context("`up` leaves its address")?;
        *self.api.write().expect("no panic holds this lock") = api.trim().to_owned();
        Ok(())
    }

    /// Ends everything in order.
    pub(crate) async fn end(mut self) {
        if let Some(mut up) = self.up.take() {
            supervisor::end(&mut up, Signal::TERM, END_PATIENCE).await;
        }
        if let Brokers::Own { child: Some(broker), .. } = &mut self.brokers {
            supervisor::end(broker, Signal::TERM, END_PATIENCE).await;
        }
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let sent = Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, signal));
    if let Some(Err(error)) = sent.filter(|sent| !matches!(sent, Err(error) if error.kind() == ErrorKind::NotFound)) {
        tracing::debug!(%error, pid, "not signaled");
    }
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_a_setting(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    if !matches!(command.as_std().get_args().next(), Some(word) if word == "up") {
        command.stdout(Stdio::null());
    }
    command
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("start a part")
}

/// Whether a variable sets up the drill, which must not affect the system that it starts.
fn is_a_setting(name: &str) -> bool {
    name.starts_with("SIGHTLINE_") && name != "SIGHTLINE_CACHE" && name != "SIGHTLINE_ORT"
}
