//! All of a broker's stored state, tested against disks that fail at any step and decay at any bit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::core::{Core, now};
use super::shared::Shared;
use super::{Broker, Options};
use crate::journal::{Change, Haste, OpenError};
use crate::nats::Publication;
use crate::platform::memory::Memory;
use crate::stream::{ConsumerConfig, StreamConfig, config};

const SEGMENT_BYTES: u64 = 4096;

type Files = Vec<(String, Vec<u8>)>;

/// Number of rounds: `short`, or `long` with `SIGHTLINE_FAULTS=long`.
fn rounds(short: u64, long: u64) -> u64 {
    if std::env::var("SIGHTLINE_FAULTS").is_ok_and(|form| form == "long") { long } else { short }
}

fn open(memory: &Arc<Memory>) -> Result<Shared, OpenError> {
    let options = Options { segment_bytes: Some(SEGMENT_BYTES), ..Options::new("memory".into()) };
    let core = Core::open(memory.clone(), &options, Box::new(|_| {}))?;
    Ok(Shared::new(core, options, ([127, 0, 0, 1], 0).into(), None))
}

fn put_stream(core: &mut Core, json: &str) {
    let config: StreamConfig = config::read(json.as_bytes()).expect("reads");
    let config = config.checked().expect("a good configuration");
    let json = serde_json::to_vec(&config).expect("writes");
    let change = Change::StreamPut { stream: core.new_stream_id(), created: 1, config: &json };
    core.change(&change, true, now()).expect("there is room");
}

fn put_consumer(core: &mut Core, stream: &str) {
    let stream = core.stream(stream).expect("there");
    let config = ConsumerConfig {
        durable_name: Some("c".into()),
        ack_policy: crate::stream::AckPolicy::Explicit,
        ..ConsumerConfig::default()
    };
    let config = config.checked(&stream.config).expect("a good configuration");
    let json = serde_json::to_vec(&config).expect("writes");
    let change = Change::ConsumerPut { stream: stream.id, consumer: 1, created: 1, start: 1, resume: 0, config: &json };
    core.change(&change, true, now()).expect("there is room");
}

fn publish(core: &mut Core, subject: &str, payload: Vec<u8>) -> u64 {
    let stream = core.taker(subject.as_bytes()).expect("a stream takes it");
    let (subject, payload) = (Bytes::from(subject.to_owned()), Bytes::from(payload));
    let publication = Publication { subject, reply: Some("nobody".into()), header: Bytes::new(), payload };
    core.store(stream, &publication, now());
    core.streams[&stream].last
}

/// A message's payload is derived from its subject, so that a mix-up is detected.
fn payload(subject: &str, number: u64) -> Vec<u8> {
    format!("{subject} {number} ").repeat(1 + number as usize % 20).into_bytes()
}

/// All messages of a broker, read from its disk: stream, sequence, payload; and how many losses it reports.
fn contents(shared: &Shared) -> (BTreeMap<(String, u64), Vec<u8>>, usize) {
    let mut core = shared.lock();
    let mut found = BTreeMap::new();
    let mut unreadable = Vec::new();
    let messages: Vec<_> = core
        .streams
        .values()
        .flat_map(|stream| stream.messages.from(0).map(|m| (stream.id, stream.config.name.clone(), m.take_out())))
        .collect();
    for (id, name, message) in messages {
        match core.journal.read(message.place).load() {
            Ok(entry) => {
                let payload = entry[entry.len() - message.payload_bytes as usize..].to_vec();
                found.insert((name, message.sequence), payload);
            }
            Err(error) => unreadable.push(((id, message.sequence), message.place, error)),
        }
    }
    unreadable.iter().for_each(|(of, place, error)| core.unreadable(*of, *place, error));
    (found, core.losses.len())
}

