//! `sightline index`: rebuilds the job index from the records.

use std::process::ExitCode;

use crate::config::{IndexAction, IndexArgs};
use crate::output::outln;
use crate::setup;
use crate::setup::connect;

/// Rebuilds the index; API processes may run meanwhile.
pub(crate) async fn run(args: IndexArgs) -> anyhow::Result<ExitCode> {
    let IndexAction::Rebuild(args) = args.action;
    let queue = connect(&args.queue).await?;
    let index = setup::index(args.database.as_deref(), &args.queue.data.data).await?;
    let jobs = index.rebuild(&queue).await?;
    outln!("{jobs} jobs indexed");
    Ok(ExitCode::SUCCESS)
}
