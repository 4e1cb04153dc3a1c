//! Keys: who may do what, what is whose, and how much of it.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Answer, Stack, eventually, photo, send};

struct Client<'a> {
    stack: &'a Stack,
    key: String,
}

impl Client<'_> {
    async fn ask(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        let request = http.request(method, self.stack.url(path)).bearer_auth(&self.key).body(body);
        send(request.header("content-type", "application/x-tar")).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, "").await
    }
}

/// Makes a key on the command line, as `admin` if there is one.
fn make<'a>(stack: &'a Stack, admin: Option<&Client<'_>>, words: &[&str]) -> Client<'a> {
    let mut command = stack.prepare(&[&["keys", "create"], words].concat());
    if let Some(admin) = admin {
        command.env("SIGHTLINE_KEY", &admin.key);
    }
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Client { stack, key: String::from_utf8(output.stdout).expect("text").trim().to_owned() }
}

/// A key for everything.
pub(crate) fn admin_key(stack: &Stack) -> String {
    make(stack, None, &["--name", "boss", "--scopes", "admin"]).key
}

fn tar_of_one() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let image = photo("rocket.jpg");
    let mut header = tar::Header::new_gnu();
    header.set_size(image.len() as u64);
    header.set_cksum();
    builder.append_data(&mut header, "a.jpg", &image[..]).expect("written");
    builder.into_inner().expect("finished")
}

#[tokio::test]
async fn jobs_of_other_owners_are_not_found() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let early = stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
    let refused = stack.command(&["keys", "create", "--name", "a", "--scopes", "read"]);
    assert!(!refused.status.success(), "the first key is an admin's");
    assert_eq!(stack.get("/v1/jobs").await.status, 200, "a key that was refused closes nothing");
    let admin = make(&stack, None, &["--name", "boss", "--scopes", "admin"]);
    let without = stack.get("/v1/jobs").await;
    assert_eq!((without.status, without.text("code").as_str()), (401, "key_missing"));
    assert_eq!(without.header("www-authenticate"), "Bearer");
    assert_eq!(stack.get("/healthz").await.status, 200);
    let ann = make(&stack, Some(&admin), &["--name", "ann", "--scopes", "submit,read"]);
    let ben = make(&stack, Some(&admin), &["--name", "ben", "--scopes", "submit,read"]);

    let submitted = ann.ask(Method::POST, "/v1/jobs?model=efficientnet-lite0", photo("rocket.jpg")).await;
    assert_eq!(submitted.status, 202, "{}", submitted.body);
    let job = submitted.text("id");
    let batch = ann.ask(Method::PUT, "/v1/batches/hers?model=efficientnet-lite0", tar_of_one()).await;
    assert_eq!(batch.status, 202, "{}", batch.body);
    // Every route that takes an id, tried by another owner.
    let description = stack.get("/openapi.json").await.json;
    let mut tried = 0;
    for (path, methods) in description["paths"].as_object().expect("an object") {
        let id = match path.as_str() {
            path if path.starts_with("/v1/jobs/{id}") => job.as_str(),
            path if path.starts_with("/v1/batches/{id}") => "hers",
            _ => continue,
        };
        let path = format!("{}?model=efficientnet-lite0", path.replace("{id}", id));
        for method in methods.as_object().expect("an object").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let answer = ben.ask(method.clone(), &path, tar_of_one()).await;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.body);
            tried += 1;
        }
    }
    assert!(tried >= 13, "{tried} routes take an id");
    assert_eq!(ben.get(&format!("/v1/jobs/{job}?wait=1")).await.status, 404);
    assert_eq!(ben.get(&format!("/v1/jobs/{early}")).await.status, 404, "a job without an owner is not public");
    for (method, path) in [(Method::GET, "/v1/dead"), (Method::GET, "/v1/keys"), (Method::POST, "/v1/topics")] {
        let answer = ben.ask(method, path, "{}").await;
        assert_eq!((answer.status, answer.text("code").as_str()), (403, "key_scope"), "{path}");
    }
    assert_eq!(ben.get("/v1/jobs").await.json["jobs"], json!([]));
    assert_eq!(ben.get("/v1/batches").await.json["batches"], json!([]));
    let done = eventually("hers is done", async || {
        let seen = ann.get(&format!("/v1/jobs/{job}?wait=5")).await;
        (seen.json["state"] == "succeeded").then_some(seen.json)
    })
    .await;
    eventually("she sees what is hers", async || {
        let jobs = ann.get("/v1/jobs").await.json;
        let ids: BTreeSet<&str> = jobs["jobs"].as_array()?.iter().filter_map(|job| job["id"].as_str()).collect();
        (ids.len() == 2 && ids.contains(job.as_str()) && !ids.contains(early.as_str())).then_some(())
    })
    .await;
    assert_eq!(admin.get(&format!("/v1/jobs/{job}")).await.json, done, "an admin sees all");
    // One key a job, but only within one owner.
    let with_key = async |client: &Client<'_>| {
        let http = reqwest::Client::new();
        let request = http.post(stack.url("/v1/jobs?model=efficientnet-lite0")).bearer_auth(&client.key);
        send(request.header("idempotency-key", "1").body(photo("rocket.jpg"))).await.text("id")
    };
    assert_ne!(with_key(&ann).await, with_key(&ben).await);

    // A revoked key is not a key, and the last admin stays.
    let listed = admin.get("/v1/keys").await.json;
    let id_of = |name: &str| {
        let keys = listed["keys"].as_array().expect("a list");
        keys.iter().find(|key| key["name"] == name).expect("there")["id"].as_str().expect("an id").to_owned()
    };
    assert!(!listed.to_string().contains("hash"), "{listed}");
    let last = admin.ask(Method::DELETE, &format!("/v1/keys/{}", id_of("boss")), "").await;
    assert_eq!((last.status, last.text("code").as_str()), (409, "key_last"));
    assert_eq!(admin.ask(Method::DELETE, &format!("/v1/keys/{}", id_of("ben")), "").await.status, 200);
    assert_eq!(ben.get("/v1/jobs").await.status, 401);
    let forged = Client { stack: &stack, key: format!("sl_{}_{}", id_of("ann"), "0".repeat(64)) };
    assert_eq!(forged.get("/v1/jobs").await.text("code"), "key_invalid");
}

