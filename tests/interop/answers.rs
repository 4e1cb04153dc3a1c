//! The same requests to our broker and to a NATS server, compared answer by answer and field by field. Where they
//! may differ, the reason stands in [`ALLOWED`]; what stands there and does not differ any more is a failure too.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::{Client, ConnectOptions, HeaderMap};
use bytes::Bytes;
use serde_json::{Value, json};

use super::harness::{Engine, engine, eventually};
use super::launch::{Server, Settings, TOKEN};

/// Where answers may differ, by the beginning of the request's name, and why.
const ALLOWED: &[(&str, &str)] = &[
    ("stream mirror_direct true, updated", "the stream is missing and the setting is wrong: either may be reported"),
    ("stream unheard_of null", "an unknown setting without a value changes nothing"),
    ("consumer unheard_of null", "the same"),
    ("consumer opt_start_time text", "refused by both, with the code of a bad policy here"),
    ("consumer idle_heartbeat negative", "refused here: a pull consumer has no heart beat"),
    ("STREAM.PURGE.S {\"seq\":99}, looked at", "a purge does not move the next sequence on"),
    ("CONSUMER.NAMES.S {\"subject\"", "the page of streams and of consumers is one type here"),
    ("CONSUMER.LIST.S {\"subject\"", "the same"),
    ("publish to $JS.API.X", "an unknown request is answered at once here"),
];

/// What no two servers have in common: times, names of their own, and what each says of itself. The words of an
/// error are ours where its code is the same.
const IGNORED: [&str; 16] = [
    "api",
    "created",
    "ts",
    "timestamp",
    "time",
    "first_ts",
    "last_ts",
    "last_active",
    "cluster",
    "description",
    "_nats.level",
    "_nats.req.level",
    "_nats.ver",
    "type",
    "name",
    "did_create",
];

/// One request.
struct Step {
    /// What it is called in the table of allowed differences.
    name: String,
    subject: String,
    headers: Vec<(&'static str, &'static str)>,
    body: String,
}

fn step(name: impl Into<String>, subject: impl Into<String>, body: impl Into<String>) -> Step {
    Step { name: name.into(), subject: subject.into(), headers: Vec::new(), body: body.into() }
}

fn api(name: impl Into<String>, operation: &str, body: &Value) -> Step {
    step(name, format!("$JS.API.{operation}"), body.to_string())
}

fn publish(name: &str, subject: &str, headers: &[(&'static str, &'static str)]) -> Step {
    Step { headers: headers.to_vec(), ..step(name, subject, "data") }
}

/// Values of a field: absent is the request without it.
fn values() -> Vec<(&'static str, Value)> {
    vec![
        ("null", Value::Null),
        ("zero", json!(0)),
        ("negative", json!(-1)),
        ("true", json!(true)),
        ("text", json!("x")),
        ("list", json!([])),
        ("object", json!({})),
    ]
}

const STREAM: &str = "STREAM.CREATE.S";
const CONSUMER: &str = "CONSUMER.CREATE.S.c";

fn stream_with(more: Value) -> Value {
    let mut config = json!({"name": "S", "subjects": ["s.>"]});
    merge(&mut config, more);
    config
}

fn consumer_with(more: Value) -> Value {
    let mut config = json!({"name": "c", "ack_policy": "explicit"});
    merge(&mut config, more);
    json!({"stream_name": "S", "config": config})
}

fn merge(into: &mut Value, more: Value) {
    let (Value::Object(into), Value::Object(more)) = (into, more) else { return };
    into.extend(more);
}

/// Each case begins without streams.
fn cases() -> Vec<Vec<Step>> {
    let mut cases = Vec::new();
    for field in [
        "retention",
        "max_consumers",
        "max_msgs",
        "max_bytes",
        "max_age",
        "max_msgs_per_subject",
        "max_msg_size",
        "discard",
        "storage",
        "num_replicas",
        "no_ack",
        "duplicate_window",
        "sealed",
        "deny_delete",
        "deny_purge",
        "allow_rollup_hdrs",
        "allow_direct",
        "mirror_direct",
        "discard_new_per_subject",
        "first_seq",
        "compression",
        "metadata",
        "consumer_limits",
        "allow_msg_ttl",
        "subject_delete_marker_ttl",
        "subjects",
        "unheard_of",
    ] {
        for (kind, value) in values() {
            let name = format!("stream {field} {kind}");
            cases.push(vec![
                api(name.clone(), STREAM, &stream_with(json!({field: value}))),
                api(format!("{name}, updated"), "STREAM.UPDATE.S", &stream_with(json!({field: value}))),
                api(format!("{name}, looked at"), "STREAM.INFO.S", &json!({})),
            ]);
        }
    }
    for field in [
        "deliver_policy",
        "opt_start_seq",
        "opt_start_time",
        "ack_policy",
        "ack_wait",
        "max_deliver",
        "backoff",
        "filter_subject",
        "filter_subjects",
        "replay_policy",
        "rate_limit_bps",
        "sample_freq",
        "max_waiting",
        "max_ack_pending",
        "headers_only",
        "max_batch",
        "max_expires",
        "max_bytes",
        "inactive_threshold",
        "num_replicas",
        "mem_storage",
        "metadata",
        "pause_until",
        "deliver_subject",
        "deliver_group",
        "flow_control",
        "idle_heartbeat",
        "priority_groups",
        "priority_policy",
        "unheard_of",
    ] {
        for (kind, value) in values() {
            let name = format!("consumer {field} {kind}");
            cases.push(vec![
                api("a stream", STREAM, &stream_with(json!({}))),
                api(name.clone(), CONSUMER, &consumer_with(json!({field: value}))),
                api(format!("{name}, looked at"), "CONSUMER.INFO.S.c", &json!({})),
            ]);
        }
    }
    cases.extend(bodies());
    cases.extend(publishes());
    cases.extend(rules());
    cases
}

