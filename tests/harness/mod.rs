//! A whole Sightline for a test: own ports, own data folder, ended with the test.
//!
//! The binary that is tested is the one that users run. Nothing here sleeps for a guessed time:
//! what has to happen is waited for, with a limit that says what did not.

#![allow(dead_code, reason = "each test target uses a part of the harness")]

mod broker;
mod engine;
pub(crate) mod postgres;

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use queue::Queue;
use queue::client::Address;
use queue::topic::Defaults;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tempfile::TempDir;

#[allow(unused_imports, reason = "each test target uses a part of the harness")]
pub(crate) use broker::Broker;
#[allow(unused_imports, reason = "each test target uses a part of the harness")]
pub(crate) use engine::{Engine, engine};

/// How long anything may take before a test says that it did not happen. Fetching models at the
/// first run counts, on a slow line.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Pause between two looks at a state.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A running system. Dropping it ends it, and its children with it.
pub(crate) struct Stack {
    up: Option<Up>,
    flags: Vec<String>,
    /// Where its queue runs that it has not started itself.
    queue: Option<String>,
    _cluster: Option<Cluster>,
    folder: TempDir,
    data: PathBuf,
    http: reqwest::Client,
    /// Its limit of open files.
    files: Option<u32>,
    /// More of its environment.
    environment: Vec<(&'static str, OsString)>,
    engine: Engine,
}

struct Up {
    child: Child,
    /// `up` ends when this closes, also when the test is killed.
    _pipe: ChildStdin,
}

impl Stack {
    /// `sightline up` with these flags; returns when it says that it is ready.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let folder = temporary_folder();
        // Not there yet: `up` makes it.
        let data = folder.path().join("data");
        Self::start_in(folder, data, flags)
    }

    /// The same with the other database, where the other engine is: SQLite beside our own broker,
    /// PostgreSQL beside a NATS server.
    pub(crate) fn start_indexed(flags: &[&str]) -> Self {
        if engine() == Engine::Own {
            return Self::start(flags);
        }
        let database = postgres::database();
        Self::start(&[flags, &["--database", &database]].concat())
    }

    /// The same on a NATS server of its own, whichever engine this run is for.
    pub(crate) fn start_on_nats(flags: &[&str]) -> Self {
        let folder = temporary_folder();
        let data = folder.path().join("data");
        let mut stack = Self::prepared(folder, data, flags);
        stack.engine = Engine::Nats;
        stack.restart();
        stack
    }

    /// The same on a queue that runs already.
    pub(crate) fn start_on(queue: &str, flags: &[&str]) -> Self {
        let folder = temporary_folder();
        let data = folder.path().join("data");
        Self::start_with(folder, data, flags, Some(queue.to_owned()), None)
    }

    /// The same with a data folder of the test's own.
    pub(crate) fn start_at(data: PathBuf, flags: &[&str]) -> Self {
        Self::start_in(temporary_folder(), data, flags)
    }

    fn start_in(folder: TempDir, data: PathBuf, flags: &[&str]) -> Self {
        if engine() != Engine::Cluster {
            return Self::start_with(folder, data, flags, None, None);
        }
        let cluster = Cluster::start();
        let flags: Vec<&str> = flags.iter().copied().chain(["--replicas", "3"]).collect();
        Self::start_with(folder, data, &flags, Some(cluster.url.clone()), Some(cluster))
    }

    fn start_with(
        folder: TempDir,
        data: PathBuf,
        flags: &[&str],
        queue: Option<String>,
        cluster: Option<Cluster>,
    ) -> Self {
        let mut stack = Self::prepared(folder, data, flags);
        (stack.queue, stack._cluster) = (queue, cluster);
        stack.restart();
        stack
    }

