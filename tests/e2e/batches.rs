//! Batches over HTTP: every kind of body, sent once, sent again, cut off, canceled.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::harness::{Answer, Engine, Stack, descendants, engine, eventually, photo, send};
use super::topics::{ok, text as said};

fn http() -> reqwest::Client {
    reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client")
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, name, &content[..]).expect("written");
    }
    builder.into_inner().expect("finished")
}

async fn put(stack: &Stack, id: &str, kind: &str, body: impl Into<reqwest::Body>) -> Answer {
    let url = stack.url(&format!("/v1/batches/{id}?model=efficientnet-lite0&metadata.from=test"));
    send(http().put(url).header("content-type", kind).body(body)).await
}

pub(super) async fn finished(stack: &Stack, id: &str) -> Value {
    eventually("the batch has ended", async || {
        let batch = stack.get(&format!("/v1/batches/{id}")).await;
        assert_eq!(batch.status, 200, "{}", batch.body);
        (batch.json["state"] == "finished").then_some(batch.json)
    })
    .await
}

async fn results(stack: &Stack, id: &str, query: &str) -> Vec<Value> {
    let answer = stack.get(&format!("/v1/batches/{id}/results{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn photos(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|number| (format!("line/{number:05}.jpg"), photo("rocket.jpg"))).collect()
}

#[tokio::test]
async fn a_tar_becomes_results_and_what_is_no_image_is_told_apart() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let mut files = photos(5);
    files.push(("notes.txt".into(), b"not an image".to_vec()));
    files.push(("torn.jpg".into(), super::damaged_jpeg()));
    let taken = put(&stack, "night-1", "application/x-tar", tar_of(&files)).await;
    assert_eq!((taken.status, taken.header("location")), (202, "/v1/batches/night-1"), "{}", taken.body);
    assert_eq!(taken.json["counts"]["total"], 7, "{}", taken.body);
    let batch = finished(&stack, "night-1").await;
    let counts = &batch["counts"];
    assert_eq!((counts["succeeded"].as_u64(), counts["failed"].as_u64()), (Some(5), Some(2)), "{batch}");
    let lines = results(&stack, "night-1", "").await;
    let names: Vec<&str> = lines.iter().map(|job| job["custom_id"].as_str().expect("a name")).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!((names.len(), &names), (7, &sorted));
    assert_eq!((lines[0]["batch"].as_str(), &lines[0]["metadata"]["from"]), (Some("night-1"), &json!("test")));
    let failed = results(&stack, "night-1", "?state=failed").await;
    let codes: BTreeSet<&str> = failed.iter().map(|job| job["error"]["code"].as_str().expect("a code")).collect();
    assert_eq!(codes, BTreeSet::from(["image_corrupt", "image_unsupported"]));
    let csv = stack.get("/v1/batches/night-1/results?format=csv").await;
    assert!(csv.header("content-type").starts_with("text/csv") && csv.body.lines().count() == 8, "{}", csv.body);
    assert!(csv.body.contains(",succeeded,missile,"), "{}", csv.body);
    let verdict = stack.get("/v1/batches/night-1/verify").await.json;
    assert_eq!((&verdict["complete"], &verdict["ended"]), (&json!(true), &json!(7)), "{verdict}");
    assert_eq!(stack.get("/v1/jobs?batch=night-1&state=failed").await.json["jobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(stack.get("/v1/batches").await.json["batches"][0]["id"], "night-1");
    let audit: Value = serde_json::from_str(&ok(&stack, &["audit", "efficientnet-lite0", "--json"])).expect("JSON");
    assert_eq!((&audit["wrong"], &audit["accepted"]), (&json!([]), &json!(7)), "{audit}");

    // The same once more adds nothing.
    let again = put(&stack, "night-1", "application/x-tar", tar_of(&files)).await;
    assert_eq!((again.status, &again.json["counts"]["total"]), (202, &json!(7)), "{}", again.body);
    assert_eq!(results(&stack, "night-1", "").await, lines);
    // What was left out is added.
    files.push(("late.jpg".into(), photo("china.jpg")));
    let more = put(&stack, "night-1", "application/x-tar", tar_of(&files[6..])).await;
    assert_eq!(more.json["counts"]["total"], 8, "{}", more.body);
    assert_eq!(finished(&stack, "night-1").await["counts"]["succeeded"], 6);
    // Another image under a name that was used is refused.
    files[7].1 = photo("coffee.png");
    let changed = put(&stack, "night-1", "application/x-tar", tar_of(&files[7..])).await;
    assert_eq!((changed.status, changed.text("code").as_str()), (422, "custom_id_changed"));
}

#[tokio::test]
async fn forms_and_lines_are_batches_too_and_nonsense_is_refused() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let part = |name: &str| reqwest::multipart::Part::bytes(photo("rocket.jpg")).file_name(name.to_owned());
    let form = reqwest::multipart::Form::new().part("image", part("a.jpg")).part("image", part("b.jpg"));
    let url = stack.url("/v1/batches?model=efficientnet-lite0");
    let made = send(http().post(&url).multipart(form)).await;
    assert_eq!((made.status, &made.json["counts"]["total"]), (202, &json!(2)), "{}", made.body);
    assert_eq!(finished(&stack, &made.text("id")).await["counts"]["succeeded"], 2);

    for (id, kind, body, status, code) in [
        ("x", "image/jpeg", photo("rocket.jpg"), 415, "batch_kind"),
        ("x", "application/x-tar", Vec::new(), 400, "archive_invalid"),
        ("x", "application/x-tar", vec![7; 2_000], 400, "archive_invalid"),
        ("x", "application/zip", b"PK".to_vec(), 400, "archive_invalid"),
        ("x", "application/x-tar", tar_of(&[]), 400, "archive_invalid"),
        ("x", "application/x-ndjson", Vec::new(), 400, "archive_invalid"),
        ("x.y", "application/x-ndjson", Vec::new(), 400, "batch_id_invalid"),
    ] {
        let answer = put(&stack, id, kind, body).await;
        assert_eq!((answer.status, answer.text("code").as_str()), (status, code), "{kind}: {}", answer.body);
    }
    // What breaks off says where it is and how far it came; nothing that was read is dropped.
    let whole = tar_of(&[("a".into(), photo("rocket.jpg")), ("b".into(), photo("rocket.jpg"))]);
    let broken = put(&stack, "x", "application/x-tar", whole[..whole.len() - 1024].to_vec()).await;
    assert_eq!((broken.status, broken.text("code").as_str()), (400, "archive_invalid"), "{}", broken.body);
    assert_eq!((&broken.json["batch_id"], &broken.json["items_taken"]), (&json!("x"), &json!(2)), "{}", broken.body);
    assert_eq!(stack.get("/v1/batches/nope").await.text("code"), "batch_unknown");
    let open = stack.get("/v1/batches/x/verify").await.json;
    assert_eq!(open["complete"], false, "what broke off is not complete: {open}");
}

#[tokio::test]
async fn a_bad_item_is_a_failed_item_and_ends_nothing() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let case = |name: &str| std::fs::read(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR"))).expect(name);
    let image = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, photo("rocket.jpg"));
    let lines = format!(
        "{{\"custom_id\":\"good\",\"image\":\"{image}\"}}\n{{}}\n{{\"custom_id\":\"nul\",\"image\":\"{image}\",\
         \"metadata\":{{\"a\":\"\\u0000\"}}}}\n{{\"custom_id\":\"good\",\"image\":\"{image}\"}}\n"
    );
    let odd =
        [("a", photo("rocket.jpg")), ("a", photo("rocket.jpg")), ("b\rc", photo("rocket.jpg")), (".DS_Store", vec![0])];
    let odd = tar_of(&odd.map(|(name, bytes)| (name.to_owned(), bytes)));
    for (id, kind, body, good, failed, skipped) in [
        ("lines", "application/x-ndjson", lines.into_bytes(), &["good", "good (2)"][..], &["line 2", "nul"][..], 0),
        ("urls", "application/x-ndjson", case("dataurl.ndjson"), &["a", "b", "c"], &[], 0),
        ("odd", "application/x-tar", odd, &["a", "a (2)", "b_c"], &[], 1),
        ("links", "application/x-tar", case("links.tar"), &["a.png"], &["hard.png", "soft.png"], 0),
        ("finder", "application/zip", case("finder_like.zip"), &["a.png", "b.png"], &[], 0),
    ] {
        let taken = put(&stack, id, kind, body.clone()).await;
        assert_eq!(taken.status, 202, "{id}: {}", taken.body);
        assert_eq!(taken.json["counts"]["total"], good.len() + failed.len(), "{id}: {}", taken.body);
        assert_eq!(taken.json["skipped"]["count"].as_u64().unwrap_or(0), skipped, "{id}: {}", taken.body);
        finished(&stack, id).await;
        for (state, names) in [("succeeded", good), ("failed", failed)] {
            let lines = results(&stack, id, &format!("?state={state}")).await;
            let have: Vec<&str> = lines.iter().map(|job| job["custom_id"].as_str().expect("a name")).collect();
            assert_eq!(have, names, "{id}, {state}");
        }
        // The same body gives the same names.
        let again = put(&stack, id, kind, body).await;
        assert_eq!(again.json["counts"]["total"], good.len() + failed.len(), "{id}: {}", again.body);
    }
    // What has finished stays finished.
    let late = send(http().delete(stack.url("/v1/batches/finder"))).await;
    assert_eq!((late.status, late.text("code").as_str()), (409, "batch_finished"), "{}", late.body);
    assert_eq!(stack.get("/v1/batches/finder").await.text("state"), "finished");
}

#[tokio::test]
async fn a_batch_that_is_cut_by_a_crash_is_sent_again_and_is_whole_once() {
    let mut stack = Stack::start_indexed(&["--workers", "2", "--models", "efficientnet-lite0"]);
    let tar = tar_of(&photos(300));
    // It comes slowly, so that the kill is in the middle.
    let url = stack.url("/v1/batches/torn?model=efficientnet-lite0");
    let pieces: Vec<bytes::Bytes> = tar.chunks(tar.len() / 40).map(bytes::Bytes::copy_from_slice).collect();
    let slow = futures::stream::unfold(pieces.into_iter(), |mut pieces| async move {
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        Some((Ok::<_, std::io::Error>(pieces.next()?), pieces))
    });
    let request = http().put(url).header("content-type", "application/x-tar").body(reqwest::Body::wrap_stream(slow));
    let sending = tokio::spawn(request.send());
    eventually("some of it is in", async || {
        let batch = stack.get("/v1/batches/torn").await;
        (batch.status == 200 && batch.json["counts"]["succeeded"].as_u64() > Some(5)).then_some(())
    })
    .await;
    stack.kill();
    assert!(sending.await.expect("no panic").map_or(true, |response| response.status() != 202), "it was cut");
    stack.restart();
    assert_eq!(stack.get("/v1/batches/torn").await.json["state"], "receiving");
    let again = put(&stack, "torn", "application/x-tar", tar).await;
    assert_eq!((again.status, &again.json["counts"]["total"]), (202, &json!(300)), "{}", again.body);
    assert_eq!(finished(&stack, "torn").await["counts"]["succeeded"], 300);
    let ids: BTreeSet<String> =
        results(&stack, "torn", "").await.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(ids.len(), 300, "none twice");
    assert_eq!(stack.get("/v1/batches/torn/verify").await.json["complete"], true);
    assert!(super::lifecycle::rebuild(&stack).contains("300 jobs indexed"));
    assert_eq!(stack.get("/v1/batches/torn").await.json["counts"]["succeeded"], 300);
}

#[tokio::test]
async fn a_batch_is_called_off() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "efficientnet-lite0"]);
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    put(&stack, "off", "application/x-tar", tar_of(&photos(50))).await;
    let canceled = send(http().delete(stack.url("/v1/batches/off"))).await;
    assert_eq!((canceled.status, canceled.text("state").as_str()), (202, "canceled"), "{}", canceled.body);
    eventually("all its jobs are canceled", async || {
        (stack.get("/v1/batches/off").await.json["counts"]["canceled"] == 50).then_some(())
    })
    .await;
    let late = put(&stack, "off", "application/x-tar", tar_of(&photos(51))).await;
    assert_eq!((late.status, late.text("code").as_str()), (409, "batch_canceled"));
    ok(&stack, &["topics", "resume", "efficientnet-lite0"]);
    assert_eq!(stack.get("/v1/batches/off/verify").await.json["complete"], true);
}

