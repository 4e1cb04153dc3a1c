//! The power is cut under load. What was acknowledged is there; without syncs it is not, which shows
//! that the test can tell.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::stream::Config;
use bytes::Bytes;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::disk::Disk;
use super::harness::{Broker, eventually};
use super::rounds;

fn payload(number: u64) -> Bytes {
    number.to_le_bytes().repeat(1 + number as usize % 400).into()
}

/// Publishes under load, cuts the power somewhere, and counts the acknowledged messages that are
/// not there, or not as they were, when it is back.
async fn lost_in_a_cut(disk: &Disk, flags: &[&str], turn: usize, dice: &mut StdRng) -> (usize, usize) {
    let data = disk.path().join(format!("data-{turn}"));
    let mut broker = Broker::start_at(&data, flags).await;
    let context = broker.bare().await;
    let config = Config { name: "s".into(), subjects: vec!["s.*".into()], allow_direct: true, ..Config::default() };
    context.create_stream(config).await.expect("created");
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let publishers: Vec<_> = (0..64_u64)
        .map(|lane| {
            let (context, acknowledged) = (context.clone(), acknowledged.clone());
            tokio::spawn(async move {
                for turn in 0.. {
                    let number = turn * 64 + lane;
                    let Ok(sent) = context.publish(format!("s.{number}"), payload(number)).await else { return };
                    let Ok(ack) = sent.await else { return };
                    acknowledged.lock().expect("no panic").push((ack.sequence, number));
                }
            })
        })
        .collect();
    let scissors = disk.scissors();
    eventually("it is well under way", async || (acknowledged.lock().expect("no panic").len() > 500).then_some(()))
        .await;
    tokio::time::sleep(Duration::from_millis(dice.random_range(0..300))).await;
    // Promised is what was acknowledged before the cut. One sync may be under way just then, and ext4
    // answers it with success even though the cut has overtaken it: a real disk would not answer.
    let before = acknowledged.lock().expect("no panic").len();
    scissors.cut();
    broker.kill();
    publishers.into_iter().for_each(|publisher| publisher.abort());
    let acknowledged = std::mem::take(&mut *acknowledged.lock().expect("no panic"));
    disk.restore();
    if !data.join("broker.token").exists() {
        // Without syncs even the folder may be gone.
        return (before, before);
    }
    let Some(()) = broker.try_restart().await else {
        assert!(!flags.is_empty(), "the broker does not start after a power cut: {}", broker.log());
        return (before, before);
    };
    let context = broker.bare().await;
    let Ok(stream) = context.get_stream("s").await else {
        assert!(!flags.is_empty(), "the stream is gone");
        return (before, before);
    };
    let last = stream.cached_info().state.last_sequence;
    let mut lost = 0;
    for (turn, (sequence, number)) in acknowledged.iter().enumerate() {
        match stream.direct_get(*sequence).await {
            Ok(message) if message.payload == payload(*number) => {}
            other => {
                let other = other.map(|message| message.payload.len());
                println!(
                    "{sequence} is not there (last {last}; acknowledged {turn} of {}, {before} before the cut): {other:?}",
                    acknowledged.len()
                );
                lost += usize::from(turn < before);
            }
        }
    }
    (before, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut() {
    let Some(disk) = Disk::mount(1024) else { return };
    let mut dice = StdRng::seed_from_u64(std::process::id().into());
    let mut total = 0;
    for turn in 0..rounds(3, 20) {
        let (acknowledged, lost) = lost_in_a_cut(&disk, &[], turn, &mut dice).await;
        assert_eq!(lost, 0, "of {acknowledged} acknowledged messages");
        std::fs::remove_dir_all(disk.path().join(format!("data-{turn}"))).expect("removed");
        total += acknowledged;
    }
    println!("{total} messages acknowledged before the cuts, 0 lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_syncs_a_power_cut_loses_what_was_acknowledged() {
    let Some(disk) = Disk::mount(1024) else { return };
    let mut dice = StdRng::seed_from_u64(std::process::id().into());
    let (acknowledged, lost) = lost_in_a_cut(&disk, &["--no-sync"], 0, &mut dice).await;
    assert!(lost > 0, "all of {acknowledged} were there, so this test cannot tell");
    println!("{lost} of {acknowledged} lost without syncs");
}