    /// Not yet started.
    fn prepared(folder: TempDir, data: PathBuf, flags: &[&str]) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // A kept connection belongs to the runtime of the test that opened it, and ends with it.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("an HTTP client");
        Self {
            up: None,
            flags,
            queue: None,
            _cluster: None,
            folder,
            data,
            http,
            files: None,
            environment: Vec::new(),
            engine: engine(),
        }
    }

    /// The same where it may refuse to start: what it said then.
    pub(crate) fn try_start_at(data: PathBuf, flags: &[&str]) -> Result<Self, String> {
        Self::try_start_among(data, flags, Vec::new())
    }

    /// The same with these environment variables too.
    pub(crate) fn try_start_among(
        data: PathBuf,
        flags: &[&str],
        environment: Vec<(&'static str, OsString)>,
    ) -> Result<Self, String> {
        let mut stack = Self::prepared(temporary_folder(), data, flags);
        stack.environment = environment;
        stack.try_restart(None).map(|()| stack)
    }

    /// `sightline up` that may open no more files than this.
    pub(crate) fn start_with_files(files: u32, flags: &[&str]) -> Self {
        let folder = temporary_folder();
        let data = folder.path().join("data");
        let mut stack = Self::prepared(folder, data, flags);
        stack.files = Some(files);
        stack.restart();
        stack
    }

    /// Starts it (again) on the same data folder.
    pub(crate) fn restart(&mut self) {
        if let Err(log) = self.try_restart(None) {
            panic!("`up` ended before it was ready: {log}");
        }
    }

    /// Starts it (again), with this for its standard error if it is given.
    pub(crate) fn try_restart(&mut self, stderr: Option<Stdio>) -> Result<(), String> {
        drop(self.up.take());
        let log = || File::options().create(true).append(true).open(self.folder.path().join("stderr"));
        let stderr = stderr.unwrap_or_else(|| log().expect("a log file").into());
        let mut command = match self.files {
            None => sightline(),
            Some(files) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
                shell.args(["-c", &limited, env!("CARGO_BIN_EXE_sightline")]);
                shell
            }
        };
        command.args(["up", "--supervised", "--listen", "127.0.0.1:0"]);
        match &self.queue {
            Some(queue) => command.env("SIGHTLINE_QUEUE", queue),
            None => command.args(["--engine", self.engine.name(), "--broker-listen", "127.0.0.1:0"]),
        };
        let mut child = command
            .arg("--data")
            .arg(self.data())
            .args(&self.flags)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        let pipe = child.stdin.take().expect("it has an input");
        let mut lines = BufReader::new(child.stdout.take().expect("it has an output")).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("is ready."));
        self.up = Some(Up { child, _pipe: pipe });
        if ready { Ok(()) } else { Err(self.log()) }
    }

    /// The database that it was told to use.
    pub(crate) fn database(&self) -> Option<&str> {
        let flag = self.flags.iter().position(|flag| flag == "--database")?;
        self.flags.get(flag + 1).map(String::as_str)
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// What it wrote to standard error.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// Waits until it has written `text` to its log. Log lines are written in the background, so
    /// an answer may be here before the line about it.
    pub(crate) async fn logged(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), async || self.log().contains(text).then_some(())).await;
    }

    /// Process id of `up`.
    pub(crate) fn pid(&self) -> u32 {
        self.up.as_ref().expect("it runs").child.id()
    }

    /// Kills `up` alone, as kill -9 does.
    pub(crate) fn kill(&mut self) {
        let up = self.up.as_mut().expect("it runs");
        up.child.kill().expect("it can be killed");
        up.child.wait().expect("it is gone");
    }

    /// Tells `up` to end, waits, and returns whether it ended well.
    pub(crate) fn terminate(&mut self) -> bool {
        let mut up = self.up.take().expect("it runs");
        signal(up.child.id(), "TERM");
        up.child.wait().expect("it ends").success()
    }

    /// Tells `up` to end as a container's runtime does: it is killed after ten seconds. Whether it ended well
    /// before that.
    pub(crate) fn stop_container(&mut self) -> bool {
        let mut up = self.up.take().expect("it runs");
        signal(up.child.id(), "TERM");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = up.child.try_wait().expect("it can be asked") {
                return status.success();
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        up.child.kill().expect("it can be killed");
        up.child.wait().expect("it is gone");
        false
    }

    /// A URL of its API.
    pub(crate) fn url(&self, path: &str) -> String {
        let base = std::fs::read_to_string(self.data().join("api.url")).expect("`up` leaves its address");
        format!("{base}{path}")
    }

    /// Its API's address, `host:port`.
    pub(crate) fn api(&self) -> String {
        self.url("").trim_start_matches("http://").to_owned()
    }

    /// `GET path`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.http.get(self.url(path))).await
    }

    /// Any request.
    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path))
    }

    /// A request to upload one image.
    pub(crate) fn upload(&self, query: &str, image: impl Into<reqwest::Body>) -> RequestBuilder {
        self.http.post(self.url(&format!("/v1/jobs?{query}"))).body(image)
    }

    /// Uploads one image and returns the id of the accepted job.
    pub(crate) async fn accept(&self, model: &str, image: Vec<u8>) -> String {
        let answer = send(self.upload(&format!("model={model}"), image)).await;
        assert_eq!(answer.status, 202, "{}", answer.json);
        answer.text("id")
    }

    /// Waits until a job is finished.
    pub(crate) async fn finish(&self, id: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&format!("/v1/jobs/{id}?wait=10")).await;
            assert_eq!(answer.status, 200, "{}", answer.json);
            if is_finished(&answer.json) {
                return answer.json;
            }
            assert!(Instant::now() < deadline, "never finished: {}", answer.json);
        }
    }

    /// Uploads one image and waits for its job.
    pub(crate) async fn run(&self, query: &str, image: Vec<u8>) -> Value {
        let answer = send(self.upload(query, image)).await;
        assert_eq!(answer.status, 202, "{}", answer.json);
        self.finish(&answer.text("id")).await
    }

    /// A connection to its queue.
    pub(crate) async fn queue(&self) -> Queue {
        Queue::connect(&self.queue_address(), "test", Defaults::default()).await.expect("the queue is there")
    }

    /// Its queue's address, with the token.
    pub(crate) fn queue_address(&self) -> Address {
        let read = |name| std::fs::read_to_string(self.data().join(name)).expect("`up` leaves this file");
        Address::parse(&read("broker.url")).expect("valid").with_default_token(Some(read("broker.token")))
    }

    /// The queue's servers, without our own client around them.
    pub(crate) async fn bare(&self) -> async_nats::jetstream::Context {
        let mut options = async_nats::ConnectOptions::new();
        if let Ok(token) = std::fs::read_to_string(self.data().join("broker.token")) {
            options = options.token(token.trim().to_owned());
        }
        let url = std::fs::read_to_string(self.data().join("broker.url")).expect("`up` leaves this file");
        let servers: Vec<String> = url.trim().split(',').map(str::to_owned).collect();
        async_nats::jetstream::new(options.connect(servers).await.expect("the queue is there"))
    }

    /// A figure of its process in bytes, by its name in `/proc/PID/status`: `VmRSS`, `VmHWM`.
    pub(crate) fn memory(&self, field: &str) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.expect("the field is there").trim().trim_end_matches(" kB");
        kib.parse::<usize>().expect("a number") * 1024
    }

    /// Open files of its process.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// Members that the API knows, of one role.
    pub(crate) async fn members(&self, role: &str) -> Vec<Value> {
        let answer = self.get("/v1/members").await;
        let members = answer.json["members"].as_array().expect("a list").clone();
        members.into_iter().filter(|member| member["role"] == role).collect()
    }

    /// Runs another command against this system and waits for it.
    pub(crate) fn command(&self, words: &[&str]) -> Output {
        self.prepare(words).stdin(Stdio::null()).output().expect("the binary starts")
    }

    /// Another command against this system, not yet started.
    pub(crate) fn prepare(&self, words: &[&str]) -> Command {
        let mut command = sightline();
        if let Some(queue) = &self.queue {
            command.env("SIGHTLINE_QUEUE", queue);
        }
        command.args(words).arg("--data").arg(self.data());
        command
    }
}

