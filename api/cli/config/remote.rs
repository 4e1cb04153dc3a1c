//! Flags of the tools that speak to the API: submit, jobs, batches, keys.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use queue::JobId;

/// What lines of results are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// A JSON document a line
    Ndjson,
    /// A table
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// Image files, tars of them, folders (searched to the bottom), globs, or - for a list of paths on standard
    /// input
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// The model to run
    #[arg(long, env = "SIGHTLINE_MODEL", value_name = "NAME")]
    pub(crate) model: String,
    /// Write one line an image to this file, and go on from there when run again [default: standard output]
    #[arg(long, env = "SIGHTLINE_OUT", value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// What the lines are [default: csv if the file is called so, else ndjson]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Images on their way at a time
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
    /// Show one
    Get(JobArgs),
    /// Wait until it has ended; exit code 0 only if it has succeeded
    Wait(JobArgs),
    /// Call it off, whether it waits or runs
    Cancel(JobArgs),
    /// Run it again, if it has failed and its input is kept
    Retry(JobArgs),
    /// Tell its life: who took it, why it waited, each attempt, how it ended
    Explain(JobArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobsListArgs {
    /// Only queued, running, succeeded, failed or canceled ones
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// Only those of a model
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Only those of a topic
    #[arg(long, value_name = "NAME")]
    pub(crate) topic: Option<String>,
    /// Only those of a batch
    #[arg(long, value_name = "ID")]
    pub(crate) batch: Option<String>,
    /// Only those with this in their metadata
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) metadata: Vec<String>,
    /// At most so many
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
    /// The job
    pub(crate) id: JobId,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) api: ApiAddressArgs,
}

/// Which API is asked.
#[derive(Debug, Args)]
pub(crate) struct ApiAddressArgs {
    /// The API [default: the one that `up` started on the data folder, else port 8080 of this machine]
    #[arg(long, env = "SIGHTLINE_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// The key to send, once the API needs one
    #[arg(long, env = "SIGHTLINE_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// A certificate to trust beside the system's, PEM, where the API encrypts with one that few know
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
    /// Create a key and show it, once; from the first one on, every request needs one
    Create {
        /// Whose it is: keys of one name see the same jobs
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What it allows: submit, read, operate (metrics and members), admin
        #[arg(long, value_delimiter = ',', required = true, value_name = "SCOPE")]
        scopes: Vec<String>,
        /// How long it is good for, such as 90d [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// Requests a second
        #[arg(long, value_name = "N")]
        requests_per_second: Option<f64>,
        /// Uploads at a time
        #[arg(long, value_name = "N")]
        uploads: Option<u32>,
        /// Jobs that wait
        #[arg(long, value_name = "N")]
        queued_jobs: Option<u64>,
        /// Bytes of the images of these, such as 500MB
        #[arg(long, value_name = "BYTES")]
        queued_bytes: Option<ByteSize>,
        /// The highest priority its jobs may have: high, normal or low
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
    /// List keys, without what makes them keys
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
        /// Its id, the part between the first two underscores
        id: String,
        #[command(flatten)]
        local: LocalArgs,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
}

/// Where keys are, when not the API is asked.
#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// Go to the queue through the data folder, without a key; so is the first key created
    #[arg(long)]
    pub(crate) local: bool,
    /// With --local: the queue, if it is not the one of the data folder
    #[arg(long, env = "SIGHTLINE_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BatchesArgs {
    #[command(subcommand)]
    pub(crate) action: BatchesAction,
}

/// How a batch comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BatchKind {
    /// A tar, not compressed
    Tar,
    /// A zip
    Zip,
    /// Lines of JSON: `custom_id`, `image` in base64, `metadata`
    Ndjson,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchesAction {
    /// Send one from a file under an id of your own; sent again, only what is missing is added
    Send {
        /// Its id: letters, digits, - and _
        id: String,
        /// The file, or - for standard input
        file: PathBuf,
        /// What it is [default: by the file's name]
        #[arg(long)]
        kind: Option<BatchKind>,
        /// The model to run
        #[arg(long, env = "SIGHTLINE_MODEL", value_name = "NAME")]
        model: String,
        /// Call the batch off once more of its jobs than this have failed
        #[arg(long, value_name = "N")]
        max_failures: Option<u64>,
        /// An address that is called once all of it has ended
        #[arg(long, value_name = "URL")]
        webhook: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// List the newest
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// Show one
    Get(BatchArgs),
    /// Write what has ended so far
    Results {
        /// The batch
        id: String,
        /// A table in place of JSON lines
        #[arg(long)]
        csv: bool,
        /// Only succeeded, failed or canceled ones
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// The file to write [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        api: ApiAddressArgs,
    },
    /// Call off what has not ended
    Cancel(BatchArgs),
    /// Prove that each item has exactly one terminal record, and name those that have not; ends with 1 if that is
    /// not so, and with 4 if it is so but some have failed or were canceled
    Verify {
        /// Custom ids that should be there, one a line, or - for standard input; those that never came are
        /// named too [default: those that came]
        #[arg(long, value_name = "FILE")]
        expect: Option<PathBuf>,
        #[command(flatten)]
        batch: BatchArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// The batch
    pub(crate) id: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) api: ApiAddressArgs,
}