/// Every management request with every kind of body, on an empty server and on one with a stream.
fn bodies() -> Vec<Vec<Step>> {
    let operations = [
        "INFO",
        "STREAM.NAMES",
        "STREAM.LIST",
        "STREAM.INFO.S",
        "STREAM.PURGE.S",
        "STREAM.MSG.GET.S",
        "STREAM.MSG.DELETE.S",
        "DIRECT.GET.S",
        "CONSUMER.NAMES.S",
        "CONSUMER.LIST.S",
        "CONSUMER.INFO.S.c",
        "CONSUMER.PAUSE.S.c",
        "CONSUMER.DELETE.S.c",
        "STREAM.DELETE.S",
    ];
    let bodies = [
        "",
        "null",
        "{}",
        "[]",
        "[2]",
        "{\"offset\":0}",
        "{\"offset\":9}",
        "{\"subject\":\"s.a\"}",
        "{\"subject\":\"none\"}",
        "{\"filter\":\"s.a\"}",
        "{\"seq\":2}",
        "{\"seq\":0}",
        "{\"seq\":99}",
        "{\"seq\":\"x\"}",
        "{\"keep\":1}",
        "{\"last_by_subj\":\"s.b\"}",
        "{\"next_by_subj\":\"s.*\",\"seq\":1}",
        "{\"last_by_subj\":\"none\"}",
        "{\"start_time\":\"x\"}",
        "{\"batch\":0,\"seq\":1}",
        "{\"pause_until\":\"x\"}",
        "{\"pause_until\":null}",
        "{\"subjects_filter\":\">\"}",
        "{\"deleted_details\":true}",
    ];
    let mut cases = Vec::new();
    for operation in operations {
        cases.push(vec![step(format!("{operation} of nothing"), format!("$JS.API.{operation}"), "")]);
        for body in bodies {
            cases.push(vec![
                api("a stream", STREAM, &stream_with(json!({"allow_direct": true}))),
                publish("a message", "s.a", &[]),
                publish("a message", "s.b", &[]),
                publish("a message", "s.a", &[]),
                api("a consumer", CONSUMER, &consumer_with(json!({"durable_name": "c"}))),
                step(format!("{operation} {body}"), format!("$JS.API.{operation}"), body),
                api(format!("{operation} {body}, looked at"), "STREAM.INFO.S", &json!({})),
            ]);
        }
    }
    cases
}

