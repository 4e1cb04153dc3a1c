//! `sightline members`: lists the running processes.

use std::process::ExitCode;
use std::time::Duration;

use queue::members::Role;
use queue::topic::Defaults;
use queue::{Queue, Timestamp};

use crate::config::MembersArgs;
use crate::data;
use crate::output::{out, outln};
use crate::table::Table;

/// Asks all members to announce themselves, and prints those that answer.
pub(crate) async fn run(args: MembersArgs) -> anyhow::Result<ExitCode> {
    let address = data::queue_address(&args.queue)?;
    let queue = Queue::connect(&address, "sightline members", Defaults::default()).await?;
    let table = queue.ask_members().await?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&table.members().collect::<Vec<_>>())?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut shown = Table::new(&["MEMBER", "ROLE", "STATE", "PID", "LEASED", "DONE", "UP", "MODELS"]);
    for member in table.members() {
        let role = match member.role {
            Role::Api => "api",
            Role::Worker => "worker",
            Role::Supervisor => "supervisor",
        };
        let done: u64 = member.totals.outcomes.values().flat_map(|outcomes| outcomes.values()).sum();
        let up = Duration::from_secs(Timestamp::now().millis_since(member.started_at) / 1000);
        shown.row([
            member.id.clone(),
            role.to_owned(),
            member.state.to_string(),
            member.pid.to_string(),
            member.in_hand.to_string(),
            done.to_string(),
            humantime::format_duration(up).to_string(),
            member.models.join(","),
        ]);
    }
    out!("{shown}");
    Ok(ExitCode::SUCCESS)
}
