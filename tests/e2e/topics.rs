//! Topics, logs, priorities, dead letters, audit and explanation, on the command line and over HTTP.

use std::process::Output;

use serde_json::{Value, json};

use super::harness::{Engine, Stack, engine, eventually, photo, root, send, test_models};

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that must succeed and returns what it printed.
#[track_caller]
pub(crate) fn ok(stack: &Stack, words: &[&str]) -> String {
    let output = stack.command(words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that must fail and returns what it said.
#[track_caller]
pub(crate) fn refused(stack: &Stack, words: &[&str]) -> String {
    let output = stack.command(words);
    assert!(!output.status.success(), "{words:?}: {}", text(&output));
    String::from_utf8(output.stderr).expect("text")
}

pub(crate) fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub(crate) fn rocket() -> String {
    root().join("tests/photos/rocket.jpg").display().to_string()
}

#[tokio::test]
async fn a_topic_is_made_changed_paused_and_removed_while_it_works() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "cameras", "--model", "efficientnet-lite0", "--partitions", "2", "--lease", "9s"]);
    let error = refused(&stack, &["topics", "create", "cameras", "--model", "efficientnet-lite0"]);
    assert!(error.contains("topic cameras already exists"), "{error}");
    let copies = if engine() == Engine::Cluster { "5" } else { "3" };
    let error = refused(&stack, &["topics", "create", "copies", "--retention", "log:1h", "--replicas", copies]);
    assert!(error.contains("replicas"), "{error}");
    if engine() == Engine::Cluster {
        let described = json_of(&ok(&stack, &["topics", "describe", "cameras", "--json"]));
        for partition in described["partitions"].as_array().expect("a list") {
            let replicas = partition["replicas"].as_array().expect("a list");
            assert!(replicas.len() == 2 && replicas.iter().all(|replica| replica["current"] == true), "{partition}");
        }
    }
    let job = stack.run("topic=cameras", photo("rocket.jpg")).await;
    assert_eq!((job["state"].as_str(), job["topic"].as_str()), (Some("succeeded"), Some("cameras")), "{job}");

    // It grows under load; no process is restarted.
    let uploads = (0..30).map(|_| stack.run("topic=cameras", photo("rocket.jpg")));
    let growing = async { stack.command(&["topics", "alter", "cameras", "--partitions", "6"]) };
    let (jobs, grown) = tokio::join!(futures::future::join_all(uploads), growing);
    assert!(grown.status.success(), "{}", text(&grown));
    assert!(jobs.iter().all(|job| job["state"] == "succeeded"));
    eventually("jobs lie in a new partition, and run", async || {
        let job = stack.run("topic=cameras", photo("rocket.jpg")).await;
        assert_eq!(job["state"], "succeeded");
        (job["partition"].as_str()?.parse::<u16>().ok()? >= 2).then_some(())
    })
    .await;
    let error = refused(&stack, &["topics", "alter", "cameras", "--partitions", "3"]);
    assert!(error.contains("partitions only grow"), "{error}");

    ok(&stack, &["topics", "pause", "cameras"]);
    let waiting = send(stack.upload("topic=cameras", photo("rocket.jpg"))).await.text("id");
    let explained = eventually("the reason for waiting is said", async || {
        let explained = ok(&stack, &["jobs", "explain", &waiting]);
        explained.contains("the topic is paused").then_some(explained)
    })
    .await;
    assert!(explained.contains("accepted"), "{explained}");
    ok(&stack, &["topics", "resume", "cameras"]);
    assert_eq!(stack.finish(&waiting).await["state"], "succeeded");
    assert!(ok(&stack, &["jobs", "explain", &waiting]).contains("ended      succeeded"));

    ok(&stack, &["topics", "pause", "cameras"]);
    // Workers hear of it within a second; what they took before is run.
    let purged = eventually("a job is canceled", async || {
        let id = send(stack.upload("topic=cameras", photo("rocket.jpg"))).await.text("id");
        ok(&stack, &["topics", "purge", "cameras", "--yes"]);
        (stack.finish(&id).await["state"] == "canceled").then_some(id)
    })
    .await;
    assert!(purged.starts_with("cameras."));
    let audit = json_of(&ok(&stack, &["audit", "cameras", "--json"]));
    assert_eq!(audit["wrong"], json!([]), "{audit}");

    let listed = json_of(&ok(&stack, &["topics", "list", "--json"]));
    assert!(
        listed.as_array().expect("a list").iter().any(|topic| topic["name"] == "cameras" && topic["paused"] == true)
    );
    let error = refused(&stack, &["topics", "delete", "cameras"]);
    assert!(error.contains("--yes"), "{error}");
    ok(&stack, &["topics", "delete", "cameras", "--yes"]);
    assert!(refused(&stack, &["topics", "describe", "cameras"]).contains("topic cameras does not exist"));
    let gone = eventually("uploads hear that it is gone", async || {
        let answer = send(stack.upload("topic=cameras", photo("rocket.jpg"))).await;
        (answer.status == 404).then_some(answer)
    })
    .await;
    assert_eq!(gone.text("code"), "topic_unknown");
}

