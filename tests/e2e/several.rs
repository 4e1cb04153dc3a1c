//! Several API processes on one queue and one database, of which any can die.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::harness::{Answer, Stack, eventually, photo, send};
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
