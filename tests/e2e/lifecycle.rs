//! What can be done with a job while it lives: canceled, run again, followed, asked for twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::Value;

use super::harness::{Answer, Stack, eventually, photo, rounds, send, test_models};
use super::topics::ok;

fn http() -> reqwest::Client {
    reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client")
}

async fn delete(stack: &Stack, id: &str) -> Answer {
    send(http().delete(stack.url(&format!("/v1/jobs/{id}")))).await
}

async fn retry(stack: &Stack, id: &str) -> Answer {
    send(http().post(stack.url(&format!("/v1/jobs/{id}/retry")))).await
}

#[tokio::test]
async fn a_waiting_job_is_called_off_and_never_runs() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "efficientnet-lite0"]);
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    let id = stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
    let canceled = delete(&stack, &id).await;
    assert_eq!((canceled.status, canceled.text("state").as_str()), (200, "canceled"), "{}", canceled.body);
    let again = delete(&stack, &id).await;
    assert_eq!((again.status, &again.json), (200, &canceled.json), "twice is as good as once");
    let image = stack.get(&format!("/v1/jobs/{id}/image")).await;
    assert_eq!((image.status, image.text("code").as_str()), (409, "input_gone"), "its message is gone");
    let tried = retry(&stack, &id).await;
    assert_eq!((tried.status, tried.text("code").as_str()), (409, "input_gone"));
    ok(&stack, &["topics", "resume", "efficientnet-lite0"]);
    assert_eq!(stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await["state"], "succeeded");
    assert_eq!(stack.get(&format!("/v1/jobs/{id}")).await.json, canceled.json, "and stays as it was");
    let unknown = "efficientnet-lite0.0199d2a4-0000-7000-8000-000000000000";
    let answer = delete(&stack, unknown).await;
    assert_eq!((answer.status, answer.text("code").as_str()), (404, "job_unknown"));
    assert_eq!(delete(&stack, "nonsense").await.status, 404);
}

#[tokio::test]
async fn a_running_job_is_stopped_and_its_worker_goes_on() {
    let models = test_models();
    let stack = Stack::start_indexed(&["--workers", "1", "--models", &models]);
    for _ in 0..3 {
        let id = stack.accept("endless", photo("rocket.jpg")).await;
        eventually("it runs", async || {
            (stack.get(&format!("/v1/jobs/{id}")).await.json["state"] == "running").then_some(())
        })
        .await;
        let started = Instant::now();
        let canceled = delete(&stack, &id).await;
        assert_eq!((canceled.status, canceled.text("state").as_str()), (200, "canceled"), "{}", canceled.body);
        assert_eq!(canceled.json["attempts"][0]["outcome"], "canceled", "{}", canceled.body);
        // The only worker is free again: what is in the model now would run without end.
        assert_eq!(stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await["state"], "succeeded");
        println!("from the wish to the end of the next job: {} ms", started.elapsed().as_millis());
        assert_eq!(stack.get(&format!("/v1/jobs/{id}")).await.json["state"], "canceled");
    }
    let done = stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await;
    let late = delete(&stack, done["id"].as_str().expect("an id")).await;
    assert_eq!((late.status, late.text("code").as_str()), (409, "job_ended"));
}

#[tokio::test]
async fn a_failed_job_runs_again_under_its_id() {
    let models = test_models();
    let stack = Stack::start_indexed(&["--workers", "1", "--models", &models]);
    let create = ["topics", "create", "slow", "--models", &models, "--attempts", "1", "--run-timeout", "50ms"];
    ok(&stack, &create);
    let failed = stack.run("model=slow", photo("rocket.jpg")).await;
    let id = failed["id"].as_str().expect("an id").to_owned();
    assert_eq!(failed["error"]["code"], "attempts_exhausted", "{failed}");
    ok(&stack, &["topics", "alter", "slow", "--run-timeout", "60s"]);
    let queued = retry(&stack, &id).await;
    assert_eq!((queued.status, queued.header("location")), (202, format!("/v1/jobs/{id}").as_str()), "{}", queued.body);
    let job = eventually("it ends well", async || {
        let job = stack.finish(&id).await;
        (job["state"] == "succeeded").then_some(job)
    })
    .await;
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job}");
    let again = retry(&stack, &id).await;
    assert_eq!((again.status, again.text("code").as_str()), (409, "job_not_failed"));
}

