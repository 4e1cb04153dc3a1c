//! A model's files: what is bad stays alone, what is promised is kept, what is new loses nothing.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::harness::{Running, Stack, eventually, photo, send, signal, temporary_folder, test_models};
use super::topics::ok;

/// Brings a test model into a folder.
fn bring(folder: &Path, name: &str) {
    let (from, to) = (Path::new(&test_models()).join("slow"), folder.join(name));
    std::fs::create_dir_all(to.join("1")).expect("made");
    for file in ["labels.txt", "1/model.onnx"] {
        std::fs::copy(from.join(file), to.join(file)).expect("copied");
    }
    let manifest = std::fs::read_to_string(from.join("model.toml")).expect("read");
    std::fs::write(to.join("model.toml"), manifest.replace("\"slow\"", &format!("\"{name}\""))).expect("written");
}

/// Changes a model's manifest.
fn edit(folder: &Path, name: &str, from: &str, to: &str) {
    let path = folder.join(name).join("model.toml");
    let manifest = std::fs::read_to_string(&path).expect("read");
    assert!(manifest.contains(from));
    std::fs::write(path, manifest.replace(from, to)).expect("written");
}

fn worker_by_hand(stack: &Stack, models: &Path) -> Running {
    let models = format!("{}/", models.display());
    let mut command = stack.prepare(&["worker", "--models", &models]);
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
}

