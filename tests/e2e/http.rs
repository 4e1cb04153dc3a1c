//! Headers, hosts, pace: the server's edges, some of them over a bare socket.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{Stack, eventually, photo, send};
use super::shared;

/// Sends bytes and returns everything until the server closes.
async fn raw(request: &[u8]) -> String {
    let mut socket = TcpStream::connect(shared().api()).await.expect("it listens");
    socket.write_all(request).await.expect("it takes bytes");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("it closes in order");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn foreign_hosts_are_refused_and_own_names_are_not() {
    let get = async |host: &str| {
        raw(format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await
    };
    for own in ["localhost", "localhost:8080", "127.0.0.1", "[::1]:80"] {
        assert!(get(own).await.starts_with("HTTP/1.1 200"), "{own}");
    }
    for foreign in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""] {
        let answer = get(foreign).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("host_forbidden"), "{foreign}: {answer}");
    }
}

#[tokio::test]
async fn pages_of_others_may_read_but_not_write() {
    let upload = || shared().upload("model=efficientnet-lite0", photo("china.jpg"));
    for foreign in ["https://evil.example", "null", "http://localhost:1"] {
        let answer = send(upload().header("Origin", foreign)).await;
        assert_eq!((answer.status, answer.json["code"].as_str()), (403, Some("origin_forbidden")), "{foreign}");
    }
    let own = format!("http://{}", shared().api());
    assert_eq!(send(upload().header("Origin", own)).await.status, 202);
    let read = reqwest::Client::new().get(shared().url("/v1/models")).header("Origin", "https://evil.example");
    let answer = send(read).await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers.get("access-control-allow-origin").is_none(), "the browser keeps it from the page");
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_a_given_one_is_kept() {
    let answer = shared().get("/v1/nothing").await;
    assert_eq!(answer.header("x-request-id").len(), 36);
    let named = reqwest::Client::new().get(shared().url("/healthz")).header("x-request-id", "mine-1");
    assert_eq!(send(named).await.header("x-request-id"), "mine-1");
}

#[tokio::test]
async fn compressed_bodies_are_refused() {
    let answer = send(shared().upload("model=efficientnet-lite0", vec![1]).header("Content-Encoding", "gzip")).await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (415, Some("content_encoding")));
}

