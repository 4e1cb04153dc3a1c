//! What a server says and refuses: errors, users, encryption, limits, monitoring.

use std::path::PathBuf;
use std::time::Duration;

use super::harness::{Engine, engine, eventually, root, signal};
use super::launch::{Raw, Server, Settings, TOKEN};

const CONNECT: &str =
    "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true,\"auth_token\":\"test-token\"}\r\n";

fn certificate(name: &str) -> PathBuf {
    root().join("tests/interop/tls").join(name)
}

/// A connection that is let in.
fn open(server: &Server) -> Raw {
    let mut raw = server.connect();
    raw.say(CONNECT);
    raw.say("PING\r\n");
    raw.expect("PONG");
    raw
}

#[test]
fn what_is_wrong_is_said_in_the_known_words() {
    let server = Server::start(Settings { own: "auth_timeout = \"1s\"", nats: "", ..Settings::default() });
    // Said, and the connection stays.
    for (words, answer) in [
        ("SUB a..b 1\r\n", "-ERR 'Invalid Subject'"),
        ("SUB a.>.b 1\r\n", "-ERR 'Invalid Subject'"),
        ("PUB a..b 1\r\nx\r\n", "-ERR 'Invalid Publish Subject'"),
        ("pub  a\t 1 \r\nx\r\n", "PONG"),
        ("UNSUB 99\r\n", "PONG"),
    ] {
        let mut raw = open(&server);
        raw.say(words);
        raw.say("PING\r\n");
        raw.expect(answer);
        if answer != "PONG" {
            raw.expect("PONG");
        }
    }
    // Said, and the connection ends.
    let long = format!("SUB {} 1\r\n", "a".repeat(5000));
    for (words, answer) in [
        ("FOO\r\n", "-ERR 'Unknown Protocol Operation'"),
        ("PUB a 2\r\nxyz\r\n", "-ERR 'Unknown Protocol Operation'"),
        ("PUB a 2000000\r\n", "-ERR 'Maximum Payload Violation'"),
        (&long, "-ERR 'maximum control line exceeded'"),
    ] {
        let mut raw = open(&server);
        raw.say(words);
        raw.expect(answer);
        assert!(raw.is_closed(), "after {answer}");
    }
    for words in ["CONNECT {\"auth_token\":\"wrong\"}\r\nPING\r\n", "CONNECT {}\r\nPING\r\n"] {
        let mut raw = server.connect();
        assert_eq!(raw.info["auth_required"], true);
        raw.say(words);
        raw.expect("-ERR 'Authorization Violation'");
        assert!(raw.is_closed());
    }
    let mut silent = server.connect();
    silent.expect("-ERR 'Authentication Timeout'");
    assert!(silent.is_closed());
}

