//! The suites about the queue once more: on a NATS server, with PostgreSQL in place of SQLite, and on a cluster of
//! three with three replicas of everything.
//!
//! They are the same programs, told by `SIGHTLINE_TEST_ENGINE` what to run on. Suites about images, HTTP and
//! clients, which say nothing about the queue, run on our broker only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

/// Engine, target, and the modules that run; none: all.
const RUNS: [(&str, &str, &[&str]); 5] = [
    ("nats", "queue", &[]),
    ("nats", "interop", &[]),
    ("nats", "faults", &[]),
    (
        "nats",
        "e2e",
        &[
            "jobs::",
            "doors::",
            "keys::",
            "ordinary::",
            "webhooks::",
            "openapi::",
            "batches::",
            "lifecycle::",
            "final_states::",
            "several::",
            "overload::",
            "topics::",
            "coordination::",
        ],
    ),
    ("cluster", "e2e", &["topics::", "coordination::"]),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    // A name that was given to `cargo test` selects in these runs too.
    let is_named = words.iter().any(|word| !word.starts_with('-'));
    let programs = programs();
    let mut all_passed = true;
    for (engine, target, modules) in RUNS {
        println!("\n     Running {target} on {engine}");
        let mut command = Command::new(&programs[target]);
        command.env("SIGHTLINE_TEST_ENGINE", engine).args(&words);
        if !is_named {
            command.args(modules);
        }
        all_passed &= command.status().expect("a test program starts").success();
    }
    if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The test programs, as they were built just now.
fn programs() -> BTreeMap<String, PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "the tests do not build");
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let built = messages.filter_map(|message| {
        let program = message["executable"].as_str()?.into();
        (message["target"]["kind"][0] == "test")
            .then(|| (message["target"]["name"].as_str().map(str::to_owned), program))
    });
    built.filter_map(|(name, program)| Some((name?, program))).collect()
}
