//! The suites about the queue once more: on a NATS server, with PostgreSQL in place of SQLite, and on a cluster of
//! three with three replicas of everything.
//!
//! They are the same programs, told by `SIGHTLINE_TEST_ENGINE` what to run on. Suites about images, HTTP and
//! clients, which say nothing about the queue, run on our broker only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

/// A target on an engine.
struct Run {
    engine: &'static str,
    target: &'static str,
    /// The modules that run; none: all. The long form runs all of them.
    modules: &'static [&'static str],
}

const RUNS: [Run; 5] = [
    Run { engine: "nats", target: "queue", modules: &[] },
    Run { engine: "nats", target: "interop", modules: &[] },
    Run { engine: "nats", target: "faults", modules: &["between_steps::", "drill::", "system::", "workers::"] },
    Run {
        engine: "nats",
        target: "e2e",
        modules: &[
            "jobs::",
            "keys::",
            "webhooks::",
            "openapi::",
            "batches::",
            "lifecycle::",
            "final_states::",
            "several::",
            "topics::",
            "coordination::",
        ],
    },
    Run { engine: "cluster", target: "e2e", modules: &["topics::", "coordination::"] },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    // A name that was given to `cargo test` selects in these runs too.
    let is_named = words.iter().any(|word| !word.starts_with('-'));
    let is_long = std::env::var("SIGHTLINE_FAULTS").is_ok_and(|form| form == "long");
    let programs = programs();
    let mut all_passed = true;
    for Run { engine, target, modules } in RUNS {
        println!("\n     Running {target} on {engine}");
        let mut command = Command::new(&programs[target]);
        command.env("SIGHTLINE_TEST_ENGINE", engine).args(&words);
        if engine == "cluster" {
            // Each test has three servers that sync every write.
            command.env("RUST_TEST_THREADS", "2");
        }
        if !(is_named || is_long && engine == "nats") {
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
    // What cargo sets for this program would have some build scripts run again, and much be built again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
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