/// Two streams in several segments, one whose messages replace one another and one with a consumer,
/// optionally with a snapshot in the middle.
fn filled(with_snapshot: bool) -> (Files, BTreeMap<(String, u64), Vec<u8>>) {
    let memory = Memory::with([]);
    let shared = open(&memory).expect("opens");
    put_stream(&mut shared.lock(), r#"{"name":"r","subjects":["r.*"],"max_msgs_per_subject":1}"#);
    put_stream(&mut shared.lock(), r#"{"name":"w","subjects":["w.*"],"retention":"workqueue"}"#);
    put_consumer(&mut shared.lock(), "w");
    for number in 0..60 {
        let mut core = shared.lock();
        let subject = format!("r.{}", number % 7);
        publish(&mut core, &subject, payload(&subject, number));
        let subject = format!("w.{number}");
        publish(&mut core, &subject, payload(&subject, number));
        core.finish_all();
        drop(core);
        shared.committer.barrier().expect("the disk is well");
        if with_snapshot && number == 40 {
            shared.snapshot(0).expect("the disk is well");
        }
    }
    // Flushes the journal, as the keeper does.
    shared.lock().finish_all();
    shared.committer.barrier().expect("the disk is well");
    let (found, losses) = contents(&shared);
    assert_eq!((found.len(), losses), (67, 0));
    drop(shared);
    let files = memory.files().into_iter().filter(|(name, _)| !name.starts_with("spare")).collect();
    (files, found)
}

#[test]
fn wherever_a_bit_flips_what_is_whole_is_served_and_the_rest_is_reported() {
    for with_snapshot in [false, true] {
        let (files, expected) = filled(with_snapshot);
        let mut dice = StdRng::seed_from_u64(7);
        for _ in 0..rounds(600, 10_000) {
            let mut image = files.clone();
            let which = dice.random_range(0..image.len() as u64) as usize;
            let (name, bytes) = &mut image[which];
            let written = bytes.iter().rposition(|byte| *byte != 0).expect("written") as u64 + 1;
            let (at, bit) = (dice.random_range(0..written) as usize, dice.random_range(0..8));
            bytes[at] ^= 1 << bit;
            let place = format!("bit {bit} of byte {at} of {name}, snapshot: {with_snapshot}");
            let shared = open(&Memory::with(image)).unwrap_or_else(|error| panic!("{place}: {error}"));
            let (found, losses) = contents(&shared);
            for (key, payload) in &found {
                // A replaced message may reappear when its replacement is lost, but never with other bytes.
                let known = expected.get(key).is_none_or(|expected| expected == payload);
                assert!(known, "{place}: {key:?} is not what was stored");
            }
            let missing = expected.keys().filter(|key| !found.contains_key(*key)).count();
            assert!(missing <= 1, "{place}: {missing} messages for one bit");
            assert!(missing == 0 || losses > 0, "{place}: {missing} missing without a report");
        }
    }
}

/// What a run of changes guarantees to find, and not to find, after a crash.
#[derive(Debug, Default)]
struct Promised {
    stored: BTreeSet<(String, u64)>,
    gone: BTreeSet<(String, u64)>,
}

/// Works on a disk until it fails or the work is done. Promises only what was durable in time.
fn work(memory: &Arc<Memory>, promised: &mut Promised) -> Option<()> {
    let shared = open(memory).ok()?;
    if shared.lock().stream("w").is_none() {
        put_stream(&mut shared.lock(), r#"{"name":"w","subjects":["w.*"],"retention":"workqueue"}"#);
        put_consumer(&mut shared.lock(), "w");
    }
    shared.lock().finish_all();
    shared.committer.barrier().ok()?;
    let mut mark = 0;
    for round in 0..6 {
        let mut stored = Vec::new();
        for number in 0..5 {
            let subject = format!("w.{number}");
            stored.push(publish(&mut shared.lock(), &subject, vec![b'x'; 300]));
        }
        shared.lock().finish_all();
        shared.committer.barrier().ok()?;
        promised.stored.extend(stored.iter().map(|sequence| ("w".to_owned(), *sequence)));
        // Most of them are settled, so that segments become dead.
        for sequence in &stored[1..] {
            // From here until the ack is durable, the message may be present or not.
            promised.stored.remove(&("w".to_owned(), *sequence));
            let mut core = shared.lock();
            let stream = core.id_of("w").expect("there");
            let acked = Change::Acked { stream, consumer: 1, sequence: *sequence };
            core.change(&acked, true, now()).ok()?;
        }
        shared.lock().finish_all();
        shared.committer.barrier().ok()?;
        promised.gone.extend(stored[1..].iter().map(|sequence| ("w".to_owned(), *sequence)));
        match round % 3 {
            0 => mark = shared.snapshot(0).ok()?.0,
            1 => drop(shared.sweep(if round % 2 == 0 { Haste::Now } else { Haste::None }).ok()?),
            _ => shared.drop_dead(mark).ok()?,
        }
    }
    Some(())
}

#[test]
fn a_crash_at_any_step_and_another_while_recovering_lose_nothing() {
    let steps = {
        let memory = Memory::with([]);
        work(&memory, &mut Promised::default()).expect("a disk that is well");
        memory.steps()
    };
    assert!(steps > 60, "{steps}");
    let mut dice = StdRng::seed_from_u64(11);
    for first in (0..steps).cycle().take(rounds(steps, 20 * steps) as usize) {
        let mut promised = Promised::default();
        let memory = Memory::with([]);
        memory.fail_after(first);
        work(&memory, &mut promised);
        let files = memory.cut(&mut || dice.random_range(0..2) == 0);
        // A second crash, during recovery or soon after it.
        let memory = Memory::with(files);
        memory.fail_after(dice.random_range(0..60));
        work(&memory, &mut promised);
        let memory = Memory::with(memory.cut(&mut || dice.random_range(0..2) == 0));
        let shared = open(&memory).unwrap_or_else(|error| panic!("crash at step {first}: {error}"));
        let (found, losses) = contents(&shared);
        assert_eq!(losses, 0, "crash at step {first}");
        let lost = promised.stored.iter().find(|key| !found.contains_key(*key));
        assert_eq!(lost, None, "crash at step {first}: promised, and not there");
        let back = promised.gone.iter().find(|key| found.contains_key(*key));
        assert_eq!(back, None, "crash at step {first}: settled, and back again");
    }
}

#[test]
fn a_journal_of_version_1_is_read_as_it_was_left() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journal-v1");
    let files = std::fs::read_dir(folder).expect("the fixture is there").map(|entry| {
        let entry = entry.expect("readable");
        (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("readable"))
    });
    let memory = Memory::with(files);
    for _ in 0..2 {
        let shared = open(&memory).expect("opens");
        let (found, losses) = contents(&shared);
        assert_eq!(losses, 0);
        let text = |stream: &str, sequence: u64| {
            found.get(&(stream.to_owned(), sequence)).map(|payload| String::from_utf8_lossy(payload).into_owned())
        };
        let work: Vec<u64> = found.keys().filter(|(name, _)| name == "work").map(|(_, sequence)| *sequence).collect();
        assert_eq!(work, [2, 3, 5, 6, 7, 9, 10, 11]);
        assert_eq!(text("work", 9).as_deref(), Some("payload 9"));
        assert_eq!([2, 3, 4, 5].map(|n| text("facts", n).is_some()), [true; 4]);
        assert_eq!(text("facts", 4).as_deref(), Some("fact 4"));
        let core = shared.lock();
        let stream = core.stream("work").expect("there");
        let consumer = stream.consumer("w").expect("there");
        assert_eq!((stream.last, consumer.in_hand(), consumer.unseen()), (11, 2, 6));
        assert_eq!(core.stream("facts").expect("there").config.metadata["note"], "golden");
        drop(core);
        // The second time, it is read from a snapshot of the current version.
        shared.snapshot(0).expect("the disk is well");
    }
}

#[tokio::test]
async fn a_client_that_speaks_at_once_finds_a_place_in_a_crowd_of_strangers() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = Options { connections_max: 8, ..Options::new(folder.path().into()) };
    options.auth.token = Some("t".into());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let broker = Broker::start(options, listener).expect("starts");
    // All of them connect before the broker accepts the first, because it runs on this thread.
    let connect = |_| std::net::TcpStream::connect(broker.address()).expect("there is a queue of connections");
    let strangers: Vec<_> = (0..100).map(connect).collect();
    let mut client = TcpStream::connect(broker.address()).await.expect("connects");
    client.write_all(b"CONNECT {\"auth_token\":\"t\",\"verbose\":false}\r\nPING\r\n").await.expect("is read");
    let mut answer = Vec::new();
    while !answer.ends_with(b"PONG\r\n") {
        let count = client.read_buf(&mut answer).await.expect("an answer");
        assert_ne!(count, 0, "cut after {:?}", String::from_utf8_lossy(&answer));
    }
    assert!(!String::from_utf8_lossy(&answer).contains("-ERR"));
    drop(strangers);
    broker.stop().await;
}