#[tokio::test]
async fn the_input_of_a_waiting_job_is_given_back() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "efficientnet-lite0"]);
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    let id = stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
    let path = format!("/v1/jobs/{id}/image");
    let response = http().get(stack.url(&format!("{path}?original=true"))).send().await.expect("answers");
    assert_eq!(response.headers()["content-type"], "image/jpeg");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert!(response.bytes().await.expect("whole") == photo("rocket.jpg"));
    // Otherwise without what it tells beside its pixels: where it was taken, for one.
    let (before, after) = (photo("rocket.jpg"), photo("rocket.jpg"));
    let place = [&[0xFF, 0xE1, 0, 16][..], b"Exif", &[0, 0], b"48 deg 5"].concat();
    let telling = [&before[..2], &place, &after[2..]].concat();
    let id = stack.accept("efficientnet-lite0", telling).await;
    let shown = http().get(stack.url(&format!("/v1/jobs/{id}/image"))).send().await.expect("answers");
    let shown = shown.bytes().await.expect("whole");
    assert!(shown.starts_with(&[0xFF, 0xD8]) && !shown.windows(6).any(|part| part == b"48 deg"), "it tells where");
}

#[tokio::test]
async fn a_job_has_to_begin_in_time_and_its_result_goes_when_it_was_told_to() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let late = stack.run("model=efficientnet-lite0&start_by=2020-01-01T00:00:00Z", photo("rocket.jpg")).await;
    assert_eq!((late["state"].as_str(), late["error"]["code"].as_str()), (Some("failed"), Some("start_by_passed")));
    assert_eq!(late["attempts"].as_array().map(Vec::len), Some(0), "{late}");
    let brief = stack.run("model=efficientnet-lite0&start_by=10m&result_ttl=1s", photo("rocket.jpg")).await;
    assert_eq!(brief["state"], "succeeded", "{brief}");
    let id = brief["id"].as_str().expect("an id");
    eventually("its result is gone", async || (stack.get(&format!("/v1/jobs/{id}")).await.status == 404).then_some(()))
        .await;
    // It need not come to a worker to be told.
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    let waiting = send(stack.upload("model=efficientnet-lite0&start_by=1s", photo("rocket.jpg"))).await;
    let failed = stack.finish(&waiting.text("id")).await;
    assert_eq!(failed["error"]["code"], "start_by_passed", "{failed}");
    let id = waiting.text("id");
    eventually("its input is kept", async || (stack.get(&format!("/v1/dead/{id}")).await.status == 200).then_some(()))
        .await;
    // A retry wants it late.
    assert_eq!(retry(&stack, &id).await.status, 202);
    ok(&stack, &["topics", "resume", "efficientnet-lite0"]);
    assert_eq!(stack.finish(&id).await["state"], "succeeded");
    for query in ["start_by=soon", "result_ttl=0", "result_ttl=2y"] {
        let answer = send(stack.upload(&format!("model=efficientnet-lite0&{query}"), photo("rocket.jpg"))).await;
        assert_eq!((answer.status, answer.text("code").as_str()), (400, "option_invalid"), "{query}");
    }
}

/// The events of a stream up to its end: id and data of each.
async fn events(stack: &Stack, id: &str, after: Option<&str>) -> Vec<(String, Value)> {
    let mut request = http().get(stack.url(&format!("/v1/jobs/{id}/events")));
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    let response = request.send().await.expect("answers");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.expect("it ends with the job");
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim_start().to_owned())
    };
    let events = text
        .split("\n\n")
        .filter_map(|event| Some((field(event, "id")?, serde_json::from_str(&field(event, "data")?).expect("JSON"))));
    events.collect()
}

