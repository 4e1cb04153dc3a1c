//! Every text of a client, on its way to databases, headers, subjects, tables, logs: it comes back as it was sent,
//! or is refused with a reason, and harms no other client.

use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Answer, Stack, eventually, photo, send};

const MODEL: &str = "efficientnet-lite0";

/// Texts that have done harm somewhere.
fn nasty() -> Vec<String> {
    let texts = [
        "a\0b",
        "\u{202E}gpj.exe",
        "=1+1",
        "-2+3+cmd|' /C calc'!A0",
        "@SUM(A1)",
        "\t=1",
        "a\r\nSet-Cookie: x=y",
        "\u{1B}[31mred",
        "' OR 1=1; DROP TABLE jobs;--",
        "\"quoted\", and more",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "%00%0d%0a",
        "jobs.*.>",
        "$JS.API.STREAM.DELETE.jobs",
        "{\"$gt\": \"\"}",
        "\u{FEFF}bom",
        "e\u{301}\u{1F600}",
        "\u{FFFD}",
        " ",
        "",
    ];
    texts.into_iter().map(str::to_owned).chain(["x".repeat(8 << 10)]).collect()
}

/// An answer is a result or a refusal with a reason, never our fault.
#[track_caller]
fn is_answered(answer: &Answer, what: &str, text: &str) -> bool {
    let shown: String = text.chars().take(40).collect();
    assert!((200..500).contains(&answer.status), "{what} {shown:?}: {} {}", answer.status, answer.body);
    assert!(!answer.headers.contains_key("set-cookie"), "{what} {shown:?} reached a header");
    let is_taken = answer.status < 300;
    if !is_taken {
        let code = answer.json["code"].as_str().unwrap_or_default();
        assert!(!code.is_empty(), "{what} {shown:?}: {} {}", answer.status, answer.body);
    }
    is_taken
}

/// A query with one value of any kind.
fn query(pairs: &[(&str, &str)]) -> String {
    reqwest::Url::parse_with_params("http://x/", pairs).expect("a URL").query().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn texts_come_back_as_they_were_sent_or_are_refused() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", MODEL]);
    let image = photo("rocket.jpg");
    let taken = async |pairs: &[(&str, &str)]| {
        let pairs: Vec<_> = [("model", MODEL)].into_iter().chain(pairs.iter().copied()).collect();
        send(stack.upload(&query(&pairs), image.clone())).await
    };
    for text in &nasty() {
        let answer = taken(&[("metadata.note", text)]).await;
        if is_answered(&answer, "a metadata value", text) {
            let job = stack.get(&format!("/v1/jobs/{}", answer.text("id"))).await;
            assert_eq!(job.json["metadata"]["note"], **text);
            let found = eventually("it is listed", async || {
                let list = stack.get(&format!("/v1/jobs?{}", query(&[("metadata.note", text)]))).await;
                assert!(is_answered(&list, "a filter", text));
                list.json["jobs"].as_array().filter(|jobs| !jobs.is_empty()).cloned()
            })
            .await;
            assert!(found.iter().any(|job| job["id"] == answer.json["id"]), "{text:?}");
        } else {
            // A reader of lists may ask for what was never taken.
            let list = stack.get(&format!("/v1/jobs?{}", query(&[("metadata.note", text)]))).await;
            is_answered(&list, "a filter", text);
        }
        let answer = taken(&[(&format!("metadata.{text}"), "value")]).await;
        if is_answered(&answer, "a metadata key", text) {
            assert_eq!(answer.json["metadata"][text], "value", "{}", answer.body);
        }
        for option in ["partition_key", "topic", "version", "priority", "webhook", "timeout", "start_by"] {
            is_answered(&taken(&[(option, text)]).await, option, text);
        }
        is_answered(&send(stack.upload(&query(&[("model", text)]), image.clone())).await, "a model", text);
        let keyed = stack.upload(&format!("model={MODEL}"), image.clone());
        if let Ok(value) = reqwest::header::HeaderValue::from_bytes(text.as_bytes()) {
            is_answered(&send(keyed.header("idempotency-key", value)).await, "an idempotency key", text);
        }
        for (what, field, body) in [
            ("a topic's name", "/v1/topics", json!({"name": text, "model": MODEL})),
            ("a topic's model", "/v1/topics", json!({"name": "texts", "model": text})),
        ] {
            let made = send(stack.request(Method::POST, field).json(&body)).await;
            is_answered(&made, what, text);
        }
        // What begins nowhere else than in a path.
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        if (1..2_000).contains(&text.len()) {
            for path in ["/v1/jobs/", "/v1/batches/", "/v1/topics/", "/v1/models/", "/v1/dead/", "/v1/keys/"] {
                let answer = stack.get(&format!("{path}{escaped}")).await;
                assert!((400..500).contains(&answer.status), "{path}{text:?}: {}", answer.body);
            }
            let path = format!("/v1/batches/{escaped}?model={MODEL}");
            let put = stack.request(Method::PUT, &path).header("content-type", "application/x-ndjson");
            is_answered(&send(put.body("{}\n")).await, "a batch's id", text);
        }
        for (name, path) in
            [("state", "/v1/jobs"), ("cursor", "/v1/jobs"), ("topic", "/v1/dead"), ("batch", "/v1/jobs")]
        {
            is_answered(&stack.get(&format!("{path}?{}", query(&[(name, text)]))).await, name, text);
        }
    }
    // What is longer than a request's head may be comes in a form.
    let long = "x".repeat(64 << 10);
    for field in ["metadata.note", "partition_key", "topic", "webhook", "nonsense"] {
        let part = reqwest::multipart::Part::bytes(image.clone());
        let form = reqwest::multipart::Form::new().part("image", part).text("model", MODEL).text(field, long.clone());
        is_answered(&send(stack.request(Method::POST, "/v1/jobs").multipart(form)).await, field, &long);
    }
    // What a client cannot even write down.
    let lone = "{\"name\": \"\\ud800\", \"model\": \"m\"}";
    let made = stack.request(Method::POST, "/v1/topics").header("content-type", "application/json").body(lone);
    assert_eq!(send(made).await.status, 400);

    batch_of(&stack).await;

    // No other client was harmed.
    assert_eq!(stack.get("/readyz").await.status, 200);
    assert_eq!(stack.get("/v1/jobs").await.status, 200);
    assert_eq!(stack.run(&format!("model={MODEL}"), image).await["state"], "succeeded");
    let log = stack.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains('\u{1B}') && !log.contains('\0') && !log.contains("\r\n"), "a text reached the log as it is");
}

