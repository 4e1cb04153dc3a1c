//! Behind a real nginx: with our recipe everything works under a prefix, with its defaults nothing is open.

use std::path::Path;
use std::process::{Command, Stdio};

use futures::StreamExt;
use reqwest::{Client, Method, RequestBuilder};

use super::harness::{Running, Stack, eventually, photo, root, send, temporary_folder, test_models, tool};
use super::keys::admin_key;

/// An nginx before the API: our recipe under `/vision/`, and a bare `proxy_pass` under `/bare/`.
struct Nginx {
    _running: Running,
    _folder: tempfile::TempDir,
    base: String,
    http: Client,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

impl Nginx {
    async fn start(program: &Path, port: u16, api: &str) -> Self {
        let folder = temporary_folder();
        let recipe = std::fs::read_to_string(root().join("api/examples/nginx.conf")).expect("the recipe");
        let recipe = recipe.replace("127.0.0.1:8080", api);
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/errors;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen 127.0.0.1:{port};\n{recipe}\nlocation /bare/ {{ proxy_pass http://{api}/; }} }} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).arg("-p").arg(folder.path()).stderr(Stdio::null());
        let running = Running(command.spawn().expect("nginx starts"));
        let base = format!("http://127.0.0.1:{port}");
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        eventually("nginx answers", async || http.get(&base).send().await.ok()).await;
        Self { _running: running, _folder: folder, base, http }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }
}

#[tokio::test]
async fn the_recipe_works_and_a_stranger_gets_in_nowhere() {
    let Some(program) = tool("nginx") else { return };
    let models = test_models();
    let flags = ["--workers", "1", "--models", &models];
    let mut stack = Stack::start(&flags);
    let key = admin_key(&stack);
    let data = stack.data().to_owned();
    assert!(stack.terminate());
    let port = free_port();
    let public = format!("http://127.0.0.1:{port}/vision");
    let started = Stack::try_start_at(data, &[&flags[..], &["--behind-proxy", "--public-url", &public]].concat());
    let stack = started.unwrap_or_else(|log| panic!("{log}"));
    let nginx = Nginx::start(&program, port, &stack.api()).await;

    for prefix in ["/vision", "/bare"] {
        for path in ["/v1/jobs", "/v1/keys", "/v1/topics", "/v1/members", "/v1/models", "/metrics", "/v1/dead"] {
            let answer = send(nginx.ask(Method::GET, &format!("{prefix}{path}"))).await;
            assert_eq!(answer.status, 401, "{prefix}{path}: {}", answer.body);
        }
        let wish = serde_json::json!({"name": "eve", "scopes": ["admin"]});
        assert_eq!(send(nginx.ask(Method::POST, &format!("{prefix}/v1/keys")).json(&wish)).await.status, 401);
        assert_eq!(send(nginx.ask(Method::GET, &format!("{prefix}/healthz"))).await.status, 200, "{prefix}");
    }

    // Links lead back through the proxy.
    let upload = |prefix: &str, image: Vec<u8>| {
        nginx.ask(Method::POST, &format!("{prefix}/v1/jobs?model=slow")).bearer_auth(&key).body(image)
    };
    let taken = send(upload("/vision", photo("rocket.jpg"))).await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    let location = taken.header("location").to_owned();
    assert!(location.starts_with("/vision/v1/jobs/"), "{location}");
    assert_eq!(taken.json["urls"]["self"], location.as_str());

    // Events come as they happen, with nginx's own settings too: the first one before the job has ended.
    for prefix in ["/vision", "/bare"] {
        let id = send(upload("/vision", photo("rocket.jpg"))).await.text("id");
        let path = format!("{prefix}/v1/jobs/{id}/events");
        let response = nginx.ask(Method::GET, &path).bearer_auth(&key).send().await.expect("answered");
        assert_eq!(response.status(), 200);
        let mut events = response.bytes_stream();
        let first = events.next().await.expect("an event").expect("a part of it");
        let first = String::from_utf8_lossy(&first).into_owned();
        assert!(first.contains("event:") && !first.contains("succeeded"), "{prefix}: {first}");
        let mut all = first;
        while let Some(Ok(more)) = events.next().await {
            all.push_str(&String::from_utf8_lossy(&more));
        }
        let last = all.lines().filter_map(|line| line.strip_prefix("id:")).next_back().expect("ids").trim().to_owned();
        let again = nginx.ask(Method::GET, &path).bearer_auth(&key).header("last-event-id", last);
        assert_eq!(send(again).await.status, 204, "{prefix}");
    }

    // A large body passes, and is refused by us alone, with our words.
    let large = send(upload("/vision", vec![0xFF; 15 << 20])).await;
    assert_eq!((large.status, large.text("code").as_str()), (415, "image_unsupported"));

    // Pages of the proxy's own host may write, others may not, and with nginx's defaults it is said what is missing.
    let origin = nginx.base.clone();
    let own = send(upload("/vision", photo("rocket.jpg")).header("origin", &origin)).await;
    assert_eq!(own.status, 202, "{}", own.body);
    let foreign = send(upload("/vision", photo("rocket.jpg")).header("origin", "https://evil.example")).await;
    assert_eq!((foreign.status, foreign.text("code").as_str()), (403, "origin_forbidden"));
    assert!(foreign.text("detail").contains("X-Forwarded-Host"), "{}", foreign.body);

    // The description and its page are found under the prefix.
    let moved = send(nginx.ask(Method::GET, "/vision/docs")).await;
    assert_eq!(moved.header("location"), "/vision/docs/");
    let page = send(nginx.ask(Method::GET, "/vision/docs/")).await;
    assert!(
        page.status == 200 && page.header("content-security-policy").contains("script-src 'self'"),
        "{}",
        page.body
    );
    let settings = send(nginx.ask(Method::GET, "/vision/docs/swagger-initializer.js")).await;
    assert!(settings.body.contains("../openapi.json"), "{}", settings.body);
    let description = send(nginx.ask(Method::GET, "/vision/openapi.json")).await;
    assert_eq!(description.json["servers"][0]["url"], "/vision");
}

#[tokio::test]
async fn two_hosts_are_one_too_many_and_an_old_health_check_needs_none() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let raw = async |request: &str| {
        let mut socket = tokio::net::TcpStream::connect(super::shared().api()).await.expect("it listens");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("it closes in order");
        answer
    };
    let twice =
        raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(twice.starts_with("HTTP/1.1 400"), "{twice}");
    let old = raw("GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
    let write = raw("POST /v1/jobs?model=x HTTP/1.0\r\nContent-Length: 0\r\n\r\n").await;
    assert!(write.starts_with("HTTP/1.0 403"), "{write}");
}