#[tokio::test]
async fn a_job_is_followed_by_events_until_it_ends() {
    let models = test_models();
    let stack = Stack::start_indexed(&["--workers", "1", "--models", &models]);
    let id = stack.accept("slow", photo("rocket.jpg")).await;
    let all = events(&stack, &id, None).await;
    let states: Vec<&str> = all.iter().map(|(_, job)| job["state"].as_str().expect("a state")).collect();
    assert_eq!(states.last(), Some(&"succeeded"), "{states:?}");
    assert!(states.contains(&"running") && states.iter().collect::<BTreeSet<_>>().len() == states.len(), "{states:?}");
    assert_eq!(all.last().expect("one").1, stack.get(&format!("/v1/jobs/{id}")).await.json);
    let (before_last, last) = (&all[all.len() - 2].0, &all[all.len() - 1].0);
    assert_eq!(events(&stack, &id, Some(before_last)).await.len(), 1, "only what is newer");
    let again = stack.request(reqwest::Method::GET, &format!("/v1/jobs/{id}/events")).header("last-event-id", last);
    assert_eq!(
        again.send().await.expect("answers").status(),
        204,
        "nothing follows the end, and a browser stops asking"
    );
    assert_eq!(stack.get("/v1/jobs/slow.0199d2a4-0000-7000-8000-000000000000/events").await.status, 404);
}