/// Publishes with headers, right and wrong, and to odd subjects.
fn publishes() -> Vec<Vec<Step>> {
    let stream = || api("a stream", STREAM, &stream_with(json!({"allow_rollup_hdrs": true, "allow_msg_ttl": true})));
    let mut cases = Vec::new();
    for (name, headers) in [
        ("id", &[("Nats-Msg-Id", "one")][..]),
        ("expected stream", &[("Nats-Expected-Stream", "S")]),
        ("wrong stream", &[("Nats-Expected-Stream", "T")]),
        ("last sequence", &[("Nats-Expected-Last-Sequence", "2")]),
        ("wrong last sequence", &[("Nats-Expected-Last-Sequence", "9")]),
        ("last sequence of a subject", &[("Nats-Expected-Last-Subject-Sequence", "1")]),
        ("wrong last sequence of a subject", &[("Nats-Expected-Last-Subject-Sequence", "0")]),
        ("a subject without its sequence", &[("Nats-Expected-Last-Subject-Sequence-Subject", "s.a")]),
        ("last id", &[("Nats-Expected-Last-Msg-Id", "first")]),
        ("wrong last id", &[("Nats-Expected-Last-Msg-Id", "other")]),
        ("rollup of a subject", &[("Nats-Rollup", "sub")]),
        ("rollup of all", &[("Nats-Rollup", "all")]),
        ("rollup of ALL", &[("Nats-Rollup", "ALL")]),
        ("rollup of nothing known", &[("Nats-Rollup", "x")]),
        ("ttl", &[("Nats-TTL", "10s")]),
        ("ttl in seconds", &[("Nats-TTL", "10")]),
        ("ttl never", &[("Nats-TTL", "never")]),
        ("ttl too short", &[("Nats-TTL", "1ms")]),
        ("ttl of nothing known", &[("Nats-TTL", "x")]),
        ("a header thrice", &[("X", "3"), ("X", "1"), ("X", "2")]),
    ] {
        let after = |what: &str| format!("publish with {name}{what}");
        cases.push(vec![
            stream(),
            publish("a message", "s.a", &[]),
            publish("a message", "s.b", &[("Nats-Msg-Id", "first")]),
            publish(&after(""), "s.a", headers),
            publish(&after(" again"), "s.a", headers),
            api(after(", looked at"), "STREAM.INFO.S", &json!({"subjects_filter": ">"})),
            api(after(", read"), "STREAM.MSG.GET.S", &json!({"last_by_subj": "s.a"})),
        ]);
        // The last message has no id, whatever came before it.
        cases.push(vec![
            stream(),
            publish("a message", "s.a", &[("Nats-Msg-Id", "first")]),
            publish("a message", "s.b", &[]),
            publish(&after(" after one without"), "s.a", headers),
        ]);
    }
    for subject in ["s.*", "s.>", "s.a.b.c", "s", "t.a", "s.\u{e4}", "s..a", "s.", ".s", "$JS.API.X", "$JS.API.X."] {
        cases.push(vec![
            stream(),
            publish(&format!("publish to {subject}"), subject, &[]),
            api(format!("publish to {subject}, looked at"), "STREAM.INFO.S", &json!({"subjects_filter": ">"})),
        ]);
    }
    cases
}

/// Rules that take several requests.
fn rules() -> Vec<Vec<Step>> {
    let mut cases = Vec::new();
    let filtered = |name: &str, filter: Value| {
        json!({"stream_name": "S", "config": {"name": name, "durable_name": name, "ack_policy": "explicit",
            "filter_subjects": filter}})
    };
    for (name, filter) in [("same", json!(["s.b"])), ("all", json!(["s.>"])), ("both", json!(["s.a", "s.b"]))] {
        cases.push(vec![
            api("a work queue", STREAM, &stream_with(json!({"retention": "workqueue"}))),
            api("one half", "CONSUMER.CREATE.S.a", &filtered("a", json!(["s.a"]))),
            api("the other", "CONSUMER.CREATE.S.b", &filtered("b", json!(["s.b"]))),
            api(format!("a share made {name}"), "CONSUMER.CREATE.S.a", &filtered("a", filter)),
            api(format!("a share made {name}, looked at"), "CONSUMER.INFO.S.a", &json!({})),
        ]);
    }
    for discard in ["old", "new"] {
        for limits in [json!({"max_msgs": 2}), json!({"max_bytes": 100})] {
            let name = format!("rollup, {discard}, {limits}");
            let mut config = json!({"allow_rollup_hdrs": true, "discard": discard});
            merge(&mut config, limits);
            cases.push(vec![
                api("a stream", STREAM, &stream_with(config)),
                publish("a message", "s.a", &[]),
                publish("a message", "s.b", &[]),
                publish(&format!("{name}, of a new subject"), "s.c", &[("Nats-Rollup", "sub")]),
                publish(&format!("{name}, of an old one"), "s.b", &[("Nats-Rollup", "sub")]),
                api(format!("{name}, looked at"), "STREAM.INFO.S", &json!({"subjects_filter": ">"})),
                publish(&format!("{name}, of all"), "s.a", &[("Nats-Rollup", "all")]),
                api(format!("{name}, of all, looked at"), "STREAM.INFO.S", &json!({"subjects_filter": ">"})),
            ]);
        }
    }
    cases.push(vec![
        api("a stream", STREAM, &stream_with(json!({}))),
        publish("a message", "s.a", &[]),
        api("sealing", "STREAM.UPDATE.S", &stream_with(json!({"sealed": true}))),
        publish("publish into what is sealed", "s.a", &[]),
        api("delete from what is sealed", "STREAM.MSG.DELETE.S", &json!({"seq": 1})),
        api("purge what is sealed", "STREAM.PURGE.S", &json!({})),
    ]);
    for pauses in [json!([-1]), json!([1_000_000_000, -1])] {
        cases.push(vec![
            api("a stream", STREAM, &stream_with(json!({}))),
            api(format!("backoff {pauses}"), CONSUMER, &consumer_with(json!({"backoff": pauses, "max_deliver": 5}))),
        ]);
    }
    let long = "x".repeat(4097);
    cases.push(vec![
        api("a long description", STREAM, &stream_with(json!({"description": long}))),
        api("a stream", STREAM, &stream_with(json!({}))),
        api("a consumer's long description", CONSUMER, &consumer_with(json!({"description": long}))),
    ]);
    cases
}

