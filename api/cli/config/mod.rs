//! All flags. Those of `up`, `api`, `broker` and `worker` are also environment variables that begin with `SIGHTLINE_`.

mod bench;
mod remote;
mod tools;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

pub(crate) use bench::{BenchArgs, BenchBrokerArgs, BenchJournalArgs, BenchKind, BenchPipelineArgs};
pub(crate) use remote::{
    ApiAddressArgs, BatchArgs, BatchKind, BatchesAction, BatchesArgs, JobArgs, JobsAction, JobsArgs, JobsListArgs,
    KeysAction, KeysArgs, LocalArgs, OutputFormat, SubmitArgs,
};
pub(crate) use tools::{
    AuditArgs, ClusterArgs, ConfirmedArgs, ConsumeArgs, CreateArgs, DeadAction, DeadArgs, DrillArgs, IndexAction,
    IndexArgs, NamedArgs, OffsetsAction, OffsetsArgs, ProduceArgs, ReplayArgs, SettingsArgs, TopicsAction, TopicsArgs,
    Victim,
};

/// Recognises objects in thousands of images without losing one.
#[derive(Debug, Parser)]
#[command(name = "sightline", version, after_help = "Without a command, sightline runs `up`.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// Log level (error, warn, info, debug, trace) or a filter such as `worker=debug`
    #[arg(long, global = true, env = "SIGHTLINE_LOG", default_value = "warn", value_name = "FILTER")]
    pub(crate) log: String,
    /// Log format
    #[arg(long, global = true, env = "SIGHTLINE_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start everything on this machine: queue, API and worker processes
    Up(UpArgs),
    /// Run the API alone, on a queue that runs elsewhere
    Api(ApiArgs),
    /// Run the queue alone
    Broker(BrokerArgs),
    /// Run worker processes on a queue that runs elsewhere
    Worker(WorkerArgs),
    /// Upload images and collect the results
    Submit(SubmitArgs),
    /// List models, or download what they need
    Models(ModelsArgs),
    /// List the processes of the system
    Members(MembersArgs),
    /// Create, show, change and delete topics
    Topics(TopicsArgs),
    /// Write messages to a topic
    Produce(ProduceArgs),
    /// Read messages of a topic without removing them
    Consume(ConsumeArgs),
    /// Show the positions of a topic and its groups, or move a group
    Offsets(OffsetsArgs),
    /// Inspect and redrive failed jobs
    Dead(DeadArgs),
    /// List, inspect, cancel and retry jobs
    Jobs(JobsArgs),
    /// Send, inspect and cancel batches
    Batches(BatchesArgs),
    /// Create, list and revoke API keys
    Keys(KeysArgs),
    /// Print shell completions
    Completions(CompletionsArgs),
    /// Print the API description (OpenAPI 3.1)
    Openapi,
    /// Check that every job of a topic is accounted for
    Audit(AuditArgs),
    /// Rebuild the job index, which answers lists and batches
    Index(IndexArgs),
    /// Start a system, kill parts of it under load, count losses
    Drill(DrillArgs),
    /// Run benchmarks
    Bench(BenchArgs),
    /// Run a program that ends when this process's standard input closes
    #[command(hide = true)]
    Guard(GuardArgs),
    /// Run three NATS servers until standard input closes
    #[command(hide = true)]
    Cluster(ClusterArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Worker processes: a number, or a range that follows the backlog [default: one per core]
    #[arg(long, env = "SIGHTLINE_WORKERS", value_name = "N|MIN..MAX")]
    pub(crate) workers: Option<Workers>,
    /// Address of the queue; a free port is used if this one is taken
    #[arg(long, env = "SIGHTLINE_BROKER_LISTEN", default_value = "127.0.0.1:4222", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) broker_listen: SocketAddr,
    /// Existing queue to use instead of starting one (`nats://[TOKEN@]host:port,…`)
    #[arg(long, env = "SIGHTLINE_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<String>,
    /// Monitoring URL of a NATS server (`http://HOST:8222`), to check its sync setting
    #[arg(long, env = "SIGHTLINE_QUEUE_MONITOR", value_name = "URL")]
    pub(crate) queue_monitor: Option<String>,
    /// Queue to start
    #[arg(long, env = "SIGHTLINE_ENGINE", default_value = "own")]
    pub(crate) engine: EngineKind,
    /// Let every program on this machine use the queue without a token
    #[arg(long, env = "SIGHTLINE_BROKER_OPEN")]
    pub(crate) broker_open: bool,
    /// Users, encryption and limits of the built-in queue (TOML)
    #[arg(long, env = "SIGHTLINE_BROKER_CONFIG", value_name = "FILE")]
    pub(crate) broker_config: Option<PathBuf>,
    /// ONNX Runtime intra-op threads per worker
    #[arg(long, env = "SIGHTLINE_THREADS", default_value = "1", value_name = "N")]
    pub(crate) threads: NonZeroUsize,
    /// Exit when standard input closes
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
    #[command(flatten)]
    pub(crate) topics: TopicArgs,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineKind {
    /// The built-in broker
    Own,
    /// A NATS server, downloaded with pip and run as a child process
    Nats,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BrokerArgs {
    #[command(subcommand)]
    pub(crate) action: Option<BrokerAction>,
    #[command(flatten)]
    pub(crate) serve: BrokerServeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BrokerAction {
    /// Copy the queue to a new folder, also while it runs
    Backup {
        /// New folder
        to: PathBuf,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Copy a backup into a data folder without a queue
    Restore {
        /// Folder of the backup
        from: PathBuf,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Read every message of a stopped queue; fails if one is damaged
    Check {
        #[command(flatten)]
        data: DataArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BrokerServeArgs {
    /// Address to listen on; a free port is used if this one is taken
    #[arg(long, env = "SIGHTLINE_BROKER_LISTEN", default_value = "127.0.0.1:4222", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// Let every program on this machine connect without a token
    #[arg(long, env = "SIGHTLINE_BROKER_OPEN")]
    pub(crate) broker_open: bool,
    /// Disk space for queued images [default: 32GiB, or half of the free disk if that is less]
    #[arg(long, env = "SIGHTLINE_QUEUE_BYTES", value_name = "BYTES")]
    pub(crate) queue_bytes: Option<ByteSize>,
    /// Users, encryption and limits (TOML)
    #[arg(long, env = "SIGHTLINE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address for /varz, /connz, /jsz, /subsz and /healthz (plain HTTP)
    #[arg(long, env = "SIGHTLINE_MONITOR_LISTEN", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) monitor_listen: Option<SocketAddr>,
    /// File to write the process id to
    #[arg(long, env = "SIGHTLINE_PID_FILE", value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Folder for a file with the listening address
    #[arg(long, env = "SIGHTLINE_PORTS_FILE_DIR", value_name = "DIR")]
    pub(crate) ports_file_dir: Option<PathBuf>,
    /// Time for clients to leave when the broker stops
    #[arg(long, env = "SIGHTLINE_LAME_DUCK", default_value = "2s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) lame_duck: Duration,
    /// Maximum size of a message
    #[arg(long, env = "SIGHTLINE_MAX_PAYLOAD", default_value = "32MiB", value_name = "BYTES")]
    pub(crate) max_payload: ByteSize,
    /// Never sync: a power cut loses acknowledged messages (for measurements)
    #[arg(long, hide = true)]
    pub(crate) no_sync: bool,
    /// Exit when standard input closes
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    /// Monitoring URL of a NATS server (`http://HOST:8222`), to check its sync setting
    #[arg(long, env = "SIGHTLINE_QUEUE_MONITOR", value_name = "URL")]
    pub(crate) queue_monitor: Option<String>,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
    #[command(flatten)]
    pub(crate) topics: TopicArgs,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Worker processes: a number, or a range that follows the backlog
    #[arg(long, env = "SIGHTLINE_PROCESSES", default_value = "1", value_name = "N|MIN..MAX")]
    pub(crate) processes: Workers,
    /// ONNX Runtime intra-op threads per process
    #[arg(long, env = "SIGHTLINE_THREADS", default_value = "1", value_name = "N")]
    pub(crate) threads: NonZeroUsize,
    /// Report to the supervisor, and exit when standard input closes
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) action: ModelsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsAction {
    /// List models
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        models: ModelArgs,
    },
    /// Download what a start needs: ONNX Runtime, model files, NATS server
    Pull {
        #[command(flatten)]
        models: ModelArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MembersArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// File to lock while the program runs
    #[arg(long)]
    pub(crate) lock: PathBuf,
    /// Program and its arguments
    #[arg(required = true, last = true)]
    pub(crate) program: Vec<OsString>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// Data folder
    #[arg(long, env = "SIGHTLINE_DATA", default_value = ".sightline", value_name = "DIR")]
    pub(crate) data: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct QueueArgs {
    /// Queue, `nats://[TOKEN@]host:port,…` [default: the one `up` started on the data folder, else port 4222]
    #[arg(long, env = "SIGHTLINE_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<String>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct HttpArgs {
    /// Address the API listens on
    #[arg(long, env = "SIGHTLINE_LISTEN", default_value = "127.0.0.1:8080", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// TLS certificate chain (PEM); reloaded when the file changes
    #[arg(long, env = "SIGHTLINE_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the TLS certificate (PEM)
    #[arg(long, env = "SIGHTLINE_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Trust X-Forwarded-For and X-Forwarded-Host of an encrypting proxy
    #[arg(long, env = "SIGHTLINE_BEHIND_PROXY")]
    pub(crate) behind_proxy: bool,
    /// URL at which clients reach the API, such as `https://example.org/vision`
    #[arg(long, env = "SIGHTLINE_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<reqwest::Url>,
    /// Serve other machines without keys or encryption
    #[arg(long, env = "SIGHTLINE_INSECURE")]
    pub(crate) insecure: bool,
    /// Host names accepted besides localhost, comma-separated
    #[arg(long, env = "SIGHTLINE_ALLOW_HOST", value_delimiter = ',', value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
    /// Database of the job index, `sqlite://FILE?mode=rwc` or `postgres://…` [default: index.db in the data folder]
    #[arg(long, env = "SIGHTLINE_DATABASE", hide_env_values = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// Private hosts that webhooks may call, comma-separated
    #[arg(long, env = "SIGHTLINE_WEBHOOK_ALLOW", value_delimiter = ',', value_name = "HOST")]
    pub(crate) webhook_allow: Vec<String>,
    /// Maximum size of an image
    #[arg(long, env = "SIGHTLINE_UPLOAD_LIMIT", default_value = "20MiB", value_name = "BYTES")]
    pub(crate) upload_limit: ByteSize,
}

/// Settings of topics that a model's first job creates.
#[derive(Debug, Clone, Args)]
pub(crate) struct TopicArgs {
    /// Partitions of a new topic
    #[arg(long, env = "SIGHTLINE_PARTITIONS", default_value = "3", value_name = "N")]
    pub(crate) partitions: NonZeroU16,
    /// Lease a worker holds on a job before it must renew
    #[arg(long, env = "SIGHTLINE_LEASE", default_value = "30s", value_parser = lease, value_name = "TIME")]
    pub(crate) lease: Duration,
    /// Attempts before a job fails
    #[arg(long, env = "SIGHTLINE_ATTEMPTS", default_value = "5", value_name = "N")]
    pub(crate) attempts: NonZeroU32,
    /// Time limit of one attempt, unless the job sets one
    #[arg(long, env = "SIGHTLINE_RUN_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) run_timeout: Duration,
    /// Time that results are kept
    #[arg(long, env = "SIGHTLINE_RESULT_TTL", default_value = "7d", value_parser = result_ttl, value_name = "TIME")]
    pub(crate) result_ttl: Duration,
    /// Disk space for queued images of all models [default: 32GiB, or half of the free disk if that is less]
    #[arg(long, env = "SIGHTLINE_QUEUE_BYTES", value_name = "BYTES")]
    pub(crate) queue_bytes: Option<ByteSize>,
    /// Copies of each stream; more than 1 needs a NATS cluster
    #[arg(long, env = "SIGHTLINE_REPLICAS", default_value = "1", value_name = "N")]
    pub(crate) replicas: NonZeroUsize,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Names of models to serve, and folders with more models, comma-separated [default: all]
    #[arg(long, env = "SIGHTLINE_MODELS", value_delimiter = ',', value_name = "NAME|DIR")]
    pub(crate) models: Vec<String>,
    /// Folder for downloaded files [default: the user's cache folder]
    #[arg(long, env = "SIGHTLINE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// ONNX Runtime library [default: $ORT_DYLIB_PATH, else the one in the cache]
    #[arg(long, env = "SIGHTLINE_ORT", value_name = "FILE")]
    pub(crate) ort: Option<PathBuf>,
}

/// How many workers run: a fixed number, or a range that follows the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workers {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

impl Workers {
    /// A fixed number.
    pub(crate) fn fixed(count: usize) -> Self {
        Self { min: count, max: count }
    }

    /// Whether the number follows the backlog.
    pub(crate) fn is_range(self) -> bool {
        self.min < self.max
    }
}

impl std::str::FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "it must be a number from 1, or a range such as 0..4".to_owned();
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        let workers = match text.split_once("..") {
            Some((min, max)) => Self { min: number(min)?, max: number(max)? },
            None => Self::fixed(number(text)?),
        };
        if workers.max == 0 || workers.min > workers.max { Err(wrong()) } else { Ok(workers) }
    }
}

impl std::fmt::Display for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_range() { write!(f, "{} to {}", self.min, self.max) } else { write!(f, "{}", self.max) }
    }
}

/// An address to listen on. A name resolves to its first IPv4 address, which most clients try first.
fn address(text: &str) -> Result<SocketAddr, String> {
    let all: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| error.to_string())?.collect();
    let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
    first.copied().ok_or_else(|| "the name has no address".to_owned())
}

/// A lease shorter than a second would expire between two renewals.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lease < Duration::from_secs(1) { Err("it must be at least 1s".into()) } else { Ok(lease) }
}

/// Servers store a message's TTL as 64-bit nanoseconds.
fn result_ttl(text: &str) -> Result<Duration, String> {
    const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=100 * YEAR).contains(&ttl) { Ok(ttl) } else { Err("it must be 1s to 100y".into()) }
}

/// Inserts `up` if the first word is not a command.
pub(crate) fn with_default_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let asks_for_help = |word: &OsString| ["-h", "--help", "-V", "--version"].iter().any(|flag| word == flag);
    let names_none = args.get(1).is_none_or(|word| word.to_string_lossy().starts_with('-') && !asks_for_help(word));
    if names_none {
        args.insert(args.len().min(1), "up".into());
    }
    args
}