#[tokio::test]
async fn a_key_gets_what_it_may_and_is_told_when_to_come_again() {
    let mut stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let admin = make(&stack, None, &["--name", "boss", "--scopes", "admin"]).key;
    let boss = Client { stack: &stack, key: admin.clone() };
    let slow = make(&stack, Some(&boss), &["--name", "slow", "--scopes", "read", "--requests-per-second", "2"]);
    let mut answers: Vec<Value> = Vec::new();
    for _ in 0..10 {
        let answer = slow.get("/v1/models").await;
        if answer.status == 429 {
            assert_eq!(answer.text("code"), "limit_reached");
            assert_eq!(answer.header("retry-after"), "1");
            answers.push(answer.json);
        }
    }
    assert!(!answers.is_empty(), "ten requests at once are more than two a second");
    let words = ["--name", "full", "--scopes", "submit,read", "--queued-jobs", "3"];
    let full = make(&stack, Some(&boss), &words);
    assert_eq!(
        boss.ask(Method::POST, "/v1/topics", r#"{"name":"efficientnet-lite0","model":"efficientnet-lite0"}"#)
            .await
            .status,
        201
    );
    assert_eq!(boss.ask(Method::POST, "/v1/topics/efficientnet-lite0/pause", "").await.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(full.ask(Method::POST, "/v1/jobs?model=efficientnet-lite0", photo("rocket.jpg")).await.status);
    }
    assert_eq!(statuses, [202, 202, 202, 429, 429]);
    let full = full.key;
    // Keys outlive a restart.
    stack.restart();
    let client = Client { stack: &stack, key: full };
    assert_eq!(client.get("/v1/jobs").await.status, 200);
    assert_eq!(stack.get("/v1/jobs").await.status, 401);
}

#[tokio::test]
async fn a_key_ends_when_it_said_it_would() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let boss = make(&stack, None, &["--name", "boss", "--scopes", "admin"]);
    let brief = make(&stack, Some(&boss), &["--name", "brief", "--scopes", "read", "--expires", "2s"]);
    assert_eq!(brief.get("/v1/jobs").await.status, 200);
    let ended = eventually("it ends", async || {
        let answer = brief.get("/v1/jobs").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!((ended.status, ended.text("code").as_str()), (401, "key_invalid"));
}

#[tokio::test]
async fn what_a_key_has_waiting_is_bounded_in_bytes_and_a_batch_waits_for_room() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let boss = make(&stack, None, &["--name", "boss", "--scopes", "admin"]);
    let image = photo("rocket.jpg");
    let room = (2 * image.len() + image.len() / 2).to_string();
    let words = ["--name", "small", "--scopes", "submit,read", "--queued-bytes", &room];
    let small = make(&stack, Some(&boss), &words);
    let topic = r#"{"name":"efficientnet-lite0","model":"efficientnet-lite0"}"#;
    assert_eq!(boss.ask(Method::POST, "/v1/topics", topic).await.status, 201);
    assert_eq!(boss.ask(Method::POST, "/v1/topics/efficientnet-lite0/pause", "").await.status, 200);
    let submit = || small.ask(Method::POST, "/v1/jobs?model=efficientnet-lite0", image.clone());
    assert_eq!([submit().await.status, submit().await.status], [202, 202]);
    let third = submit().await;
    assert_eq!((third.status, third.text("code").as_str()), (429, "limit_reached"), "{}", third.body);
    assert!(third.text("detail").contains("bytes of queued images"), "{}", third.body);
    // A batch is taken as fast as there is room, and not refused.
    let sending = small.ask(Method::PUT, "/v1/batches/patient?model=efficientnet-lite0", tar_of_one());
    let resuming = async {
        eventually("the batch has come, but for its image", async || {
            (small.get("/v1/batches/patient").await.status == 200).then_some(())
        })
        .await;
        assert_eq!(small.get("/v1/batches/patient").await.json["state"], "receiving");
        boss.ask(Method::POST, "/v1/topics/efficientnet-lite0/resume", "").await
    };
    let (sent, resumed) = tokio::join!(sending, resuming);
    assert_eq!((sent.status, resumed.status), (202, 200), "{}", sent.body);
}

#[tokio::test]
async fn one_who_floods_a_topic_does_not_make_another_wait_even_in_one_partition() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0", "--partitions", "4"]);
    let boss = make(&stack, None, &["--name", "boss", "--scopes", "admin"]);
    let topic = r#"{"name":"efficientnet-lite0","model":"efficientnet-lite0"}"#;
    assert_eq!(boss.ask(Method::POST, "/v1/topics", topic).await.status, 201);
    assert_eq!(boss.ask(Method::POST, "/v1/topics/efficientnet-lite0/pause", "").await.status, 200);
    let flood = make(&stack, Some(&boss), &["--name", "flood", "--scopes", "submit,read"]);
    let submit = async |client: &Client<'_>| {
        let answer = client.ask(Method::POST, "/v1/jobs?model=efficientnet-lite0", photo("rocket.jpg")).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.json
    };
    let first = submit(&flood).await;
    // An owner with the same partition.
    let mut number = 0;
    let neighbour = loop {
        number += 1;
        let name = format!("n{number}");
        let client = make(&stack, Some(&boss), &["--name", &name, "--scopes", "submit,read"]);
        if submit(&client).await["partition"] == first["partition"] {
            break client;
        }
    };
    for _ in 0..120 {
        assert_eq!(submit(&flood).await["partition"], first["partition"], "who is the crowd stays where it is");
    }
    eventually("it is seen that there is a crowd", async || {
        let topic = boss.get("/v1/topics/efficientnet-lite0").await.json;
        let partitions = topic["partitions"].as_array()?;
        let own = partitions.iter().find(|one| one["partition"] == first["partition"])?;
        let id = first["id"].as_str()?;
        let position = flood.get(&format!("/v1/jobs/{id}")).await.json["position"].as_u64();
        (own["queued"].as_u64()? > 120 && position.is_some()).then_some(())
    })
    .await;
    let job = eventually("the neighbour goes elsewhere", async || {
        let job = submit(&neighbour).await;
        (job["partition"] != first["partition"]).then_some(job)
    })
    .await;
    assert_eq!(boss.ask(Method::POST, "/v1/topics/efficientnet-lite0/resume", "").await.status, 200);
    let path = format!("/v1/jobs/{}?wait=30", job["id"].as_str().expect("an id"));
    assert_eq!(neighbour.get(&path).await.json["state"], "succeeded");
    let ended = neighbour.get(&path).await.json["finished_at"].clone();
    let ended = ended.as_str().expect("a moment");
    let later = eventually("the flood has ended too", async || {
        let jobs = flood.get("/v1/jobs?state=succeeded&limit=1000").await.json;
        let jobs = jobs["jobs"].as_array()?.clone();
        (jobs.len() == 121).then(|| jobs.iter().filter(|job| job["finished_at"].as_str() > Some(ended)).count())
    })
    .await;
    assert!(later >= 60, "only {later} of the flood's 121 jobs ended after the neighbour's");
}