#[test]
fn users_do_what_they_may_and_nothing_else() {
    let server = Server::start(Settings {
        own: r#"
            [[users]]
            name = "admin"
            password = "s3"
            [[users]]
            name = "a"
            password = "pa"
            [users.permissions]
            publish = { allow = ["a.>", "q.x", "svc"], deny = ["a.secret"] }
            subscribe = { allow = ["a.>", "_INBOX.>", "q.x grp"], deny = ["a.hidden"] }
            [[users]]
            name = "svc"
            password = "ps"
            [users.permissions]
            publish = { deny = [">"] }
            subscribe = { allow = ["svc"] }
            allow_responses = { max = 2, expires = "1m" }
        "#,
        nats: r#"authorization { users = [
            {user: admin, password: s3}
            {user: a, password: pa, permissions: {
                publish: { allow: ["a.>", "q.x", "svc"], deny: ["a.secret"] }
                subscribe: { allow: ["a.>", "_INBOX.>", "q.x grp"], deny: "a.hidden" } }}
            {user: svc, password: ps, permissions: {
                publish: { deny: ">" }, subscribe: "svc", allow_responses: { max: 2, expires: "1m" } }}
        ] }"#,
        without_token: true,
    });
    for (user, password) in [("a", "ps"), ("nobody", "pa"), ("", "")] {
        let mut raw = server.connect();
        raw.say(&format!("CONNECT {{\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\nPING\r\n"));
        raw.expect("-ERR 'Authorization Violation'");
        assert!(raw.is_closed(), "{user}");
    }
    let mut admin = server.login("admin", "s3");
    let mut a = server.login("a", "pa");
    for (words, answer) in [
        ("PUB b.x 1\r\nx\r\n", "-ERR 'Permissions Violation for Publish to \"b.x\"'"),
        ("PUB a.secret 1\r\nx\r\n", "-ERR 'Permissions Violation for Publish to \"a.secret\"'"),
        ("PUB $JS.API.INFO _INBOX.1 0\r\n\r\n", "-ERR 'Permissions Violation for Publish to \"$JS.API.INFO\"'"),
        ("SUB > 1\r\n", "-ERR 'Permissions Violation for Subscription to \">\"'"),
        ("SUB a.hidden 1\r\n", "-ERR 'Permissions Violation for Subscription to \"a.hidden\"'"),
        ("SUB q.x qq 1\r\n", "-ERR 'Permissions Violation for Subscription to \"q.x\" using queue \"qq\"'"),
    ] {
        a.say(words);
        a.expect(answer);
    }
    // What is denied inside of what is allowed does not arrive.
    a.say("SUB a.* 1\r\nSUB q.x grp 2\r\nPING\r\n");
    a.expect("PONG");
    for subject in ["a.hidden", "a.seen", "q.x"] {
        admin.say(&format!("PUB {subject} 2\r\nhi\r\n"));
    }
    admin.say("PING\r\n");
    admin.expect("PONG");
    assert_eq!(a.message(), ("MSG a.seen 1 2".into(), "hi".into()));
    assert_eq!(a.message(), ("MSG q.x 2 2".into(), "hi".into()));
    // A service may answer as often as it is allowed to, and say nothing else.
    let mut service = server.login("svc", "ps");
    service.say("SUB svc 1\r\nPUB a.seen 1\r\nx\r\n");
    service.expect("-ERR 'Permissions Violation for Publish to \"a.seen\"'");
    a.say("SUB _INBOX.r 9\r\nPUB svc _INBOX.r 1\r\n?\r\n");
    assert_eq!(service.message(), ("MSG svc 1 _INBOX.r 1".into(), "?".into()));
    service.say("PUB _INBOX.r 1\r\n1\r\nPUB _INBOX.r 1\r\n2\r\nPUB _INBOX.r 1\r\n3\r\n");
    service.expect("-ERR 'Permissions Violation for Publish to \"_INBOX.r\"'");
    assert_eq!([a.message().1, a.message().1], ["1", "2"]);
}

/// Sends a request and returns its answer.
fn asked(raw: &mut Raw, subject: &str, body: &str) -> serde_json::Value {
    raw.say(&format!("PUB {subject} answers {}\r\n{body}\r\n", body.len()));
    let (_, answer) = raw.message();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{subject}: {error}: {answer}"))
}

