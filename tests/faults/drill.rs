//! `sightline drill`, short: its own system, its own load, its own faults.

use serde_json::Value;

use super::harness::{engine, sightline};
use super::rounds;

/// A drill must find nothing.
fn drill(words: &[&str], faults: usize) {
    let mut command = sightline();
    command.args(["drill", "--json", "--engine", engine().name(), "--models", "efficientnet-lite0"]);
    command.args(words).args(["--times", &faults.to_string()]);
    let output = command.output().expect("it starts");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}{log}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for count in ["lost", "duplicated", "stuck", "failed"] {
        assert_eq!(report[count], 0, "{count}: {report} {log}");
    }
    assert_eq!(report["faults"], faults, "{report}");
    assert!(
        report["accepted"].as_u64() >= Some(faults as u64) && report["accepted"] == report["succeeded"],
        "{report}"
    );
    println!("{words:?}: {} accepted, longest pause {} s", report["accepted"], report["longest_pause_seconds"]);
}

#[test]
fn servers_of_the_queue_may_be_killed() {
    drill(&["--kill", "broker"], rounds(2, 20));
}

#[test]
fn workers_may_be_killed_and_paused_beyond_their_lease() {
    drill(&["--kill", "worker", "--pause"], rounds(4, 100));
}

#[test]
fn everything_may_be_killed_at_once() {
    drill(&["--kill", "all"], rounds(2, 10));
}