#[tokio::test]
async fn a_batch_of_which_too_much_fails_is_called_off() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "efficientnet-lite0"]);
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    let mut files = photos(40);
    let torn = |number: usize| (format!("bad/{number}.jpg"), b"not an image".to_vec());
    files.extend((0..3).map(torn));
    let send_it = |files: &[(String, Vec<u8>)]| {
        let url = stack.url("/v1/batches/bad?model=efficientnet-lite0&max_failures=3");
        send(http().put(url).header("content-type", "application/x-tar").body(tar_of(files)))
    };
    let taken = send_it(&files).await;
    assert_eq!((taken.status, &taken.json["max_failures"]), (202, &json!(3)), "{}", taken.body);
    // Three may fail; the fourth is one too many.
    files.push(torn(3));
    send_it(&files).await;
    let batch = eventually("what waits is canceled", async || {
        let batch = stack.get("/v1/batches/bad").await.json;
        (batch["counts"]["canceled"] == 40 && batch["finished_at"].is_string()).then_some(batch)
    })
    .await;
    assert_eq!((batch["state"].as_str(), &batch["counts"]["failed"]), (Some("canceled"), &json!(4)), "{batch}");
    assert_eq!(batch["error"]["code"], "too_many_failures", "{batch}");
}

#[tokio::test]
async fn a_batch_that_is_called_off_while_it_comes_is_taken_no_further() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let (send_part, parts) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let archive = tar_of(&photos(30));
    let url = stack.url("/v1/batches/coming?model=efficientnet-lite0");
    let body = reqwest::Body::wrap_stream(tokio_stream(parts));
    let sending = tokio::spawn(send(http().put(url).header("content-type", "application/x-tar").body(body)));
    send_part.send(Ok(archive[..archive.len() / 3].to_vec())).await.expect("taken");
    eventually("some of it has come and ended", async || {
        let batch = stack.get("/v1/batches/coming").await;
        (batch.status == 200 && batch.json["counts"]["succeeded"].as_u64()? >= 5).then_some(())
    })
    .await;
    assert_eq!(send(http().delete(stack.url("/v1/batches/coming"))).await.status, 202);
    let answer = sending.await.expect("no panic");
    assert_eq!((answer.status, answer.text("code").as_str()), (409, "batch_canceled"), "{}", answer.body);
    let batch = eventually("it has ended", async || {
        let batch = stack.get("/v1/batches/coming").await.json;
        batch["finished_at"].is_string().then_some(batch)
    })
    .await;
    assert_eq!((&batch["counts"]["queued"], &batch["counts"]["running"]), (&json!(0), &json!(0)), "{batch}");
    drop(send_part);
}