#[tokio::test]
async fn topics_are_managed_over_http() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let http = reqwest::Client::new();
    let wish = json!({"name": "night", "model": "efficientnet-lite0", "partitions": 1, "attempts": 2, "lease": "5s"});
    let made = send(http.post(stack.url("/v1/topics")).json(&wish)).await;
    assert_eq!((made.status, made.header("location")), (201, "/v1/topics/night"), "{}", made.body);
    assert_eq!((made.json["lease_ms"].as_u64(), made.json["attempts"].as_u64()), (Some(5_000), Some(2)));
    for (wish, status, code) in [
        (json!({"name": "night"}), 400, "topic_invalid"),
        (json!({"name": "night", "model": "efficientnet-lite0"}), 409, "topic_exists"),
        (json!({"name": "x", "model": "nope"}), 404, "model_unknown"),
        (json!({"name": "x", "model": "efficientnet-lite0", "partitions": 0}), 400, "topic_invalid"),
        (json!({"name": "X!"}), 400, "json_invalid"),
        (json!({"name": "x", "colour": "red"}), 400, "json_invalid"),
    ] {
        let answer = send(http.post(stack.url("/v1/topics")).json(&wish)).await;
        assert_eq!((answer.status, answer.text("code").as_str()), (status, code), "{wish}: {}", answer.body);
    }
    let altered = send(http.patch(stack.url("/v1/topics/night")).json(&json!({"partitions": 4}))).await;
    assert_eq!(altered.json["partitions"].as_array().map(Vec::len), Some(4), "{}", altered.body);
    let paused = send(http.post(stack.url("/v1/topics/night/pause"))).await;
    assert_eq!(paused.json["paused"], true);
    let id = send(stack.upload("topic=night", photo("rocket.jpg"))).await.text("id");
    let stall = eventually("the watchdog says why", async || {
        stack.get("/v1/topics/night").await.json["stalls"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(stall["reason"], "paused", "{stall}");
    send(http.post(stack.url("/v1/topics/night/resume"))).await;
    assert_eq!(stack.finish(&id).await["state"], "succeeded");
    assert_eq!(send(http.delete(stack.url("/v1/topics/night"))).await.status, 204);
    assert_eq!(stack.get("/v1/topics/night").await.status, 404);
}

#[tokio::test]
async fn a_log_is_read_by_people_and_groups_and_replayed() {
    let stack = Stack::start(&["--workers", "1"]);
    let create = ["topics", "create", "plain", "--retention", "log:1h", "--partitions", "2"];
    ok(&stack, &create);
    let files = [rocket(), root().join("tests/photos/china.jpg").display().to_string()];
    let produced = ok(&stack, &["produce", "plain", &files[0], &files[1], "--key", "a", "--json"]);
    let lines: Vec<Value> = produced.lines().map(json_of).collect();
    assert_eq!(lines[0]["partition"], lines[1]["partition"], "one key, one partition: {produced}");
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().display().to_string();
    let read = ok(&stack, &["consume", "plain", "--from-beginning", "--max", "2", "--json", "--save", &saved]);
    let read: Vec<Value> = read.lines().map(json_of).collect();
    assert_eq!((read[0]["id"].as_str(), read[0]["key"].as_str()), (lines[0]["id"].as_str(), Some("a")), "{read:?}");
    let first = folder.path().join(lines[0]["id"].as_str().expect("an id"));
    // In the order of their names.
    assert!(std::fs::read(first).expect("saved") == photo("china.jpg"), "the saved file is another one");

    let by_group = ["consume", "plain", "--group", "readers", "--from-beginning", "--max", "1", "--json"];
    let one = json_of(&ok(&stack, &by_group));
    let two = json_of(&ok(&stack, &by_group));
    assert_ne!(one["id"], two["id"], "a group goes on where it was");
    let lag = |stack: &Stack| {
        let offsets = json_of(&ok(stack, &["offsets", "plain", "--json"]));
        let partitions = offsets.as_array().expect("a list").clone();
        let groups = partitions.iter().flat_map(|p| p["groups"].as_array().cloned().unwrap_or_default());
        groups
            .filter(|group| group["group"] == "readers")
            .map(|group| group["lag"].as_u64().expect("a number"))
            .sum::<u64>()
    };
    assert_eq!(lag(&stack), 0);
    ok(&stack, &["offsets", "reset", "plain", "--group", "readers", "--to", "beginning"]);
    assert_eq!(lag(&stack), 2);
    assert_eq!(json_of(&ok(&stack, &by_group))["id"], one["id"], "and begins anew when it is told to");

    // A log with a model keeps what was run.
    ok(&stack, &["topics", "create", "kept", "--model", "efficientnet-lite0", "--retention", "log:1h"]);
    ok(&stack, &["produce", "kept", &files[0], &files[1]]);
    eventually("both are run", async || {
        let audit = json_of(&ok(&stack, &["audit", "kept", "--json"]));
        (audit["states"]["succeeded"] == 2).then_some(())
    })
    .await;
    let replay = ok(&stack, &["topics", "replay", "kept", "--model", "efficientnet-lite0"]);
    assert!(replay.contains("2 messages through efficientnet-lite0: 2 same, 0 different"), "{replay}");
    let replay = ok(&stack, &["topics", "replay", "kept", "--model", "ssdlite-mobilenetv2"]);
    assert!(replay.contains("0 same, 2 different"), "{replay}");
    let error = refused(&stack, &["topics", "replay", "ssdlite-mobilenetv2", "--model", "efficientnet-lite0"]);
    assert!(error.contains("keeps nothing to replay"), "{error}");
}

#[tokio::test]
async fn what_failed_is_looked_at_and_run_again() {
    let models = test_models();
    let stack = Stack::start(&["--workers", "1", "--models", &models]);
    // Its first runs take too long; later ones are given more time.
    ok(
        &stack,
        &[
            "topics",
            "create",
            "slow",
            "--attempts",
            "2",
            "--run-timeout",
            "50ms",
            "--retry-first",
            "10ms",
            "--models",
            &models,
        ],
    );
    let failed = stack.run("model=slow", photo("rocket.jpg")).await;
    assert_eq!(failed["error"]["code"], "attempts_exhausted", "{failed}");
    let id = failed["id"].as_str().expect("an id").to_owned();
    let letter = eventually("its letter is there", async || {
        let output = stack.command(&["dead", "show", &id, "--json"]);
        output.status.success().then(|| json_of(&String::from_utf8_lossy(&output.stdout)))
    })
    .await;
    let attempts = letter["attempts"].as_array().expect("a list");
    assert_eq!((attempts.len(), attempts[1]["error"]["code"].as_str()), (2, Some("timeout")), "{letter}");
    assert!(attempts.iter().all(|attempt| attempt["worker"].as_str().is_some_and(|worker| worker.starts_with("w-"))));
    assert!(ok(&stack, &["dead", "list", "slow"]).contains(&id));
    assert_eq!(stack.get("/v1/dead?topic=slow").await.json["dead"][0]["id"], id.as_str());
    ok(&stack, &["topics", "alter", "slow", "--run-timeout", "60s"]);
    ok(&stack, &["dead", "redrive", &id]);
    let again = eventually("it runs again, to its end", async || {
        let job = stack.finish(&id).await;
        (job["state"] == "succeeded").then_some(job)
    })
    .await;
    assert_eq!(again["attempt"], 3, "what was tried before stays: {again}");
    assert!(refused(&stack, &["dead", "redrive", &id]).contains("no dead letter"));
    let audit = json_of(&ok(&stack, &["audit", "slow", "--json"]));
    assert_eq!((audit["accepted"].as_u64(), &audit["wrong"]), (Some(1), &json!([])), "{audit}");
    let lost = format!("slow.{}", "0199d2a4-0000-7000-8000-000000000000");
    let folder = tempfile::tempdir().expect("a folder");
    let told = folder.path().join("told");
    std::fs::write(&told, format!("{id}\n{lost}\n")).expect("written");
    let output = stack.command(&["audit", "slow", "--accepted", told.to_str().expect("UTF-8")]);
    assert!(!output.status.success() && text(&output).contains(&format!("{lost}  unknown")), "{}", text(&output));
}

#[tokio::test]
async fn urgent_jobs_go_first_and_the_others_are_not_starved() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "efficientnet-lite0", "--partitions", "1"]);
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    let mut ids = Vec::new();
    for (priority, count) in [("low", 20), ("high", 20)] {
        for _ in 0..count {
            let query = format!("model=efficientnet-lite0&priority={priority}");
            let answer = send(stack.upload(&query, photo("rocket.jpg"))).await;
            assert_eq!(answer.status, 202, "{}", answer.body);
            ids.push((priority, answer.text("id")));
        }
    }
    ok(&stack, &["topics", "resume", "efficientnet-lite0"]);
    let mut ends = Vec::new();
    for (priority, id) in &ids {
        let job = stack.finish(id).await;
        assert_eq!((job["state"].as_str(), job["priority"].as_str()), (Some("succeeded"), Some(*priority)), "{job}");
        ends.push((job["started_at"].as_str().expect("a time").to_owned(), *priority));
    }
    ends.sort();
    let early: Vec<&str> = ends.iter().take(13).map(|(_, priority)| *priority).collect();
    let high = early.iter().filter(|priority| **priority == "high").count();
    assert!((9..13).contains(&high), "of the first 13, 12 are urgent and one is not: {early:?}");
}