#[test]
fn null_is_as_if_nothing_was_said_and_wildcards_are_published_as_letters() {
    let server = Server::start(Settings::default());
    let mut raw = open(&server);
    // A client that says nothing of it is pedantic.
    raw.say("PUB s.* 1\r\nx\r\n");
    raw.expect("-ERR 'Invalid Publish Subject'");
    raw.say(&CONNECT.replace('{', "{\"pedantic\":false,"));
    raw.say("SUB answers 1\r\n");
    let nulls = "\"max_msgs\":null,\"max_age\":null,\"num_replicas\":null,\"sealed\":null,\
                 \"placement\":null,\"consumer_limits\":{\"max_ack_pending\":null}";
    let stream = format!("{{\"name\":\"s\",\"subjects\":[\"s.>\"],\"allow_direct\":true,{nulls}}}");
    let made = asked(&mut raw, "$JS.API.STREAM.CREATE.s", &stream);
    assert_eq!((made["config"]["name"].as_str(), &made["error"]), (Some("s"), &serde_json::Value::Null), "{made}");
    for name in ["retention", "discard", "storage"] {
        let refused = asked(&mut raw, "$JS.API.STREAM.CREATE.t", &format!("{{\"name\":\"t\",\"{name}\":null}}"));
        assert_eq!(refused["error"]["err_code"], 10025, "{name}: {refused}");
    }
    let consumer = "{\"stream_name\":\"s\",\"config\":{\"durable_name\":\"c\",\"ack_policy\":\"explicit\",\
                    \"ack_wait\":null,\"max_deliver\":null,\"backoff\":null,\"filter_subject\":null,\"num_replicas\":null}}";
    let made = asked(&mut raw, "$JS.API.CONSUMER.DURABLE.CREATE.s.c", consumer);
    assert_eq!((made["name"].as_str(), &made["error"]), (Some("c"), &serde_json::Value::Null), "{made}");
    for subject in ["s.*", "s.a.>", "s.*.b"] {
        let stored = asked(&mut raw, subject, "x");
        assert_eq!(stored["stream"], "s", "{subject}: {stored}");
    }
    let info =
        asked(&mut raw, "$JS.API.STREAM.INFO.s", "{\"offset\":null,\"subjects_filter\":null,\"deleted_details\":null}");
    assert_eq!(
        (&info["state"]["messages"], &info["state"]["subjects"]),
        (&3.into(), &serde_json::Value::Null),
        "{info}"
    );
    let got = asked(&mut raw, "$JS.API.STREAM.MSG.GET.s", "{\"seq\":2,\"last_by_subj\":null,\"next_by_subj\":null}");
    assert_eq!(got["message"]["subject"], "s.a.>", "{got}");
}

#[test]
fn members_of_a_deliver_group_share() {
    let server = Server::start(Settings::default());
    let mut raw = open(&server);
    raw.say("SUB answers 1\r\n");
    asked(&mut raw, "$JS.API.STREAM.CREATE.s", "{\"name\":\"s\",\"subjects\":[\"s\"]}");
    let mut members = [open(&server), open(&server)];
    for member in &mut members {
        member.say("SUB pushed group 1\r\nPING\r\n");
        member.expect("PONG");
    }
    let consumer = "{\"stream_name\":\"s\",\"config\":{\"durable_name\":\"c\",\"deliver_subject\":\"pushed\",\
                    \"deliver_group\":\"group\",\"ack_policy\":\"none\"}}";
    let made = asked(&mut raw, "$JS.API.CONSUMER.DURABLE.CREATE.s.c", consumer);
    assert_eq!(made["error"], serde_json::Value::Null, "{made}");
    for _ in 0..100 {
        asked(&mut raw, "s", "x");
    }
    // Each of them has some: that one of two gets all of a hundred by chance is as good as impossible.
    for member in &mut members {
        assert_eq!(member.message().1, "x");
    }
}

#[test]
fn limits_hold_for_connections_subscriptions_and_silence() {
    let server = Server::start(Settings {
        own: "connections = 2\nsubscriptions = 3\nping_interval = \"1s\"",
        nats: "max_connections: 2\nmax_subscriptions: 3\nping_interval: \"1s\"\nping_max: 2",
        ..Settings::default()
    });
    let mut one = open(&server);
    let _two = open(&server);
    one.say("SUB a 1\r\nSUB b 2\r\nSUB c 3\r\nSUB d 4\r\nPING\r\n");
    one.expect("-ERR 'maximum subscriptions exceeded'");
    one.expect("PONG");
    let mut third = server.connect();
    third.expect("-ERR 'maximum connections exceeded'");
    assert!(third.is_closed());
    // A client that does not answer is asked twice and then disconnected.
    one.expect("-ERR 'Stale Connection'");
    assert!(one.is_closed());
}