#[tokio::test]
async fn an_early_no_reaches_a_client_that_is_still_sending() {
    // Refused by its query alone, long before the body is through; a reset would hide the reason.
    for query in ["", "model=resnet", "model=efficientnet-lite0&topk=1"] {
        let answer = send(shared().upload(query, vec![0xFF; 15 << 20])).await;
        assert!(matches!(answer.status, 400 | 404), "{}", answer.body);
    }
    let elsewhere = reqwest::Client::new().post(shared().url("/v1/nothing")).body(vec![0xFF; 15 << 20]);
    assert_eq!(send(elsewhere).await.status, 404);
    // Who asks first is answered first, and need not send at all.
    let asked = raw(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\nConnection: close\r\n\r\n");
    assert!(asked.await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn nonsense_is_answered_and_the_server_lives_on() {
    for nonsense in
        [&b"\r\n\r\n\r\n"[..], b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0xFF; 100], b"GET /\0 HTTP/1.1\r\n\r\n"]
    {
        let answer = raw(&[nonsense, b"\r\n\r\n"].concat()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let huge = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = raw_until_cut(huge.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(shared().get("/healthz").await.status, 200);
}

/// Like [`raw`], for a server that may cut the connection in the middle.
async fn raw_until_cut(request: &[u8]) -> String {
    let mut socket = TcpStream::connect(shared().api()).await.expect("it listens");
    drop(socket.write_all(request).await);
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_heads_idle_connections_and_stalled_bodies_are_ended() {
    let head = raw(b"GET /healthz HTTP/1.1\r\nHost: local");
    let idle = raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let untouched = raw(b"");
    let stalled = raw(b"POST /v1/jobs?model=efficientnet-lite0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n\xFF\xD8\xFF");
    let (head, idle, untouched, stalled) = tokio::join!(head, idle, untouched, stalled);
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(idle.starts_with("HTTP/1.1 200"), "answered first, closed later: {idle}");
    assert!(untouched.is_empty(), "{untouched}");
    assert!(stalled.starts_with("HTTP/1.1 408") && stalled.contains("body_timeout"), "{stalled}");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    for cut in [0, 10, 1000, 100_000] {
        let image = photo("china.jpg");
        let mut socket = TcpStream::connect(shared().api()).await.expect("it listens");
        let head = format!(
            "POST /v1/jobs?model=efficientnet-lite0&metadata.cut=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            image.len()
        );
        socket.write_all(head.as_bytes()).await.expect("it takes bytes");
        socket.write_all(&image[..cut]).await.expect("it takes bytes");
    }
    // A body that never came whole was never looked at.
    let job = shared().run("model=efficientnet-lite0", photo("china.jpg")).await;
    assert_eq!(job["state"], "succeeded");
}

#[tokio::test]
async fn connections_are_encrypted_with_a_certificate_that_may_be_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let from = |name: &str| super::harness::root().join("tests/interop/tls").join(name);
    let install = |name: &str| {
        std::fs::copy(from(&format!("{name}.pem")), path("pem")).expect("copied");
        std::fs::copy(from(&format!("{name}.key")), path("key")).expect("copied");
    };
    install("one");
    let flags =
        ["--workers", "1", "--models", "efficientnet-lite0", "--tls-cert", &path("pem"), "--tls-key", &path("key")];
    let stack = Stack::start(&flags);
    let url = stack.url("/v1/jobs?model=efficientnet-lite0");
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let client = |name: &str| {
        let pem = std::fs::read(from(&format!("{name}.pem"))).expect("there");
        let known = reqwest::Certificate::from_pem(&pem).expect("a certificate");
        reqwest::Client::builder().tls_certs_only([known]).pool_max_idle_per_host(0).build().expect("a client")
    };
    let upload = async |client: reqwest::Client| client.post(&url).body(photo("rocket.jpg")).send().await;
    let taken = upload(client("one")).await.expect("answered");
    assert_eq!(taken.status(), 202);
    assert!(upload(client("two")).await.is_err(), "it is another one's");
    // A client without TLS, or that sends nothing, is disconnected and harms no other.
    let plain = reqwest::get(url.replace("https://", "http://")).await;
    assert!(plain.is_err(), "{plain:?}");
    install("two");
    eventually("the new certificate is shown", async || upload(client("two")).await.ok()).await;
    // Our own commands know whom to trust when they are told.
    let trusted = from("two.pem").display().to_string();
    let words = ["jobs", "list", "--api", &stack.url("").replace("127.0.0.1", "localhost"), "--api-ca", &trusted];
    let output = stack.command(&words);
    assert!(output.status.success(), "{output:?}");
    let output = stack.command(&words[..4]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("certificate"), "{output:?}");
    // What `openssl req -x509` makes by itself calls itself an authority and names no host.
    if let Some(openssl) = super::harness::tool("openssl") {
        let made = std::process::Command::new(openssl)
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=sightline", "-keyout"])
            .args([path("key"), "-out".into(), path("pem")])
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{made:?}");
        let given = path("pem");
        let words = ["jobs", "list", "--api", &stack.url(""), "--api-ca", &given];
        eventually("it is trusted as it is", async || stack.command(&words).status.success().then_some(())).await;
        let output = stack.command(&[&words[..5], &[&trusted]].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains("certificate"), "another one is not: {output:?}");
    }
    // Half a pair is none.
    let output = stack.command(&["api", "--tls-cert", &path("pem")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tls-key"), "{output:?}");
    let output =
        stack.command(&["api", "--tls-cert", &path("key"), "--tls-key", &path("key"), "--listen", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tls-cert, --tls-key: "), "{output:?}");
}
