//! `sightline offsets`: the positions of a topic, and how far each group has read.

use std::process::ExitCode;

use anyhow::Context;
use queue::Sequence;
use queue::client::Position;

use crate::config::{OffsetsAction, OffsetsArgs};
use crate::consume::before;
use crate::output::{out, outln};
use crate::setup::connect;
use crate::table::Table;

/// Shows positions, or moves a group.
pub(crate) async fn run(args: OffsetsArgs) -> anyhow::Result<ExitCode> {
    if let Some(OffsetsAction::Reset { topic, group, to, partition, queue }) = args.action {
        let position = position(&to)?;
        let queue = connect(&queue).await?;
        queue.logs.reset_group(&topic, partition, &group, position).await?;
        outln!("group {group} of {topic} continues at {to}");
        return Ok(ExitCode::SUCCESS);
    }
    let topic = args.topic.context("name a topic")?;
    let offsets = connect(&args.queue).await?.logs.offsets(&topic).await?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&offsets)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["PARTITION", "FIRST", "LAST", "GROUP", "DELIVERED", "ACK FLOOR", "LAG"]);
    for partition in &offsets {
        let place = || [partition.partition.to_string(), partition.first.to_string(), partition.last.to_string()];
        if partition.groups.is_empty() {
            let [number, first, last] = place();
            table.row([number, first, last, "-".into(), "-".into(), "-".into(), "-".into()]);
        }
        for group in &partition.groups {
            let [number, first, last] = place();
            let (delivered, floor) = (group.delivered.to_string(), group.ack_floor.to_string());
            table.row([number, first, last, group.group.clone(), delivered, floor, group.lag.to_string()]);
        }
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// Parses a position.
fn position(text: &str) -> anyhow::Result<Position> {
    Ok(match text {
        "beginning" => Position::Beginning,
        "end" => Position::End,
        _ => {
            if let Ok(sequence) = text.parse() {
                return Ok(Position::At(Sequence(sequence)));
            }
            if let Ok(ago) = humantime::parse_duration(text) {
                return Ok(Position::Since(before(ago)));
            }
            let time = serde_json::from_value(text.into());
            Position::Since(time.ok().with_context(|| {
                format!("`{text}` is not a position; pass beginning, end, a number, a time such as 2026-11-25T10:00:00Z, or an age such as 1h")
            })?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(position("beginning").expect("good"), Position::Beginning);
        assert_eq!(position("17").expect("good"), Position::At(Sequence(17)));
        assert!(matches!(position("1h").expect("good"), Position::Since(_)));
        assert!(
            matches!(position("2026-11-25T10:00:00Z").expect("good"), Position::Since(t) if t.to_string() == "2026-11-25T10:00:00.000Z")
        );
        assert!(position("yesterday").expect_err("refused").to_string().contains("an age such as 1h"));
    }
}