/// What one server answers to one request: headers of the answer and its body.
async fn ask(client: &Client, step: &Step) -> Value {
    let mut headers = HeaderMap::new();
    for (name, value) in &step.headers {
        headers.append(*name, *value);
    }
    let request = async_nats::Request::new().payload(Bytes::from(step.body.clone()));
    let request = if step.headers.is_empty() { request } else { request.headers(headers) };
    let answer = match client.send_request(step.subject.clone(), request).await {
        Ok(answer) => answer,
        Err(error) => return json!({"nobody": error.to_string()}),
    };
    let body = serde_json::from_slice::<Value>(&answer.payload);
    let body = body.unwrap_or_else(|_| String::from_utf8_lossy(&answer.payload).into_owned().into());
    let status = answer.status.map(u16::from);
    let mut lines = BTreeMap::new();
    for (name, values) in answer.headers.iter().flat_map(HeaderMap::iter) {
        let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        if name.to_string() != "Nats-Time-Stamp" {
            lines.insert(name.to_string(), values.join(","));
        }
    }
    cleared(json!({"status": status, "headers": lines, "body": body}))
}

/// Without what differs by nature.
fn cleared(value: Value) -> Value {
    match value {
        // An error comes with all that there would be without it, empty.
        Value::Object(mut fields) if fields.contains_key("error") => cleared(fields["error"].take()),
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(name, _)| !IGNORED.contains(&name.as_str()))
            .map(|(name, value)| (name, cleared(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(values) => values.into_iter().map(cleared).collect(),
        other => other,
    }
}

/// Paths at which two answers differ, with both values.
fn differences(path: &str, theirs: &Value, ours: &Value, into: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(one), Value::Object(other)) => {
            for name in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or(json!("(absent)"));
                differences(&format!("{path}.{name}"), &value(one), &value(other), into);
            }
        }
        (one, other) if one == other => {}
        (one, other) => into.push(format!("{path}: {one} there, {other} here")),
    }
}

async fn connect(server: &Server) -> Client {
    let options = ConnectOptions::with_token(TOKEN.into()).request_timeout(Some(std::time::Duration::from_secs(10)));
    options.connect(format!("127.0.0.1:{}", server.port)).await.expect("connected")
}

async fn clear(client: &Client) {
    let listed = client.request("$JS.API.STREAM.NAMES", Bytes::new()).await.expect("answered");
    let listed: Value = serde_json::from_slice(&listed.payload).expect("JSON");
    for name in listed["streams"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        client.request(format!("$JS.API.STREAM.DELETE.{name}"), Bytes::new()).await.expect("answered");
    }
}

#[tokio::test]
async fn both_servers_answer_alike() {
    if engine() != Engine::Own {
        // Both run in the other suite.
        return;
    }
    let (there, here) =
        (Server::start_as(Engine::Nats, Settings::default()), Server::start_as(Engine::Own, Settings::default()));
    let (there, here) = (connect(&there).await, connect(&here).await);
    let (mut found, mut used, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for case in cases() {
        clear(&there).await;
        clear(&here).await;
        for step in case {
            count += 1;
            let (mut theirs, ours) = tokio::join!(ask(&there, &step), ask(&here, &step));
            // A NATS server removes a deleted stream's files in the background and cannot create it meanwhile.
            let is_busy = |answer: &Value| answer["body"]["err_code"] == 10049;
            if is_busy(&theirs) && !is_busy(&ours) {
                let again = async || Some(ask(&there, &step).await).filter(|answer| !is_busy(answer));
                theirs = eventually("the deleted stream's files are removed", again).await;
            }
            let mut differing = Vec::new();
            differences("", &theirs, &ours, &mut differing);
            if differing.is_empty() {
                continue;
            }
            match ALLOWED.iter().find(|(name, _)| step.name.starts_with(name)) {
                Some((name, _)) => drop(used.insert(*name)),
                None => found.push(format!("{}\n    {}", step.name, differing.join("\n    "))),
            }
        }
    }
    println!("{count} requests to each, {} kinds of difference allowed", ALLOWED.len());
    assert!(found.is_empty(), "{} answers differ:\n{}", found.len(), found.join("\n"));
    let unused: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "these do not differ any more: {unused:?}");
}
