//! Webhooks: signed, tried again, kept over a restart, and never sent to what stands beside us.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use super::harness::{Stack, eventually, photo, send};

/// A client's server: notes what it is told and answers as it is told to.
pub(crate) struct Receiver {
    pub(crate) url: String,
    heard: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    answers: Arc<Mutex<Vec<StatusCode>>>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/told", listener.local_addr().expect("bound"));
        let (heard, answers) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<StatusCode>>>::default());
        let (noted, wanted) = (heard.clone(), answers.clone());
        let told = move |headers: HeaderMap, body: Bytes| async move {
            noted.lock().expect("no panic").push((headers, body));
            wanted.lock().expect("no panic").pop().unwrap_or(StatusCode::NO_CONTENT)
        };
        let routes = Router::new().route("/told", axum::routing::post(told));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, heard, answers }
    }

    /// Answers of the next calls, first to last.
    pub(crate) fn answer(&self, answers: &[u16]) {
        let codes = answers.iter().rev().map(|code| StatusCode::from_u16(*code).expect("a status"));
        *self.answers.lock().expect("no panic") = codes.collect();
    }

    pub(crate) fn calls(&self) -> Vec<(HeaderMap, Bytes)> {
        self.heard.lock().expect("no panic").clone()
    }

    pub(crate) async fn wait_for(&self, count: usize) -> Vec<(HeaderMap, Bytes)> {
        eventually("the calls come", async || Some(self.calls()).filter(|calls| calls.len() >= count)).await
    }
}

async fn deliveries(stack: &Stack, path: &str, count: usize) -> Vec<Value> {
    eventually("the tries are logged", async || {
        let log = stack.get(&format!("{path}/deliveries")).await.json["deliveries"].as_array()?.clone();
        (log.len() >= count).then_some(log)
    })
    .await
}

#[tokio::test]
async fn a_receiver_is_told_once_with_a_signature_and_again_if_it_fails() {
    let receiver = Receiver::start().await;
    let stack =
        Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0", "--webhook-allow", "127.0.0.1"]);
    let query = format!("model=efficientnet-lite0&webhook={}", receiver.url);
    let job = stack.run(&query, photo("rocket.jpg")).await;
    let id = job["id"].as_str().expect("an id");
    let (headers, body) = receiver.wait_for(1).await.remove(0);
    let secret = std::fs::read_to_string(stack.data().join("webhook.secret")).expect("there");
    Webhook::new(secret.trim()).expect("a secret").verify(&body, &headers).expect("the signature is good");
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((told["type"].as_str(), &told["data"]), (Some("job.succeeded"), &job));
    let log = deliveries(&stack, &format!("/v1/jobs/{id}"), 1).await;
    assert_eq!((log[0]["status"].as_u64(), log[0]["outcome"].as_str()), (Some(204), Some("delivered")), "{log:?}");

    // Refused twice, then taken: three tries of one call.
    receiver.answer(&[500]);
    let failed = stack.run(&format!("{query}&webhook_events=failed,canceled"), super::damaged_jpeg()).await;
    let id = failed["id"].as_str().expect("an id");
    let log = deliveries(&stack, &format!("/v1/jobs/{id}"), 2).await;
    let outcomes: Vec<&str> = log.iter().map(|one| one["outcome"].as_str().expect("an outcome")).collect();
    assert_eq!(outcomes, ["retrying", "delivered"]);
    let calls = receiver.calls();
    assert_eq!(calls.len(), 3, "the first job's call came once");
    assert_eq!(calls[1].0["webhook-id"], calls[2].0["webhook-id"], "a second try is known as one");
    // No client asked for this one.
    let quiet = stack.run(&format!("{query}&webhook_events=failed"), photo("rocket.jpg")).await;
    assert_eq!(quiet["state"], "succeeded");

    // A receiver that answers 410 is not called again.
    receiver.answer(&[410]);
    let last = stack.run(&query, photo("rocket.jpg")).await;
    let log = deliveries(&stack, last["urls"]["self"].as_str().expect("a path"), 1).await;
    assert_eq!(log[0]["outcome"], "disabled", "{log:?}");
    let next = stack.run(&query, photo("rocket.jpg")).await;
    let log = deliveries(&stack, next["urls"]["self"].as_str().expect("a path"), 1).await;
    assert_eq!((log[0]["outcome"].as_str(), &log[0]["status"]), (Some("disabled"), &json!(null)), "{log:?}");
    assert_eq!(receiver.calls().len(), 4);
}

