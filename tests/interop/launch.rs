//! A server with a configuration of its own, and a bare connection to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::harness::{Engine, cache, engine, sightline};

/// The token that is asked for where a test sets no users.
pub(crate) const TOKEN: &str = "test-token";
/// How long an answer may take before a test says that it did not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is set, in the words of each server.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Settings<'a> {
    /// TOML of our broker.
    pub(crate) own: &'a str,
    /// Configuration of a NATS server.
    pub(crate) nats: &'a str,
    /// Only users may connect, or all clients.
    pub(crate) without_token: bool,
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    /// Of the monitoring.
    pub(crate) http: u16,
}

impl Server {
    /// Starts one and waits until it says that it listens.
    pub(crate) fn start(settings: Settings<'_>) -> Self {
        Self::start_as(engine(), settings)
    }

    /// The same for one of the two, whichever suite this is.
    pub(crate) fn start_as(engine: Engine, settings: Settings<'_>) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let mut command =
            if engine == Engine::Own { own(folder.path(), settings) } else { nats(folder.path(), settings) };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (mut port, mut http, mut said) = (None, None, String::new());
        let port_of = |line: &str| line.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        while port.is_none() {
            let Some(Ok(line)) = lines.next() else { panic!("the server ended: {said}") };
            if line.contains("Starting http monitor on") {
                http = port_of(&line);
            } else if line.contains("Listening for client connections on") {
                port = port_of(&line);
            }
            said += &line;
            said.push('\n');
        }
        // Read on, or the server would wait for us at last.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, folder, port: port.expect("just found"), http: http.expect("the monitoring comes first") }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to end, and returns whether it ended well.
    pub(crate) fn terminate(&mut self) {
        super::harness::signal(self.pid(), "TERM");
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) {
        self.child.wait().expect("it ends");
    }

    /// A bare connection, after the server's first word.
    pub(crate) fn connect(&self) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        let mut raw = Raw { stream: BufReader::new(stream), info: serde_json::Value::Null };
        let info = raw.line();
        let json = info.strip_prefix("INFO ").unwrap_or_else(|| panic!("no INFO: {info}"));
        raw.info = serde_json::from_str(json).expect("JSON");
        raw
    }

    /// A bare connection of a user.
    pub(crate) fn login(&self, user: &str, password: &str) -> Raw {
        let mut raw = self.connect();
        raw.say(&format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\nPING\r\n"
        ));
        raw.expect("PONG");
        raw
    }

    /// A page of its monitoring.
    pub(crate) async fn page(&self, path: &str) -> serde_json::Value {
        drop(rustls::crypto::ring::default_provider().install_default());
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.http)).await.expect("it answers");
        answer.json().await.expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn own(folder: &Path, settings: Settings<'_>) -> Command {
    let store = folder.join("store");
    std::fs::create_dir(&store).expect("created");
    std::fs::write(store.join("broker.token"), TOKEN).expect("written");
    std::fs::write(folder.join("settings.toml"), settings.own).expect("written");
    let mut command = sightline();
    command.args(["broker", "--listen", "127.0.0.1:0", "--monitor-listen", "127.0.0.1:0", "--max-payload", "1MiB"]);
    command.arg("--data").arg(store).arg("--config").arg(folder.join("settings.toml"));
    command.arg("--ports-file-dir").arg(folder).arg("--pid-file").arg(folder.join("pid"));
    if settings.without_token && !settings.own.contains("[[users]]") {
        command.arg("--broker-open");
    }
    command
}

fn nats(folder: &Path, settings: Settings<'_>) -> Command {
    let token = if settings.without_token { String::new() } else { format!("authorization {{ token: {TOKEN} }}") };
    let config = format!(
        "listen: \"127.0.0.1:-1\"\nhttp: \"127.0.0.1:-1\"\nmax_payload: 1MB\n{token}\n{}\n\
         jetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1TB }}\n",
        settings.nats,
        folder.join("store"),
    );
    std::fs::write(folder.join("config"), config).expect("written");
    let program: PathBuf = models::pull::nats_server(&cache(), &|line| eprintln!("{line}")).expect("fetched");
    let mut command = Command::new(program);
    command.arg("--config").arg(folder.join("config")).arg("--ports_file_dir").arg(folder);
    command.arg("-P").arg(folder.join("pid"));
    command
}

/// A connection that speaks the protocol by hand.
pub(crate) struct Raw {
    stream: BufReader<TcpStream>,
    /// The server's first word.
    pub(crate) info: serde_json::Value,
}

impl Raw {
    pub(crate) fn say(&mut self, bytes: &str) {
        self.stream.get_mut().write_all(bytes.as_bytes()).expect("the server takes it");
    }

    /// The next line; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        // A connection that was cut with bytes of ours unread may end with a reset.
        drop(self.stream.read_line(&mut line));
        line.trim_end().to_owned()
    }

    /// The next line that is not a sign of life and no further word of the server on itself.
    pub(crate) fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            if line != "PING" && !line.starts_with("INFO ") {
                return line;
            }
        }
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.answer(), line);
    }

    /// The message that comes next: its first line, and all that follows.
    pub(crate) fn message(&mut self) -> (String, String) {
        let line = self.answer();
        let bytes: usize = line.rsplit(' ').next().and_then(|bytes| bytes.parse().ok()).expect("a message");
        let mut body = vec![0; bytes + 2];
        self.stream.read_exact(&mut body).expect("the message is whole");
        body.truncate(bytes);
        (line, String::from_utf8_lossy(&body).into_owned())
    }

    /// Whether the server ends the connection without having carried out anything more.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        drop(self.stream.read_to_end(&mut rest));
        !String::from_utf8_lossy(&rest).contains("PONG")
    }
}
