//! Clients that mean no good, six hundred of a kind at a time, and a bystander who is served all the while.
//!
//! The system has the usual limit of 1,024 open files. What is asserted: every upload of the bystander is taken and
//! none of it fails, memory stays below a bound, and what the clients held is given back afterwards. How long
//! the bystander waited is printed, with and without them; `SIGHTLINE_FAULTS=long` does it for longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::harness::{Stack, eventually, photo, rounds, send};

/// Clients of a kind at a time.
const CLIENTS: usize = 600;
/// Resident memory of `up` at any time, MiB: two times 256 MiB for bodies, and what it has without them.
const MEMORY_MIB_MAX: usize = 900;

/// What a client sends at once, and then again and again.
struct Kind {
    name: &'static str,
    begin: Vec<u8>,
    drip: &'static [u8],
    /// It reads what is answered.
    reads: bool,
}

fn head(method: &str, path: &str, more: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").into_bytes()
}

/// A tar whose first entry's extended header claims 600 MiB.
fn claiming_tar() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(600 << 20);
    header.set_path("pax").expect("a path");
    header.set_cksum();
    [&header.as_bytes()[..], &vec![b'9'; 256 << 10]].concat()
}

fn kinds() -> Vec<Kind> {
    let body = |length: usize| format!("Content-Length: {length}\r\n");
    let kind = |name, begin, drip: &'static [u8]| Kind { name, begin, drip, reads: true };
    let batch = |content: &str| {
        head(
            "PUT",
            "/v1/batches/x?model=efficientnet-lite0",
            &format!("Content-Type: {content}\r\nContent-Length: 999999999\r\n"),
        )
    };
    let upload = head("POST", "/v1/jobs?model=efficientnet-lite0", &body(19_000_000));
    let mut zip = b"PK\x03\x04\x14\0\0\0\x08\0".to_vec();
    zip.extend([0; 16]);
    zip.extend([1, 0, 0, 0, b'a']);
    vec![
        kind("idle", Vec::new(), b""),
        kind("dripping heads", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec(), b"x"),
        kind("huge heads", [head("GET", "/healthz", "")[..40].to_vec(), vec![b'x'; 256 << 10]].concat(), b"x"),
        kind("dripping uploads", upload.clone(), b"\xFF"),
        kind("uploads that stop", [upload, vec![0xFF; 1 << 20]].concat(), b"\xFF"),
        kind("dripping JSON", head("POST", "/v1/topics", &body(60_000)), b" "),
        kind("tars that claim", [batch("application/x-tar"), claiming_tar()].concat(), b"9"),
        kind("zips without end", [batch("application/zip"), zip].concat(), b"\0"),
        kind("preambles", [batch("multipart/form-data; boundary=b"), vec![b'p'; 512 << 10]].concat(), b"p"),
        kind("lines without end", [batch("application/x-ndjson"), vec![b'l'; 512 << 10]].concat(), b"l"),
        Kind { name: "never reading", begin: head("GET", "/openapi.json", "").repeat(20), drip: b"", reads: false },
    ]
}

/// Holds a connection until it is told to let go or is cut.
async fn hold(address: String, kind: Arc<Kind>, over: Arc<AtomicBool>) {
    let Ok(mut socket) = TcpStream::connect(address).await else { return };
    let mut buffer = [0; 4096];
    let sending = async {
        if socket.write_all(&kind.begin).await.is_err() {
            return;
        }
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if !kind.drip.is_empty() && socket.write_all(kind.drip).await.is_err() {
                return;
            }
            if kind.reads
                && let Ok(Ok(0) | Err(_)) =
                    tokio::time::timeout(Duration::from_millis(1), socket.read(&mut buffer)).await
            {
                return;
            }
        }
    };
    let ended = async {
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = sending => {}
        () = ended => {}
    }
}

/// Uploads one after the other from an address of its own; the times until they were taken, sorted.
async fn bystander(stack: &Stack, count: usize) -> Vec<Duration> {
    let client =
        reqwest::Client::builder().local_address(std::net::IpAddr::from([127, 0, 0, 2])).pool_max_idle_per_host(0);
    let client = client.build().expect("a client");
    let mut times = Vec::new();
    for _ in 0..count {
        let url = stack.url("/v1/jobs?model=efficientnet-lite0");
        let begun = Instant::now();
        let taken = send(client.post(url).body(photo("rocket.jpg"))).await;
        assert_eq!(taken.status, 202, "{}", taken.body);
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_hold_up_no_other_client() {
    if !cfg!(target_os = "linux") {
        eprintln!("SKIPPED: open files and memory are read from /proc");
        return;
    }
    let stack = Stack::start_with_files(1024, &["--workers", "1", "--models", "efficientnet-lite0"]);
    let count = rounds(30, 300);
    bystander(&stack, 5).await;
    let alone = p99(&bystander(&stack, count).await);
    let at_rest = stack.open_files();
    for kind in kinds() {
        let (kind, over) = (Arc::new(kind), Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(hold(stack.api(), kind.clone(), over.clone()));
        }
        let mut most = 0;
        let beside = [p99(&bystander(&stack, count).await), p99(&bystander(&stack, count).await)];
        for _ in 0..10 {
            most = most.max(stack.memory("VmRSS") >> 20);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!(
            "{:>18}: p99 {:?} while they come, then {:?}, alone {alone:?}: ratios {:.1} and {:.1}; {most} MiB",
            kind.name,
            beside[0],
            beside[1],
            beside[0].as_secs_f64() / alone.as_secs_f64(),
            beside[1].as_secs_f64() / alone.as_secs_f64()
        );
        assert!(most <= MEMORY_MIB_MAX, "{}: {most} MiB", kind.name);
        over.store(true, Ordering::Relaxed);
        while clients.join_next().await.is_some() {}
    }
    eventually("what they held is given back", async || (stack.open_files() <= at_rest + 20).then_some(())).await;
    assert_eq!(stack.get("/readyz").await.status, 200);
    let job = stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await;
    assert_eq!(job["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_of_the_queue_leave_it_to_its_own_clients() {
    let stack = Stack::start_with_files(1024, &["--workers", "1", "--models", "efficientnet-lite0"]);
    let url = std::fs::read_to_string(stack.data().join("broker.url")).expect("it is left there");
    let address = url.trim().rsplit(['/', '@']).next().expect("an address").to_owned();
    let mut held = Vec::new();
    for _ in 0..rounds(800, 4_000) {
        // Those beyond the bound are cut at once.
        held.extend(TcpStream::connect(&address).await);
        if held.len() > 800 {
            held.drain(..400);
        }
    }
    let members = stack.command(&["members", "--json"]);
    assert!(members.status.success(), "{}", String::from_utf8_lossy(&members.stderr));
    // The journal goes on, into new segments too.
    for _ in 0..30 {
        let job = stack.run("model=efficientnet-lite0", photo("astronaut.png")).await;
        assert_eq!(job["state"], "succeeded");
    }
    drop(held);
}