/// A system that the tests of one process share if they neither stop nor fill it.
pub(crate) fn shared() -> &'static Stack {
    static SHARED: OnceLock<Stack> = OnceLock::new();
    SHARED.get_or_init(|| Stack::start(&["--workers", "2"]))
}

/// A JPEG with an intact structure and meaningless Huffman tables, which only a decoder notices.
pub(crate) fn damaged_jpeg() -> Vec<u8> {
    let mut image = photo("china.jpg");
    let tables = image.windows(2).position(|pair| pair == [0xFF, 0xC4]).expect("it has tables");
    image[tables + 5..tables + 21].fill(0xFE);
    image
}

/// Three NATS servers as one cluster, in a folder of their own. Dropping it ends them.
pub(crate) struct Cluster {
    child: Child,
    _folder: TempDir,
    /// Where they listen.
    pub(crate) url: String,
}

impl Cluster {
    /// Starts them and waits until they have a leader.
    pub(crate) fn start() -> Self {
        let folder = temporary_folder();
        let mut command = sightline();
        command.args(["cluster", "--store"]).arg(folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it has an output")).lines();
        let url = lines.next().expect("it says where it listens").expect("text");
        Self { child, _folder: folder, url }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It ends its servers when its input closes.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of `up`: {}", self.log());
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Not in order, which would wait for a run that never ends, and for workers that a test has
        // paused. The queue's server is ended by its guard.
        if matches!(self.child.try_wait(), Ok(None)) {
            let workers = descendants(self.child.id()).into_iter().filter(|(_, args)| args.contains(" worker "));
            let workers: Vec<u32> = workers.map(|(pid, _)| pid).collect();
            drop(self.child.kill());
            drop(self.child.wait());
            workers.into_iter().for_each(|pid| signal(pid, "KILL"));
        }
    }
}

/// The binary, without this session's own settings.
pub(crate) fn sightline() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sightline"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SIGHTLINE_") && name != "SIGHTLINE_CACHE") {
        command.env_remove(name);
    }
    command
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) json: Value,
    pub(crate) body: String,
}

