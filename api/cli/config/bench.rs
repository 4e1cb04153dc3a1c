//! Flags of `sightline bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand};

use super::{EngineKind, ModelArgs};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: BenchKind,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchKind {
    /// Compare the pipeline with a bare loop of decode, resize and model
    Pipeline(BenchPipelineArgs),
    /// Compare our broker with NATS servers
    Broker(BenchBrokerArgs),
    /// Compare the journal's disk space with its live bytes at full speed
    Journal(BenchJournalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchPipelineArgs {
    /// Images, folders or globs to send in turn [default: the JPEG photos of the source folder]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Images per run
    #[arg(long, default_value = "400", value_name = "N")]
    pub(crate) count: NonZeroUsize,
    /// Runs per side
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) runs: NonZeroUsize,
    /// Worker processes, and threads of the bare loop [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Uploads in flight at a time
    #[arg(long, default_value = "32", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// Queue to measure with
    #[arg(long, default_value = "own")]
    pub(crate) engine: EngineKind,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchJournalArgs {
    /// Bytes per image
    #[arg(long, default_value = "800KB", value_name = "BYTES")]
    pub(crate) image_bytes: ByteSize,
    /// Jobs in flight at a time
    #[arg(long, default_value = "64", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// Queued images at a time
    #[arg(long, default_value = "256", value_name = "N")]
    pub(crate) backlog: usize,
    /// Time to publish
    #[arg(long = "for", default_value = "2m", value_name = "SPAN")]
    pub(crate) span: humantime::Duration,
    /// Folder on the disk to measure [default: the working folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchBrokerArgs {
    /// Other server, `nats://[TOKEN@]host:port` [default: two NATS servers, one that syncs each write, one with defaults]
    #[arg(long, hide_env_values = true, value_name = "URL")]
    pub(crate) against: Option<String>,
    /// Jobs to queue when measuring memory and restart; 0 skips that
    #[arg(long, default_value = "1000000", value_name = "N")]
    pub(crate) queued: usize,
    /// Runs per side
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) runs: NonZeroUsize,
    /// Fraction of messages to send (0.01 to 1)
    #[arg(long, default_value = "1", value_name = "PART")]
    pub(crate) part: f64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder for the servers' data [default: the working folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}
