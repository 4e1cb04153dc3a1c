//! What has ended stays as it ended, whatever is asked of it: every final state, every call.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use super::harness::{Answer, Stack, eventually, photo, root, send};
use super::topics::ok;

const MODEL: &str = "efficientnet-lite0";

/// One call, and what it has to answer.
struct Call {
    method: Method,
    /// As in the API's description; `{…}` stands for what has ended.
    route: &'static str,
    status: u16,
    /// The problem's code; empty where the answer is none.
    code: &'static str,
}

fn call(method: &str, route: &'static str, status: u16, code: &'static str) -> Call {
    Call { method: method.parse().expect("a method"), route, status, code }
}

/// Makes the calls on one thing, each twice, and looks at it after each.
async fn check(stack: &Stack, id: &str, look: &str, calls: &[Call], seen: &mut BTreeSet<(String, &'static str)>) {
    let look = look.replace("{id}", id);
    let before = stack.get(&look).await;
    for call in calls {
        seen.insert((call.method.to_string(), call.route));
        let path = call.route.replace("{id}", id).replace("{name}", id);
        for turn in 1..=2 {
            let answer = ask(stack, &call.method, &path).await;
            let told = (answer.status, answer.json["code"].as_str().unwrap_or_default());
            assert_eq!(told, (call.status, call.code), "{} {path}, time {turn}: {}", call.method, answer.body);
            let after = stack.get(&look).await;
            assert_eq!((after.status, &after.json), (before.status, &before.json), "{} {path} changed it", call.method);
        }
    }
}

async fn ask(stack: &Stack, method: &Method, path: &str) -> Answer {
    let query = if path.starts_with("/v1/batches/") && *method == Method::PUT {
        format!("?model={MODEL}")
    } else if path == "/v1/webhooks/gone" {
        "?url=http://192.0.2.1/".into()
    } else if path == "/v1/dead/redrive" {
        "?topic=gone".into()
    } else {
        String::new()
    };
    let request = stack.request(method.clone(), &format!("{path}{query}"));
    let request = match (method, path) {
        (&Method::PATCH, _) => request.json(&serde_json::json!({"partitions": 64})),
        (&Method::PUT, _) => request.header("content-type", "application/x-ndjson").body(line("one")),
        (&Method::POST, path) if path.ends_with("/verify") => request.body("one"),
        _ => request,
    };
    send(request).await
}

/// A batch of one item.
fn line(name: &str) -> String {
    use base64::Engine as _;
    let image = base64::engine::general_purpose::STANDARD.encode(photo("rocket.jpg"));
    format!("{{\"custom_id\": \"{name}\", \"image\": \"{image}\"}}\n")
}

async fn put_batch(stack: &Stack, id: &str) {
    let taken = ask(stack, &Method::PUT, &format!("/v1/batches/{id}")).await;
    assert_eq!(taken.status, 202, "{}", taken.body);
}

#[tokio::test]
async fn what_has_ended_stays_as_it_ended_whatever_is_asked_of_it() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", MODEL]);
    let mut seen = BTreeSet::new();
    let succeeded = stack.run(&format!("model={MODEL}"), photo("rocket.jpg")).await["id"].clone();
    let failed = stack.run(&format!("model={MODEL}"), super::damaged_jpeg()).await;
    assert_eq!(failed["state"], "failed");
    put_batch(&stack, "finished").await;
    super::batches::finished(&stack, "finished").await;
    ok(&stack, &["topics", "pause", MODEL]);
    let canceled = stack.accept(MODEL, photo("rocket.jpg")).await;
    assert_eq!(ask(&stack, &Method::DELETE, &format!("/v1/jobs/{canceled}")).await.status, 200);
    put_batch(&stack, "canceled").await;
    assert_eq!(ask(&stack, &Method::DELETE, "/v1/batches/canceled").await.status, 202);
    // Some seconds later it is also noted when the last of its jobs ended.
    eventually("its job is canceled, and its end is noted", async || {
        let batch = stack.get("/v1/batches/canceled").await.json;
        (batch["counts"]["canceled"] == 1 && batch["finished_at"].is_string()).then_some(())
    })
    .await;
    ok(&stack, &["topics", "resume", MODEL]);
    ok(&stack, &["topics", "create", "gone", "--model", MODEL]);
    ok(&stack, &["topics", "delete", "gone", "--yes"]);

    let text = |id: &Value| id.as_str().expect("an id").to_owned();
    let job = "/v1/jobs/{id}";
    let read = |state: &'static str| {
        [
            call("GET", "/v1/jobs/{id}/deliveries", 200, ""),
            call("GET", "/v1/jobs/{id}/events", 200, ""),
            call(
                "DELETE",
                "/v1/jobs/{id}",
                if state == "canceled" { 200 } else { 409 },
                match state {
                    "canceled" => "",
                    _ => "job_ended",
                },
            ),
        ]
    };
    let unwritten = [
        call("GET", "/v1/jobs/{id}/image", 409, "input_gone"),
        call("GET", "/v1/dead/{id}", 404, "dead_letter_unknown"),
        call("GET", "/v1/dead/{id}/image", 404, "dead_letter_unknown"),
        call("POST", "/v1/dead/{id}/redrive", 404, "dead_letter_unknown"),
    ];
    check(&stack, &text(&succeeded), job, &read("succeeded"), &mut seen).await;
    check(&stack, &text(&succeeded), job, &unwritten, &mut seen).await;
    check(&stack, &text(&succeeded), job, &[call("POST", "/v1/jobs/{id}/retry", 409, "job_not_failed")], &mut seen)
        .await;
    check(&stack, &canceled, job, &read("canceled"), &mut seen).await;
    check(&stack, &canceled, job, &unwritten, &mut seen).await;
    check(&stack, &canceled, job, &[call("POST", "/v1/jobs/{id}/retry", 409, "input_gone")], &mut seen).await;
    let letter = [call("GET", "/v1/dead/{id}", 200, ""), call("GET", "/v1/dead/{id}/image", 200, "")];
    check(&stack, &text(&failed["id"]), job, &read("failed"), &mut seen).await;
    check(&stack, &text(&failed["id"]), job, &letter, &mut seen).await;

    let looked = "/v1/batches/{id}";
    let finished = [
        call("DELETE", "/v1/batches/{id}", 409, "batch_finished"),
        call("PUT", "/v1/batches/{id}", 202, ""),
        call("GET", "/v1/batches/{id}/results", 200, ""),
        call("GET", "/v1/batches/{id}/verify", 200, ""),
        call("POST", "/v1/batches/{id}/verify", 200, ""),
        call("GET", "/v1/batches/{id}/deliveries", 200, ""),
    ];
    check(&stack, "finished", looked, &finished, &mut seen).await;
    let canceled = [
        call("DELETE", "/v1/batches/{id}", 202, ""),
        call("PUT", "/v1/batches/{id}", 409, "batch_canceled"),
        call("GET", "/v1/batches/{id}/results", 200, ""),
        call("GET", "/v1/batches/{id}/verify", 200, ""),
        call("POST", "/v1/batches/{id}/verify", 200, ""),
    ];
    check(&stack, "canceled", looked, &canceled, &mut seen).await;

    let topic = [
        call("GET", "/v1/topics/{name}", 404, "topic_unknown"),
        call("PATCH", "/v1/topics/{name}", 404, "topic_unknown"),
        call("DELETE", "/v1/topics/{name}", 404, "topic_unknown"),
        call("POST", "/v1/topics/{name}/purge", 404, "topic_unknown"),
        call("POST", "/v1/topics/{name}/pause", 404, "topic_unknown"),
        call("POST", "/v1/topics/{name}/resume", 404, "topic_unknown"),
        call("POST", "/v1/dead/redrive", 404, "topic_unknown"),
    ];
    check(&stack, "gone", "/v1/topics/{id}", &topic, &mut seen).await;
    let receiver = [call("DELETE", "/v1/webhooks/gone", 404, "receiver_unknown")];
    check(&stack, "", "/v1/webhooks/gone", &receiver, &mut seen).await;

    // A failed job may be run again, and is a failed one once more, with both attempts.
    seen.insert(("POST".into(), "/v1/jobs/{id}/retry"));
    let id = text(&failed["id"]);
    let retried = ask(&stack, &Method::POST, &format!("/v1/jobs/{id}/retry")).await;
    assert_eq!(retried.status, 202, "{}", retried.body);
    let job = stack.finish(&id).await;
    assert_eq!((&job["state"], job["attempts"].as_array().map(Vec::len)), (&"failed".into(), Some(2)), "{job}");

    // A key that was revoked opens nothing, and the last one cannot be.
    let admin = super::keys::admin_key(&stack);
    let with = |key: &str, method: &Method, path: &str| send(stack.request(method.clone(), path).bearer_auth(key));
    let made = stack.request(Method::POST, "/v1/keys").bearer_auth(&admin);
    let made = send(made.json(&serde_json::json!({"name": "ann", "scopes": ["submit", "read"]}))).await;
    let (key, path) = (made.text("key"), format!("/v1/keys/{}", made.text("id")));
    assert_eq!(with(&key, &Method::GET, "/v1/jobs").await.status, 200, "{}", made.body);
    assert_eq!(with(&admin, &Method::DELETE, &path).await.status, 200);
    let revoked = with(&admin, &Method::DELETE, &path).await.text("revoked_at");
    for _ in 0..2 {
        let again = with(&admin, &Method::DELETE, &path).await;
        assert_eq!(again.text("revoked_at"), revoked, "it is revoked once");
        assert_eq!(with(&key, &Method::GET, "/v1/jobs").await.text("code"), "key_invalid");
    }
    seen.insert(("DELETE".into(), "/v1/keys/{id}"));

    // No call that may change something is missing here.
    let described: Value =
        serde_json::from_str(&std::fs::read_to_string(root().join("api/openapi.json")).expect("there")).expect("JSON");
    let makes_new = ["/v1/jobs", "/v1/batches", "/v1/topics", "/v1/keys"];
    for (route, methods) in described["paths"].as_object().expect("paths") {
        for method in ["post", "put", "patch", "delete"] {
            let is_missing = !seen.iter().any(|(known, at)| known.eq_ignore_ascii_case(method) && at == route);
            assert!(
                methods.get(method).is_none() || makes_new.contains(&route.as_str()) || !is_missing,
                "{method} {route} is in no table"
            );
        }
    }
}
