//! Flags of the tools that speak to the queue: topics, logs, dead letters, audit, drills.

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
    /// Show all topics
    List(ListArgs),
    /// Show one topic, partition by partition
    Describe(NamedArgs),
    /// Make a topic: a queue for a model's jobs, or a plain log
    Create(Box<CreateArgs>),
    /// Change a topic; workers and uploads take it up while they run
    Alter(Box<AlterArgs>),
    /// Remove a topic with its jobs, results and dead letters
    Delete(ConfirmedArgs),
    /// Cancel every job that waits; empty a plain log
    Purge(ConfirmedArgs),
    /// Keep workers from taking its jobs; uploads are accepted
    Pause(NamedArgs),
    /// Let workers go on
    Resume(NamedArgs),
    /// Run what a log holds through another model, and report how the results differ
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
    /// The topic
    pub(crate) topic: TopicName,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfirmedArgs {
    /// The topic
    pub(crate) topic: TopicName,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name
    pub(crate) topic: TopicName,
    /// The model that its jobs run on [default: the one of the same name; else none, a plain log]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// One job at a time a partition: jobs of one key end in the order in which they came
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
    /// The topic
    pub(crate) topic: TopicName,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

/// What may be said of a new topic, or be changed of one.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Partitions; they only grow
    #[arg(long, value_name = "N")]
    pub(crate) partitions: Option<NonZeroU16>,
    /// Copies of every stream; more than 1 needs a NATS cluster [default: as many as `up` was told]
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<NonZeroUsize>,
    /// `work`: an input goes when it was worked off. `log:24h`: it stays for so long, to be read again; the oldest go by age or size, whether they were run or not
    #[arg(long, value_name = "work|log:TIME")]
    pub(crate) retention: Option<Retention>,
    /// Bytes that its inputs may take
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<ByteSize>,
    /// How long a job is a worker's without a sign of life
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) lease: Option<Duration>,
    /// Attempts before a job is given up
    #[arg(long, value_name = "N")]
    pub(crate) attempts: Option<NonZeroU32>,
    /// How long one attempt may run when a job does not say
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) run_timeout: Option<Duration>,
    /// How long results are kept
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) result_ttl: Option<Duration>,
    /// The pause before the second attempt; later ones double
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) retry_first: Option<Duration>,
    /// The longest pause between two attempts
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) retry_max: Option<Duration>,
    /// Percent by which pauses are made longer or shorter at random
    #[arg(long, value_name = "PERCENT")]
    pub(crate) retry_jitter: Option<u8>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The log
    pub(crate) topic: TopicName,
    /// The model to run it through
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// Jobs on their way at a time
    #[arg(long, default_value = "64", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// At most so many messages
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<usize>,
    /// Print one JSON line a message, then the summary
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    /// The topic
    pub(crate) topic: TopicName,
    /// Files, folders or globs, a message each [default: a message a line of standard input]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Messages of one key lie in one partition, in order
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// high, normal or low
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
    /// The topic
    pub(crate) topic: TopicName,
    /// Begin with the first message that is there [default: with the next one that comes]
    #[arg(long, conflicts_with_all = ["sequence", "since"])]
    pub(crate) from_beginning: bool,
    /// One partition [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<PartitionId>,
    /// Begin at this position
    #[arg(long, value_name = "N", conflicts_with = "since")]
    pub(crate) sequence: Option<u64>,
    /// Begin with messages of so long ago
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) since: Option<Duration>,
    /// End after so many messages [default: wait for more]
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u64>,
    /// Read as a member of this group: each message goes to one member, and the group goes on where it was
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<TopicName>,
    /// Write each payload to a file in this folder
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
    /// The topic
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
    /// Move a group that reads a log
    Reset {
        /// The topic
        topic: TopicName,
        /// The group
        #[arg(long, value_name = "NAME")]
        group: TopicName,
        /// `beginning`, `end`, a position, a time of day (2026-11-25T10:00:00Z), or how long ago (1h)
        #[arg(long, value_name = "WHERE")]
        to: String,
        /// One partition [default: all]
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
    /// Show the jobs that failed and whose inputs are kept
    List {
        /// Of this topic [default: of all]
        topic: Option<TopicName>,
        /// At most so many of a topic
        #[arg(long, default_value = "1000", value_name = "N")]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Show why one failed, attempt by attempt
    Show {
        /// The job
        id: JobId,
        /// Write its input to this file
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Run failed jobs again, with as many attempts as new ones
    Redrive {
        /// The jobs
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<JobId>,
        /// All of this topic
        #[arg(long, value_name = "TOPIC")]
        all: Option<TopicName>,
        #[command(flatten)]
        queue: QueueArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// The topic
    pub(crate) topic: TopicName,
    /// A file with the ids of jobs that were accepted, one a line, or lines of JSON with an `id`
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
    /// Forget everything and read all records again
    Rebuild(RebuildArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// The database of the job index [default: index.db in the data folder]
    #[arg(long, env = "SIGHTLINE_DATABASE", hide_env_values = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    /// What to kill
    #[arg(long, default_value = "broker")]
    pub(crate) kill: Victim,
    /// How often
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) times: usize,
    /// Pause every other victim (SIGSTOP) beyond its lease, instead of killing it
    #[arg(long)]
    pub(crate) pause: bool,
    /// The queue: three NATS servers with three replicas, or our own broker
    #[arg(long, default_value = "nats")]
    pub(crate) engine: EngineKind,
    /// Worker processes
    #[arg(long, default_value = "2", value_name = "N")]
    pub(crate) workers: NonZeroUsize,
    /// Uploads on their way at a time
    #[arg(long, default_value = "8", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// How long a job is a worker's without a sign of life
    #[arg(long, default_value = "3s", value_parser = super::lease, value_name = "TIME")]
    pub(crate) lease: Duration,
    /// Chooses the victims
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
    /// A server of the queue, any of them
    Broker,
    /// A worker process, any of them
    Worker,
    /// Everything at once
    All,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Where they keep their data
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}
