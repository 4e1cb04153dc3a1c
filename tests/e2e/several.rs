//! Several API processes on one queue and one database, of which any can die.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::Index;
use futures::StreamExt;
use queue::topic::Defaults;
use queue::{JobId, JobSpec, Timestamp, TopicName};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::harness::postgres::database;
use super::harness::{Answer, Broker, Stack, eventually, photo, rounds, send};
use super::keys::admin_key;
use super::lifecycle::listed;

/// One more API process beside the one of `up`.
struct Second {
    child: Child,
    base: String,
}

impl Second {
    fn start(stack: &Stack) -> Self {
        let mut command = stack.prepare(&["api", "--models", "efficientnet-lite0", "--listen", "127.0.0.1:0"]);
        if let Some(database) = stack.database() {
            command.args(["--database", database]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it has an output")).lines();
        let line = lines.next().and_then(Result::ok).expect("it says where it is");
        let base = line.split([' ', ',']).find(|word| word.starts_with("http://")).expect("an address").to_owned();
        Self { child, base }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        reqwest::Client::new().request(method, format!("{}{path}", self.base))
    }

    async fn get(&self, path: &str) -> Answer {
        send(self.ask(Method::GET, path)).await
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

#[tokio::test]
async fn two_api_processes_agree() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let second = Second::start(&stack);
    let query = "/v1/jobs?model=efficientnet-lite0";

    // One key, sent to both at once.
    let uploads = (0..40).map(|number| {
        let upload = match number % 2 {
            0 => stack.upload("model=efficientnet-lite0", photo("rocket.jpg")),
            _ => second.ask(Method::POST, query).body(photo("rocket.jpg")),
        };
        send(upload.header("idempotency-key", "one"))
    });
    let answers: Vec<Answer> = futures::stream::iter(uploads).buffer_unordered(8).collect().await;
    let ids: BTreeSet<String> = answers.iter().map(|answer| answer.text("id")).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");

    // What one took, the other waits for, lists and cancels.
    let id = ids.first().expect("one");
    let done = second.get(&format!("/v1/jobs/{id}?wait=30")).await;
    assert_eq!(done.text("state"), "succeeded", "{}", done.body);
    assert_eq!(done.json, stack.get(&format!("/v1/jobs/{id}")).await.json);
    let list = async |answer: Answer| answer.json["jobs"].clone();
    eventually("both list the same", async || {
        let (here, there) = (list(stack.get("/v1/jobs").await).await, list(second.get("/v1/jobs").await).await);
        (here == there && here.as_array().is_some_and(|jobs| jobs.len() == 1)).then_some(())
    })
    .await;

    // A batch that one took stands with the other, and both may be sent it.
    let line = |name: &str| {
        use base64::Engine;
        let image = base64::prelude::BASE64_STANDARD.encode(photo("rocket.jpg"));
        json!({"custom_id": name, "image": image}).to_string() + "\n"
    };
    let lines: String = (0..20).map(|number| line(&number.to_string())).collect();
    let path = "/v1/batches/both?model=efficientnet-lite0";
    let to_first = reqwest::Client::new().put(stack.url(path));
    let kind = ("content-type", "application/x-ndjson");
    let (one, two) = tokio::join!(
        send(to_first.header(kind.0, kind.1).body(lines.clone())),
        send(second.ask(Method::PUT, path).header(kind.0, kind.1).body(lines))
    );
    assert_eq!((one.status, two.status), (202, 202), "{} {}", one.body, two.body);
    eventually("it has ended, once", async || {
        let batch = second.get("/v1/batches/both").await.json;
        (batch["state"] == "finished" && batch["counts"]["succeeded"] == 20).then_some(())
    })
    .await;
    assert_eq!(second.get("/v1/batches/both/verify").await.json["complete"], true);

    // A key that was made with one closes the other's door, and opens it.
    let key = admin_key(&stack);
    eventually("the other knows of it", async || (second.get("/v1/jobs").await.status == 401).then_some(())).await;
    assert_eq!(send(second.ask(Method::GET, "/v1/jobs").bearer_auth(&key)).await.status, 200);
}

#[tokio::test]
async fn the_death_of_one_costs_the_other_nothing() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let mut accepted = BTreeSet::new();
    for _ in 0..4 {
        let mut second = Second::start(&stack);
        // Killed right after it has said that it took a job: its record is there, its row is not.
        for _ in 0..5 {
            let upload = second.ask(Method::POST, "/v1/jobs?model=efficientnet-lite0").body(photo("rocket.jpg"));
            let answer = send(upload).await;
            assert_eq!(answer.status, 202, "{}", answer.body);
            accepted.insert(answer.text("id"));
        }
        second.child.kill().and_then(|()| second.child.wait()).expect("killed");
    }
    eventually("all that was taken is listed and has succeeded", async || {
        let jobs = listed(&stack, "state=succeeded").await;
        (jobs.into_iter().collect::<BTreeSet<_>>() == accepted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_crash_between_record_and_index_loses_no_row() {
    let mut stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let mut accepted = BTreeSet::new();
    for round in 0..6 {
        for _ in 0..5 {
            accepted.insert(stack.accept("efficientnet-lite0", photo("rocket.jpg")).await);
        }
        // At once, and at some moments of the index's work.
        tokio::time::sleep(Duration::from_millis(round * 40)).await;
        stack.kill();
        stack.restart();
    }
    eventually("all are listed and have succeeded", async || {
        let jobs = listed(&stack, "state=succeeded").await;
        (jobs.into_iter().collect::<BTreeSet<_>>() == accepted).then_some(())
    })
    .await;
    let all: Value = stack.get("/v1/jobs?limit=1000").await.json;
    assert_eq!(all["jobs"].as_array().map(Vec::len), Some(accepted.len()));
}

/// Each process writes the same rows, and the order in which jobs change is another one at each moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_index_the_same_changes_at_once_do_not_stop_each_other() {
    const JOBS: usize = 200;
    const FOLLOWERS: usize = 6;
    let broker = Broker::start().await;
    let queue = broker.queue(Defaults::default()).await;
    let database = database();
    let topic = queue.topics.ensure(&TopicName::new("cats").expect("valid"), "cats").await.expect("created");
    let spec = || -> JobSpec {
        let id = JobId::random(topic.name().clone());
        let image = json!({"width": 1, "height": 1, "format": "png", "bytes": 5, "sha256": "sum"});
        let spec = json!({"id": id, "model": "cats", "model_version": 1, "model_digest": "d",
            "created_at": "2026-11-27T17:00:00Z", "image": image});
        serde_json::from_value(spec).expect("a specification")
    };
    let mut ids = Vec::new();
    for _ in 0..JOBS {
        ids.push(queue.jobs.submit(&topic, spec(), "image".into()).await.expect("accepted").into_record().spec.id);
    }
    let is_over = AtomicBool::new(false);
    let changing = async {
        let mut dice = StdRng::seed_from_u64(16);
        for _ in 0..rounds(4, 200) {
            ids.shuffle(&mut dice);
            for id in &ids {
                let stored = queue.find_record(id).await.expect("answered").expect("there");
                let next = stored.record.start("w", Timestamp::now()).expect("it has not ended");
                queue.work.replace(stored.revision, &next).await.expect("written");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let follow = async || {
        let index = Index::open(&database).await.expect("opens");
        while !is_over.load(Ordering::Relaxed) {
            index.catch_up(&queue).await.expect("no process is in the way of another");
        }
    };
    tokio::join!(changing, futures::future::join_all((0..FOLLOWERS).map(|_| follow())));
}