impl Answer {
    /// A field that must be a string.
    #[track_caller]
    pub(crate) fn text(&self, field: &str) -> String {
        self.json[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.body)).to_owned()
    }

    /// A header that must be there.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().expect("ASCII")
    }
}

/// Sends a request; a lost connection fails the test.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    read(request.send().await.expect("the API answers")).await
}

/// Reads an answer to its end.
pub(crate) async fn read(response: Response) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.text().await.expect("the answer is whole");
    Answer { status, headers, json: serde_json::from_str(&body).unwrap_or_default(), body }
}

/// Whether a job document shows a terminal state.
pub(crate) fn is_finished(job: &Value) -> bool {
    matches!(job["state"].as_str(), Some("succeeded" | "failed" | "canceled"))
}

/// One of the six photos.
pub(crate) fn photo(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos").join(name)).expect(name)
}

/// The folder of test models: `slow` takes about a second, `endless` never ends by itself.
pub(crate) fn test_models() -> String {
    format!("{}/tests/models/", env!("CARGO_MANIFEST_DIR"))
}

/// A program that a test needs and no package manager of ours brings. Where CI lacks it, that is a fault.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let more = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let found = std::env::split_paths(&paths).chain(more).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is not installed");
        eprintln!("SKIPPED: {name} is not installed");
    }
    found
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
    status.expect("kill runs");
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().expect("ps runs");
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}

/// Children of a process, and theirs, with their command lines.
pub(crate) fn descendants(pid: u32) -> Vec<(u32, String)> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,args="]).output().expect("ps runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<(u32, u32, String)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some((pid, parent, words.collect::<Vec<_>>().join(" ")))
        })
        .collect();
    let mut found: Vec<(u32, String)> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for (pid, _, args) in rows.iter().filter(|row| row.1 == parent) {
            parents.push(*pid);
            found.push((*pid, args.clone()));
        }
    }
    found
}

/// How much of something is done: little, unless `SIGHTLINE_FAULTS=long` asks for the long form.
#[allow(dead_code, reason = "not every target has a long form")]
pub(crate) fn rounds(short: usize, long: usize) -> usize {
    if std::env::var("SIGHTLINE_FAULTS").is_ok_and(|form| form == "long") { long } else { short }
}

/// Waits until `look` gives something; `what` is what is waited for.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "this never came: {what}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// A folder that goes with the test; what a killed test leaves goes with `target/`.
pub(crate) fn temporary_folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

/// A process that is ended with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Where what tests fetch is kept.
pub(crate) fn cache() -> models::Cache {
    let root = std::env::var_os("SIGHTLINE_CACHE").map(PathBuf::from);
    models::Cache::new(root.or_else(models::Cache::default_root).expect("a cache folder"))
}

/// A path inside the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
