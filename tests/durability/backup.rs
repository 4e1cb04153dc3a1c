//! Copies that are taken under load, and disks that decay.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;
use bytes::Bytes;

use super::harness::{Broker, eventually, sightline};
use super::rounds;

fn payload(number: u64) -> Bytes {
    number.to_le_bytes().repeat(20 + number as usize % 200).into()
}

fn run(words: &[&str], path: &Path, data: &Path) -> Output {
    let mut command = sightline();
    command.arg("broker").args(words).arg(path).arg("--data").arg(data).output().expect("runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn stream(context: &Context) {
    let config = Config { name: "s".into(), subjects: vec!["s.*".into()], allow_direct: true, ..Config::default() };
    context.create_stream(config).await.expect("created");
}

/// Flips a bit of a stored payload.
fn decay(broker: &Broker, number: u64) {
    let files = std::fs::read_dir(broker.store().join("journal")).expect("a folder").flatten();
    let paths = files.map(|entry| entry.path());
    let segment =
        paths.into_iter().find(|path| path.to_string_lossy().contains("segment-")).expect("all is in one segment");
    let bytes = std::fs::read(&segment).expect("readable");
    let wanted = payload(number);
    let at = bytes.windows(wanted.len()).position(|window| window == wanted).expect("it is there") as u64 + 50;
    let file = std::fs::File::options().write(true).open(&segment).expect("writable");
    file.write_all_at(&[bytes[at as usize] ^ 1], at).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_busy_queue_holds_all_that_was_acknowledged_before_it() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    stream(&context).await;
    let churn = Config { name: "churn".into(), max_messages: 100, ..Config::default() };
    context.create_stream(churn).await.expect("created");
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let next = Arc::new(AtomicU64::new(0));
    let publishers: Vec<_> = (0..16)
        .map(|_| {
            let (context, stop, acknowledged, next) =
                (context.clone(), stop.clone(), acknowledged.clone(), next.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    // These go again soon, so that the log is tidied meanwhile.
                    let large = Bytes::from(vec![0; 50_000]);
                    context.publish("churn", large).await.expect("sent").await.expect("acknowledged");
                    let sent = context.publish(format!("s.{}", number % 500), payload(number)).await.expect("sent");
                    let ack = sent.await.expect("acknowledged");
                    acknowledged.lock().expect("no panic").push((ack.sequence, number));
                }
            })
        })
        .collect();
    eventually("it is well under way", async || (acknowledged.lock().expect("no panic").len() > 500).then_some(()))
        .await;
    for round in 0..rounds(3, 15) {
        let before = acknowledged.lock().expect("no panic").clone();
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let (copy, data) = (folder.path().join("copy"), folder.path().join("data"));
        let output = run(&["backup"], &copy, broker.store());
        assert!(output.status.success(), "round {round}: {}", said(&output));
        assert!(said(&output).contains("2 streams") && said(&output).contains(" 0 losses"), "{}", said(&output));
        let output = run(&["restore"], &copy, &data);
        assert!(output.status.success(), "round {round}: {}", said(&output));
        let again = run(&["restore"], &copy, &data);
        assert!(!again.status.success() && said(&again).contains("already exists"), "{}", said(&again));
        let restored = Broker::start_at(&data, &[]).await;
        let stream = restored.bare().await.get_stream("s").await.expect("it is in the copy");
        for (sequence, number) in before.iter().step_by(7) {
            let message = stream.direct_get(*sequence).await.unwrap_or_else(|error| panic!("{sequence}: {error}"));
            assert_eq!(message.payload, payload(*number), "round {round}: message {sequence}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_decays_is_named_and_never_served_and_the_others_are() {
    let mut broker = Broker::start().await;
    let context = broker.bare().await;
    stream(&context).await;
    for number in 1..=50_u64 {
        context.publish(format!("s.{number}"), payload(number)).await.expect("sent").await.expect("acknowledged");
    }
    broker.kill();
    decay(&broker, 20);

    let output = sightline().args(["broker", "check", "--data"]).arg(broker.store()).output().expect("runs");
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("49 messages") && said(&output).contains("message 20 of stream s is lost"));
    broker.restart().await;
    broker.logged("message 20 of stream s is lost").await;
    let stream = broker.bare().await.get_stream("s").await.expect("there");
    for number in 1..=50_u64 {
        let found = stream.direct_get(number).await;
        match number {
            20 => assert!(found.is_err(), "a damaged message was served"),
            _ => assert_eq!(found.expect("the others are served").payload, payload(number)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_decays_while_the_broker_runs_is_found_when_it_is_asked_for() {
    let mut broker = Broker::start().await;
    let context = broker.bare().await;
    stream(&context).await;
    for number in 1..=20_u64 {
        context.publish(format!("s.{number}"), payload(number)).await.expect("sent").await.expect("acknowledged");
    }
    // Started anew, it has nothing of it in memory.
    broker.kill();
    broker.restart().await;
    decay(&broker, 7);

    let stream = broker.bare().await.get_stream("s").await.expect("there");
    assert!(stream.direct_get(7).await.is_err(), "a damaged message was served");
    assert_eq!(stream.direct_get(8).await.expect("the connection is kept").payload, payload(8));
    eventually("it has left its stream", async || {
        (stream.get_info().await.expect("answers").state.messages == 19).then_some(())
    })
    .await;
    broker.logged("message 7 of stream s is lost").await;
}