#[tokio::test]
async fn a_call_that_is_owed_outlives_a_kill() {
    let receiver = Receiver::start().await;
    let mut stack =
        Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0", "--webhook-allow", "127.0.0.1"]);
    receiver.answer(&[503]);
    let job = stack.run(&format!("model=efficientnet-lite0&webhook={}", receiver.url), photo("rocket.jpg")).await;
    receiver.wait_for(1).await;
    stack.kill();
    stack.restart();
    let calls = receiver.wait_for(2).await;
    let told: Value = serde_json::from_slice(&calls[1].1).expect("JSON");
    assert_eq!(told["data"], job);
}

#[tokio::test]
async fn a_batch_tells_once_that_all_of_it_has_ended() {
    let receiver = Receiver::start().await;
    let mut stack =
        Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0", "--webhook-allow", "127.0.0.1"]);
    let lines = |count: usize| -> String {
        let image = BASE64_STANDARD.encode(photo("rocket.jpg"));
        (0..count).map(|number| format!("{{\"custom_id\":\"{number}\",\"image\":\"{image}\"}}\n")).collect()
    };
    let http = reqwest::Client::new();
    let put = |stack: &Stack, id: &str, events: &str, count: usize| {
        let url = stack.url(&format!("/v1/batches/{id}?model=efficientnet-lite0{events}"));
        let request = http.put(url).query(&[("webhook", &receiver.url)]).body(lines(count));
        request.header("content-type", "application/x-ndjson")
    };
    let taken = send(put(&stack, "first", "", 20)).await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    // Whichever process dies meanwhile, the webhook is called.
    stack.kill();
    stack.restart();
    let (_, body) = receiver.wait_for(1).await.remove(0);
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((told["type"].as_str(), told["data"]["id"].as_str()), (Some("batch.finished"), Some("first")), "{told}");
    assert_eq!((&told["data"]["counts"]["succeeded"], &told["data"]["counts"]["total"]), (&json!(20), &json!(20)));
    deliveries(&stack, "/v1/batches/first", 1).await;

    // It may have each of its jobs told as well.
    let taken = send(put(&stack, "second", "&webhook_events=finished,succeeded", 3)).await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    let calls = receiver.wait_for(1 + 4).await;
    let mut told: Vec<String> = calls[1..]
        .iter()
        .map(|(_, body)| serde_json::from_slice::<Value>(body).expect("JSON")["type"].to_string())
        .collect();
    told.sort();
    assert_eq!(told, ["\"batch.finished\"", "\"job.succeeded\"", "\"job.succeeded\"", "\"job.succeeded\""]);
}

#[tokio::test]
async fn private_addresses_are_never_called() {
    let receiver = Receiver::start().await;
    let folder = super::harness::temporary_folder();
    let data = folder.path().join("data");
    let flags = ["--workers", "1", "--models", "efficientnet-lite0"];
    // What was allowed once is not for ever.
    let allowing = Stack::start_at(data.clone(), &[&flags[..], &["--webhook-allow", "127.0.0.1"]].concat());
    super::topics::ok(&allowing, &["topics", "create", "efficientnet-lite0"]);
    super::topics::ok(&allowing, &["topics", "pause", "efficientnet-lite0"]);
    let query = format!("model=efficientnet-lite0&webhook={}", receiver.url);
    let early = send(allowing.upload(&query, photo("rocket.jpg"))).await.text("id");
    drop(allowing);
    let stack = Stack::start_at(data, &flags);
    super::topics::ok(&stack, &["topics", "resume", "efficientnet-lite0"]);
    stack.finish(&early).await;
    let log = deliveries(&stack, &format!("/v1/jobs/{early}"), 1).await;
    let error = log[0]["error"].as_str().expect("why");
    assert!(error.contains("not a public address") && error.contains("--webhook-allow"), "{error}");
    assert_eq!(receiver.calls().len(), 0);
    let here = receiver.url.replace("127.0.0.1", "localhost");
    let metadata = "http://169.254.169.254/latest/meta-data/";
    for url in [receiver.url.as_str(), &here, metadata, "http://[::1]/", "http://10.1.2.3/"] {
        let answer =
            send(stack.upload("model=efficientnet-lite0", photo("rocket.jpg")).query(&[("webhook", url)])).await;
        assert_eq!((answer.status, answer.text("code").as_str()), (400, "option_invalid"), "{url}: {}", answer.body);
        assert!(answer.text("detail").contains("--webhook-allow"), "{}", answer.body);
    }
    for url in ["file:///etc/passwd", "nonsense", "http://user:secret@example.com/", "http://"] {
        let answer =
            send(stack.upload("model=efficientnet-lite0", photo("rocket.jpg")).query(&[("webhook", url)])).await;
        assert_eq!((answer.status, answer.text("code").as_str()), (400, "option_invalid"), "{url}: {}", answer.body);
    }
}