/// What is sent into a channel, as a stream.
fn tokio_stream<T: Send + 'static>(parts: tokio::sync::mpsc::Receiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::unfold(parts, |mut parts| async move { parts.recv().await.map(|part| (part, parts)) })
}

#[tokio::test]
async fn a_batch_ends_although_its_first_results_are_gone_by_then() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let url = stack.url("/v1/batches/brief?model=efficientnet-lite0&result_ttl=1s");
    let sent = send(http().put(url).header("content-type", "application/x-tar").body(tar_of(&photos(6)))).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    finished(&stack, "brief").await;
    let batch = eventually("it has ended", async || {
        let batch = stack.get("/v1/batches/brief").await.json;
        batch["finished_at"].is_string().then_some(batch)
    })
    .await;
    assert_eq!((batch["state"].as_str(), &batch["counts"]["queued"]), (Some("finished"), &json!(0)), "{batch}");
}

#[tokio::test]
async fn what_never_came_is_named() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    put(&stack, "half", "application/x-tar", tar_of(&photos(4))).await;
    finished(&stack, "half").await;
    assert_eq!(stack.get("/v1/batches/half/verify").await.json["complete"], true, "all that came has ended");
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("names");
    let names: Vec<String> = photos(6).into_iter().map(|(name, _)| name).collect();
    let verify = |names: &[String]| {
        std::fs::write(&list, names.join("\n")).expect("written");
        let words = ["batches", "verify", "half", "--json", "--expect", &list.display().to_string()];
        let output = stack.prepare(&words).output().expect("it starts");
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).expect("JSON"))
    };
    let (complete, verdict) = verify(&names);
    assert_eq!((complete, &verdict["missing"]), (false, &json!(["line/00004.jpg", "line/00005.jpg"])), "{verdict}");
    assert_eq!((&verdict["total"], &verdict["ended"]), (&json!(6), &json!(4)));
    put(&stack, "half", "application/x-tar", tar_of(&photos(6))).await;
    let verdict = eventually("the rest ends", async || Some(verify(&names)).filter(|(complete, _)| *complete)).await;
    assert_eq!(verdict.1["ended"], 6);
}