#[tokio::test]
async fn a_slow_client_is_cut_and_others_go_on() {
    let server = Server::start(Settings {
        own: "pending = \"1MiB\"",
        nats: "max_pending: 1MB\nwrite_deadline: \"2s\"",
        ..Settings::default()
    });
    let mut lazy = open(&server);
    lazy.say("SUB much 1\r\nPING\r\n");
    lazy.expect("PONG");
    let mut busy = open(&server);
    busy.say("SUB other 1\r\n");
    let payload = "x".repeat(100_000);
    // More than the system itself keeps for a connection.
    for _ in 0..400 {
        busy.say(&format!("PUB much {}\r\n{payload}\r\n", payload.len()));
    }
    busy.say("PUB other 2\r\nhi\r\n");
    assert_eq!(busy.message().1, "hi");
    eventually("the lazy one is cut and counted", async || {
        server.page("/varz").await["slow_consumers"].as_u64().filter(|count| *count > 0)
    })
    .await;
}

#[tokio::test]
async fn an_operator_sees_what_goes_on() {
    let server = Server::start(Settings::default());
    let options = async_nats::ConnectOptions::with_token(TOKEN.into()).name("watched");
    let client = options.connect(format!("127.0.0.1:{}", server.port)).await.expect("let in");
    let context = async_nats::jetstream::new(client.clone());
    let config =
        async_nats::jetstream::stream::Config { name: "s".into(), subjects: vec!["s".into()], ..Default::default() };
    let stream = context.create_stream(config).await.expect("created");
    context.publish("s", "x".into()).await.expect("sent").await.expect("acknowledged");
    let durable =
        async_nats::jetstream::consumer::pull::Config { durable_name: Some("c".into()), ..Default::default() };
    stream.create_consumer(durable).await.expect("created");
    let varz = server.page("/varz").await;
    assert_eq!((&varz["connections"], &varz["auth_required"]), (&1.into(), &true.into()), "{varz}");
    assert!(varz["in_msgs"].as_u64().is_some_and(|count| count >= 3), "{varz}");
    assert!(varz["mem"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{varz}");
    let connz = server.page("/connz").await;
    assert_eq!(
        (&connz["connections"][0]["name"], &connz["connections"][0]["lang"]),
        (&"watched".into(), &"rust".into())
    );
    let jsz = server.page("/jsz?streams=1&consumers=1&config=1").await;
    assert_eq!((&jsz["streams"], &jsz["consumers"], &jsz["messages"]), (&1.into(), &1.into(), &1.into()), "{jsz}");
    let detail = &jsz["account_details"][0]["stream_detail"][0];
    assert_eq!((&detail["name"], &detail["consumer_detail"][0]["name"]), (&"s".into(), &"c".into()), "{jsz}");
    assert_eq!(server.page("/healthz").await["status"], "ok");
    assert!(server.page("/subsz").await["num_subscriptions"].as_u64().is_some_and(|count| count >= 1));

    let pid = std::fs::read_to_string(server.folder.path().join("pid")).expect("written");
    assert_eq!(pid.trim(), server.pid().to_string());
    let ports = server.folder.path().join(format!("nats-server_{}.ports", server.pid()));
    let ports: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(ports).expect("written")).expect("JSON");
    assert_eq!(ports["nats"][0], format!("nats://127.0.0.1:{}", server.port));
    assert_eq!(ports["monitoring"][0], format!("http://127.0.0.1:{}", server.http));
}

#[tokio::test]
async fn who_waits_hears_that_the_server_leaves() {
    let mut server = Server::start(Settings::default());
    let mut raw = open(&server);
    raw.say("SUB in 1\r\nPUB $JS.API.STREAM.CREATE.s in 12\r\n{\"name\":\"s\"}\r\n");
    assert!(raw.message().1.contains("stream_create"));
    let consumer = r#"{"stream_name":"s","config":{"durable_name":"c","ack_policy":"explicit"}}"#;
    raw.say(&format!("PUB $JS.API.CONSUMER.CREATE.s.c in {}\r\n{consumer}\r\n", consumer.len()));
    assert!(raw.message().1.contains("consumer_create"));
    raw.say("PUB $JS.API.CONSUMER.MSG.NEXT.s.c in 1\r\n1\r\nPING\r\n");
    raw.expect("PONG");
    server.terminate();
    if engine() == Engine::Own {
        let mut line = raw.line();
        while line == "PING" {
            line = raw.line();
        }
        assert!(line.contains("\"ldm\":true"), "{line}");
    }
    let (_, status) = raw.message();
    assert!(status.starts_with("NATS/1.0 409 Server Shutdown\r\n"), "{status}");
    assert!(raw.is_closed());
    server.wait();
    let ports = server.folder.path().join(format!("nats-server_{}.ports", server.pid()));
    assert!(!ports.exists(), "its notices are gone with it");
}

async fn encrypted(port: u16, authority: &str) -> Result<async_nats::Client, String> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let options = async_nats::ConnectOptions::with_token(TOKEN.into()).require_tls(true);
    let connecting = options.add_root_certificates(certificate(authority)).connect(format!("tls://localhost:{port}"));
    connecting.await.map_err(|error| format!("{error:?}"))
}

