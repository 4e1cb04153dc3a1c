//! What `sightline bench` takes.

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
    /// The whole pipeline against a bare loop of decode, resize and model, in turn
    Pipeline(BenchPipelineArgs),
    /// Our broker against another NATS server, in turn, asked by one client program
    Broker(BenchBrokerArgs),
    /// Room that the journal takes against what lives in it, at full speed
    Journal(BenchJournalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchPipelineArgs {
    /// Image files, folders or globs to take in turn [default: the JPEG photos of the source folder]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Images a run
    #[arg(long, default_value = "400", value_name = "N")]
    pub(crate) count: NonZeroUsize,
    /// Runs of each side
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) runs: NonZeroUsize,
    /// Worker processes, and threads of the bare loop [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Uploads on their way at a time
    #[arg(long, default_value = "32", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// Which queue to measure with
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
    /// Bytes of an image
    #[arg(long, default_value = "800KB", value_name = "BYTES")]
    pub(crate) image_bytes: ByteSize,
    /// Jobs published at a time
    #[arg(long, default_value = "64", value_name = "N")]
    pub(crate) in_flight: NonZeroUsize,
    /// Images that wait at a time
    #[arg(long, default_value = "256", value_name = "N")]
    pub(crate) backlog: usize,
    /// How long to publish
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
    /// The other server, `nats://[TOKEN@]host:port` [default: two NATS servers are fetched and started, one with every write synced, one as it comes]
    #[arg(long, hide_env_values = true, value_name = "URL")]
    pub(crate) against: Option<String>,
    /// Jobs to queue for the memory and the restart of our own; 0 leaves that out
    #[arg(long, default_value = "1000000", value_name = "N")]
    pub(crate) queued: usize,
    /// Runs of each side
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) runs: NonZeroUsize,
    /// A hundredth, a tenth, or all of the messages: 0.01 to 1
    #[arg(long, default_value = "1", value_name = "PART")]
    pub(crate) part: f64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Where both servers keep their data for the time of the measurement [default: the working folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
}
