//! `sightline members`: the processes that are there.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::StreamExt;
use queue::members::{ANNOUNCE_INTERVAL, Role, Table};
use queue::topic::Defaults;
use queue::{Queue, Timestamp};

use crate::config::MembersArgs;
use crate::data;
use crate::output::outln;

/// Listens for as long as everybody needs to be heard, and prints who was.
pub(crate) async fn run(args: MembersArgs) -> anyhow::Result<ExitCode> {
    let address = data::queue_address(&args.queue)?;
    let queue = Queue::connect(&address, "sightline members", Defaults::default()).await?;
    let mut heard = queue.announcements().await?;
    let mut table = Table::default();
    let enough = tokio::time::sleep(2 * ANNOUNCE_INTERVAL + Duration::from_millis(500));
    tokio::pin!(enough);
    loop {
        tokio::select! {
            () = &mut enough => break,
            Some(announcement) = heard.next() => table.hear(announcement, Instant::now()),
        }
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&table.members().collect::<Vec<_>>())?);
        return Ok(ExitCode::SUCCESS);
    }
    outln!(
        "{:16} {:10} {:10} {:>8} {:>8} {:>8} {:>10}  MODELS",
        "MEMBER",
        "ROLE",
        "STATE",
        "PID",
        "IN HAND",
        "DONE",
        "UP"
    );
    for member in table.members() {
        let role = match member.role {
            Role::Api => "api",
            Role::Worker => "worker",
            Role::Supervisor => "supervisor",
        };
        let done: u64 = member.totals.outcomes.values().flat_map(|outcomes| outcomes.values()).sum();
        let up = Duration::from_secs(Timestamp::now().millis_since(member.started_at) / 1000);
        outln!(
            "{:16} {role:10} {:10} {:>8} {:>8} {done:>8} {:>10}  {}",
            member.id,
            member.state,
            member.pid,
            member.in_hand,
            humantime::format_duration(up).to_string(),
            member.models.join(","),
        );
    }
    Ok(ExitCode::SUCCESS)
}