async fn is_answered(client: &async_nats::Client) -> bool {
    let context = async_nats::jetstream::new(client.clone());
    let config =
        async_nats::jetstream::stream::Config { name: "s".into(), subjects: vec!["s".into()], ..Default::default() };
    context.create_stream(config).await.expect("created");
    let payload = "x".repeat(500_000);
    context.publish("s", payload.into()).await.expect("sent").await.is_ok()
}

#[tokio::test]
async fn connections_are_encrypted_where_they_must_be_or_may_be() {
    let (pem, key) = (certificate("one.pem"), certificate("one.key"));
    let own = |required: bool| format!("[tls]\ncertificate = {pem:?}\nkey = {key:?}\nrequired = {required}\n");
    let nats = |required: bool| {
        let plain = if required { "" } else { "allow_non_tls: true" };
        format!("tls {{ cert_file: {pem:?}, key_file: {key:?} }}\n{plain}")
    };
    let required = Server::start(Settings { own: &own(true), nats: &nats(true), ..Settings::default() });
    assert!(is_answered(&encrypted(required.port, "one.pem").await.expect("let in")).await);
    assert!(encrypted(required.port, "two.pem").await.is_err(), "an authority that did not sign it");
    let mut plain = required.connect();
    assert_eq!(plain.info["tls_required"], true);
    plain.say(CONNECT);
    plain.say("PING\r\n");
    assert!(plain.is_closed(), "a plain word on an encrypted connection");

    let optional = Server::start(Settings { own: &own(false), nats: &nats(false), ..Settings::default() });
    assert!(is_answered(&encrypted(optional.port, "one.pem").await.expect("let in")).await);
    assert_eq!(open(&optional).info["tls_available"], true);
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_restart() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let (pem, key) = (folder.path().join("pem"), folder.path().join("key"));
    let install = |name: &str| {
        std::fs::copy(certificate(&format!("{name}.pem")), &pem).expect("copied");
        std::fs::copy(certificate(&format!("{name}.key")), &key).expect("copied");
    };
    install("one");
    let server = Server::start(Settings {
        own: &format!("[tls]\ncertificate = {pem:?}\nkey = {key:?}\n"),
        nats: &format!("tls {{ cert_file: {pem:?}, key_file: {key:?} }}"),
        ..Settings::default()
    });
    let kept = encrypted(server.port, "one.pem").await.expect("let in");
    install("two");
    // A NATS server is told; ours sees it.
    signal(server.pid(), if engine() == Engine::Own { "CONT" } else { "HUP" });
    eventually("the new one is shown", async || encrypted(server.port, "two.pem").await.ok().map(drop)).await;
    kept.flush().await.expect("who was there stays");
    assert!(
        tokio::time::timeout(Duration::from_secs(30), encrypted(server.port, "one.pem"))
            .await
            .expect("answers")
            .is_err()
    );
}
