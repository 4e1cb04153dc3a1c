//! Flags of the commands that use the queue: topics, logs, dead letters, audit, drills.

use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use queue::topic::Retention;
use queue::{JobId, PartitionId, Priority, TopicName};

use super::{EngineKind, ModelArgs, QueueArgs};

#[derive(Debug, Args)]
pub(crate) struct TopicsArgs {
    #[command(subcommand)]
    pub(crate) action: TopicsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicsAction {
    /// List topics
    List(ListArgs),
    /// Show a topic and its partitions
    Describe(NamedArgs),
    /// Create a topic: a queue for a model's jobs, or a plain log
    Create(Box<CreateArgs>),
    /// Change a topic while it is in use
    Alter(Box<AlterArgs>),
    /// Delete a topic with its jobs, results and dead letters
    Delete(ConfirmedArgs),
    /// Cancel all queued jobs of a topic, or empty a plain log
    Purge(ConfirmedArgs),
    /// Stop workers from taking jobs; uploads are still accepted
    Pause(NamedArgs),
    /// Resume a paused topic
    Resume(NamedArgs),
    /// Run a log's inputs through another model and compare the results
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NamedArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfirmedArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    /// Model of its jobs [default: the model of the same name; otherwise none, a plain log]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Run one job at a time per partition, so jobs of one key end in order
    #[arg(long)]
    pub(crate) ordered: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AlterArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

/// Settings of a topic.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Number of partitions; it can only grow
    #[arg(long, value_name = "N")]
    pub(crate) partitions: Option<NonZeroU16>,
    /// Copies of each stream; more than 1 needs a NATS cluster [default: --replicas of `up`]
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<NonZeroUsize>,
    /// `work` deletes inputs when their jobs end; `log:24h` keeps them for that time
    #[arg(long, value_name = "work|log:TIME")]
    pub(crate) retention: Option<Retention>,
    /// Disk space for its inputs
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<ByteSize>,
    /// Lease a worker holds on a job before it must renew
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) lease: Option<Duration>,
    /// Attempts before a job fails
    #[arg(long, value_name = "N")]
    pub(crate) attempts: Option<NonZeroU32>,
    /// Time limit of one attempt, unless the job sets one
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) run_timeout: Option<Duration>,
    /// Time that results are kept
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) result_ttl: Option<Duration>,
    /// Delay before the second attempt; it doubles for each later one
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) retry_first: Option<Duration>,
    /// Longest delay between two attempts
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) retry_max: Option<Duration>,
    /// Random variation of delays in percent
    #[arg(long, value_name = "PERCENT")]
    pub(crate) retry_jitter: Option<u8>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Name of the log
    pub(crate) topic: TopicName,
    /// Model to run
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// Jobs in flight at a time
    #[arg(long, default_value = "64", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// Most messages to run
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<usize>,
    /// Print one JSON line per message, then the summary
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    /// Files, folders or globs, one message per file [default: one message per line of standard input]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Partition key; messages of one key keep their order
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Priority: high, normal or low
    #[arg(long, default_value = "normal", value_name = "PRIORITY")]
    pub(crate) priority: Priority,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    /// Start with the oldest message [default: with the next new one]
    #[arg(long, conflicts_with_all = ["sequence", "since"])]
    pub(crate) from_beginning: bool,
    /// Partition [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<PartitionId>,
    /// Position to start at
    #[arg(long, value_name = "N", conflicts_with = "since")]
    pub(crate) sequence: Option<u64>,
    /// Age of the first message to read, such as 1h
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) since: Option<Duration>,
    /// Stop after N messages [default: never]
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u64>,
    /// Group to join: members share its messages, and it keeps its position
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<TopicName>,
    /// Folder to write payloads to, one file each
    #[arg(long, value_name = "DIR")]
    pub(crate) save: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct OffsetsArgs {
    #[command(subcommand)]
    pub(crate) action: Option<OffsetsAction>,
    /// Name of the topic
    #[arg(required = true)]
    pub(crate) topic: Option<TopicName>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OffsetsAction {
    /// Move a group to another position
    Reset {
        /// Name of the topic
        topic: TopicName,
        /// Name of the group
        #[arg(long, value_name = "NAME")]
        group: TopicName,
        /// Target: `beginning`, `end`, a position, a time (2026-11-25T10:00:00Z), or an age (1h)
        #[arg(long, value_name = "WHERE")]
        to: String,
        /// Partition [default: all]
        #[arg(long, value_name = "N")]
        partition: Option<PartitionId>,
        #[command(flatten)]
        queue: QueueArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    pub(crate) action: DeadAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadAction {
    /// List failed jobs whose inputs are kept
    List {
        /// Topic [default: all]
        topic: Option<TopicName>,
        /// Most jobs to list per topic
        #[arg(long, default_value = "1000", value_name = "N")]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Show each attempt of a failed job
    Show {
        /// Id of the job
        id: JobId,
        /// File to write its input to
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Run failed jobs again with all their attempts
    Redrive {
        /// Ids of the jobs
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<JobId>,
        /// Topic whose failed jobs all run again
        #[arg(long, value_name = "TOPIC")]
        all: Option<TopicName>,
        #[command(flatten)]
        queue: QueueArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Name of the topic
    pub(crate) topic: TopicName,
    /// File with ids of accepted jobs: one per line, or lines of JSON with an `id`
    #[arg(long, value_name = "FILE")]
    pub(crate) accepted: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct IndexArgs {
    #[command(subcommand)]
    pub(crate) action: IndexAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IndexAction {
    /// Delete the index and read all records again
    Rebuild(RebuildArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// Database of the job index [default: index.db in the data folder]
    #[arg(long, env = "SIGHTLINE_DATABASE", hide_env_values = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    /// Part to kill
    #[arg(long, default_value = "broker")]
    pub(crate) kill: Victim,
    /// Number of kills
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) times: usize,
    /// Pause every second victim past its lease instead of killing it
    #[arg(long)]
    pub(crate) pause: bool,
    /// Queue: three NATS servers with three replicas, or our own broker
    #[arg(long, default_value = "nats")]
    pub(crate) engine: EngineKind,
    /// Worker processes
    #[arg(long, default_value = "2", value_name = "N")]
    pub(crate) workers: NonZeroUsize,
    /// Uploads in flight at a time
    #[arg(long, default_value = "8", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// Lease a worker holds on a job before it must renew
    #[arg(long, default_value = "3s", value_parser = super::lease, value_name = "TIME")]
    pub(crate) lease: Duration,
    /// Seed that selects the victims
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Victim {
    /// A server of the queue
    Broker,
    /// A worker process
    Worker,
    /// All processes at once
    All,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Folder for the servers' data
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}
