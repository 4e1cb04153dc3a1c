//! Doors stay closed: nothing that is lost, restored, damaged or proxied lets a stranger in, other users of
//! the machine read nothing, and nothing is sent outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::harness::{Engine, Stack, engine, eventually, photo, send, sightline, temporary_folder, tool};
use super::keys::admin_key;

/// Starts quickly: workers come with the first job.
const IDLE: [&str; 4] = ["--workers", "0..1", "--models", "efficientnet-lite0"];

fn keys(data: &Path, words: &[&str]) -> Output {
    sightline().arg("keys").args(words).arg("--data").arg(data).output().expect("it starts")
}

fn create_local(data: &Path) -> Result<String, String> {
    let made = keys(data, &["create", "--local", "--name", "boss", "--scopes", "admin"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if made.status.success() { Ok(text(&made.stdout)) } else { Err(text(&made.stderr)) }
}

/// What a request without a key is answered with.
async fn stranger(stack: &Stack, path: &str) -> u16 {
    send(stack.request(Method::GET, path)).await.status
}

async fn owner(stack: &Stack, key: &str) -> u16 {
    send(stack.request(Method::GET, "/v1/jobs").bearer_auth(key)).await.status
}

/// Removes what the queue holds, whichever it is.
fn remove_queue(data: &Path) {
    for folder in ["journal", "nats"].map(|name| data.join(name)).iter().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder).expect("removed");
    }
}

#[tokio::test]
async fn the_first_key_is_made_on_the_machine_and_never_by_a_request() {
    let mut stack = Stack::start(&IDLE);
    let wish = json!({"name": "eve", "scopes": ["admin"]});
    let refused = send(stack.request(Method::POST, "/v1/keys").json(&wish)).await;
    assert_eq!((refused.status, refused.text("code").as_str()), (403, "key_first"));
    assert!(refused.text("detail").contains("keys create --local"), "{}", refused.body);
    let data = stack.data().to_owned();
    assert!(stack.terminate());

    // What others can reach does not start without one.
    for flags in
        [&["--behind-proxy"][..], &["--allow-host", "sight.example"], &["--public-url", "https://sight.example"]]
    {
        let refused = Stack::try_start_at(data.clone(), &[&IDLE[..], flags].concat()).err().expect("refused");
        assert!(refused.contains("is reachable from other machines") && refused.contains("--local"), "{refused}");
    }
    // It is made while nothing runs; a NATS server has to run for that.
    let key = match create_local(&data) {
        Ok(key) => key,
        Err(problem) => {
            assert!(engine() != Engine::Own && problem.contains("NATS server"), "{problem}");
            stack.restart();
            let key = create_local(&data).expect("made");
            assert!(stack.terminate());
            key
        }
    };
    // The folder goes with the one that made it.
    let _first = stack;
    let started = Stack::try_start_at(data, &[&IDLE[..], &["--behind-proxy"]].concat());
    let stack = started.unwrap_or_else(|log| panic!("{log}"));
    for path in ["/v1/jobs", "/v1/keys", "/v1/topics", "/v1/members", "/v1/dead", "/v1/models", "/metrics", "/v1/index"]
    {
        assert_eq!(stranger(&stack, path).await, 401, "{path}");
    }
    assert_eq!(owner(&stack, &key).await, 200);
    let refused = send(stack.request(Method::POST, "/v1/keys").json(&wish)).await;
    assert_eq!(refused.status, 401);
    // A lost key is replaced on the machine, and the old one revoked.
    let second = create_local(stack.data()).expect("made");
    let id = key.split('_').nth(1).expect("a key has an id");
    assert!(keys(stack.data(), &["revoke", "--local", id]).status.success());
    assert_eq!(owner(&stack, &second).await, 200);
    eventually("the old key is revoked everywhere", async || (owner(&stack, &key).await == 401).then_some(())).await;
}