/// The same texts as names of items.
async fn batch_of(stack: &Stack) {
    let image = base64::engine::general_purpose::STANDARD.encode(photo("rocket.jpg"));
    let mut texts = nasty();
    texts.push("x".repeat(64 << 10));
    let mut lines: Vec<String> = texts
        .iter()
        .map(|text| json!({"custom_id": text, "image": image, "metadata": {"n": text}}).to_string())
        .collect();
    lines.push(format!("{{\"custom_id\": \"\\ud800\", \"image\": \"{image}\"}}"));
    let put = stack.request(Method::PUT, &format!("/v1/batches/texts?model={MODEL}"));
    let taken = send(put.header("content-type", "application/x-ndjson").body(lines.join("\n"))).await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    let batch = super::batches::finished(stack, "texts").await;
    assert_eq!(batch["counts"]["total"], lines.len(), "{batch}");
    let results = stack.get("/v1/batches/texts/results").await;
    let rows: Vec<Value> = results.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(rows.len(), lines.len());
    for row in rows.iter().filter(|row| row["state"] == "succeeded") {
        let (id, sent) = (row["custom_id"].as_str().expect("a name"), row["metadata"]["n"].as_str().expect("a text"));
        assert!(texts.iter().any(|text| text == sent), "{sent:?} was not sent");
        // What cannot be a name is one by another name.
        assert!(
            id == sent || sent.is_empty() || sent.chars().any(char::is_control) || sent.len() > 200,
            "{id:?} of {sent:?}"
        );
    }
    assert!(rows.iter().filter(|row| row["state"] == "succeeded").count() >= 10, "{}", results.body.len());
    // No cell of the table begins with what a spreadsheet would run.
    let table = stack.get("/v1/batches/texts/results?format=csv").await;
    let mut reader = csv::ReaderBuilder::new().from_reader(table.body.as_bytes());
    let mut count = 0;
    for record in reader.records() {
        let record = record.expect("CSV");
        count += 1;
        let is_number = |cell: &str| cell.parse::<f64>().is_ok();
        let is_run = |cell: &&str| cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number(cell);
        assert_eq!(record.iter().find(is_run), None, "{record:?}");
    }
    assert_eq!(count, lines.len(), "each row is one row");
}