fn attempts(job: &Value) -> usize {
    job["attempts"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_bad_model_is_that_model_alone() {
    let folder = temporary_folder();
    for name in ["good", "garbage", "linked"] {
        bring(folder.path(), name);
    }
    std::fs::write(folder.path().join("garbage/1/model.onnx"), b"no graph at all").expect("written");
    std::fs::remove_file(folder.path().join("linked/labels.txt")).expect("removed");
    std::os::unix::fs::symlink("/etc/hostname", folder.path().join("linked/labels.txt")).expect("linked");
    std::fs::create_dir_all(folder.path().join(".git/objects")).expect("made");
    std::fs::create_dir_all(folder.path().join("empty")).expect("made");
    std::fs::write(folder.path().join("README.md"), "models").expect("written");
    let flag = format!("efficientnet-lite0,{}/", folder.path().display());
    let stack = Stack::start(&["--workers", "1", "--models", &flag]);
    for model in ["linked", "empty"] {
        stack.logged(&format!("model {model} is not served")).await;
    }
    assert_eq!(stack.get("/v1/models/linked").await.status, 404);
    assert_eq!(stack.run("model=good", photo("rocket.jpg")).await["state"], "succeeded", "the folder is served");
    assert_eq!(stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await["state"], "succeeded");
    // It can be asked for, and its jobs say what they wait for.
    let waits = stack.accept("garbage", photo("rocket.jpg")).await;
    let words = stack.get(&format!("/v1/jobs/{waits}")).await.text("progress");
    assert!(words.contains("no worker has the model garbage"), "{words}");

    // What goes bad while it runs does not keep a worker from being replaced.
    std::fs::write(folder.path().join("good/model.toml"), "name = ").expect("written");
    let [before] = &stack.members("worker").await[..] else { panic!("one worker") };
    signal(before["pid"].as_u64().expect("a number") as u32, "KILL");
    eventually("another worker is ready", async || {
        let workers = stack.members("worker").await;
        workers.iter().any(|worker| worker["id"] != before["id"] && worker["state"] == "ready").then_some(())
    })
    .await;
    assert_eq!(stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await["state"], "succeeded");
}

#[tokio::test]
async fn a_promoted_version_and_an_edited_description_lose_no_queued_job() {
    let folder = temporary_folder();
    bring(folder.path(), "pets");
    let flag = format!("{}/", folder.path().display());
    let mut stack = Stack::start(&["--workers", "1", "--models", &flag]);
    stack.run("model=pets", photo("rocket.jpg")).await;
    let paused = stack.command(&["topics", "pause", "pets"]);
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    let mut before = Vec::new();
    for _ in 0..3 {
        before.push(stack.accept("pets", photo("rocket.jpg")).await);
    }
    std::fs::create_dir(folder.path().join("pets/2")).expect("made");
    std::fs::copy(folder.path().join("pets/1/model.onnx"), folder.path().join("pets/2/model.onnx")).expect("copied");
    edit(folder.path(), "pets", "version = 1", "version = 2");
    edit(folder.path(), "pets", "A test model", "A model for tests");
    stack.restart();
    let resumed = stack.command(&["topics", "resume", "pets"]);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let later = stack.run("model=pets", photo("rocket.jpg")).await;
    assert_eq!((later["state"].as_str(), later["model_version"].as_u64()), (Some("succeeded"), Some(2)), "{later}");
    for id in before {
        let job = stack.finish(&id).await;
        assert_eq!((job["state"].as_str(), job["model_version"].as_u64()), (Some("succeeded"), Some(1)), "{job}");
        assert_eq!(attempts(&job), 1, "{job}");
    }
}

#[tokio::test]
async fn a_job_is_run_by_a_worker_that_has_the_files_it_was_promised() {
    let (right, other) = (temporary_folder(), temporary_folder());
    bring(right.path(), "pets");
    bring(other.path(), "pets");
    std::fs::write(other.path().join("pets/labels.txt"), "other\nlabels\n").expect("written");
    let flag = format!("{}/", right.path().display());
    let mut stack = Stack::start(&["--workers", "1", "--models", &flag]);
    let stranger = worker_by_hand(&stack, other.path());
    let workers = eventually("two workers are ready", async || {
        let workers = stack.members("worker").await;
        (workers.iter().filter(|worker| worker["state"] == "ready").count() == 2).then_some(workers)
    })
    .await;
    let ours = workers.iter().find(|worker| worker["pid"] != stranger.0.id()).expect("it is there")["id"].clone();
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(stack.accept("pets", photo("rocket.jpg")).await);
    }
    for id in &ids {
        let job = stack.finish(id).await;
        assert_eq!((&job["state"], &job["worker"], attempts(&job)), (&"succeeded".into(), &ours, 1), "{job}");
    }
    drop(stranger);

    // When no worker has the files, jobs wait and report that, and others run.
    ok(&stack, &["topics", "pause", "pets"]);
    let waits = stack.accept("pets", photo("rocket.jpg")).await;
    std::fs::copy(other.path().join("pets/labels.txt"), right.path().join("pets/labels.txt")).expect("copied");
    stack.restart();
    ok(&stack, &["topics", "resume", "pets"]);
    let new = stack.run("model=pets", photo("rocket.jpg")).await;
    assert_eq!(new["state"], "succeeded", "{new}");
    eventually("it says what it waits for", async || {
        let job = stack.get(&format!("/v1/jobs/{waits}")).await;
        assert_eq!(job.json["state"], "queued", "{}", job.body);
        job.text("progress").contains("no worker has these files").then_some(())
    })
    .await;
    bring(other.path(), "pets");
    let _right = worker_by_hand(&stack, other.path());
    let job = stack.finish(&waits).await;
    assert_eq!((job["state"].as_str(), attempts(&job)), (Some("succeeded"), 1), "{job}");
}

#[tokio::test]
async fn a_topic_is_made_for_a_model_that_the_workers_have() {
    let folder = temporary_folder();
    bring(folder.path(), "pets");
    let flag = format!("{}/", folder.path().display());
    let stack = Stack::start(&["--workers", "1", "--models", &flag]);
    let made = stack.command(&["topics", "create", "dogs", "--model", "pets"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let refused = stack.command(&["topics", "create", "birds", "--model", "nowhere"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("`nowhere`") && words.contains("pets"), "{words}");
    let job = send(stack.upload("topic=dogs&wait=30", photo("rocket.jpg"))).await;
    assert_eq!(job.json["state"], "succeeded", "{}", job.body);
}