#[tokio::test]
async fn no_loss_opens_an_api_that_had_keys() {
    let mut stack = Stack::start(&IDLE);
    let key = admin_key(&stack);
    let data = stack.data().to_owned();
    let index = |name: &str| data.join(format!("index.db{name}"));
    let lose_index = || ["", "-wal", "-shm"].map(index).iter().for_each(|file| drop(fs::remove_file(file)));
    let losses: [(&str, &dyn Fn()); 4] = [
        ("the database", &lose_index),
        ("the witness", &|| fs::remove_file(data.join("keys.required")).expect("it was there")),
        ("both", &|| {
            lose_index();
            fs::remove_file(data.join("keys.required")).expect("it was there");
        }),
        ("what the database holds", &|| {
            lose_index();
            fs::write(index(""), "").expect("written");
        }),
    ];
    for (what, lose) in losses {
        assert!(stack.terminate());
        lose();
        stack.restart();
        assert_eq!(stranger(&stack, "/v1/jobs").await, 401, "{what}");
        assert_eq!(owner(&stack, &key).await, 200, "{what}");
    }
    // Even the queue itself, and with it all keys: then one is made anew on the machine.
    assert!(stack.terminate());
    remove_queue(&data);
    stack.restart();
    assert_eq!((stranger(&stack, "/v1/jobs").await, owner(&stack, &key).await), (401, 401));
    let again = create_local(&data).expect("made");
    eventually("the new key is known", async || (owner(&stack, &again).await == 200).then_some(())).await;
    assert_eq!(stranger(&stack, "/v1/jobs").await, 401);
}

#[tokio::test]
async fn keys_of_an_earlier_version_are_taken_over() {
    let mut stack = Stack::start(&IDLE);
    assert!(stack.terminate());
    // As they stood in the database: one good, one revoked.
    let keys = ["sl_0123456789ab_good", "sl_ba9876543210_revoked"];
    for key in keys {
        let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut content = json!({"id": &key[3..15], "name": "old", "scopes": ["admin"], "hash": hash,
            "created_at": "2026-11-01T00:00:00Z", "limits": {}});
        if key.ends_with("revoked") {
            content["revoked_at"] = "2026-11-02T00:00:00Z".into();
        }
        let script = "import sqlite3,sys\ndb=sqlite3.connect(sys.argv[1])\n\
                      db.execute('INSERT INTO keys (id, content) VALUES (?, ?)', sys.argv[2:])\ndb.commit()";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(stack.data().join("index.db")).arg(&key[3..15]).arg(content.to_string());
        assert!(python.status().expect("python runs").success());
    }
    for _ in 0..2 {
        stack.restart();
        assert_eq!(stranger(&stack, "/v1/jobs").await, 401);
        assert_eq!((owner(&stack, keys[0]).await, owner(&stack, keys[1]).await), (200, 401));
        assert!(stack.terminate());
    }
}

#[tokio::test]
async fn a_restored_backup_has_its_keys() {
    if engine() != Engine::Own {
        // The store of a NATS server is copied with its own tools.
        return;
    }
    let stack = Stack::start(&IDLE);
    let key = admin_key(&stack);
    let folder = temporary_folder();
    let (copy, elsewhere) = (folder.path().join("copy"), folder.path().join("elsewhere"));
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    assert!(stack.command(&["broker", "backup", &path(&copy)]).status.success());
    let mut restore = sightline();
    restore.args(["broker", "restore", &path(&copy), "--data", &path(&elsewhere)]);
    assert!(restore.status().expect("it starts").success());
    let restored = Stack::try_start_at(elsewhere, &IDLE).unwrap_or_else(|log| panic!("{log}"));
    assert_eq!((stranger(&restored, "/v1/jobs").await, owner(&restored, &key).await), (401, 200));
    for file in walk(&copy) {
        assert_eq!(mode(&file) & 0o077, 0, "{}", file.display());
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o777
}

/// All files and folders below one.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            found.extend(walk(&entry));
        }
        found.push(entry);
    }
    found
}

