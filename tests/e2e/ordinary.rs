//! Ordinary life: receivers that are down, texts that no database holds, logs that nothing reads, two at the same
//! moment, and an end that a container's runtime does not wait for. One bad thing never stops the others.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use queue::{ImageFacts, JobId, JobOptions, JobSpec, Origin, Timestamp};
use reqwest::Method;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::harness::{Engine, Stack, descendants, engine, eventually, photo, send, signal, test_models};
use super::webhooks::Receiver;

const MODEL: [&str; 4] = ["--workers", "1", "--models", "efficientnet-lite0"];

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn receivers_that_are_down_do_not_silence_the_others() {
    let stack = Stack::start_indexed(&[&MODEL[..], &["--webhook-allow", "127.0.0.1"]].concat());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    // It accepts and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let hangs = silent.local_addr().expect("bound");
    let mut owed = Vec::new();
    for number in 0..300 {
        let url = format!("http://{}/{number}", if number % 2 == 0 { closed } else { hangs });
        owed.push(stack.upload(&format!("model=efficientnet-lite0&webhook={url}"), photo("rocket.jpg")));
    }
    let mut dead = Vec::new();
    for upload in owed {
        let answer = send(upload).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        dead.push(answer.text("id"));
    }
    stack.finish(dead.last().expect("many")).await;
    let receiver = Receiver::start().await;
    let job = stack.run(&format!("model=efficientnet-lite0&webhook={}", receiver.url), photo("rocket.jpg")).await;
    // Those before it would be tried for hours.
    let calls = receiver.wait_for(1).await;
    let told: Value = serde_json::from_slice(&calls[0].1).expect("JSON");
    assert_eq!(told["data"]["id"], job["id"]);
    drop(silent);
}

#[tokio::test]
async fn a_receiver_that_wants_no_more_is_left_alone_until_its_owner_says_otherwise() {
    let stack = Stack::start_indexed(&[&MODEL[..], &["--webhook-allow", "127.0.0.1"]].concat());
    let receiver = Receiver::start().await;
    let query = format!("model=efficientnet-lite0&webhook={}", receiver.url);
    receiver.answer(&[410]);
    stack.run(&query, photo("rocket.jpg")).await;
    let gone = eventually("it is noted", async || {
        let gone = stack.get("/v1/webhooks/gone").await.json["receivers"].as_array()?.clone();
        (!gone.is_empty()).then_some(gone)
    })
    .await;
    assert_eq!(gone[0]["url"], receiver.url.as_str());
    let job = stack.run(&query, photo("rocket.jpg")).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().expect("an id"));
    let log = eventually("the log says why no call was made", async || {
        let log = stack.get(&format!("{path}/deliveries")).await.json["deliveries"].as_array()?.clone();
        (!log.is_empty()).then_some(log)
    })
    .await;
    assert_eq!((log[0]["outcome"].as_str(), receiver.calls().len()), (Some("disabled"), 1));
    let restore = |url: &str| stack.request(Method::DELETE, "/v1/webhooks/gone").query(&[("url", url)]);
    assert_eq!(send(restore(&receiver.url)).await.status, 204);
    assert_eq!(send(restore(&receiver.url)).await.status, 404);
    stack.run(&query, photo("rocket.jpg")).await;
    receiver.wait_for(2).await;
}

