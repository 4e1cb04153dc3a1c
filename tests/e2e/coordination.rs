//! Coordination: who gets which job, who notices what is wrong, and what a change does under load.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use serde_json::Value;

use super::harness::{Engine, Running, Stack, engine, eventually, photo, send, test_models};
use super::topics::{json_of, ok, rocket};

/// Who ran each job last.
async fn workers_of(stack: &Stack, ids: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        let job = stack.finish(id).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        *counts.entry(job["attempts"][0]["worker"].as_str().expect("a worker").to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn a_reader_follows_what_comes() {
    let stack = Stack::start(&["--workers", "1"]);
    ok(&stack, &["topics", "create", "plain", "--retention", "log:1h"]);
    let first = json_of(&ok(&stack, &["produce", "plain", &rocket(), "--json"]));
    let mut follow = stack.prepare(&["consume", "plain", "--from-beginning", "--json"]);
    let mut child = Running(follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts"));
    let mut lines = BufReader::new(child.0.stdout.take().expect("it has an output")).lines();
    let mut next = || json_of(&lines.next().expect("it goes on").expect("text"));
    assert_eq!(next()["id"], first["id"]);
    for _ in 0..3 {
        let later = json_of(&ok(&stack, &["produce", "plain", &rocket(), "--json"]));
        assert_eq!(next()["id"], later["id"], "what comes later is shown when it comes");
    }
}

#[tokio::test]
async fn copies_are_there_when_a_command_says_so() {
    if engine() != Engine::Cluster {
        return;
    }
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "copied", "--model", "efficientnet-lite0", "--replicas", "1"]);
    stack.run("topic=copied", photo("rocket.jpg")).await;
    ok(&stack, &["topics", "alter", "copied", "--replicas", "3"]);
    // Leaders are spread afterwards; while one is elected, a partition cannot show its copies.
    let topic = eventually("each partition has a leader", async || {
        let topic = json_of(&ok(&stack, &["topics", "describe", "copied", "--json"]));
        let partitions = topic["partitions"].as_array().expect("a list");
        partitions.iter().all(|partition| partition["leader"] != "none").then_some(topic)
    })
    .await;
    for partition in topic["partitions"].as_array().expect("a list") {
        let copies = partition["replicas"].as_array().expect("a list");
        assert!(copies.len() == 2 && copies.iter().all(|copy| copy["current"] == true), "{partition}");
    }
}

#[tokio::test]
async fn a_busy_partition_among_sixteen_is_served_by_all() {
    let models = test_models();
    let stack = Stack::start(&["--workers", "3", "--models", &models]);
    ok(&stack, &["topics", "create", "wide", "--model", "endless", "--models", &models, "--partitions", "16"]);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(send(stack.upload("topic=wide&partition_key=one", photo("rocket.jpg"))).await.text("id"));
    }
    // None of them ends: each worker has to take one.
    eventually("three workers run three jobs of one partition", async || {
        let mut workers = BTreeSet::new();
        for id in &ids {
            let job = stack.get(&format!("/v1/jobs/{id}")).await.json;
            workers.insert(job["worker"].as_str().filter(|_| job["state"] == "running")?.to_owned());
        }
        (workers.len() == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn equal_jobs_are_shared_out_equally() {
    let stack = Stack::start(&["--workers", "2", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "even", "--model", "efficientnet-lite0", "--partitions", "5"]);
    ok(&stack, &["topics", "pause", "even"]);
    let uploads = (0..400).map(|_| async { send(stack.upload("topic=even", photo("rocket.jpg"))).await.text("id") });
    let ids: Vec<String> = futures::stream::iter(uploads).buffer_unordered(16).collect().await;
    ok(&stack, &["topics", "resume", "even"]);
    let counts = workers_of(&stack, &ids).await;
    let (mean, most) = (ids.len() as f64 / 2.0, *counts.values().max().expect("a worker"));
    assert!(most as f64 <= 1.2 * mean, "{counts:?}");
}

#[tokio::test]
async fn a_topic_that_grows_under_load_loses_nothing() {
    let stack = Stack::start(&["--workers", "2", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "small", "--model", "efficientnet-lite0", "--partitions", "3"]);
    let upload = || async { send(stack.upload("topic=small", photo("rocket.jpg"))).await.text("id") };
    let before: Vec<String> = futures::stream::iter((0..100).map(|_| upload())).buffer_unordered(8).collect().await;
    let load =
        async { futures::stream::iter((0..300).map(|_| upload())).buffer_unordered(8).collect::<Vec<_>>().await };
    let mut grow = tokio::process::Command::from(stack.prepare(&["topics", "alter", "small", "--partitions", "12"]));
    let (during, grown) = tokio::join!(load, grow.output());
    assert!(grown.expect("it ran").status.success());
    let mut partitions: BTreeSet<String> = BTreeSet::new();
    let mut ends = Vec::new();
    let all: Vec<String> = before.into_iter().chain(during).collect();
    for id in &all {
        let job = stack.finish(id).await;
        assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{job}");
        partitions.insert(job["partition"].as_str().expect("a partition").to_owned());
        let end = job["finished_at"].as_str().expect("a time");
        let end = time::OffsetDateTime::parse(end, &time::format_description::well_known::Rfc3339).expect("a time");
        ends.push(end);
    }
    ends.sort();
    let pause = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    println!("longest time in which no job ended: {} ms", pause.whole_milliseconds());
    eventually("new partitions are used", async || {
        let job = stack.finish(&upload().await).await;
        let number: u16 = job["partition"].as_str()?.parse().ok()?;
        (number >= 3).then_some(())
    })
    .await;
    let audit = json_of(&ok(&stack, &["audit", "small", "--json"]));
    assert_eq!(audit["wrong"].as_array().map(Vec::len), Some(0), "{audit}");
    assert!(audit["states"]["succeeded"].as_u64() > Some(400), "{audit}");
}

#[tokio::test]
async fn a_removed_consumer_is_created_again() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "bent", "--model", "efficientnet-lite0", "--partitions", "1"]);
    assert_eq!(stack.run("topic=bent", photo("rocket.jpg")).await["state"], "succeeded");
    let stream = stack.bare().await.get_stream("jobs_bent_0").await.expect("there");
    assert!(stream.delete_consumer("workers").await.expect("removed").success);
    let job = stack.run("topic=bent", photo("rocket.jpg")).await;
    assert_eq!(job["state"], "succeeded", "{job}");
}

#[tokio::test]
async fn a_lease_that_never_ends_is_noticed() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let create = ["topics", "create", "held", "--model", "efficientnet-lite0", "--partitions", "1", "--lease", "1s"];
    ok(&stack, &[&create[..], &["--run-timeout", "1s"]].concat());
    ok(&stack, &["topics", "pause", "held"]);
    let id = send(stack.upload("topic=held", photo("rocket.jpg"))).await.text("id");
    // A client takes the job, renews its lease, and never ends.
    let stream = stack.bare().await.get_stream("jobs_held_0").await.expect("there");
    let consumer: jetstream::consumer::PullConsumer = stream.get_consumer("workers").await.expect("there");
    let mut messages = consumer.fetch().max_messages(1).messages().await.expect("asked");
    let message = messages.next().await.expect("the job").expect("read");
    let held = async {
        loop {
            message.ack_with(jetstream::AckKind::Progress).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let noticed = async {
        ok(&stack, &["topics", "resume", "held"]);
        eventually("the stall is explained", async || {
            let topic = stack.get("/v1/topics/held").await.json;
            let stall = topic["stalls"].as_array()?.first()?.clone();
            (stall["reason"] == "stuck_lease").then_some(stall)
        })
        .await
    };
    let stall: Value = tokio::select! {
        stall = noticed => stall,
        () = held => unreachable!("it never ends"),
    };
    assert_eq!((stall["partition"].as_str(), stall["in_work"].as_u64()), (Some("0"), Some(1)), "{stall}");
    // It goes, and the job comes to a worker.
    assert_eq!(stack.finish(&id).await["state"], "succeeded");
}

#[tokio::test]
async fn a_job_whose_input_left_the_log_is_told_so() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let create = ["topics", "create", "brief", "--model", "efficientnet-lite0", "--partitions", "1"];
    let image = photo("rocket.jpg");
    let room = (3 * image.len() + image.len() / 2).to_string();
    ok(&stack, &[&create[..], &["--retention", "log:1h", "--max-bytes", &room]].concat());
    ok(&stack, &["topics", "pause", "brief"]);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(send(stack.upload("topic=brief", image.clone())).await.text("id"));
    }
    for id in &ids[..2] {
        let job = stack.finish(id).await;
        assert_eq!(
            (job["state"].as_str(), job["error"]["code"].as_str()),
            (Some("failed"), Some("input_gone")),
            "{job}"
        );
    }
    ok(&stack, &["topics", "resume", "brief"]);
    for id in &ids[2..] {
        assert_eq!(stack.finish(id).await["state"], "succeeded");
    }
    let audit = json_of(&ok(&stack, &["audit", "brief", "--json"]));
    assert_eq!((&audit["states"]["failed"], &audit["wrong"]), (&2.into(), &Value::Array(Vec::new())), "{audit}");
}