#[tokio::test]
async fn a_large_batch_needs_little_memory() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    ok(&stack, &["topics", "create", "efficientnet-lite0"]);
    ok(&stack, &["topics", "pause", "efficientnet-lite0"]);
    // 100 MB, and no picture in it twice under one name.
    let files = (0..600).map(|number| (format!("{number}.png"), photo("coffee.png"))).collect::<Vec<_>>();
    let size: usize = files.iter().map(|(_, content)| content.len()).sum();
    let before = memory(&stack);
    put(&stack, "large", "application/x-tar", tar_of(&files)).await;
    let after = peak(&stack);
    println!("a batch of {} MB: {} MB before, at most {} MB", size >> 20, before >> 20, after >> 20);
    if engine() == Engine::Own {
        return; // The broker's share of this process is not the API's.
    }
    assert!(after < 150 << 20, "{} MB", after >> 20);
}

/// What the process of the API holds now, bytes.
fn memory(stack: &Stack) -> usize {
    assert!(!descendants(stack.pid()).is_empty());
    stack.memory("VmRSS")
}

/// The most that it has ever held.
fn peak(stack: &Stack) -> usize {
    assert!(!descendants(stack.pid()).is_empty());
    stack.memory("VmHWM")
}

#[tokio::test]
async fn jobs_and_batches_are_managed_from_the_command_line() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let mut files = photos(3);
    files.push(("notes.txt".into(), b"not an image".to_vec()));
    put(&stack, "cli", "application/x-tar", tar_of(&files)).await;
    finished(&stack, "cli").await;
    let json = |words: &[&str]| serde_json::from_str::<Value>(&ok(&stack, words)).expect("JSON");
    assert!(ok(&stack, &["batches", "list"]).contains("finished"));
    assert_eq!(json(&["batches", "get", "cli", "--json"])["counts"]["succeeded"], 3);
    let verified = stack.command(&["batches", "verify", "cli"]);
    let words = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(words.contains("4 of 4 have ended") && words.contains("complete: 1 failed, 0 canceled"), "{words}");
    assert_eq!(verified.status.code(), Some(4), "there are scripts that must know");
    assert_eq!(ok(&stack, &["batches", "results", "cli", "--state", "failed"]).lines().count(), 1);
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("results.csv");
    ok(&stack, &["batches", "results", "cli", "--csv", "--out", &table.display().to_string()]);
    assert_eq!(std::fs::read_to_string(table).expect("written").lines().count(), 5);
    let jobs = json(&["jobs", "list", "--batch", "cli", "--metadata", "from=test", "--json"]);
    let jobs = jobs.as_array().expect("a list");
    assert_eq!(jobs.len(), 4);
    assert!(ok(&stack, &["jobs", "list", "--state", "succeeded"]).contains("missile"));
    for (limit, is_cut) in [("1", true), ("4", false)] {
        let listed = stack.command(&["jobs", "list", "--limit", limit]);
        let note = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert_eq!(note.contains("only the newest 1 are listed"), is_cut, "{note}");
    }
    let id = jobs.iter().find(|job| job["state"] == "succeeded").expect("one")["id"].as_str().expect("an id");
    assert!(ok(&stack, &["jobs", "get", id]).contains("succeeded"));
    assert_eq!(json(&["jobs", "wait", id, "--json"])["id"], id);
    for words in [["jobs", "cancel", id], ["jobs", "retry", id]] {
        assert!(super::topics::refused(&stack, &words).contains("succeeded"), "{words:?}");
    }
    let failed = jobs.iter().find(|job| job["state"] == "failed").expect("one")["id"].as_str().expect("an id");
    assert!(!stack.command(&["jobs", "wait", failed]).status.success(), "a failure is one for scripts too");
    assert!(super::topics::refused(&stack, &["batches", "get", "nope"]).contains("not found"));
}