#[tokio::test]
async fn what_no_database_holds_is_refused_at_the_door() {
    let stack = super::shared();
    let upload = |query: &str| stack.upload(&format!("model=efficientnet-lite0&{query}"), photo("rocket.jpg"));
    for query in ["metadata.k=a%00b", "metadata.a%00b=k", "partition_key=%00", "metadata=%7B%22k%22:%22%5Cu0000%22%7D"]
    {
        let refused = send(upload(query)).await;
        assert_eq!(refused.status, 400, "{query}: {}", refused.body);
    }
    let form = reqwest::multipart::Form::new()
        .text("model", "efficientnet-lite0")
        .text("metadata.k", "a\0b")
        .part("image", reqwest::multipart::Part::bytes(photo("rocket.jpg")));
    let refused = send(stack.request(Method::POST, "/v1/jobs").multipart(form)).await;
    assert_eq!((refused.status, refused.text("code").as_str()), (400, "option_invalid"));
    for path in ["/v1/jobs?metadata.k=%00", "/v1/jobs?cursor=%00", "/v1/jobs?batch=%00", "/v1/webhooks/gone?url=%00"] {
        assert_eq!(stack.get(path).await.status, 400, "{path}");
    }
    for path in ["/v1/jobs/%00", "/v1/topics/%00", "/v1/batches/%00", "/v1/models/%00", "/v1/dead/%00"] {
        let status = stack.get(path).await.status;
        assert!([400, 404].contains(&status), "{path}: {status}");
    }
    let topic = stack.request(Method::POST, "/v1/topics").body(r#"{"name": "nul", "model": "a\u0000b"}"#);
    assert_eq!(send(topic).await.status, 400);
}

/// A job as an earlier version took it, whose metadata PostgreSQL cannot hold.
fn with_nul(id: JobId, image: &[u8]) -> JobSpec {
    JobSpec {
        id,
        model: "efficientnet-lite0".into(),
        model_version: 1,
        model_digest: "an older one".into(),
        created_at: Timestamp::now(),
        accepted_by: "an earlier version".into(),
        image: ImageFacts {
            width: 1,
            height: 1,
            format: "png".into(),
            bytes: image.len() as u64,
            sha256: sha256(image),
        },
        options: JobOptions::default(),
        metadata: [("k".to_owned(), "a\0b".to_owned())].into(),
        origin: Origin::default(),
    }
}

#[tokio::test]
async fn a_record_that_the_index_cannot_hold_is_set_aside_and_others_go_on() {
    let stack = Stack::start_indexed(&MODEL);
    stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await;
    let queue = stack.queue().await;
    let name = "efficientnet-lite0".parse().expect("a name");
    let topic = queue.topic(&name).await.expect("answers").expect("it was made");
    let image = photo("rocket.jpg");
    let odd = with_nul(JobId::random(name), &image);
    let id = odd.id.to_string();
    queue.jobs.submit(&topic, odd, image.into()).await.expect("accepted");
    // Behind it: a batch is counted from the index, and a call is noted by it.
    let job = stack.run("model=efficientnet-lite0&metadata.after=it", photo("rocket.jpg")).await;
    eventually("it is listed", async || {
        let listed = stack.get("/v1/jobs?metadata.after=it").await;
        listed.json["jobs"].as_array()?.iter().find(|listed| listed["id"] == job["id"]).map(drop)
    })
    .await;
    assert_eq!(stack.get(&format!("/v1/jobs/{id}")).await.status, 200, "the job itself is there");
    if engine() != Engine::Own {
        let index = stack.get("/v1/index").await;
        assert_eq!(index.json["set_aside"][0]["id"], id.as_str(), "{}", index.body);
        assert!(stack.get("/metrics").await.body.contains("sightline_index_set_aside_jobs{} 1"));
    }
    assert_eq!(stack.get("/readyz").await.status, 200);
}

/// A pipe whose reader has left.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    Stdio::from(OwnedFd::from(writer))
}

fn full_disk() -> Stdio {
    std::fs::File::options().write(true).open("/dev/full").expect("there").into()
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    for stderr in [broken_pipe, full_disk] {
        let mut stack = Stack::start(&["--workers", "2", "--models", "efficientnet-lite0", "--log", "debug"]);
        stack.try_restart(Some(stderr())).expect("it starts");
        let workers = |stack: &Stack| -> Vec<u32> {
            let all = descendants(stack.pid()).into_iter();
            all.filter(|(_, args)| args.contains(" worker ")).map(|(pid, _)| pid).collect()
        };
        let first = workers(&stack);
        first.iter().for_each(|pid| signal(*pid, "KILL"));
        eventually("both are replaced", async || {
            let now = workers(&stack);
            (now.len() == 2 && now.iter().all(|pid| !first.contains(pid))).then_some(())
        })
        .await;
        let job = stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await;
        assert_eq!(job["state"], "succeeded");
        // What is refused is logged too.
        assert_eq!(stack.get("/v1/jobs/nonsense").await.status, 404);
        assert_eq!(stack.get("/readyz").await.status, 200);
        assert!(stack.terminate(), "it ends in order");
    }
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_fault() {
    let stack = super::shared();
    for words in [&["topics", "list"][..], &["members"], &["jobs", "list"]] {
        let mut command = stack.prepare(words);
        let mut child = command.stdout(broken_pipe()).stderr(Stdio::piped()).spawn().expect("it starts");
        let status = child.wait().expect("it ends");
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("read");
        assert!(!said.contains("panicked"), "{words:?}: {said}");
        assert!(status.success(), "{words:?}: {status}: {said}");
    }
}

#[tokio::test]
async fn of_two_images_under_one_key_at_once_each_answer_is_for_its_own() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let images = [photo("rocket.jpg"), photo("china.jpg")];
    let sums = images.each_ref().map(|image| sha256(image));
    let mut conflicts = 0;
    for round in 0..super::harness::rounds(40, 400) {
        let upload = |image: usize| {
            let request = stack.upload("model=efficientnet-lite0", images[image % 2].clone());
            send(request.header("Idempotency-Key", format!("round {round}")))
        };
        let answers = futures::future::join_all((0..4).map(upload)).await;
        let mut ids = std::collections::BTreeSet::new();
        for (number, answer) in answers.iter().enumerate() {
            match answer.status {
                200 | 202 => {
                    assert_eq!(
                        answer.json["image"]["sha256"],
                        sums[number % 2].as_str(),
                        "round {round}: another's image"
                    );
                    ids.insert(answer.text("id"));
                }
                422 => conflicts += 1,
                other => panic!("{other}: {}", answer.body),
            }
        }
        assert_eq!(ids.len(), 1, "one key is one job");
    }
    assert!(conflicts > 0);
}

