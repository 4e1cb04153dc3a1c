//! `sightline dead`: jobs that failed and whose inputs are kept.

use std::process::ExitCode;

use anyhow::{Context, bail};
use queue::client::Redriven;
use queue::record::{Attempt, Outcome};

use crate::config::{DeadAction, DeadArgs};
use crate::output::{note, out, outln};
use crate::setup::connect;
use crate::table::Table;

/// Runs the subcommand.
pub(crate) async fn run(args: DeadArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        DeadAction::List { topic, limit, json, queue } => {
            let queue = connect(&queue).await?;
            let names = match topic {
                Some(name) => {
                    vec![queue.fresh_topic(&name).await?.with_context(|| format!("topic {name} does not exist"))?]
                }
                None => queue.topics().await?,
            };
            let mut letters = Vec::new();
            for topic in names {
                // Read one more than is shown, to know whether there are more.
                let mut of_topic = queue.jobs.dead_letters(topic.name(), limit.saturating_add(1)).await?;
                if of_topic.len() > limit {
                    of_topic.truncate(limit);
                    note!("only {limit} of {} are listed; --limit lists more", topic.name());
                }
                letters.extend(of_topic);
            }
            if json {
                outln!("{}", serde_json::to_string_pretty(&letters)?);
                return Ok(ExitCode::SUCCESS);
            }
            let mut table = Table::new(&["JOB", "DIED", "ATTEMPTS", "BYTES", "WHY"]);
            for letter in letters {
                let why: String = letter.error.chars().take(100).collect();
                let attempts = letter.attempts.len().to_string();
                table.row([letter.id.to_string(), letter.died_at.to_string(), attempts, letter.bytes.to_string(), why]);
            }
            out!("{table}");
        }
        DeadAction::Show { id, save, json, queue } => {
            let queue = connect(&queue).await?;
            let Some((letter, payload)) = queue.jobs.dead_letter(&id).await? else {
                bail!("no dead letter for {id}: the job did not fail, was redriven, or its letter has expired");
            };
            if let Some(path) = save {
                std::fs::write(&path, &payload).with_context(|| format!("write {}", path.display()))?;
            }
            if json {
                outln!("{}", serde_json::to_string_pretty(&letter)?);
                return Ok(ExitCode::SUCCESS);
            }
            outln!(
                "job      {}\ndied     {}\nwhy      {}\ninput    {} bytes",
                letter.id,
                letter.died_at,
                letter.error,
                letter.bytes
            );
            letter.attempts.iter().for_each(|attempt| outln!("{}", line(attempt)));
        }
        DeadAction::Redrive { ids, all, queue } => {
            let queue = connect(&queue).await?;
            let ids = match all {
                Some(topic) => {
                    queue.jobs.dead_letters(&topic, usize::MAX).await?.into_iter().map(|letter| letter.id).collect()
                }
                None => ids,
            };
            let (mut queued, mut left) = (0, 0);
            for id in &ids {
                match queue.jobs.redrive(id).await {
                    Ok(Redriven::Queued | Redriven::AlreadyQueued) => queued += 1,
                    Err(error) => {
                        left += 1;
                        note!("{id}: {error}");
                    }
                }
            }
            outln!("{queued} jobs redriven, {left} not");
            return Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One attempt in one line.
fn line(attempt: &Attempt) -> String {
    let how = match &attempt.outcome {
        None => "still runs".to_owned(),
        Some(Outcome::Succeeded {}) => "succeeded".to_owned(),
        Some(Outcome::Failed { error }) => format!("{}: {}", error.code, error.message),
        Some(Outcome::Lost {}) => "the worker was lost: it died, or was silent for longer than its lease".to_owned(),
        Some(Outcome::Canceled {}) => "canceled".to_owned(),
    };
    format!("attempt {}  {}  by {}  {how}", attempt.number, attempt.started_at, attempt.worker)
}