/// Runs one of the examples against a system.
fn example(stack: &Stack, name: &str, words: &[&str]) -> std::process::Output {
    let program = super::harness::root().join("api/examples").join(name);
    let mut command = std::process::Command::new(program);
    command.args(words).env("SIGHTLINE_API", stack.url("")).env("SIGHTLINE", env!("CARGO_BIN_EXE_sightline"));
    command.env_remove("SIGHTLINE_KEY").output().expect("it runs")
}

#[tokio::test]
async fn the_examples_do_what_they_say() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let photos = super::harness::root().join("tests/photos");
    let photo = |name: &str| photos.join(name).display().to_string();
    let shell = example(&stack, "submit.sh", &[&photo("rocket.jpg")]);
    assert!(shell.status.success() && said(&shell).contains("missile"), "{}", said(&shell));
    let broken = example(&stack, "submit.sh", &[&photo("expected.json")]);
    assert!(!broken.status.success() && said(&broken).contains("image_unsupported"), "{}", said(&broken));
    let python = example(&stack, "submit.py", &["efficientnet-lite0", &photo("rocket.jpg"), &photo("coffee.png")]);
    assert!(python.status.success(), "{}", said(&python));
    assert!(said(&python).lines().count() == 2 && said(&python).contains("espresso"), "{}", said(&python));
    let folder = tempfile::tempdir().expect("a folder");
    let camera = folder.path().join("camera");
    std::fs::create_dir(&camera).expect("created");
    for name in ["rocket.jpg", "china.jpg"] {
        std::fs::copy(photo(name), camera.join(name)).expect("copied");
    }
    let results = folder.path().join("results");
    let words = [camera.display().to_string(), results.display().to_string()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // Twice a night is as good as once.
    for _ in 0..2 {
        let nightly = example(&stack, "nightly.sh", &words);
        assert!(nightly.status.success() && said(&nightly).contains("complete"), "{}", said(&nightly));
    }
    let table = std::fs::read_dir(&results).expect("there").flatten().next().expect("one").path();
    assert_eq!(std::fs::read_to_string(table).expect("read").lines().count(), 3);
}

