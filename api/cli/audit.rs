//! `sightline audit`: whether every job of a topic is accounted for.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use queue::JobId;
use serde_json::Value;

use crate::config::AuditArgs;
use crate::output::outln;
use crate::setup::connect;

/// Exits with 1 unless everything adds up.
pub(crate) async fn run(args: AuditArgs) -> anyhow::Result<ExitCode> {
    let told = args.accepted.as_deref().map_or(Ok(Vec::new()), read_ids)?;
    let audit = connect(&args.queue).await?.admin.audit(&args.topic, &told).await?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&audit)?);
    } else {
        let states: Vec<String> = ["queued", "running", "succeeded", "failed", "canceled"]
            .iter()
            .map(|state| format!("{} {state}", audit.states.get(state).copied().unwrap_or(0)))
            .collect();
        let sum: u64 = audit.states.values().sum();
        let sign = if audit.accepted == sum { "=" } else { "≠" };
        outln!("{} accepted {sign} {}", audit.accepted, states.join(" + "));
        if audit.arriving > 0 {
            outln!("{} more are being accepted", audit.arriving);
        }
        if audit.settling > 0 {
            outln!("{} finished jobs leave the queue when a dead worker's lease expires", audit.settling);
        }
        for wrong in &audit.wrong {
            let problem = serde_json::to_value(wrong.problem)?;
            outln!("{}  {}", wrong.id, problem.as_str().unwrap_or_default());
        }
        outln!("{}", if audit.is_balanced() { "everything adds up" } else { "this does not add up" });
    }
    Ok(if audit.is_balanced() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads ids, one per line; a line may be JSON with an `id`, as `submit` and the API write it.
fn read_ids(path: &Path) -> anyhow::Result<Vec<JobId>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let id = |line: &str| {
        let json: Option<Value> = serde_json::from_str(line).ok();
        let id = json.as_ref().and_then(|json| json["id"].as_str()).unwrap_or(line.trim()).to_owned();
        id.parse().with_context(|| format!("{}: `{line}`", path.display()))
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(id).collect()
}