#[tokio::test]
async fn an_ordered_topic_ends_jobs_of_a_key_in_their_order() {
    let stack = Stack::start(&["--workers", "3", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "belt", "--model", "efficientnet-lite0", "--ordered", "--lease", "2s"]);
    let error = refused(&stack, &["topics", "alter", "belt", "--partitions", "5"]);
    assert!(error.contains("does not grow"), "{error}");
    let answer = send(stack.upload("topic=belt&priority=high", photo("rocket.jpg"))).await;
    assert_eq!((answer.status, answer.text("code").as_str()), (400, "option_invalid"));
    let mut ids = Vec::new();
    for _ in 0..25 {
        ids.push(send(stack.upload("topic=belt&partition_key=k", photo("rocket.jpg"))).await.text("id"));
    }
    let mut before = String::new();
    for id in ids {
        let job = stack.finish(&id).await;
        let (start, end) = (job["started_at"].as_str().expect("a time"), job["finished_at"].as_str().expect("a time"));
        assert!(before.as_str() <= start, "it began at {start}, the one before ended at {before}");
        before = end.to_owned();
    }
}

#[tokio::test]
async fn workers_come_with_the_backlog() {
    let models = test_models();
    let stack = Stack::start(&["--workers", "0..2", "--models", &models]);
    assert_eq!(stack.members("worker").await.len(), 0);
    let ids = futures::future::join_all((0..60).map(|_| stack.accept("slow", photo("rocket.jpg")))).await;
    eventually("two workers are there", async || (stack.members("worker").await.len() == 2).then_some(())).await;
    ok(&stack, &["topics", "purge", "slow", "--yes"]);
    for id in &ids {
        let job = stack.finish(id).await;
        assert!(job["state"] == "succeeded" || job["state"] == "canceled", "{job}");
    }
    let supervisor = &stack.members("supervisor").await[0];
    assert_eq!(supervisor["scale"]["max"], 2, "{supervisor}");
    eventually("they go when there was nothing to do", async || stack.members("worker").await.is_empty().then_some(()))
        .await;
    assert_eq!(stack.run("model=slow", photo("rocket.jpg")).await["state"], "succeeded", "one comes back for a job");
}
