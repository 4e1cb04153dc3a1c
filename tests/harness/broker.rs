//! A queue's server alone, without a system around it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use queue::Queue;
use queue::client::Address;
use queue::topic::Defaults;
use tempfile::TempDir;

use super::{Engine, cache, engine, eventually, sightline, temporary_folder};

/// A queue server alone: own port, own store. Dropping it ends it.
pub(crate) struct Broker {
    child: Option<Child>,
    folder: TempDir,
    store: PathBuf,
    port: u16,
    flags: Vec<String>,
    engine: Engine,
}

impl Broker {
    pub(crate) const TOKEN: &'static str = "test-token";

    /// Starts a broker of this run's engine with every write synced.
    pub(crate) async fn start() -> Self {
        let folder = temporary_folder();
        let store = folder.path().join("store");
        Self::start_in(folder, store, &[]).await
    }

    /// The same with a data folder of the test's own, and flags, which only our own broker takes.
    pub(crate) async fn start_at(store: &Path, flags: &[&str]) -> Self {
        Self::start_in(temporary_folder(), store.to_owned(), flags).await
    }

    /// A NATS server with these lines in its configuration, in place of what Sightline would say.
    pub(crate) async fn nats_with(lines: &str) -> Self {
        let folder = temporary_folder();
        let store = folder.path().join("store");
        let flags = ["nats", lines];
        Self::start_in(folder, store, &flags).await
    }

    async fn start_in(folder: TempDir, store: PathBuf, flags: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let (engine, flags, lines, sync) = match flags {
            ["nats", lines] => (Engine::Nats, &[][..], *lines, "2m"),
            flags => (engine(), flags, "max_payload: 32MB", "always"),
        };
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nauthorization {{ token: \"{}\" }}\n{lines}\n\
             jetstream {{ store_dir: {store:?}, sync_interval: {sync}, max_file_store: 1TB }}\n",
            Self::TOKEN,
        );
        std::fs::write(folder.path().join("config"), config).expect("written");
        std::fs::create_dir_all(&store).expect("created");
        // Durable, or a power cut leaves an empty file and the broker makes a token up.
        std::fs::write(store.join("broker.token"), Self::TOKEN).expect("written");
        for path in [store.join("broker.token"), store.clone()] {
            File::open(path).and_then(|file| file.sync_all()).expect("synced");
        }
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut broker = Self { child: None, folder, store, port, flags, engine };
        broker.restart().await;
        broker
    }

    /// Starts it (again) on the same store and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        let started = self.try_restart().await;
        assert!(started.is_some(), "the broker ended: {}", self.log());
    }

    /// The same; `None` if it ends instead.
    pub(crate) async fn try_restart(&mut self) -> Option<()> {
        let mut command = if self.engine == Engine::Own { self.own() } else { self.nats() };
        let log =
            File::options().create(true).append(true).open(self.folder.path().join("stderr")).expect("a log file");
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("starts"));
        eventually("the broker answers", async || {
            if let Ok(Some(_)) = self.child.as_mut().expect("it was started").try_wait() {
                return Some(None);
            }
            Queue::connect(&self.address(), "test", Defaults::default()).await.ok().map(|_| Some(()))
        })
        .await
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

    fn own(&self) -> Command {
        let mut command = sightline();
        command.args(["broker", "--listen", &format!("127.0.0.1:{}", self.port), "--data"]).arg(&self.store);
        command.args(&self.flags);
        command
    }

    fn nats(&self) -> Command {
        assert!(self.flags.is_empty(), "flags are for our own broker");
        let program = models::pull::nats_server(&cache(), &|line| eprintln!("{line}")).expect("fetched");
        let mut command = Command::new(program);
        command.arg("--config").arg(self.folder.path().join("config"));
        command
    }

    /// Its data folder.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// As kill -9 does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().and_then(|()| child.wait()).expect("it is gone");
    }

    /// Its address with the token, as a flag has it.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}@127.0.0.1:{}", Self::TOKEN, self.port)
    }

    /// Its address, with the token.
    pub(crate) fn address(&self) -> Address {
        Address::parse(&self.url()).expect("valid")
    }

    /// A connection that creates topics with these defaults.
    pub(crate) async fn queue(&self, defaults: Defaults) -> Queue {
        Queue::connect(&self.address(), "test", defaults).await.expect("the broker is there")
    }

    /// A connection without our own client around it.
    pub(crate) async fn client(&self) -> async_nats::Client {
        let options = async_nats::ConnectOptions::with_token(Self::TOKEN.into());
        options.connect(format!("127.0.0.1:{}", self.port)).await.expect("the broker is there")
    }

    /// The same, for streams.
    pub(crate) async fn bare(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client().await)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