#[tokio::test]
async fn the_examples_say_which_of_eight_files_are_bad() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let folder = tempfile::tempdir().expect("a folder");
    let camera = folder.path().join("camera");
    std::fs::create_dir(&camera).expect("created");
    let mut paths = Vec::new();
    for number in 0..8 {
        let content = match number {
            2 => b"no image at all".to_vec(),
            5 => super::damaged_jpeg(),
            // Each its own, or one is a copy of the other.
            _ => [photo("rocket.jpg"), vec![number]].concat(),
        };
        let path = camera.join(format!("{number}.jpg"));
        std::fs::write(&path, content).expect("written");
        paths.push(path.display().to_string());
    }
    let mut good = 0;
    for path in &paths {
        let shell = example(&stack, "submit.sh", &[path]);
        let is_good = !path.ends_with("2.jpg") && !path.ends_with("5.jpg");
        assert_eq!(shell.status.success(), is_good, "{path}: {}", said(&shell));
        good += usize::from(said(&shell).contains("missile"));
    }
    assert_eq!(good, 6);
    let words: Vec<&str> = ["efficientnet-lite0"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let python = example(&stack, "submit.py", &words);
    let text = said(&python);
    assert!(!python.status.success(), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("\"succeeded\"")).count(), 6, "{text}");
    for (bad, code) in [("2.jpg", "image_unsupported"), ("5.jpg", "image_corrupt")] {
        assert!(text.lines().any(|line| line.contains(bad) && line.contains(code)), "{bad}: {text}");
    }
    let results = folder.path().join("results");
    let nightly = example(&stack, "nightly.sh", &[&camera.display().to_string(), &results.display().to_string()]);
    let text = said(&nightly);
    assert!(nightly.status.code() == Some(4) && text.contains("complete: 2 failed"), "{text}");
    let table = std::fs::read_dir(&results).expect("there").flatten().next().expect("one").path();
    let table = std::fs::read_to_string(table).expect("read");
    assert_eq!(table.matches(",succeeded,").count(), 6, "{table}");
    assert!(table.contains("image_unsupported") && table.contains("image_corrupt"), "{table}");
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = super::harness::sightline().args(["completions", shell]).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("batches") && text.contains("completions"), "{shell}");
    }
}