#[tokio::test]
async fn one_key_is_one_job_however_often_and_from_wherever_it_comes() {
    let mut stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let mut ids = BTreeSet::new();
    // In the long form ten thousand, with three restarts between.
    for round in 0..rounds(3, 4) {
        let count = rounds(100, 2_500);
        let uploads = (0..count).map(|_| {
            let upload = stack.upload("model=efficientnet-lite0", photo("rocket.jpg"));
            send(upload.header("idempotency-key", "order 7"))
        });
        let answers: Vec<Answer> = futures::stream::iter(uploads).buffer_unordered(32).collect().await;
        for answer in &answers {
            assert!(matches!(answer.status, 200 | 202), "{}", answer.body);
            ids.insert(answer.text("id"));
        }
        let replayed = answers.iter().filter(|answer| answer.headers.contains_key("idempotency-replayed")).count();
        assert!(replayed >= if round == 0 { count - 1 } else { count }, "{replayed}");
        stack.restart();
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let job = stack.finish(ids.first().expect("one")).await;
    assert_eq!(
        (job["state"].as_str(), job["attempts"].as_array().map(Vec::len)),
        (Some("succeeded"), Some(1)),
        "{job}"
    );
    for (query, image) in
        [("model=efficientnet-lite0", "china.jpg"), ("model=efficientnet-lite0&top_k=2", "rocket.jpg")]
    {
        let other = send(stack.upload(query, photo(image)).header("idempotency-key", "order 7")).await;
        assert_eq!((other.status, other.text("code").as_str()), (422, "idempotency_key_reused"), "{}", other.body);
    }
    for key in ["", &"x".repeat(256)] {
        let answer = send(stack.upload("model=efficientnet-lite0", photo("rocket.jpg")).header("idempotency-key", key));
        assert_eq!(answer.await.status, 400);
    }
}

#[tokio::test]
async fn canceled_jobs_never_succeed_and_all_end() {
    let stack = Stack::start_indexed(&["--workers", "2", "--models", "efficientnet-lite0"]);
    let one = |number: u64| {
        let stack = &stack;
        async move {
            let id = stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
            // At all moments of a job's life.
            tokio::time::sleep(Duration::from_millis(number * 37 % 400)).await;
            let canceled = delete(stack, &id).await;
            assert!(matches!(canceled.status, 200 | 409), "{}", canceled.body);
            (id, canceled.status == 200)
        }
    };
    let count = rounds(150, 10_000) as u64;
    let wished: Vec<(String, bool)> = futures::stream::iter((0..count).map(one)).buffer_unordered(24).collect().await;
    for (id, was_canceled) in &wished {
        let job = stack.finish(id).await;
        assert_eq!(job["state"], if *was_canceled { "canceled" } else { "succeeded" }, "{job}");
    }
    eventually("nothing is left in the queue", async || {
        let audit: Value = serde_json::from_str(&ok(&stack, &["audit", "efficientnet-lite0", "--json"])).ok()?;
        (audit["wrong"] == Value::Array(Vec::new()) && audit["settling"] == 0).then_some(())
    })
    .await;
}

/// Makes the index anew, whichever database it is in.
pub(crate) fn rebuild(stack: &Stack) -> String {
    let mut words = vec!["index", "rebuild"];
    if let Some(database) = stack.database() {
        words.extend(["--database", database]);
    }
    ok(stack, &words)
}

/// All jobs of a list, page by page.
pub(crate) async fn listed(stack: &Stack, query: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = stack.get(&format!("/v1/jobs?{query}{cursor}")).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let jobs = page.json["jobs"].as_array().expect("a list");
        ids.extend(jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()));
        match page.json["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

#[tokio::test]
async fn jobs_are_listed_by_what_they_are_and_the_index_can_be_made_anew() {
    let mut stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let mut ids = Vec::new();
    for number in 0..7 {
        let query = format!("model=efficientnet-lite0&metadata.line={}", number % 2);
        let job = stack.run(&query, photo("rocket.jpg")).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        ids.push(job["id"].as_str().expect("an id").to_owned());
    }
    let failed = stack.run("model=efficientnet-lite0&metadata.line=0", super::damaged_jpeg()).await;
    ids.push(failed["id"].as_str().expect("an id").to_owned());
    ids.reverse();
    let check = async |stack: &Stack| {
        eventually("all are listed, newest first, whatever the page", async || {
            let all = listed(stack, "limit=3").await == ids && listed(stack, "limit=8").await == ids;
            // The index is a moment behind: it may know of a job and not yet of its end.
            (all && listed(stack, "state=failed").await == ids[..1]).then_some(())
        })
        .await;
        let even: Vec<String> = std::iter::once(&ids[0]).chain(ids[1..].iter().step_by(2)).cloned().collect();
        assert_eq!(listed(stack, "metadata.line=0&limit=2").await, even);
        assert_eq!(listed(stack, "metadata.line=0&state=failed&model=efficientnet-lite0").await, ids[..1]);
        assert_eq!(listed(stack, "metadata.line=2").await, [] as [String; 0]);
        assert_eq!(listed(stack, "model=x%27%20OR%201=1").await, [] as [String; 0], "a value is never words");
    };
    check(&stack).await;
    let listed = stack.get("/v1/jobs?limit=1").await.json["jobs"][0].clone();
    assert_eq!(listed, stack.get(&format!("/v1/jobs/{}", ids[0])).await.json, "the same document");
    assert!(rebuild(&stack).contains("8 jobs indexed"));
    check(&stack).await;
    // It may be lost altogether.
    stack.terminate();
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        drop(std::fs::remove_file(stack.data().join(name)));
    }
    stack.restart();
    check(&stack).await;
    for query in ["state=done", "limit=0", "cursor=x", "colour=red"] {
        let answer = stack.get(&format!("/v1/jobs?{query}")).await;
        assert_eq!((answer.status, answer.text("code").as_str()), (400, "option_invalid"), "{query}");
    }
}

#[tokio::test]
async fn a_waiting_job_knows_its_place() {
    let models = test_models();
    let stack = Stack::start(&["--workers", "1", "--models", &models]);
    ok(&stack, &["topics", "create", "slow", "--models", &models, "--partitions", "1"]);
    stack.run("model=slow", photo("rocket.jpg")).await;
    let ids = futures::future::join_all((0..8).map(|_| stack.accept("slow", photo("rocket.jpg")))).await;
    let (position, eta) = eventually("a job is third or later and has an ETA", async || {
        for id in &ids {
            let job = stack.get(&format!("/v1/jobs/{id}")).await.json;
            if let (Some(position @ 3..), Some(eta)) = (job["position"].as_u64(), job["eta_seconds"].as_u64()) {
                let waits_for = job["progress"].as_str().expect("why it waits");
                assert!(waits_for.contains("ahead") || waits_for.contains("prefetched"), "{waits_for}");
                return Some((position, eta));
            }
        }
        None
    })
    .await;
    assert!(position <= 8 && eta >= 1, "{position} {eta}");
    for id in &ids {
        let job = stack.finish(id).await;
        assert!(["position", "eta_seconds", "progress"].iter().all(|name| job[*name].is_null()), "{job}");
    }
}