#[tokio::test]
async fn other_users_of_the_machine_read_nothing() {
    let folder = temporary_folder();
    let data = folder.path().join("data");
    // A folder that was there, with what an earlier version left in it.
    fs::create_dir_all(data.join("journal")).expect("created");
    fs::write(data.join("broker.url"), "nats://127.0.0.1:1").expect("written");
    for path in [&data, &data.join("journal")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    fs::set_permissions(data.join("broker.url"), fs::Permissions::from_mode(0o644)).expect("set");
    let stack = Stack::try_start_at(data.clone(), &IDLE).unwrap_or_else(|log| panic!("{log}"));
    stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
    stack.logged("is open to other users").await;
    let below = |path: &PathBuf| path.strip_prefix(&data).expect("below").components().count();
    for path in walk(&data).iter().filter(|path| below(path) == 1) {
        assert_eq!(mode(path) & 0o077, 0, "{}", path.display());
    }
    if engine() == Engine::Own {
        for path in walk(&data.join("journal")) {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    }
}

/// What may become of a file.
const DAMAGES: [&str; 4] = ["emptied", "cut", "removed", "unreadable"];

fn damage(path: &Path, how: &str) {
    let bytes = fs::read(path).expect("read");
    match how {
        "emptied" => fs::write(path, []).expect("written"),
        "cut" => fs::write(path, &bytes[..bytes.len() / 2]).expect("written"),
        _ => fs::remove_file(path).expect("removed"),
    }
    if how == "unreadable" {
        // A test that runs as root may read everything that is a file.
        fs::create_dir(path).expect("created");
    }
}

#[tokio::test]
async fn each_file_of_a_data_folder_may_be_damaged() {
    let mut stack = Stack::start(&IDLE);
    admin_key(&stack);
    assert!(stack.terminate());
    let original = stack.data().to_owned();
    let is_store = |path: &PathBuf| path.strip_prefix(&original).expect("below").starts_with("nats");
    let is_spare = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare-"));
    let files: Vec<PathBuf> =
        walk(&original).into_iter().filter(|path| path.is_file() && !is_store(path) && !is_spare(path)).collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in &files {
        let name = file.strip_prefix(&original).expect("below");
        for how in DAMAGES {
            let folder = temporary_folder();
            let data = folder.path().join("data");
            assert!(Command::new("cp").arg("-a").arg(&original).arg(&data).status().expect("cp runs").success());
            damage(&data.join(name), how);
            match Stack::try_start_at(data, &IDLE) {
                Ok(stack) => assert_eq!(stranger(&stack, "/v1/jobs").await, 401, "{} {how}", name.display()),
                Err(log) => {
                    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("sightline: ")).collect();
                    let is_clear = lines.len() == 1 && !log.contains("panicked");
                    assert!(is_clear, "{} {how}: not one clear line: {log}", name.display());
                }
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_outside() {
    let Some(strace) = tool("strace") else { return };
    let folder = temporary_folder();
    let (home, trace) = (folder.path().join("home"), folder.path().join("trace"));
    fs::create_dir(&home).expect("created");
    let mut stack = Stack::start(&IDLE);
    let cache = super::harness::cache().root().to_owned();
    let mut command = Command::new(strace);
    command.args(["-f", "-qq", "-e", "trace=connect,sendto,openat", "-o"]).arg(&trace);
    command.arg(env!("CARGO_BIN_EXE_sightline")).arg("worker").arg("--data").arg(stack.data());
    command.args(["--models", "efficientnet-lite0", "--cache"]).arg(&cache);
    // The library behaves otherwise where it sees that it is being tested.
    command.env_clear().env("PATH", std::env::var_os("PATH").expect("a path")).env("HOME", &home).current_dir(&home);
    let worker = command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn();
    let worker = super::harness::Running(worker.expect("strace is installed"));
    eventually("the worker is there", async || {
        stack.members("worker").await.iter().any(|member| member["state"] == "ready").then_some(())
    })
    .await;
    let id = stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
    assert_eq!(stack.finish(&id).await["state"], "succeeded");
    // What is traced outlives its tracer.
    let traced = super::harness::descendants(worker.0.id());
    traced.iter().for_each(|(pid, _)| super::harness::signal(*pid, "KILL"));
    stack.kill();
    drop(worker);
    let trace = fs::read_to_string(&trace).expect("a trace");
    assert!(trace.contains("libonnxruntime"), "the trace shows the library");
    let calls = trace.lines().filter(|line| line.contains("sin_addr") || line.contains("sin6_addr"));
    let abroad: Vec<&str> = calls.filter(|line| !line.contains("127.0.0.1") && !line.contains("::1")).collect();
    assert_eq!(abroad, [""; 0], "a host outside was called");
    assert!(!trace.contains("resolv.conf"), "a name was looked up");
    let left = walk(&home);
    assert!(left.is_empty(), "something was left in the user's home: {left:?}");
}