#[tokio::test]
async fn of_two_senders_of_one_item_the_second_with_another_image_is_refused() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let tar = |photo_name: &str| {
        let (mut builder, image) = (tar::Builder::new(Vec::new()), photo(photo_name));
        let mut header = tar::Header::new_gnu();
        header.set_size(image.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, "item.jpg", &image[..]).expect("written");
        builder.into_inner().expect("finished")
    };
    let bodies = [tar("rocket.jpg"), tar("china.jpg")];
    for round in 0..super::harness::rounds(10, 100) {
        let path = format!("/v1/batches/twice-{round}?model=efficientnet-lite0");
        let put = |body: &Vec<u8>| {
            let request = stack.request(Method::PUT, &path).header("content-type", "application/x-tar");
            send(request.body(body.clone()))
        };
        let (one, other) = tokio::join!(put(&bodies[0]), put(&bodies[1]));
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [202, 422], "round {round}: {} {}", one.body, other.body);
    }
}

#[tokio::test]
async fn it_ends_before_a_container_is_killed_and_keeps_what_it_took() {
    let models = test_models();
    let mut stack = Stack::start(&["--workers", "1", "--models", &models]);
    let endless = stack.accept("endless", photo("rocket.jpg")).await;
    eventually("it runs", async || {
        (stack.get(&format!("/v1/jobs/{endless}")).await.json["state"] == "running").then_some(())
    })
    .await;
    let waiting = stack.accept("slow", photo("rocket.jpg")).await;
    // Each is under way: a wait, a stream of events, a slow upload, a slow batch.
    let hold = |request: reqwest::RequestBuilder| {
        tokio::spawn(async move { request.send().await.map(|a| a.status().as_u16()) })
    };
    let endless_body = || {
        let chunks = futures::stream::unfold(0_u64, |turn| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, std::io::Error>(vec![turn as u8; 4096]), turn + 1))
        });
        reqwest::Body::wrap_stream(chunks)
    };
    let wait = hold(stack.request(Method::GET, &format!("/v1/jobs/{waiting}?wait=60")));
    let events = hold(stack.request(Method::GET, &format!("/v1/jobs/{endless}/events")));
    let upload = hold(stack.upload("model=slow", endless_body()));
    let batch = stack.request(Method::PUT, "/v1/batches/slow?model=slow").header("content-type", "application/x-tar");
    // Its first entry is one that never ends.
    let mut header = tar::Header::new_gnu();
    header.set_path("large.jpg").expect("a path");
    header.set_size(15 << 20);
    header.set_cksum();
    let large = futures::stream::unfold(Some(header.as_bytes().to_vec()), |begin| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Some((Ok::<_, std::io::Error>(begin.unwrap_or_else(|| vec![0xFF; 4096])), None))
    });
    let batch = hold(batch.body(reqwest::Body::wrap_stream(large)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(stack.stop_container(), "it was killed: {}", stack.log());
    assert_eq!(wait.await.expect("no panic").expect("answered"), 200);
    assert_eq!(events.await.expect("no panic").expect("answered"), 200);
    assert_eq!(upload.await.expect("no panic").expect("answered"), 503);
    assert_eq!(batch.await.expect("no panic").expect("answered"), 503);

    stack.restart();
    let job = stack.get(&format!("/v1/jobs/{endless}")).await.json;
    assert!(["queued", "running"].contains(&job["state"].as_str().expect("a state")), "{job}");
    assert_eq!(stack.finish(&waiting).await["state"], "succeeded");
}

#[tokio::test]
async fn jobs_in_hand_at_a_crash_of_everything_go_out_at_once() {
    let models = test_models();
    let mut stack = Stack::start(&["--workers", "1", "--models", &models, "--lease", "1h"]);
    let id = stack.accept("slow", photo("rocket.jpg")).await;
    eventually("it runs", async || {
        (stack.get(&format!("/v1/jobs/{id}")).await.json["state"] == "running").then_some(())
    })
    .await;
    let children = descendants(stack.pid());
    stack.kill();
    children.iter().for_each(|(pid, _)| signal(*pid, "KILL"));
    if engine() != Engine::Own {
        // A NATS server waits for the lease.
        return;
    }
    stack.restart();
    assert_eq!(stack.finish(&id).await["state"], "succeeded");
}
