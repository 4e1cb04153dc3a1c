//! Flags of the commands that use the API: submit, jobs, batches, keys.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use queue::JobId;

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// One JSON document per line
    Ndjson,
    /// Comma-separated values
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// Images, tar files, folders, globs, or - for paths on standard input
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Model to run
    #[arg(long, env = "SIGHTLINE_MODEL", value_name = "NAME")]
    pub(crate) model: String,
    /// Output file, one line per image; a repeated command continues it [default: standard output]
    #[arg(long, env = "SIGHTLINE_OUT", value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Output format [default: csv for *.csv, else ndjson]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Images in flight at a time
    #[arg(long, env = "SIGHTLINE_IN_FLIGHT", default_value = "64", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    #[command(flatten)]
    pub(crate) api: ApiAddressArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    pub(crate) action: JobsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobsAction {
    /// List jobs, newest first
    List(JobsListArgs),
    /// Show a job
    Get(JobArgs),
    /// Wait until a job ends; exits with 0 only if it succeeded
    Wait(JobArgs),
    /// Cancel a queued or running job
    Cancel(JobArgs),
    /// Run a failed job again if its input is kept
    Retry(JobArgs),
    /// Show a job's history: workers, waits, attempts, end
    Explain(JobArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobsListArgs {
    /// Only jobs in this state: queued, running, succeeded, failed or canceled
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// Only jobs of this model
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Only jobs of this topic
    #[arg(long, value_name = "NAME")]
    pub(crate) topic: Option<String>,
    /// Only jobs of this batch
    #[arg(long, value_name = "ID")]
    pub(crate) batch: Option<String>,
    /// Only jobs with this metadata
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) metadata: Vec<String>,
    /// Most jobs to list
    #[arg(long, default_value = "50", value_name = "N")]
    pub(crate) limit: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) api: ApiAddressArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Id of the job
    pub(crate) id: JobId,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) api: ApiAddressArgs,
}

/// The API that a command uses.
#[derive(Debug, Args)]
pub(crate) struct ApiAddressArgs {
    /// URL of the API [default: the one `up` started on the data folder, else port 8080]
    #[arg(long, env = "SIGHTLINE_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// API key
    #[arg(long, env = "SIGHTLINE_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Certificate authority (CA) to trust besides the system's (PEM)
    #[arg(long, env = "SIGHTLINE_API_CA", value_name = "FILE")]
    pub(crate) api_ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: super::DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) action: KeysAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysAction {
    /// Create a key and print it once; the first one makes keys required
    Create {
        /// Name of the owner; keys of one name see the same jobs
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Scopes: submit, read, operate (metrics and members), admin
        #[arg(long, value_delimiter = ',', required = true, value_name = "SCOPE")]
        scopes: Vec<String>,
        /// Time until the key expires, such as 90d [default: never]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// Most requests per second
        #[arg(long, value_name = "N")]
        requests_per_second: Option<f64>,
        /// Most concurrent uploads
        #[arg(long, value_name = "N")]
        uploads: Option<u32>,
        /// Most queued jobs
        #[arg(long, value_name = "N")]
        queued_jobs: Option<u64>,
        /// Most bytes of queued images, such as 500MB
        #[arg(long, value_name = "BYTES")]
        queued_bytes: Option<ByteSize>,
        /// Highest priority of its jobs: high, normal or low
        #[arg(long, value_name = "PRIORITY")]
        priority: Option<queue::Priority>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        local: LocalArgs,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// List keys without their secrets
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        local: LocalArgs,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// Revoke a key
    Revoke {
        /// Id of the key: the part between its first two underscores
        id: String,
        #[command(flatten)]
        local: LocalArgs,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
}

/// Access to keys without the API.
#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// Use the queue through the data folder, without a key
    #[arg(long)]
    pub(crate) local: bool,
    /// Queue to use with --local [default: the data folder's]
    #[arg(long, env = "SIGHTLINE_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BatchesArgs {
    #[command(subcommand)]
    pub(crate) action: BatchesAction,
}

/// Format of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BatchKind {
    /// Uncompressed tar
    Tar,
    /// Zip
    Zip,
    /// Lines of JSON: `custom_id`, `image` in base64, `metadata`
    Ndjson,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchesAction {
    /// Send a batch from a file; sending it again adds only missing images
    Send {
        /// Id of the batch: letters, digits, - and _
        id: String,
        /// File, or - for standard input
        file: PathBuf,
        /// Format of the file [default: by its name]
        #[arg(long)]
        kind: Option<BatchKind>,
        /// Model to run
        #[arg(long, env = "SIGHTLINE_MODEL", value_name = "NAME")]
        model: String,
        /// Cancel the batch after more than N failed jobs
        #[arg(long, value_name = "N")]
        max_failures: Option<u64>,
        /// URL to notify when the whole batch has ended
        #[arg(long, value_name = "URL")]
        webhook: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// List the newest batches
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// Show a batch
    Get(BatchArgs),
    /// Write the results so far
    Results {
        /// Id of the batch
        id: String,
        /// Write CSV instead of JSON lines
        #[arg(long)]
        csv: bool,
        /// Only jobs in this state: succeeded, failed or canceled
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// Output file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// Cancel the jobs that have not ended
    Cancel(BatchArgs),
    /// Check that each item has one final record (exit 1: no, 4: some failed)
    Verify {
        /// File with expected custom ids, one per line, or - for standard input
        #[arg(long, value_name = "FILE")]
        expect: Option<PathBuf>,
        #[command(flatten)]
        batch: BatchArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Id of the batch
    pub(crate) id: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) api: ApiAddressArgs,
}