/// Clap's message without its usage.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage")).collect();
    let words = lines.into_iter().filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let line = words.collect::<Vec<_>>().join(" ");
    format!("{} (see --help of the command)", line.strip_prefix("error: ").unwrap_or(&line))
}

/// Lines that may wait to be written; further lines are dropped.
const LOG_LINES_MAX: usize = 4096;

/// Logs to standard error until the returned guard is dropped.
pub(crate) fn start_logging(args: &LogArgs) -> anyhow::Result<WorkerGuard> {
    // The NATS client also returns its errors to us, and we log them once.
    let quiet = if args.log.contains("async_nats") { "" } else { ",async_nats=off" };
    let filter = format!("{}{quiet}", args.log);
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {}", args.log))?;
    let colored = std::io::stderr().is_terminal();
    // A thread of its own writes the log and drops what it cannot write: neither a full disk nor a stalled reader can
    // block or end the code that logs.
    let (lines, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LOG_LINES_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .log_internal_errors(false)
        .with_ansi(colored);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, String> {
        let words = std::iter::once("sightline").chain(words.iter().copied()).map(OsString::from);
        Cli::try_parse_from(with_default_command(words)).map_err(|error| one_line(&error))
    }

    #[test]
    fn up_is_what_is_run_when_nothing_else_is_said() {
        for words in [&[][..], &["--workers", "3"], &["up", "--workers", "3"], &["--log", "debug"]] {
            assert!(matches!(parse(words).expect("parses").command, Command::Up(_)), "{words:?}");
        }
        assert!(matches!(parse(&["worker"]).expect("parses").command, Command::Worker(_)));
    }

    #[test]
    fn a_bad_flag_is_one_clear_line() {
        for (words, start) in [
            (&["--wrokers", "3"][..], "unexpected argument '--wrokers' found"),
            (&["--workers", "0"], "invalid value '0' for '--workers <N|MIN..MAX>': it must be a number from 1"),
            (&["--workers", "4..2"], "invalid value '4..2' for '--workers <N|MIN..MAX>'"),
            (&["--listen", "nowhere"], "invalid value 'nowhere' for '--listen <HOST:PORT>'"),
            (&["--lease", "5ms"], "invalid value '5ms' for '--lease <TIME>': it must be at least 1s"),
            (&["wroker"], "unrecognized subcommand 'wroker'"),
        ] {
            let error = parse(words).expect_err("must be refused");
            assert!(error.starts_with(start) && !error.contains('\n'), "{error}");
        }
    }
}
